"""Shares of counts, exactly: a ratio is the decimal that it is written as, so that 0.07 of 100 is 7 and no more.

As binary fractions most decimals are a little off, and `ceil(0.07 * 100)` is 8.
"""

from __future__ import annotations

from fractions import Fraction


def share_of(ratio: float, count: int) -> Fraction:
    """The share, to be rounded by `math.ceil`, `math.floor` or `round` (halves to even)."""
    return Fraction(str(ratio)) * count
