"""Answers that a server has given are kept as they come in, some hundred at a time: it may end before the last."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.generation.protocol import Completion
from everlearn.synthesis.steps import evenly, in_chunks

if TYPE_CHECKING:
    from everlearn.generation.protocol import GenerationProgress, Generator, Sampling

AT_ONCE = 256
"""Prompts between two writes, as in synthesis."""
ANSWERED = "answered"
"""Stem of the files in the step's folder."""


class KeptAnswers:
    """A generation engine that asks another one for what it does not find in a folder.

    Args:
        generator: The other one.
        folder: Of a step that calls once.
    """

    def __init__(self, generator: Generator, folder: Path) -> None:
        self._generator, self._folder = generator, folder

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: GenerationProgress | None = None
    ) -> list[list[Completion]]:
        """Completes every prompt; see `Generator.generate`."""
        written = 0

        def produce(number: int, chunk: Sequence[Sequence[int]]) -> Iterator[dict[str, object]]:
            nonlocal written
            before = written

            def report(done: int, _: int, tokens: int) -> None:
                if progress is not None:
                    progress(number * AT_ONCE + done, len(prompts), before + tokens)

            for completions in self._generator.generate(chunk, sampling, report):
                written += sum(len(one.token_ids) for one in completions)
                yield {"of": [[one.text, list(one.token_ids), one.finish_reason] for one in completions]}

        rows = in_chunks(self._folder, ANSWERED, evenly(prompts, AT_ONCE), produce)
        return [[Completion(text, tuple(ids), why) for text, ids, why in row["of"]] for row in rows]  # type: ignore[attr-defined]

    def forget(self) -> None:
        """Removes what is kept, once something else has been made of it."""
        (self._folder / f"{ANSWERED}.jsonl").unlink(missing_ok=True)
