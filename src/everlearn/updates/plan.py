"""From versions to segments: which data is trained at which rate from which state, for each update paradigm.

A plan is a pure function of the versions' steps and a few settings; the executor only carries it out. A segment is
one stretch of training with one schedule: `scratch` and `continue` (from scratch and continual pre-training), `main`
and `branch` (path switching: the main path stays at the maximal rate, each release is a branch with a fast and
complete decay). Positions count optimizer steps in the data of all versions one after the other.

Source: Wang et al., Learning Rate Path Switching (arXiv 2410.04103, EMNLP 2024), sections 2 and 3 as far as they could
be read. Chosen here: where a branch starts, that it inherits the optimizer, and that a branch of fraction 0.6 with a
lazy main path is what the paper's 58 % at four versions means (it is the only one that gives that number).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import Literal

from everlearn.fingerprints import fingerprint_of
from everlearn.training.schedules import Schedule, branch_length
from everlearn.updates.rates import Rates

Paradigm = Literal["ptfs", "cpt", "path_switching"]
Placement = Literal["overlap", "append", "scheduled"]
Kind = Literal["scratch", "continue", "main", "branch"]
Rewarm = Literal["warm_up", "jump", "minimum"]
State = Literal["inherit", "reset"]

PARADIGMS: tuple[Paradigm, ...] = ("ptfs", "cpt", "path_switching")


@dataclass(frozen=True, slots=True)
class Segment:
    """One stretch of training.

    Attributes:
        id: `s<i>` scratch, `c<i>` continued, `m<i>a` main path before the switch, `m<i>b` its tail, `b<i>` branch.
        kind: What the segment is.
        parent: Segment whose final state it starts from; None: the initial weights.
        start: First position (in steps) of its data, of all versions' data one after the other.
        end: Position after its last.
        lr: Kind of rate: `full`, `constant`, `branch` or `minimum`.
        schedule: The factor at each of its steps.
        releases: Number of the version that it releases, 1-based; None: none.
        optimizer: Whether it goes on with its parent's optimizer state.
        data: `versions`, or `annealing` for a branch on a mix of its own (positions then count in that).
    """

    id: str
    kind: Kind
    parent: str | None
    start: int
    end: int
    lr: str
    schedule: Schedule
    releases: int | None = None
    optimizer: State = "inherit"
    data: Literal["versions", "annealing"] = "versions"

    @property
    def steps(self) -> int:
        """Optimizer steps."""
        return self.end - self.start

    def to_json(self) -> dict[str, object]:
        """Plain data."""
        return {
            "id": self.id,
            "kind": self.kind,
            "parent": self.parent,
            "from": self.start,
            "to": self.end,
            "steps": self.steps,
            "lr": self.lr,
            "schedule": self.schedule.to_json(),
            "releases": self.releases,
            "optimizer": self.optimizer,
            "data": self.data,
        }


@dataclass(frozen=True, slots=True)
class VersionPlan:
    """How versions are made.

    Attributes:
        paradigm: ptfs, cpt or path_switching.
        steps: Optimizer steps of each version's data.
        rates: The schedule.
        fraction: Length of a branch as a share of its version's steps, in (0, 1].
        placement: `overlap` (the branch replaces the end of the segment), `append` (it follows the segment on
            replayed or annealing data) or `scheduled` (`points`).
        points: For `scheduled`: main-path step at which each version's branch starts, and its length.
        lazy: Whether the main path's tail waits until another version follows.
        rewarm: How continual pre-training begins a version: with a warm-up, at the maximal rate, or not at all
            (`minimum`: it goes on at the minimal rate).
        branch_optimizer: Whether a branch inherits the main path's optimizer state.
        continue_optimizer: Whether a continued version inherits its predecessor's.
        annealing: Whether appended branches read an annealing mix instead of replaying their version's last data.
    """

    paradigm: Paradigm
    steps: tuple[int, ...]
    rates: Rates = field(default_factory=Rates)
    fraction: Fraction = Fraction(3, 5)
    placement: Placement = "overlap"
    points: tuple[tuple[int, int], ...] = ()
    lazy: bool = True
    rewarm: Rewarm = "warm_up"
    branch_optimizer: State = "inherit"
    continue_optimizer: State = "reset"
    annealing: bool = False

    @property
    def ends(self) -> tuple[int, ...]:
        """Position after each version's data."""
        return tuple(sum(self.steps[: i + 1]) for i in range(len(self.steps)))

    def segments(self) -> list[Segment]:
        """The segments in the order of their creation, parents first."""
        if self.paradigm == "ptfs":
            return self._from_scratch()
        return self._continued() if self.paradigm == "cpt" else self._path_switching()

    def with_paradigm(self, paradigm: Paradigm) -> VersionPlan:
        """The same versions under another paradigm."""
        return replace(self, paradigm=paradigm)

    def extended(self) -> VersionPlan:
        """The plan with one more version, as long as the last; its first segments are those of this plan."""
        points = (*self.points, (self.ends[-1], 1)) if self.points else ()
        return replace(self, steps=(*self.steps, self.steps[-1]), points=points)

    def fingerprint(self) -> str:
        """Hash of the segments."""
        return fingerprint_of([segment.to_json() for segment in self.segments()])

    def problems(self) -> list[str]:
        """What makes the plan impossible, one sentence each; empty when it can be run."""
        branches = self._branch_problems() if self.paradigm == "path_switching" else []
        return branches or self._schedule_problems()

    def remarks(self) -> list[str]:
        """What is allowed but worth knowing."""
        if self.paradigm != "path_switching":
            return []
        found = []
        for segment in self.segments():
            if segment.kind == "branch" and segment.parent is None:
                found.append(
                    f"the branch of version {segment.releases} starts from the initial weights, because the branch "
                    "fraction leaves the main path no step before it."
                )
            unseen = self.ends[segment.releases - 1] - segment.end if segment.releases else 0
            if unseen > 0 and segment.data == "versions":
                found.append(f"version {segment.releases} does not see the last {unseen} steps of its data.")
        return found

    def _from_scratch(self) -> list[Segment]:
        return [
            Segment(f"s{i}", "scratch", None, 0, end, "full", self._first_full(end), releases=i)
            for i, end in enumerate(self.ends, 1)
        ]

    def _continued(self) -> list[Segment]:
        segments = [
            Segment("c1", "scratch", None, 0, self.ends[0], "full", self._first_full(self.ends[0]), releases=1)
        ]
        for i, (start, end) in enumerate(zip(self.ends, self.ends[1:], strict=False), 2):
            if self.rewarm == "minimum":
                rate, schedule = "minimum", Schedule("constant", scale=self.rates.floor)
            else:
                warm_up = self.rates.warm_up if self.rewarm == "warm_up" else 0
                rate, schedule = "full", self.rates.full(end - start, warm_up=warm_up, is_continued=True)
            segments.append(
                Segment(
                    f"c{i}", "continue", f"c{i - 1}", start, end, rate, schedule, i, optimizer=self.continue_optimizer
                )
            )
        return segments

    def _path_switching(self) -> list[Segment]:
        segments: list[Segment] = []
        at, tip = 0, None  # how far the main path is, and the segment that brought it there
        last = len(self.steps)
        for i, end in enumerate(self.ends, 1):
            switch, length = self._switch(i)
            for name, until in ((f"m{i}a", switch), (f"m{i}b", end)):
                if name.endswith("b"):
                    segments.append(self._branch(i, tip, switch, length))
                if until > at and (name.endswith("a") or i < last or not self.lazy):
                    segments.append(Segment(name, "main", tip, at, until, "constant", self.rates.main(at)))
                    at, tip = until, name
        return segments

    def _branch(self, i: int, parent: str | None, switch: int, length: int) -> Segment:
        # Data not yet seen, as far as there is enough; else the last of the version's data once more.
        start = 0 if self.annealing else min(switch, self.ends[i - 1] - length)
        return Segment(
            f"b{i}",
            "branch",
            parent,
            start,
            start + length,
            "branch",
            self.rates.fast(length),
            releases=i,
            optimizer=self.branch_optimizer,
            data="annealing" if self.annealing else "versions",
        )

    def _switch(self, i: int) -> tuple[int, int]:
        """Main-path step at which the branch of version i starts, and its length."""
        if self.placement == "scheduled":
            return self.points[i - 1]
        length = branch_length(self.fraction, self.steps[i - 1])
        return self.ends[i - 1] - (length if self.placement == "overlap" else 0), length

    def _first_full(self, length: int) -> Schedule:
        return self.rates.full(length, warm_up=self.rates.first_warm_up)

    def _schedule_problems(self) -> list[str]:
        found = []
        for segment in self.segments():
            schedule = segment.schedule
            if segment.lr == "full" and schedule.warm_up >= segment.steps:
                found.append(
                    f"schedule.warm_up_steps ({schedule.warm_up}) is not less than the {segment.steps} steps of "
                    f"segment {segment.id}: shorten the warm-up or give more data."
                )
            elif schedule.name == "knee" and schedule.warm_up + schedule.explore >= segment.steps:
                found.append(
                    f"schedule.explore_ratio leaves segment {segment.id} no step to decay (warm-up "
                    f"{schedule.warm_up}, explore {schedule.explore}, of {segment.steps} steps): lower one of the two."
                )
        return found

    def _branch_problems(self) -> list[str]:
        if self.placement == "scheduled":
            if len(self.points) != len(self.steps):
                return [
                    f"path.points has {len(self.points)} entries for {len(self.steps)} versions: give one branch each."
                ]
            for i, (switch, length) in enumerate(self.points, 1):
                low, high = self.ends[i - 1] - self.steps[i - 1], self.ends[i - 1]
                if not low <= switch <= high:
                    return [
                        f"path.points: the branch of version {i} starts at main-path step {switch}, but its data is "
                        f"steps {low} to {high}: choose a step in that range."
                    ]
                if not 1 <= length <= high:
                    return [f"path.points: the branch of version {i} has {length} steps: give 1 to {high}."]
        found = []
        for i in range(1, len(self.steps) + 1):
            switch, _ = self._switch(i)
            if switch < self.rates.first_warm_up:
                found.append(
                    f"the branch of version {i} would start at step {switch}, inside the warm-up of "
                    f"{self.rates.first_warm_up} steps, before the main path is at its maximal rate: lower "
                    "schedule.warm_up_steps or path.branch_fraction, or give more data."
                )
        return found


def lineage(segments: Sequence[Segment], version: int) -> list[Segment]:
    """The segments that a release has gone through, first to last."""
    by_id = {segment.id: segment for segment in segments}
    at: Segment | None = next(segment for segment in segments if segment.releases == version)
    chain: list[Segment] = []
    while at is not None:
        chain.append(at)
        at = by_id[at.parent] if at.parent is not None else None
    return chain[::-1]


def trajectory(segments: Sequence[Segment], version: int, peak: float) -> list[float]:
    """The learning rate of every update on the lineage of a release."""
    return [peak * segment.schedule(step) for segment in lineage(segments, version) for step in range(segment.steps)]
