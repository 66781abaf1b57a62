from __future__ import annotations

import pytest

from everlearn.report.page import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (96.04, "96.0"),
        (0.0, "0.0"),
        (-0.01, "0.0"),
        (-72.94, "−72.9"),
        (None, "–"),
        (100, "100.0"),
        (1.23e9, "1.2 × 10⁹"),
    ],
)
def test_scores_have_one_decimal_and_a_true_minus(value: float | None, text: str):
    assert numbers.score(value).replace(numbers.THIN, " ") == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.0, "0"), (0.0123, "0.0123"), (-3.4e-7, "−3.4 × 10⁻⁷"), (12345, "1.23 × 10⁴"), (None, "–")],
)
def test_quantities_of_any_size_have_three_digits(value: float | None, text: str):
    assert numbers.quantity(value).replace(numbers.THIN, " ") == text


@pytest.mark.parametrize(
    ("value", "text"), [(1.24, "+1.2"), (-1.24, "−1.2"), (0.0, "0.0"), (0.04, "0.0"), (None, "–")]
)
def test_changes_show_their_sign(value: float | None, text: str):
    assert numbers.signed(value) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.42, "0.4 s"), (9.96, "10 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"), (7500, "2 h 05 min")],
)
def test_durations_are_in_the_units_people_use(seconds: float, text: str):
    assert numbers.duration(seconds).replace(numbers.THIN, " ") == text


def test_an_interval_of_one_point_is_not_shown():
    assert numbers.interval(3.0, 3.0) == numbers.interval(None, 1.0) == ""
    assert numbers.interval(-1.0, 2.0) == "−1.0\u00a0to\u00a02.0"
