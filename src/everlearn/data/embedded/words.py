"""Word pools of the generated corpus and of the embedded tasks.

Every pool is one natural class of common English words (animals, colours, cities, ...), so that a model
which has seen two fillers of a slot can propose a third one of the same class. `NONSENSE` holds made-up
words for toy languages, `LABELS` plain words whose meaning as a label is drawn afresh for every document:
neither has a meaning that a model could know in advance.
"""

from __future__ import annotations


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


POOLS: dict[str, tuple[str, ...]] = {
    "name": _words(
        "Anna Ben Carla David Emma Felix Grace Henry Iris Jack Karen Leo Maria Nick Olga Peter Rosa Sam Tina"
        " Victor Wendy Adam Bella Chris Diana Eric Fiona George Helen Ivan Julia Kevin Laura Mark Nora Oscar"
        " Paula Ralph Sara Tom Uma Vera Will Zoe Alan Betty Carl Doris Edgar Flora Gina Hugo Jane Kurt Lily"
        " Max Nina Otto Rita Simon"
    ),
    "animal": _words(
        "cat dog horse cow sheep goat pig duck hen fox wolf bear lion tiger mouse rabbit deer owl crow eagle"
        " snake frog whale shark seal otter donkey camel monkey spider turtle lizard beaver badger pigeon swan"
    ),
    "colour": _words("red blue green yellow black white brown grey pink purple orange golden silver violet"),
    "food": _words(
        "bread cheese rice soup salad pasta cake pizza butter honey meat fish egg bean corn pie jam salt sugar"
        " pepper cream toast noodle cookie sauce curry"
    ),
    "fruit": _words("apple pear plum cherry lemon peach grape melon mango banana berry fig lime olive"),
    "drink": _words("water milk tea coffee juice wine beer cider soda cocoa"),
    "tool": _words(
        "hammer saw drill rope knife shovel ladder brush needle wrench axe pump screw nail file broom rake lamp"
        " torch bucket"
    ),
    "clothes": _words("shirt coat hat shoe sock glove scarf belt dress jacket boot skirt sweater tie cap apron"),
    "vehicle": _words("car bus train bike truck boat ship plane tram van taxi ferry wagon tractor scooter canoe"),
    "furniture": _words("table chair bed desk sofa shelf bench stool mirror drawer carpet cradle cabinet couch"),
    "device": _words(
        "phone laptop camera radio printer clock watch kettle oven heater fan mixer speaker screen tablet toaster"
    ),
    "room": _words("kitchen garage cellar attic office hall library studio bathroom garden lobby workshop"),
    "building": _words("school church tower bank hotel museum castle station market theatre hospital factory farm"),
    "city": _words(
        "Paris London Rome Berlin Madrid Vienna Oslo Prague Lisbon Athens Cairo Tokyo Delhi Boston Dublin Warsaw"
        " Moscow Geneva Milan Seville Lyon Quito Lima Denver Austin Seattle Bergen Turin"
    ),
    "country": _words("France Spain Italy Germany Norway Poland Egypt Japan India Peru Chile Kenya Brazil Canada"),
    "nature": _words("river lake forest hill valley island beach desert field mountain bridge path cave meadow"),
    "job": _words(
        "doctor nurse teacher baker farmer pilot driver cook judge singer painter writer sailor guard clerk"
        " tailor miner barber lawyer waiter"
    ),
    "instrument": _words("piano violin guitar drum flute harp trumpet cello organ horn"),
    "sport": _words("tennis chess golf hockey football boxing rowing skating running swimming cycling archery"),
    "subject": _words("math history music art biology physics poetry grammar logic geography drama law"),
    "month": _words("January February March April May June July August September October November December"),
    "day": _words("Monday Tuesday Wednesday Thursday Friday Saturday Sunday"),
    "time": _words("morning noon evening night dawn midnight today tomorrow yesterday tonight"),
    "weather": _words("rain snow wind fog storm sun hail frost thunder cloud"),
    "number": tuple(str(n) for n in range(2, 41)),
    "count": _words("two three four five six seven eight nine ten eleven twelve twenty"),
    "unit": _words("boxes bags cups pounds miles hours pages coins tickets bottles sheets tons meters days"),
    "material": _words("wood stone glass iron paper cotton leather silk clay steel copper plastic wool brass"),
    "size": _words("big small large tiny huge little tall short long wide narrow thick thin"),
    "good": _words(
        "great lovely perfect nice superb excellent pleasant wonderful brilliant charming handy reliable"
        " splendid solid smooth fantastic delightful impressive useful elegant"
    ),
    "bad": _words(
        "awful poor terrible bad ugly useless broken horrible dreadful clumsy nasty faulty shabby weak"
        " disappointing annoying noisy cheap flimsy boring"
    ),
    "mood": _words("happy sad angry calm proud tired afraid lonely eager bored nervous cheerful jealous glad"),
    "quality": _words("old new clean dirty warm cold soft hard heavy light wet dry sharp round empty full quick slow"),
    "motion": _words("runs walks jumps swims sleeps waits turns falls climbs dances hides rests sings rolls"),
    "did": _words(
        "bought sold found lost took left made saw carried cleaned painted fixed moved broke opened closed"
        " ordered kept wanted liked borrowed dropped washed packed"
    ),
    "manner": _words("slowly quickly quietly loudly gently carefully badly often never always rarely soon"),
    "family": _words("mother father sister brother uncle aunt cousin friend neighbour daughter son guest"),
    "plant": _words("rose tulip oak pine lily daisy fern moss cactus ivy birch willow maple reed"),
    "body": _words("hand foot head arm leg nose ear eye back knee neck finger"),
    "shape": _words("circle square triangle star cross line ring cube cone arrow"),
}

UNIONS: dict[str, tuple[str, ...]] = {
    "thing": ("tool", "clothes", "furniture", "device", "instrument"),
    "eatable": ("food", "fruit", "drink"),
    "place": ("city", "room", "building", "nature"),
    "living": ("animal", "plant"),
    "person": ("job", "family"),
    "adjective": ("size", "quality", "colour"),
    "opinion": ("good", "bad"),
    "item": ("tool", "clothes", "device", "fruit"),
}
for _union, _members in UNIONS.items():
    POOLS[_union] = tuple(word for member in _members for word in POOLS[member])

TITLES: dict[str, str] = {
    "name": "name", "animal": "animal", "colour": "colour", "food": "food", "fruit": "fruit", "drink": "drink",
    "tool": "tool", "clothes": "clothing", "vehicle": "vehicle", "furniture": "furniture", "device": "device",
    "room": "room", "building": "building", "city": "city", "country": "country", "nature": "landscape",
    "job": "job", "instrument": "instrument", "sport": "sport", "subject": "subject", "month": "month",
    "day": "weekday", "time": "time", "weather": "weather", "number": "number", "count": "count",
    "unit": "unit", "material": "material", "size": "size", "good": "praise", "bad": "blame",
    "mood": "mood", "quality": "quality", "motion": "motion", "did": "action", "manner": "manner",
    "family": "relative", "plant": "plant", "body": "part", "shape": "shape", "thing": "object",
    "eatable": "meal", "place": "place", "living": "creature", "person": "person", "adjective": "property",
    "opinion": "opinion", "item": "item",
}  # fmt: skip

LABELS: tuple[str, ...] = _words(
    "praise grumble amber cedar delta harbor alpha beta gamma north south east west left right yes no true"
    " false hot cool up down stop go start end plus minus first last odd even gold lead flag anchor comet"
    " ember falcon garnet hazel ivory jade kite lotus maple nectar opal pearl quartz raven sable topaz umber"
    " velvet willow zinc keep drop accept refuse open shut safe risky urgent later spam fine"
)

NONSENSE: tuple[str, ...] = _words(
    "zam tolu miro neva kesh dorb plin vask wug lirra foma gant hespa jolk krim bront sipo tarn ulba vem yost"
    " zeft abrik belo cruv dax eplo fendle grol hib izzo jant kolu lem mung nask orbo pex quil rast sulm tiv"
    " uxo vorp wend xil yarra zog blick chav drel elka flim gorp hund ilk jeb kalu loma mip nelk oska pran rovo"
    " skab tor umi velk wosk yimp zil brel cado dum ferro gix halva inko jusk kepo lunt marl nodo osh pilk"
    " rend savo trem ugo vint wim yub zanka"
)

CONNECTIVES: tuple[str, ...] = _words(
    "the a in on at with for from to of and or by near under over after before is was has had are my your our"
    " their this that every some no one very not but so then now here there please we they he she it you"
)

OPPOSITES: dict[str, str] = {
    a: b
    for pair in (
        "big small|large little|tall short|wide narrow|thick thin|old new|clean dirty|warm cold|soft hard|"
        "heavy light|wet dry|empty full|quick slow|happy sad|good bad|north south|east west|left right|"
        "up down|hot cool|open shut|first last|black white|morning evening"
    ).split("|")
    for a, b in (tuple(pair.split()), tuple(reversed(pair.split())))
}

CAPITALS: dict[str, str] = dict(
    zip(
        _words("France Spain Italy Germany Norway Poland Egypt Japan India Peru"),
        _words("Paris Madrid Rome Berlin Oslo Warsaw Cairo Tokyo Delhi Lima"),
        strict=True,
    )
)
