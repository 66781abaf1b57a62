"""The forms of the JSON files that a report on version updates reads; see `everlearn.report.facts.forms`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from everlearn.files import read_vouched
from everlearn.report.facts.forms import Amount, Count, Form, Place, in_form

Paradigm = Literal["ptfs", "cpt", "path_switching"]
Steps = Annotated[int, Field(ge=0, le=10**7)]
Perplexity = Annotated[float, Field(gt=0, le=1e100)]
Pair = Annotated[list[float], Field(min_length=2, max_length=2)]


class VersionForm(Form):
    """A version in the plan."""

    id: Place
    steps: Steps


class SegmentForm(Form):
    """A segment in the plan."""

    id: Place
    kind: str
    start: Annotated[int, Field(ge=0, alias="from")]
    end: Annotated[int, Field(ge=0, alias="to")]
    steps: Steps
    schedule: dict[str, Any]
    releases: Annotated[int, Field(ge=1)] | None
    data: str


class PlanForm(Form):
    """`plan.json`."""

    paradigm: Paradigm
    maximal_rate: Annotated[float, Field(gt=0, le=1e6)]
    versions: Annotated[list[VersionForm], Field(min_length=1)]
    segments: Annotated[list[SegmentForm], Field(min_length=1)]

    @model_validator(mode="after")
    def _belongs_together(self) -> PlanForm:
        if any(segment.releases and segment.releases > len(self.versions) for segment in self.segments):
            raise ValueError(f"a segment releases another than the {len(self.versions)} versions")
        return self


class QualityForm(Form):
    """`quality.json`."""

    versions: Annotated[list[str], Field(min_length=1)]
    releases: Annotated[list[str], Field(min_length=1)]
    perplexity: list[list[Perplexity]]
    intervals: list[list[Pair]] = Field(default_factory=list)

    @model_validator(mode="after")
    def _has_its_shape(self) -> QualityForm:
        shape = [len(self.versions)] * len(self.releases)
        shapes = [[len(row) for row in rows] for rows in (self.perplexity, self.intervals)]
        if shapes[0] != shape or shapes[1] not in ([], shape):
            raise ValueError("perplexity or intervals do not have a row for each release and a cell for each version")
        return self


class CostForm(Form):
    """What a paradigm costs."""

    paradigm: Paradigm
    steps: Count
    tokens: int
    flops: float
    ratio_to_ptfs: Amount


class ExecutedForm(CostForm):
    """What a run has cost."""

    state_bytes: Count
    release_bytes: Count


class SegmentCostForm(Form):
    """Planned and executed work of a segment."""

    id: str
    kind: str
    planned_steps: Count
    executed_steps: Count
    repeated_steps: Count
    seconds: Amount


class LedgerForm(Form):
    """`ledger.json`."""

    segments: list[SegmentCostForm]
    costs: list[CostForm]
    executed: ExecutedForm


class MeanForm(Form):
    """Perplexity over seeds."""

    mean: Perplexity
    interval: Pair | None


class DifferenceForm(Form):
    """Against the reference arm."""

    percent: float
    interval: Pair | None


class ArmCostForm(Form):
    """What an arm has cost."""

    steps: Count
    ratio_to_ptfs: Amount


class ArmForm(Form):
    """An arm of a comparison."""

    label: str
    versions: Annotated[list[str], Field(min_length=1)]
    own: dict[str, MeanForm]
    seen: dict[str, MeanForm]
    difference: dict[Literal["own", "seen"], dict[str, DifferenceForm]] = Field(default_factory=dict)
    steps_at_release: dict[str, Count]
    executed: ArmCostForm
    seconds: Annotated[list[Amount], Field(min_length=1)]

    @model_validator(mode="after")
    def _knows_its_versions(self) -> ArmForm:
        known = [set(self.own), set(self.seen), *(set(found) for found in self.difference.values())]
        if any(not names.issuperset(self.versions) for names in known):
            raise ValueError(f"arm {self.label} does not have figures of all its versions")
        return self


class ArmRunForm(Form):
    """A run of a comparison."""

    label: str
    folder: Place


class ComparisonForm(Form):
    """`comparison.json` of a finished comparison."""

    seeds: Annotated[list[int], Field(min_length=1)]
    margin_percent: float
    runs: Annotated[list[ArmRunForm], Field(min_length=1)]
    arms: Annotated[list[ArmForm], Field(min_length=1)]


def read_checked(path: Path, kind: type[Form]) -> dict[str, Any]:
    """What a file holds, once it has been held against its form.

    Raises:
        RunError: it is missing, was changed, or does not have the form; names the file and the key.
    """
    value = read_vouched(path)
    in_form(path, value, kind)
    return value
