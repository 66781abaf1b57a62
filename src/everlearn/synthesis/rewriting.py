"""Given answers in a model's own words: it is shown question and answer, and writes the answer anew.

What it writes takes the place of the given answer only if it ends, is not empty, and says the same by the task's own
metric; else the row stays as it is. So a task has as many rows as before, in the same order.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.data.instance import SYNTHETIC, Instance, Task
from everlearn.files import write_json, write_jsonl
from everlearn.generation.counting import Counted
from everlearn.generation.protocol import Completion, Sampling
from everlearn.synthesis.steps import evenly, in_chunks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.prompts import PromptTemplate
    from everlearn.generation.protocol import Generator
    from everlearn.progress import Progress
    from everlearn.recipe import TrainingConfig

ASKING = "{}\n\nA correct answer to this is:\n{}\n\nGive this answer in your own words, and nothing else."
_AT_ONCE = 256
"""Rows between two writes."""


@dataclass(frozen=True)
class Rewriting:
    """How answers are written anew.

    Attributes:
        template: Of training.
        tokenizer: Of the model.
        training: Says how long an answer may be.
        context: Most tokens of question and answers together.
        max_new_tokens: Longest answer; None: twice the task's longest, and no longer than training takes.
        score: The task's metric, in per cent, of what is written against the given answers.
        agreement: Its least value.
    """

    template: PromptTemplate
    tokenizer: PreTrainedTokenizerBase
    training: TrainingConfig
    context: int
    max_new_tokens: int | None
    score: Callable[[str, Sequence[str]], float]
    agreement: float

    def prompt_ids(self, row: Instance) -> list[int]:
        """What the model is shown of a row."""
        asking = replace(row, instruction=ASKING.format(row.query, row.output), input="", output="")
        return self.template.prompt_ids(asking, self.tokenizer)

    def limit_for(self, rows: Sequence[Instance]) -> int:
        """Longest answer to rows of a task, its end token included."""
        longest = max(len(self.template.target_ids(row, self.tokenizer)) for row in rows)
        return self.max_new_tokens or min(2 * longest, self.training.max_target_tokens)

    def fault_of(self, row: Instance, text: str, finish_reason: str) -> str | None:
        """Why the given answer stays, or None."""
        if finish_reason in ("length", "no room"):
            return "no room" if finish_reason == "no room" else "does not end"
        if not text:
            return "empty"
        if text == row.output:
            return "the same"
        changed = replace(row, output=text)
        if len(self.template.target_ids(changed, self.tokenizer)) > self.training.max_target_tokens:
            return "too long"
        return None if self.score(text, [row.output, *row.references]) >= self.agreement else "says something else"


def rewrite(folder: Path, task: Task, how: Rewriting, generator: Generator, progress: Progress) -> None:
    """Writes `rows.jsonl`, the task's training rows with the answers that are trained on, and `counts.json`.

    Args:
        folder: Of the step; what stands in it is not written again.
        task: Whose training rows.
        how: How they are written anew.
        generator: Over the model that writes.
        progress: Where to show what goes on.
    """
    limit = how.limit_for(task.train)
    sampling = Sampling(max_new_tokens=limit, end_ids=how.template.end_ids(how.tokenizer))

    with progress.step(f"rewriting answers of {task.name}", len(task.train)) as tick:
        shown = Counted(tick)

        def produce(number: int, rows: Sequence[Instance]) -> Iterator[dict[str, object]]:
            prompts = [how.prompt_ids(row) for row in rows]
            fitting = [at for at, prompt in enumerate(prompts) if len(prompt) + limit <= how.context]
            drawn = generator.generate([prompts[at] for at in fitting], sampling, shown.call(number * _AT_ONCE))
            written = dict(zip(fitting, (one for (one,) in drawn), strict=True))
            for at in range(len(rows)):
                one = written.get(at, Completion("", (), "no room"))
                yield {"text": one.text.strip(), "finish_reason": one.finish_reason}

        answers = in_chunks(folder, "written", evenly(task.train, _AT_ONCE), produce)
    reasons: Counter[str] = Counter()
    rows = []
    for row, answer in zip(task.train, answers, strict=True):
        fault = how.fault_of(row, str(answer["text"]), str(answer["finish_reason"]))
        if fault is not None:
            reasons[fault] += 1
        rows.append(row if fault is not None else replace(row, output=str(answer["text"]), origin=SYNTHETIC))
    write_jsonl(folder / "rows.jsonl", (row.to_json() for row in rows))
    counts = {"rows": len(rows), "rewritten": len(rows) - reasons.total(), "as given": dict(reasons.most_common())}
    write_json(folder / "counts.json", counts)
