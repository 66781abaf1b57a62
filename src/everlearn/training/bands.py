"""Bands of hidden units: in which of three ranges each stays, and how far it is outside.

With mean m and standard deviation s of a unit over all tokens of some texts, and k the sigma multiple,

    lower = m - k s,   upper = m + k s
    low  where h0 <= lower,   high where h0 >= upper (both where the two meet),   else mid
    excess = relu(h - lower) [low] + relu(upper - h) [high] + (relu(h - upper) + relu(lower - h)) [mid]

h0 is the state before, h the state now. A state of two bits is all that is kept of h0.
Source: the TM loss of GeRe's published code (arXiv 2508.04676; spec sections 3 and 4.2), whose sums in float32 (which
cancel where the mean is much larger than the deviation) are sums of deviations in float64 here.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.functional import pad

LOW, HIGH = 1, 2
"""Bits of a state; neither: mid."""
_PER_BYTE = 4


def mean_and_deviation(states: Iterable[Tensor]) -> tuple[int, Tensor, Tensor]:
    """Mean and standard deviation (of the population) of each unit over all tokens.

    Args:
        states: Of one text after the other, (tokens, width) each.

    Returns:
        Number of tokens, means and deviations, (width,), float64.
    """
    count, mean, squares = 0, torch.zeros(()), torch.zeros(())
    for one in states:
        rows = one.double()
        new, own = len(rows), rows.mean(0)
        shift = own - mean.to(own)
        squares = squares.to(own) + ((rows - own) ** 2).sum(0) + shift**2 * (count * new / (count + new))
        mean = mean.to(own) + shift * (new / (count + new))
        count += new
    return count, mean, (squares / max(count, 1)).sqrt()


def band_of(mean: Tensor, deviation: Tensor, multiple: float) -> Tensor:
    """The lower and the upper bound of each unit, (2, width), float32."""
    return torch.stack([mean - multiple * deviation, mean + multiple * deviation]).float()


def states_in(hidden: Tensor, band: Tensor) -> Tensor:
    """The state of each element, of the form of `hidden`, uint8."""
    hidden = hidden.float()
    return LOW * (hidden <= band[0]).byte() + HIGH * (hidden >= band[1]).byte()


def pack_states(states: Tensor) -> Tensor:
    """Four states a byte, (tokens, width / 4 rounded up)."""
    filled = pad(states, (0, -states.shape[-1] % _PER_BYTE)).unflatten(-1, (-1, _PER_BYTE))
    return (filled << _places(states.device)).sum(-1, dtype=torch.uint8)


def unpack_states(packed: Tensor, width: int) -> Tensor:
    """The inverse of `pack_states`."""
    return ((packed[..., None] >> _places(packed.device)) & 3).flatten(-2)[..., :width]


def excess(hidden: Tensor, states: Tensor, band: Tensor) -> Tensor:
    """How far each element is outside of its range; 0 within it.

    Args:
        hidden: States now, (tokens, width).
        states: As `states_in` gave them for the states before.
        band: Lower and upper bounds, (2, width).
    """
    lower, upper = band
    is_low, is_high = (states & LOW).bool(), (states & HIGH).bool()
    ceiling = torch.where(is_low, lower, torch.where(is_high, torch.inf, upper))
    floor = torch.where(is_high, upper, torch.where(is_low, -torch.inf, lower))
    return (hidden - ceiling).relu() + (floor - hidden).relu()


def _places(device: torch.device) -> Tensor:
    return torch.arange(0, 2 * _PER_BYTE, 2, device=device, dtype=torch.uint8)
