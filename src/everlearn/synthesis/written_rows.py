"""Rows that a model writes whole, without a demonstration: asked for, sampled, taken or rejected with the reason.

Source: LAMOL (arXiv 1909.03329) and its published code, from which the defaults are. There, rejected rows are not
replaced; here as many are asked for again, up to `attempts` times.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from everlearn.data.instance import Instance
from everlearn.errors import DataError
from everlearn.files import write_json, write_jsonl
from everlearn.generation.counting import Counted
from everlearn.generation.protocol import Completion, Sampling
from everlearn.seeds import derive
from everlearn.synthesis.continuations import CHUNK_SEQUENCES
from everlearn.synthesis.steps import in_chunks

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.prompts import PromptTemplate
    from everlearn.generation.protocol import Generator
    from everlearn.progress import Progress
    from everlearn.recipe import TrainingConfig


def rows_a_task(new_rows: int, tasks: int, gamma: float, rounded: Literal["up", "down"] = "up") -> int:
    """Rows to write for each earlier task.

    Args:
        new_rows: Training rows of the new task.
        tasks: Earlier tasks.
        gamma: Share of the new rows that all earlier tasks together get.
        rounded: `up` before the rows are shared out evenly (LAMOL's code), or `down` (zzz47zzz's).
    """
    total = math.ceil(gamma * new_rows) if rounded == "up" else int(gamma * new_rows)
    return total // tasks


@dataclass(frozen=True)
class Asked:
    """What is asked for.

    Attributes:
        task: Whose rows.
        prompt: Token ids of what asks for one.
        count: Rows.
        sampling: How to decode; the seed is set for each chunk.
        attempts: How often what is missing is asked for.
        seed: Of the draws.
    """

    task: str
    prompt: Sequence[int]
    count: int
    sampling: Sampling
    attempts: int
    seed: int


Read = Callable[[Completion, int], Instance | str]
"""A completion and its number to a row, or to the reason why it is none."""


def write_rows(folder: Path, asked: Asked, read: Read, generator: Generator, progress: Progress) -> None:
    """Writes `kept.jsonl`, `rejected.jsonl` and `counts.json`.

    Args:
        folder: Of the step; what stands in it is not written again.
        asked: What is asked for.
        read: Says which completions are rows.
        generator: Over the model that writes.
        progress: Where to show what goes on.
    """
    kept: list[Instance] = []
    rejected: list[dict[str, object]] = []
    written = 0
    with progress.step(f"writing rows of {asked.task}", asked.count * asked.attempts) as tick:
        shown = Counted(tick)

        def produce(attempt: int, first: int, size: int) -> Iterator[dict[str, object]]:
            sampling = replace(
                asked.sampling, samples_per_prompt=size, seed=derive(asked.seed, "written", attempt, first)
            )
            (drawn,) = generator.generate([list(asked.prompt)], sampling, shown.call(written + first))
            for one in drawn:
                yield {"text": one.text, "ids": list(one.token_ids), "finish_reason": one.finish_reason}

        for attempt in range(asked.attempts):
            missing = asked.count - len(kept)
            starts = [[at] for at in range(0, missing, CHUNK_SEQUENCES)]
            rows = in_chunks(
                folder,
                f"written-{attempt}",
                starts,
                lambda _, chunk: produce(attempt, chunk[0], min(CHUNK_SEQUENCES, missing - chunk[0])),  # noqa: B023
            )
            for row in rows:
                completion = Completion(str(row["text"]), tuple(row["ids"]), str(row["finish_reason"]))  # type: ignore[arg-type]
                found = read(completion, len(kept))
                if isinstance(found, Instance):
                    kept.append(found)
                else:
                    rejected.append({"text": completion.text, "reason": found})
            written += missing
    reasons = Counter(str(row["reason"]) for row in rejected)
    write_jsonl(folder / "kept.jsonl", (row.to_json() for row in kept))
    write_jsonl(folder / "rejected.jsonl", rejected)
    counts = {"asked": asked.count, "written": written, "kept": len(kept), "rejected": dict(reasons.most_common())}
    write_json(folder / "counts.json", counts)


def fault_of(
    row: Instance, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, config: TrainingConfig
) -> str | None:
    """Why training cannot take a row as it is, or None."""
    try:
        template.check([row])
    except DataError:
        return "not for the template"
    prompt, answer = template.prompt_ids(row, tokenizer), template.target_ids(row, tokenizer)
    if len(prompt) > config.max_prompt_tokens or len(answer) > config.max_target_tokens:
        return "too long"
    return None if len(prompt) + len(answer) > 1 else "empty"
