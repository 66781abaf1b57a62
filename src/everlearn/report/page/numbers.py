"""How numbers are written: scores to one decimal in per cent, times in the units people use, true minus signs."""

from __future__ import annotations

import math
import re

THIN = "\u202f"
NONE = "–"
MINUS = "\u2212"
_RAISED = str.maketrans("0123456789-", "⁰¹²³⁴⁵⁶⁷⁸⁹⁻")
_LOWERED = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_PLAIN = {ord(sign): plain for sign, plain in {MINUS: "-", NONE: "-", "×": "x", THIN: " ", "\u00a0": " "}.items()}
_WORDS = "no one two three four five six seven eight nine ten eleven twelve".split()


def in_plain_signs(error: UnicodeError) -> tuple[str, int]:
    """What stands for signs that an output's encoding has not: `-`, `x`, `10^5`; a question mark for any other.

    An error handler of `codecs`, so that no number loses its sign or its power of ten.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    text = error.object[error.start : error.end]
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda power: f"^{power[0].translate(_LOWERED)}", text).translate(_PLAIN)
    return "".join(sign if sign.isascii() else "?" for sign in text), error.end


def score(value: float | None) -> str:
    """One decimal: `96.0`; a dash when not measured; from a hundred thousand on `1.2 × 10⁵`."""
    if value is None:
        return NONE
    if abs(value) >= 99_999.95:
        digits, exponent = f"{value:.1e}".split("e")
        return f"{digits.replace('-', MINUS)}{THIN}×{THIN}{power_of_ten(10.0 ** int(exponent))}"
    text = f"{value:.1f}"
    return ("0.0" if text == "-0.0" else text).replace("-", MINUS)


def power_of_ten(value: float) -> str:
    """The label of a logarithmic tick: `0.3`, `30`, `1 000`, `10⁵`."""
    if value < 99_999.5:
        return f"{value:g}" if value < 1 else count(round(value))
    return _power(round(math.log10(value)))


def _power(exponent: int) -> str:
    return f"10{str(exponent).translate(_RAISED)}"


def quantity(value: float | None) -> str:
    """Three significant digits of a number of any size: `0.012`, `3.4 × 10⁻⁷`."""
    if value is None:
        return NONE
    digits, _, exponent = f"{value:.3g}".replace("-", MINUS).partition("e")
    return f"{digits}{THIN}×{THIN}{_power(int(exponent.replace(MINUS, '-')))}" if exponent else digits


def signed(value: float | None) -> str:
    """One decimal with its sign: `+1.2`."""
    text = score(value)
    return text if value is None or value < 0.05 else f"+{text}"


def percent(value: float | None) -> str:
    """`96.0 %`, not broken across lines."""
    return NONE if value is None else f"{score(value)}{THIN}%"


def interval(low: float | None, high: float | None) -> str:
    """`93.1 to 98.0`; nothing when unknown or a single point."""
    if low is None or high is None or score(low) == score(high):
        return ""
    return f"{score(low)}\u00a0to\u00a0{score(high)}"


def count(value: int) -> str:
    """Thousands apart: `12 345`."""
    return f"{value:,}".replace(",", THIN)


def plural(value: int, noun: str, many: str | None = None) -> str:
    """`1 row`, `2 rows`."""
    return f"{count(value)} {noun if value == 1 else many or noun + 's'}"


def in_words(value: int) -> str:
    """Small counts as words."""
    return _WORDS[value] if 0 <= value < len(_WORDS) else count(value)


def duration(seconds: float | None) -> str:
    """`0.4 s`, `12 s`, `3 min 20 s`, `2 h 05 min`."""
    if seconds is None:
        return NONE
    if seconds < 9.95:
        return f"{seconds:.1f}{THIN}s"
    whole = round(seconds)
    if whole < 60:
        return f"{whole}{THIN}s"
    if whole < 3600:
        return f"{whole // 60}{THIN}min {whole % 60:02d}{THIN}s"
    return f"{whole // 3600}{THIN}h {whole % 3600 // 60:02d}{THIN}min"


def mean(values: list[float]) -> float | None:
    """The mean, or None of nothing."""
    return sum(values) / len(values) if values else None
