"""Shares of counts are those of the decimal that was written."""

from __future__ import annotations

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.shares import share_of
from everlearn.synthesis.options import DemonstrationOptions, resolve, rows_asked_for
from everlearn.training.row_order import Batches


@given(st.integers(0, 1000), st.integers(0, 5000))
def test_a_share_is_that_of_the_decimal(thousandths: int, count: int) -> None:
    assert share_of(thousandths / 1000, count) * 1000 == thousandths * count


@pytest.mark.parametrize(("ratio", "count", "up"), [(0.07, 100, 7), (1.1, 10, 11), (1e-05, 100_000, 1), (5, 3, 15)])
def test_nothing_is_rounded_up_for_a_trifle(ratio: float, count: int, up: int) -> None:
    assert math.ceil(share_of(ratio, count)) == up == math.ceil(Decimal(str(ratio)) * count)


def test_counts_of_rows_and_steps_follow() -> None:
    options = DemonstrationOptions(minimum=0.07, spare=0.07, oversampling=1.1)
    settings = resolve(options, 100)
    assert (settings.least, settings.wanted, options.plan(settings, 1000)) == (7, 107, (110, 1))
    assert rows_asked_for(0.575, 100) == 58  # a half, to even; as binary fractions it is a little less
    assert len(Batches(10, batch_size=1, epochs=1.1, seed=0)) == 11
