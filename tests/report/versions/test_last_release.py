"""The figures of last releases, by hand."""

from __future__ import annotations

from everlearn.report.versions.last_release import Figure, last_releases


def test_figures_are_those_of_the_last_version_and_its_mean_time() -> None:
    measured = {"v1": {"mean": 3.0, "interval": None}, "v2": {"mean": 2.0, "interval": [1.9, 2.1]}}
    percents = {"v1": {"percent": 1.0, "interval": [0.0, 2.0]}, "v2": {"percent": -4.0, "interval": [-5.0, -3.0]}}
    arm = {
        "label": "cpt",
        "versions": ["v1", "v2"],
        "seen": measured,
        "own": {**measured, "v2": {"mean": 1.5, "interval": None}},
        "executed": {"steps": 20, "ratio_to_ptfs": 0.4},
        "seconds": [1.0, 3.0],
    }
    alone, compared = last_releases([arm, {**arm, "difference": {"seen": percents, "own": {}}}])
    assert alone.seen == Figure(2.0, (1.9, 2.1))
    assert alone.own == Figure(1.5, None)
    assert (alone.steps, alone.ratio_to_ptfs, alone.seconds) == (20, 0.4, 2.0)
    assert alone.difference is None
    assert compared.difference == Figure(-4.0, (-5.0, -3.0))


def test_a_figure_is_written_with_its_interval_and_unit() -> None:
    assert Figure(1.9694, (1.937, 2.001)).text(".3f") == "1.969 (1.937 to 2.001)"
    assert Figure(12.94, (9.5, 16.3)).text("+.1f", " %") == "+12.9 % (+9.5 to +16.3)"
    assert Figure(2.0, None).text(".1f") == "2.0"
