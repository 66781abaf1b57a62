"""Plans against the golden ones, and the sentences that refuse impossible ones."""

from __future__ import annotations

import json
from fractions import Fraction
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.training.schedules import branch_length
from everlearn.updates.plan import VersionPlan, lineage, trajectory
from everlearn.updates.rates import Rates

KEYS = ("id", "kind", "parent", "from", "to", "steps", "lr", "releases")


def golden(golden_dir: Path, name: str) -> list[dict]:
    return json.loads((golden_dir / "lr_path_switching" / name).read_text())


def test_every_golden_plan_is_met(golden_dir: Path) -> None:
    cases = golden(golden_dir, "plans.json")
    for case in cases:
        plan = VersionPlan(
            case["paradigm"],
            tuple(case["T"]),
            fraction=Fraction(str(case["alpha"])),
            placement=case["placement"],
            lazy=case["lazy"],
        )
        segments = plan.segments()
        assert [{key: segment.to_json()[key] for key in KEYS} for segment in segments] == case["segments"]
        assert sum(segment.steps for segment in segments) == case["total_steps"]
        assert plan.problems() == []
    assert len(cases) == 4


def test_every_golden_trajectory_is_met(golden_dir: Path) -> None:
    for case in golden(golden_dir, "trajectory.json"):
        plan = VersionPlan(
            "path_switching",
            tuple(case["T"]),
            Rates("cosine", warm_up=case["W"], floor=case["r"]),
            fraction=Fraction(str(case["alpha"])),
        )
        segments = plan.segments()
        for version in case["versions"]:
            found = trajectory(segments, version["version"], case["eta_max"])
            assert found == pytest.approx(version["lr"], rel=1e-9)
            branch = lineage(segments, version["version"])[-1]
            assert branch.steps == version["branch_steps"]
            assert branch.start == version["switch_at"]
            after = case["eta_max"] * branch.schedule(branch.steps)
            assert after == pytest.approx(version["lr_after_last_step"], rel=1e-9)


@given(
    steps=st.lists(st.integers(1, 60), min_size=1, max_size=6),
    fraction=st.fractions(Fraction(1, 100), 1),
    lazy=st.booleans(),
    placement=st.sampled_from(["overlap", "append"]),
)
def test_each_release_sees_every_position_of_its_versions_once(steps, fraction, lazy, placement) -> None:
    plan = VersionPlan("path_switching", tuple(steps), fraction=fraction, lazy=lazy, placement=placement)
    segments = plan.segments()
    for version, end in enumerate(plan.ends, 1):
        chain = lineage(segments, version)
        seen = [at for segment in chain for at in range(segment.start, segment.end)]
        once = seen if placement == "overlap" else seen[:end]
        assert once == list(range(end))
    assert sorted(s.releases for s in segments if s.releases) == list(range(1, len(steps) + 1))


@given(steps=st.integers(1, 10_000), percent=st.integers(1, 100))
def test_the_branch_length_is_rounded_half_up_without_float_error(steps: int, percent: int) -> None:
    expected = max(1, (2 * percent * steps + 100) // 200)
    assert branch_length(percent / 100, steps) == expected


def test_adding_a_version_keeps_the_segments_before_it() -> None:
    for paradigm in ("ptfs", "cpt", "path_switching"):
        before = VersionPlan(paradigm, (50, 40, 30)).segments()
        after = VersionPlan(paradigm, (50, 40, 30, 60)).segments()
        assert all(segment in after for segment in before)
        added = [segment.id for segment in after if segment not in before]
        assert added == {"ptfs": ["s4"], "cpt": ["c4"], "path_switching": ["m3b", "m4a", "b4"]}[paradigm]


def test_a_whole_branch_starts_from_the_parent_of_the_empty_main_segment() -> None:
    plan = VersionPlan("path_switching", (10, 10), fraction=Fraction(1))
    assert [(s.id, s.parent) for s in plan.segments()] == [("b1", None), ("m1b", None), ("b2", "m1b")]
    assert "initial weights" in plan.remarks()[0]
    warmed = VersionPlan("path_switching", (10, 10), Rates(warm_up=2), fraction=Fraction(1))
    assert "inside the warm-up" in warmed.problems()[0]


def test_scheduled_branches_replay_when_too_little_is_unseen() -> None:
    plan = VersionPlan("path_switching", (10, 10), placement="scheduled", points=((4, 6), (20, 5)))
    assert plan.problems() == []
    branches = [(s.start, s.end) for s in plan.segments() if s.kind == "branch"]
    assert branches == [(4, 10), (15, 20)]


def test_an_annealing_branch_reads_its_own_data() -> None:
    plan = VersionPlan("path_switching", (10, 10), placement="append", annealing=True)
    branches = [s for s in plan.segments() if s.kind == "branch"]
    assert [(s.data, s.start, s.end, s.parent) for s in branches] == [
        ("annealing", 0, 6, "m1a"),
        ("annealing", 0, 6, "m2a"),
    ]


@pytest.mark.parametrize(
    ("plan", "words"),
    [
        (VersionPlan("path_switching", (10,), Rates(warm_up=5)), "inside the warm-up of 5 steps"),
        (VersionPlan("ptfs", (10,), Rates(warm_up=10)), "not less than the 10 steps of segment s1"),
        (VersionPlan("cpt", (10, 10), Rates("knee", warm_up=6, explore=0.5)), "no step to decay"),
        (VersionPlan("path_switching", (10, 10), placement="scheduled", points=((4, 2),)), "1 entries for 2 versions"),
        (
            VersionPlan("path_switching", (10, 10), placement="scheduled", points=((4, 2), (5, 2))),
            "steps 10 to 20: choose",
        ),
        (VersionPlan("path_switching", (10,), placement="scheduled", points=((4, 0),)), "0 steps: give 1 to 10"),
    ],
)
def test_an_impossible_plan_is_refused_in_one_sentence(plan: VersionPlan, words: str) -> None:
    assert words in plan.problems()[0]


def test_continual_pre_training_can_warm_up_jump_or_stay_low() -> None:
    rates = Rates("cosine", warm_up=4, floor=0.1)
    starts = {}
    for rewarm in ("warm_up", "jump", "minimum"):
        segment = VersionPlan("cpt", (20, 20), rates, rewarm=rewarm).segments()[1]
        starts[rewarm] = [round(segment.schedule(step), 3) for step in (0, 4, 20)]
    assert starts == {"warm_up": [0.0, 1.0, 0.1], "jump": [1.0, pytest.approx(0.914), 0.1], "minimum": [0.1] * 3}


def test_the_fingerprint_changes_with_what_is_trained() -> None:
    one = VersionPlan("path_switching", (10, 10))
    assert one.fingerprint() == VersionPlan("path_switching", (10, 10)).fingerprint()
    assert one.fingerprint() != VersionPlan("path_switching", (10, 10), branch_optimizer="reset").fingerprint()
