"""What was dropped on the way to rehearsal rows, in words, with an example of what the model wrote instead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

from everlearn.artifacts import Artifact
from everlearn.files import read_json, read_jsonl

OF_ANSWERS = ("run_on", "unknown_label", "copy_of_input", "no_letter")
LONGEST_EXAMPLE = 160
"""Characters of a model's text in a sentence."""


@dataclass(frozen=True)
class Losses:
    """The pieces and rows that steps have dropped.

    Attributes:
        steps: Each with `counts.json` and `rejected.jsonl`.
    """

    steps: tuple[Artifact, ...] = ()

    @cached_property
    def counts(self) -> Counter[str]:
        """How many, by reason."""
        total: Counter[str] = Counter()
        for step in self.steps:
            counts = read_json(step.path / "counts.json")
            assert isinstance(counts, dict), "counts are a mapping"
            total.update(counts.get("dropped", {}))
        return total

    def reasons(self) -> str:
        """Counts by reason, the most frequent first."""
        listed = [f"{count} {reason.replace('_', ' ')}" for reason, count in self.counts.most_common() if count]
        return ", ".join(listed) or "nothing"

    def told(self) -> str:
        """The reasons, and what was written in the first case of the most frequent one."""
        for reason, _ in self.counts.most_common(1):
            for step in self.steps:
                for row in read_jsonl(step.path / "rejected.jsonl"):
                    if row["reason"] == reason:
                        return f"{self.reasons()}; the model wrote, for example, {_written(row)}"
        return self.reasons()


def _written(row: Mapping[str, object]) -> str:
    """What the model wrote in place of something usable: its answer where that was at fault, else the piece."""
    text = str(row["targets"] if "targets" in row else row["text"])
    if row["reason"] in OF_ANSWERS and "targets" not in row:
        text = str(row["outputs"])
    if not text:
        return "nothing"
    return repr(text if len(text) <= LONGEST_EXAMPLE else f"{text[:LONGEST_EXAMPLE]}\u2026")
