"""Blanks in exemplars, and the prompts in which a base model fills them: pseudo-inputs without an answer (SERS).

Words are what white space parts. Of those that are not protected a share is kept by draw; numbers, names, capitals and
negations stay in any case; each run of dropped words becomes one `____`. The model is shown one worked pair of masked
and whole exemplar and fills the masked text of another one.

Source: Wang et al., "Self-Evolving Pseudo-Rehearsal for Catastrophic Forgetting with Task Similarity in LLMs", NeurIPS
2025, whose body could not be read: everything here is from the released scripts (spec section 2), of which there are
two, for LLaMA-2 and ChatGLM, with constants and prompts of their own (`SCRIPTS`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from everlearn.errors import DataError

Script = Literal["llama2", "chatglm"]
BLANK = "____"
PROTECTED = frozenset({"Context:", "Question:", '"', "[", "]", ","})
_NUMBER = re.compile(r"^-?\d+\.?\d*$")
_CAPITALS = re.compile(r"^[A-Z]{3,}$")
_NEGATIONS = frozenset({"not", "no", "never"})
_FEWEST = 3
"""Words below which a text is left as it is."""


@dataclass(frozen=True, slots=True)
class MaskScript:
    """The constants of one of the released scripts.

    Attributes:
        share: Least and greatest share of words to mask.
        caps: Greatest share for texts below 20 words, below 100, and longer ones.
        partners: Most worked pairs for each exemplar, drawn; None: all the others.
        parts_questions: Whether in task `qa` the word Question begins a line again.
        rounds: How often all pairs are gone through.
    """

    share: tuple[float, float]
    caps: tuple[float, float, float]
    partners: int | None
    parts_questions: bool
    rounds: int


SCRIPTS: dict[Script, MaskScript] = {
    "llama2": MaskScript((0.2, 0.6), (0.3, 0.4, 0.6), 30, True, 1),
    "chatglm": MaskScript((0.1, 0.5), (0.2, 0.4, 0.6), None, False, 3),
}


def share_range(words: int, script: MaskScript) -> tuple[float, float]:
    """Between which shares the one of a text with so many words is drawn."""
    cap = script.caps[0 if words < 20 else 1 if words < 100 else 2]
    return script.share[0], min(script.share[1], cap)


def candidates(words: Sequence[str]) -> list[int]:
    """Places of the words that are not protected."""
    return [at for at, word in enumerate(words) if word not in PROTECTED]


def is_retained(word: str) -> bool:
    """Whether a word stays by its form: a number, a title of four letters or more, capitals, a negation."""
    if _NUMBER.match(word) or _CAPITALS.match(word) or word in _NEGATIONS:
        return True
    return word.istitle() and len(word) > 3


def blanked(words: Sequence[str], kept: Collection[int]) -> str:
    """The words with single spaces, each run of those that do not stay as one blank.

    Args:
        words: Of a text.
        kept: Places of the candidates that were drawn to be kept.
    """
    pieces: list[str] = []
    for at, word in enumerate(words):
        if word in PROTECTED or at in kept or is_retained(word):
            pieces.append(word)
        elif not pieces or pieces[-1] != BLANK:
            pieces.append(BLANK)
    return re.sub(rf"{BLANK}( {BLANK})+", BLANK, " ".join(pieces))


def mask(text: str, script: MaskScript, draw: random.Random, *, task: str = "") -> str:
    """A text with blanks; one of fewer than three words comes back as it is.

    Args:
        text: To be masked; its line breaks are lost.
        script: Constants.
        draw: Of the share first, then of the words to keep.
        task: Its name: in `qa` each `Question` begins a line again (LLaMA-2).
    """
    words = text.strip().split()
    if len(words) < _FEWEST:
        return text
    share = draw.uniform(*share_range(len(words), script))
    places = candidates(words)
    kept = draw.sample(places, int(len(places) * (1 - share)))
    masked = blanked(words, frozenset(kept))
    return masked.replace("Question", "\nQuestion") if script.parts_questions and task == "qa" else masked


def can_be_masked(text: str) -> bool:
    """Whether a word of the text can become a blank."""
    words = text.strip().split()
    return len(words) >= _FEWEST and any(not is_retained(words[at]) for at in candidates(words))


def pairs(count: int, script: MaskScript, draw: random.Random, *, rounds: int = 1) -> Iterator[tuple[int, int]]:
    """Which exemplar is filled, and which is shown: each with all others in order, or with some that are drawn.

    Args:
        count: Exemplars.
        script: Says how many partners an exemplar has at most.
        draw: Of the partners, where there are more.
        rounds: Repetitions of the whole ("retry" in the scripts).
    """
    for _ in range(rounds):
        for one in range(count):
            others = [at for at in range(count) if at != one]
            if script.partners is not None and len(others) > script.partners:
                others = draw.sample(others, script.partners)
            yield from ((one, other) for other in others)


_TASK = f"Replace `{BLANK}` in the context while keeping them logically consistent."
_LINES = (
    "Here is an example:", "", "Input: ", "{shown_masked}", "", "Output: ", "{shown}", "",
    "Now, process the following input:", "", "Input: ", "{masked}", "", "Output: ",
)  # fmt: skip
_INDENT = 12 * " "
"""Of the scripts' source, which has got into their prompts."""
_FRAMES: dict[Script, str] = {
    "llama2": "\n".join(
        [
            f"{_TASK} Only replace `{BLANK}` in the sentence. Do NOT modify other parts.",
            "",
            *_LINES[:7],
            _INDENT,
            *_LINES[8:],
            "",
        ]
    ),
    "chatglm": "\n".join(
        [
            f"{_TASK} Make sure the format is consistent with the example. Replace only with words or numbers.",
            "",
            *(f"{_INDENT}{line}" if line else "" for line in _LINES),
            _INDENT,
        ]
    ),
}


def mask_prompt(masked: str, shown_masked: str, shown: str, script: Script = "llama2") -> str:
    """The published prompt: one worked pair, then the masked text.

    Args:
        masked: To be filled.
        shown_masked: Of the worked pair.
        shown: The same exemplar whole.
        script: Whose wording and white space.
    """
    return _FRAMES[script].format(masked=masked, shown_masked=shown_masked, shown=shown)


def pairs_prompt(masked: str, shown: Sequence[tuple[str, str]]) -> str:
    """The request, then pairs as a base model has read many (chosen here).

    Args:
        masked: To be filled.
        shown: Masked and whole text of each worked pair.
    """
    worked = "".join(f"Input: {blanks}\nOutput: {text}\n\n" for blanks, text in shown)
    return f"{_TASK}\n\n{worked}Input: {masked}\nOutput:"


def instruction_of(query: str) -> str:
    """What stands before a pseudo-input, as published: up to the first blank line and with it, or all there is."""
    before, blank, _ = query.partition("\n\n")
    return before + blank if blank else query.split("{input}")[0]


def filled_text(prompt: str, continuation: str) -> str:
    """What the model has filled in, as published: the last piece behind `Output:` of prompt and continuation."""
    return f"{prompt}{continuation}".split("Output:")[-1].strip()


def check_exemplars(task: str, texts: Sequence[str]) -> None:
    """Refuses exemplars of which no pseudo-input can be made.

    Raises:
        DataError: there are fewer than two, or fewer than two have a word that could be masked.
    """
    if len(texts) < 2:
        raise DataError(
            f"task {task} has {len(texts)} demonstrations, but masked ones are filled beside another that is shown: "
            "set its `demonstrations` to a number of training rows of two or more (published: 20) or to a file."
        )
    count = sum(can_be_masked(text) for text in texts)
    if count < 2:
        raise DataError(
            f"task {task}: masking leaves nothing to be filled, because {count or 'none'} of its {len(texts)} "
            "demonstrations has an input of three or more words parted by white space of which one is no number or "
            "name, and two are needed: give demonstrations with longer inputs, or take method ssr."
        )
