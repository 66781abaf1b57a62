"""The families of micro-tasks: what the output is as a function of the input.

A family draws a grammar, fixes what the task does (which slot, which labels, which toy lexicon) and returns
ways of saying so and a generator of instances. `{k}` in a definition stands for a kind of text (note, line).
"""

from __future__ import annotations

import random
from collections.abc import Callable

from everlearn.data.embedded.grammars import Grammar
from everlearn.data.embedded.words import CAPITALS, LABELS, NONSENSE, OPPOSITES, POOLS, TITLES

Draw = Callable[[random.Random], tuple[str, str]]
"""Draws one instance: input and answer."""
NewGrammar = Callable[[], Grammar]
Family = Callable[[random.Random, NewGrammar], tuple[list[str], Draw]]

_CATEGORIES = tuple(POOLS)
_COARSE = ("thing", "eatable", "place", "living", "person", "adjective", "opinion")
_BASIC = tuple(name for name in POOLS if name not in _COARSE)


def any_word(rng: random.Random) -> str:
    """A made-up word, a label or a word of any pool."""
    draw = rng.random()
    return rng.choice(NONSENSE if draw < 0.3 else LABELS if draw < 0.6 else POOLS[category(rng)])


def category(rng: random.Random) -> str:
    """The name of a word pool."""
    return rng.choice(_CATEGORIES)


def _slot_copy(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    grammar = new()
    index = rng.randrange(len(grammar.slots))
    title = TITLES[grammar.slots[index]]
    bodies = [
        f"find the {title} in the {{k}}", f"which {title} is in the {{k}}", f"extract the {title}",
        f"name the {title}", f"copy the {title} from the {{k}}", f"write the {title}",
        f"what {title} does the {{k}} name",
    ]  # fmt: skip

    def draw(rng: random.Random) -> tuple[str, str]:
        text, fillers = grammar.fill(rng)
        return text, fillers[index]

    return bodies, draw


_FORMS = ("{0} {1}", "{0} : {1}", "{0} / {1}", "{0} - {1}", "{0} , {1}", "{0} and {1}", "{0} of {1}", "{0} + {1}",
          "{0} for {1}", "{0} = {1}", "{0} in {1}", "{0} to {1}")  # fmt: skip


def _slot_form(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    """Rewrite some slots in another order and form; a slot may be mapped through a toy lexicon."""
    grammar = new()
    count = min(len(grammar.slots), rng.randint(1, 3))
    order = rng.sample(range(len(grammar.slots)), count)
    form = "{0}"
    for position in range(1, count):
        form = form.replace(
            f"{{{position - 1}}}",
            rng.choice(_FORMS).replace("{1}", f"{{{position}}}").replace("{0}", f"{{{position - 1}}}"),
        )
    if count == 1 or rng.random() < 0.4:
        form = rng.choice(
            (f"{rng.choice(LABELS)} {form}", f"{form} {rng.choice(LABELS)}", f"{any_word(rng)} : {form}")
        )
    pools, lexicon = _lexicon(rng, grammar, order if rng.random() < 0.35 else [])
    titles = [TITLES[grammar.slots[index]] for index in order]
    bodies = [
        f"write the {' and the '.join(titles)}", f"rewrite the {{k}} as {' , '.join(titles)}",
        f"extract {' and '.join(titles)}", f"give the {' then the '.join(titles)}", "write the short form of the {k}",
        "rewrite the {k} in our form", f"put the {titles[0]} first", "change the {k} into the other format",
    ]  # fmt: skip

    def draw(rng: random.Random) -> tuple[str, str]:
        text, fillers = grammar.fill(rng, pools)
        return text, form.format(*(lexicon.get(fillers[index], fillers[index]) for index in order))

    return bodies, draw


def _lexicon(
    rng: random.Random, grammar: Grammar, order: list[int]
) -> tuple[dict[int, tuple[str, ...]], dict[str, str]]:
    """Toy lexicon for some slots: word pools cut to a few words (mostly), each mapped to a made-up word."""
    pools: dict[int, tuple[str, ...]] = {}
    lexicon: dict[str, str] = {}
    for index in order:
        if rng.random() < 0.3:
            continue
        words = POOLS[grammar.slots[index]]
        if rng.random() < 0.5:
            # Repeated slots of one class need a filler each, all different.
            words = tuple(
                rng.sample(words, min(len(words), rng.randint(3, 6) + grammar.slots.count(grammar.slots[index])))
            )
        pools[index] = words
        source = NONSENSE if rng.random() < 0.75 else LABELS
        for word in words:
            lexicon.setdefault(word, rng.choice(source))
    return pools, lexicon


def _translate(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    """Every slot goes through a toy lexicon, words between them vanish; order kept or reversed."""
    grammar = new()
    order = list(range(len(grammar.slots)))
    lexicon: dict[str, str] = {}
    pools: dict[int, tuple[str, ...]] = {}
    for index in order:
        words = POOLS[grammar.slots[index]]
        if rng.random() < 0.4:
            words = tuple(rng.sample(words, min(len(words), 3 + 2 * len(grammar.slots))))
        pools[index] = words
        for word in words:
            lexicon.setdefault(word, rng.choice(NONSENSE))
    if rng.random() < 0.5:
        order.reverse()
    language = rng.choice(NONSENSE).capitalize()
    bodies = [f"translate the {{k}} into {language}", f"say it in {language}", f"write the {language} words",
              "translate it", f"how is this said in {language}"]  # fmt: skip

    def draw(rng: random.Random) -> tuple[str, str]:
        text, fillers = grammar.fill(rng, pools)
        return text, " ".join(lexicon[fillers[index]] for index in order)

    return bodies, draw


def _label(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    """Label by the class of one filler, by opinion, or by which of two grammars the input has."""
    labels = rng.sample(LABELS, rng.randint(2, 4))
    if rng.random() < 0.3:
        labels = [f"{label} {rng.choice(('desk', 'team', 'list', 'class'))}" for label in labels]
    kind = rng.random()
    grammar = new()
    other = new()
    index = rng.randrange(len(grammar.slots))
    if kind < 0.4 and "opinion" not in grammar.slots:
        for _ in range(6):
            if "opinion" in grammar.slots:
                break
            grammar = new()
    if "opinion" in grammar.slots:
        classes: list[tuple[str, ...]] = [POOLS["good"], POOLS["bad"]]
        positions = [at for at, slot in enumerate(grammar.slots) if slot == "opinion"]
    else:
        classes = [POOLS[name] for name in rng.sample(_BASIC, len(labels))]
        positions = [index]
    bodies = [
        "label the {k}", "choose the right class for the {k}", f"decide between {labels[0]} and {labels[1]}",
        f"answer {labels[0]} or {labels[1]}", "sort the {k} into its group", "which desk should get the {k}",
        "tell the kind of the {k}", "judge the {k}", "classify the {k}", "pick the tag of the {k}",
    ]  # fmt: skip
    by_grammar = kind > 0.85

    def draw(rng: random.Random) -> tuple[str, str]:
        if by_grammar:
            choice = rng.randrange(2)
            return (grammar, other)[choice].fill(rng)[0], labels[choice]
        choice = rng.randrange(min(len(labels), len(classes)))
        return grammar.fill(rng, dict.fromkeys(positions, classes[choice]))[0], labels[choice]

    return bodies, draw


def _word_at(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    grammar = new()
    index, title = rng.choice(((0, "first"), (-1, "last"), (1, "second")))
    bodies = [f"write the {title} word", f"find the {title} word of the {{k}}", f"what is the {title} word",
              f"return the {title} word of the {{k}}", f"copy the {title} word"]  # fmt: skip
    return bodies, lambda rng: _with(grammar, rng, lambda words: words[min(index, len(words) - 1)])


def _reverse(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    grammar = new()
    bodies = ["reverse the order of the words", "write the words of the {k} backwards", "turn the {k} around",
              "reverse the {k}"]  # fmt: skip
    return bodies, lambda rng: _with(grammar, rng, lambda words: " ".join(reversed(words)))


def _frame(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    """Copy the input with a fixed word before or after it."""
    grammar = new()
    word = any_word(rng)
    before = rng.random() < 0.5
    bodies = [f"write {word} {'before' if before else 'after'} the {{k}}", f"add {word} to the {{k}}",
              f"repeat the {{k}} with {word}", f"put {word} {'in front' if before else 'at the end'}"]  # fmt: skip

    def draw(rng: random.Random) -> tuple[str, str]:
        text, _ = grammar.fill(rng)
        return text, f"{word} {text}" if before else f"{text} {word}"

    return bodies, draw


def _replace(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    grammar = new()
    index, word = rng.randrange(len(grammar.slots)), any_word(rng)
    title = TITLES[grammar.slots[index]]
    bodies = [f"replace the {title} with {word}", f"change the {title} to {word}", f"hide the {title}",
              f"write {word} in place of the {title}"]  # fmt: skip

    def draw(rng: random.Random) -> tuple[str, str]:
        text, fillers = grammar.fill(rng)
        fillers[index] = word
        return text, grammar.render(fillers)

    return bodies, draw


def _count(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    pool = POOLS[category(rng)]
    separator = rng.choice((" ", " , ", " and "))
    bodies = ["count the words", "how many words are there", "give the number of words in the {k}",
              "count the items of the {k}"]  # fmt: skip

    def draw(rng: random.Random) -> tuple[str, str]:
        count = rng.randint(1, min(6, len(pool)))
        return separator.join(rng.sample(pool, count)), str(count)

    return bodies, draw


def _class_name(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    names = rng.sample(_BASIC, rng.randint(3, 6))
    prefix = rng.choice(("", "", "the ", "a ", "my "))
    bodies = ["name the class of the word", "what kind of thing is it", "to which group does the {k} belong",
              "give the general word"]  # fmt: skip

    def draw(rng: random.Random) -> tuple[str, str]:
        name = rng.choice(names)
        return prefix + rng.choice(POOLS[name]), TITLES[name]

    return bodies, draw


def _fixed(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    """Fixed knowledge: opposites, capitals, the next day, month or number, small sums."""
    kind = rng.choice(("opposite", "capital", "day", "month", "number", "sum", "sum"))
    if kind == "sum":
        word = rng.choice(("plus", "and", "+"))
        bodies = ["add the numbers", "give the sum of the two numbers", "compute the sum"]

        def draw(rng: random.Random) -> tuple[str, str]:
            a, b = rng.randint(1, 20), rng.randint(1, 20)
            return f"{a} {word} {b}", str(a + b)

        return bodies, draw
    if kind in ("opposite", "capital"):
        table = OPPOSITES if kind == "opposite" else CAPITALS
        bodies = [f"write the {kind}", f"give the {kind} of the word", f"what is the {kind}", f"name the {kind}"]
    else:
        pool = POOLS[kind]
        table = {word: pool[(at + 1) % len(pool)] for at, word in enumerate(pool)}
        title = "weekday" if kind == "day" else kind
        bodies = [f"write the next {title}", f"which {title} comes after it", f"name the {title} that follows"]
    keys = list(table)
    frame = rng.choice(("{0}", "{0}", "the {0}", "{0} ?", "it is {0}", "now {0}"))

    def draw_pair(rng: random.Random) -> tuple[str, str]:
        key = rng.choice(keys)
        return frame.format(key), table[key]

    return bodies, draw_pair


def _lookup(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    """Three key-value pairs and a question for one key."""
    keys, values = POOLS[rng.choice(_BASIC)], POOLS[rng.choice(_BASIC)]
    mark, ask = rng.choice((" = ", " : ", " is ")), rng.choice((" ? ", " ; find ", " . "))
    bodies = [
        "look up the value of the last key",
        "answer the question about the pairs",
        "find what belongs to the key",
    ]

    def draw(rng: random.Random) -> tuple[str, str]:
        pairs = dict(zip(rng.sample(keys, 3), rng.sample(values, 3), strict=True))
        key = rng.choice(list(pairs))
        return " , ".join(f"{k}{mark}{v}" for k, v in pairs.items()) + ask + key, pairs[key]

    return bodies, draw


def _join(rng: random.Random, new: NewGrammar) -> tuple[list[str], Draw]:
    """Pick from or rejoin a list of words of one class."""
    pool, old = POOLS[category(rng)], rng.choice((" ", " , ", " and ", " / "))
    fresh = rng.choice((" , ", " and ", " + ", " - ", " or "))
    count = rng.randint(2, min(4, len(pool)))
    pick = rng.choice((None, None, 0, 1, -1))
    name = {None: "", 0: "first", 1: "second", -1: "last"}[pick]
    bodies = [f"pick the {name} item", f"take the {name} of the list"] if name else [
        f"join the words with {fresh.strip()}", "write the list in the other style", "rejoin the items"]  # fmt: skip

    def draw(rng: random.Random) -> tuple[str, str]:
        words = rng.sample(pool, count)
        return old.join(words), fresh.join(words) if pick is None else words[pick]

    return bodies, draw


def _with(grammar: Grammar, rng: random.Random, function: Callable[[list[str]], str]) -> tuple[str, str]:
    text, _ = grammar.fill(rng)
    return text, function(text.split())


FAMILIES: dict[str, tuple[float, Family]] = {
    "slot_copy": (14, _slot_copy), "slot_form": (22, _slot_form), "translate": (14, _translate),
    "label": (18, _label), "word_at": (5, _word_at), "reverse": (4, _reverse), "frame": (4, _frame),
    "replace": (4, _replace), "count": (2, _count), "class_name": (3, _class_name), "fixed": (4, _fixed),
    "lookup": (3, _lookup), "join": (3, _join),
}  # fmt: skip
"""Weight in the corpus and maker of each family."""

FIXED_MEANING = ("word_at", "reverse", "class_name", "fixed", "count", "slot_copy")
"""Families whose definition alone says what to do; they serve for zero-shot documents."""
