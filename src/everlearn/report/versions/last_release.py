"""The last release of each arm of a comparison in figures: what tables show of it, each in its own form.

Here is decided which of the figures in `comparison.json` are told, not how they are written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Figure:
    """A mean over seeds.

    Attributes:
        value: The mean.
        interval: Its ends; None: one seed tells none.
    """

    value: float
    interval: tuple[float, float] | None

    def text(self, form: str, unit: str = "") -> str:
        """`1.969 (1.937 to 2.001)`: all numbers in that form, the unit behind the first."""
        told = f"{self.value:{form}}{unit}"
        return f"{told} ({self.interval[0]:{form}} to {self.interval[1]:{form}})" if self.interval else told


@dataclass(frozen=True, slots=True)
class LastRelease:
    """An arm's last release.

    Attributes:
        label: Of the arm.
        seen: Perplexity over all versions.
        own: Perplexity on its own version.
        difference: By how many per cent `seen` is higher than the reference arm's; None without a reference.
        steps: Executed for all releases.
        ratio_to_ptfs: Of the steps, to those of pre-training from scratch.
        seconds: Executed, mean over seeds.
    """

    label: str
    seen: Figure
    own: Figure
    difference: Figure | None
    steps: int
    ratio_to_ptfs: float
    seconds: float


def last_releases(arms: Sequence[Mapping[str, Any]]) -> list[LastRelease]:
    """The last release of each arm.

    Args:
        arms: As in `comparison.json`.
    """
    return [_last_release(arm, arm["versions"][-1]) for arm in arms]


def _last_release(arm: Mapping[str, Any], version: str) -> LastRelease:
    seen, own = arm["seen"][version], arm["own"][version]
    difference = arm["difference"]["seen"][version] if "difference" in arm else None
    return LastRelease(
        label=arm["label"],
        seen=_figure(seen["mean"], seen["interval"]),
        own=_figure(own["mean"], own["interval"]),
        difference=_figure(difference["percent"], difference["interval"]) if difference else None,
        steps=arm["executed"]["steps"],
        ratio_to_ptfs=arm["executed"]["ratio_to_ptfs"],
        seconds=sum(arm["seconds"]) / len(arm["seconds"]),
    )


def _figure(value: float, interval: Sequence[float] | None) -> Figure:
    return Figure(value, (interval[0], interval[1]) if interval else None)
