"""Walks for parallel rows: a model is shown a row, its translation and the steps of a pattern, and thinks aloud.

It is asked to go through the steps in the first person as if it did not know the translation, then to translate. A
walk is kept where it ends, the tags are right, it is not empty, and the answer is the reference: the same after white
space is collapsed, or near it (chrF). Each row has one pattern, in turn over the rows of a shuffled task.
Source: R1-T1 (arXiv 2502.19735), whose wording and filters are not published: both are chosen here (spec section 3).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

from everlearn.data.instance import Instance, Task
from everlearn.data.prompts import PromptTemplate
from everlearn.data.walk_patterns import Pattern
from everlearn.data.walk_prompts import WalkTemplate
from everlearn.data.walks import OPENING, answer_in, is_well_formed, walk_in
from everlearn.files import write_json, write_jsonl
from everlearn.generation.counting import Counted
from everlearn.generation.protocol import Completion, Sampling
from everlearn.rewards.texts import chrf
from everlearn.synthesis.steps import evenly, in_chunks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.generation.protocol import Generator
    from everlearn.progress import Progress

MOST_TOKENS = 4000
"""Of a walk."""
NEAR = 0.9
"""Least chrF of an answer against the reference."""
TEMPERATURE = 0.7
_AT_ONCE = 64
"""Rows between two writes."""
_NO_ROOM = "no room"
_UNFINISHED = {"length": "does_not_end", _NO_ROOM: "prompt_too_long"}
_ASKING = (
    "{query}\n\nThe translation is:\n{answer}\n\nThink aloud in English, in the first person, as if you did not know "
    "this translation and came to it yourself. Go through these steps in order, without numbers:\n{steps}\nWrite your "
    "thoughts between <think> and </think>, then exactly this translation between <answer> and </answer>."
)


@dataclass(frozen=True)
class Chains:
    """What was made of a task.

    Attributes:
        rows: Those that have a walk, with the pattern and who has written it.
        asked: Rows in all.
        dropped: Reason to number of rows.
    """

    rows: Sequence[dict[str, object]]
    asked: int
    dropped: dict[str, int]


def write_chains(
    folder: Path,
    task: Task,
    patterns: Sequence[Pattern],
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    generator: Generator,
    progress: Progress,
    *,
    context: int,
    seed: int,
    count: int | None = None,
    written_by: str,
) -> None:
    """Writes `rows.jsonl`, rows with their walks, and `counts.json`, what was dropped and why.

    Args:
        folder: Of the step; what stands in it is not written again.
        task: Whose training rows.
        patterns: In turn.
        template: How a model is asked anything.
        tokenizer: Of the model.
        generator: Over the model that writes.
        progress: Where to show what goes on.
        context: Most tokens of a prompt and what is written.
        seed: Of the choice of rows, of their patterns and of what is drawn.
        count: Rows to ask for; None: all.
        written_by: Names the model.
    """
    chosen = list(task.train)
    Random(seed).shuffle(chosen)
    asked = [(row, patterns[at % len(patterns)]) for at, row in enumerate(chosen[:count])]
    form = WalkTemplate(template, published=False)
    sampling = Sampling(MOST_TOKENS, temperature=TEMPERATURE, end_ids=form.end_ids(tokenizer), seed=seed)

    with progress.step(f"writing walks for {task.name}", len(asked)) as tick:
        shown = Counted(tick)

        def produce(number: int, some: Sequence[tuple[Instance, Pattern]]) -> Iterator[dict[str, object]]:
            prompts = [form.prompt_ids(_asking(row, pattern), tokenizer) for row, pattern in some]
            fitting = [at for at, prompt in enumerate(prompts) if len(prompt) < context]
            drawn = replace(sampling, seed=seed + number)
            found = generator.generate([prompts[at] for at in fitting], drawn, shown.call(number * _AT_ONCE))
            completions = dict(zip(fitting, (one for (one,) in found), strict=True))
            for at in range(len(some)):
                one = completions.get(at, Completion("", (), _NO_ROOM))
                yield {"text": one.text, "finish_reason": one.finish_reason}

        written = in_chunks(folder, "written", evenly(asked, _AT_ONCE), produce)
    kept, reasons = [], Counter[str]()
    for (row, pattern), one in zip(asked, written, strict=True):
        response = OPENING + str(one["text"])
        fault = _UNFINISHED.get(str(one["finish_reason"])) or fault_of(response, row.output)
        if fault is not None:
            reasons[fault] += 1
            continue
        told = replace(row, walk=walk_in(response) or "")
        kept.append({**told.to_json(), "pattern": pattern.id, "written_by": written_by})
    write_jsonl(folder / "rows.jsonl", kept)
    write_json(folder / "counts.json", {"asked": len(asked), "dropped": dict(reasons.most_common())})


def fault_of(response: str, reference: str) -> str | None:
    """Why a chain is not kept, or None.

    Args:
        response: With its opening tag.
        reference: The row's translation.
    """
    if not is_well_formed(response):
        return "wrong_tags"
    if not walk_in(response):
        return "empty_walk"
    answer = answer_in(response) or ""
    if answer.split() != reference.split() and chrf(answer, reference) < NEAR:
        return "another_answer"
    return None


def _asking(row: Instance, pattern: Pattern) -> Instance:
    steps = "\n".join(f"- {step}" for step in pattern.steps)
    text = _ASKING.format(query=row.query, answer=row.output, steps=steps)
    return replace(row, instruction=text, input="", walk="")
