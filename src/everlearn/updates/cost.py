"""What version updates cost: formulas in steps, FLOPs per token, and the ledger of planned against executed work.

Steps are the unit of arXiv 2410.04103 (batch and model are the same for all paradigms). The formulas below are the
closed forms; a plan's own segments are counted by `planned`, and both agree when the branch lengths need no rounding.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from typing import TypedDict

from everlearn.updates.plan import PARADIGMS, Paradigm, Segment, VersionPlan


class SegmentCost(TypedDict):
    """One row of the ledger; executed figures are 0 until the segment has run."""

    id: str
    kind: str
    planned_steps: int
    planned_tokens: int
    executed_steps: int
    executed_tokens: int
    repeated_steps: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Cost:
    """What a paradigm costs for all versions: steps, tokens, FLOPs, and steps as a share of from-scratch training."""

    paradigm: Paradigm
    steps: int
    tokens: int
    flops: int
    ratio_to_ptfs: float

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "paradigm": self.paradigm,
            "steps": self.steps,
            "tokens": self.tokens,
            "flops": self.flops,
            "ratio_to_ptfs": self.ratio_to_ptfs,
        }


def ptfs_steps(steps: Sequence[int]) -> int:
    """Pre-training from scratch: every version trains on the data of all versions so far."""
    return sum(sum(steps[: i + 1]) for i in range(len(steps)))


def cpt_steps(steps: Sequence[int]) -> int:
    """Continual pre-training: every version trains on its own data."""
    return sum(steps)


def path_switching_steps(steps: Sequence[int], fraction: Fraction | float, *, lazy: bool = True) -> Fraction:
    """Path switching with overlapping branches; lazy: the last version's main tail is not run."""
    exact = fraction if isinstance(fraction, Fraction) else Fraction(str(fraction))
    return sum(steps) + exact * sum(steps[:-1] if lazy else steps)


def planned(plan: VersionPlan, *, tokens_per_step: int, flops_per_token: int) -> list[Cost]:
    """Cost of each paradigm over the same versions, from its segments."""
    totals: dict[Paradigm, int] = {
        paradigm: sum(segment.steps for segment in plan.with_paradigm(paradigm).segments()) for paradigm in PARADIGMS
    }
    return [
        Cost(
            paradigm,
            steps,
            steps * tokens_per_step,
            steps * tokens_per_step * flops_per_token,
            steps / totals["ptfs"],
        )
        for paradigm, steps in totals.items()
    ]


def flops_per_token(*, parameters: int, layers: int, width: int, block_tokens: int) -> int:
    """Floating-point operations of forward and backward pass for one token.

    6 per parameter that multiplies (a lookup in an embedding that is not also the output head does not), and for
    attention 6 * layers * width * block_tokens: scores and weighted sum over, on average, half a block.

    Args:
        parameters: That multiply, output head included.
        layers: Of the transformer.
        width: Of its attention (heads times head width).
        block_tokens: Context in training.

    Source: arXiv 2001.08361, section 2.1, with the causal half of its attention term.
    """
    return 6 * parameters + 6 * layers * width * block_tokens


def ledger(
    segments: Sequence[Segment], executed: Mapping[str, Mapping[str, float]], *, tokens_per_step: int
) -> list[SegmentCost]:
    """Planned and executed work of each segment.

    Args:
        segments: The plan's.
        executed: For each segment that has run: `steps` and `tokens` counted from its log, `repeated_steps` done
            again after a kill (not part of the plan), and `seconds`.
        tokens_per_step: Of an optimizer step over all processes.
    """
    rows: list[SegmentCost] = []
    for segment in segments:
        done = executed.get(segment.id, {})
        rows.append(
            {
                "id": segment.id,
                "kind": segment.kind,
                "planned_steps": segment.steps,
                "planned_tokens": segment.steps * tokens_per_step,
                "executed_steps": int(done.get("steps", 0)),
                "executed_tokens": int(done.get("tokens", 0)),
                "repeated_steps": int(done.get("repeated_steps", 0)),
                "seconds": float(done.get("seconds", 0.0)),
            }
        )
    return rows
