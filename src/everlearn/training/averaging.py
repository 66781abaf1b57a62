"""An average of the weights that runs beside training and takes their place at its end (LCIA).

After each optimizer step the average of every tensor moves towards the tensor by a rate of its own:

    average += rho * (theta_t - average)
    a = |theta_t - average|   b = |g_t|   c = |g_t - g_(t-1)|   d = |theta_t - theta_(t-1)|     1-norms of a tensor

    code, next   rho = scale * (1 + b) / (a c)
    published    rho = 1 - (1 + b) d / (a c)
    fixed        rho = the fallback

A value outside of the open interval from 0 to 1, or that cannot be computed (no gradient now or at the step before, a
or c 0), is replaced by the fallback. g is the gradient as the optimizer saw it. The average is float32 whatever the
weights are: in bfloat16 it would stand still, since its increments are below half a unit in the last place.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Literal

from everlearn.training.influence import Influence, OptimizerStep, Training

if TYPE_CHECKING:
    from torch import Tensor

Form = Literal["code", "published", "next", "fixed"]
StartsAs = Literal["first_step", "start"]


def optimal_rates(form: Form, norms: Mapping[str, Tensor], *, scale: float, fallback: float) -> tuple[Tensor, Tensor]:
    """The weight of the new parameters in the average, tensor by tensor.

    Args:
        form: `code` (and `next`) or `published`.
        norms: a, b, c and d by letter, each a vector over the tensors; NaN where there is none.
        scale: Of `code` and `next`.
        fallback: Rate where the formula has none.

    Returns:
        The rates, and whether each is the fallback.
    """
    import torch

    factor = norms["d"] if form == "published" else scale
    found = (1 + norms["b"]) * factor / (norms["a"] * norms["c"])
    is_valid = (found > 0) & (found < 1)  # neither is true of NaN
    rates = 1 - found if form == "published" else found
    return torch.where(is_valid, rates, fallback), ~is_valid


class OptimalAverage(Influence):
    """Averages the weights in training, and exchanges them for the average when the phase ends.

    Args:
        form: How the rates are computed.
        scale: Of `code` and `next`.
        fallback: Rate where the formula has none; of `fixed`, the rate.
        starts_as: `first_step`: the weights after the first step; `start`: those that the phase begins with.
    """

    def __init__(self, form: Form, *, scale: float, fallback: float, starts_as: StartsAs) -> None:
        self._form, self._scale, self._fallback, self._starts_as = form, scale, fallback, starts_as

    def begin(self, training: Training) -> None:
        """Takes the weights that the phase begins with, where they are needed."""
        self._parameters = dict(training.parameters)
        self._average = _copies(self._parameters) if self._starts_as == "start" else {}
        self._before = _copies(self._parameters) if self._form == "published" else {}
        self._gradients: dict[str, Tensor] = {}

    def after_step(self, step: OptimizerStep) -> None:
        """Moves the averages; all on the device, nothing waits for it."""
        import torch

        from everlearn.training.processes import part_of

        now = {name: weight.detach().float() for name, weight in self._parameters.items()}
        if not self._average:
            self._average = _copies(now)
        gaps = {name: now[name] - average for name, average in self._average.items()}
        if self._form == "fixed":
            rates = torch.full((len(gaps),), self._fallback, device=next(iter(gaps.values())).device)
        else:
            rates, is_fallback = optimal_rates(
                self._form, self._norms(gaps, now, step.gradients), scale=self._scale, fallback=self._fallback
            )
            step.note("average_rate", rates.mean())
            step.note("fallbacks", is_fallback.float().mean())
        for average, gap, rate in zip(self._average.values(), gaps.values(), rates.unbind(), strict=True):
            part_of(average).add_(part_of(gap).mul_(rate))

    def _norms(
        self, gaps: Mapping[str, Tensor], now: Mapping[str, Tensor], gradients: Mapping[str, Tensor]
    ) -> dict[str, Tensor]:
        """a, b, c and d over the tensors; remembers gradients and weights for the next step."""
        present = {name: gradient.detach().float() for name, gradient in gradients.items()}
        changes = {name: present[name] - past for name, past in self._gradients.items() if name in present}
        norms = {"a": _one_norms(gaps, gaps), "b": _one_norms(present, gaps), "c": _one_norms(changes, gaps)}
        self._gradients = _copies(present)
        if self._form == "published":
            norms["d"] = _one_norms({name: value - self._before[name] for name, value in now.items()}, gaps)
            self._before = _copies(now)
        return norms

    def finish(self) -> None:
        """Writes the average over the weights."""
        for name, average in self._average.items():
            self._parameters[name].data.copy_(average)

    def state(self) -> Mapping[str, Tensor]:
        """The average, the last gradients, and for `published` the last weights."""
        kinds = {"average": self._average, "gradient": self._gradients, "before": self._before}
        return {f"{kind}.{name}": value for kind, values in kinds.items() for name, value in values.items()}

    def load_state(self, tensors: Mapping[str, Tensor]) -> None:
        """Takes them back."""
        from everlearn.training.processes import beside

        def stored(kind: str) -> dict[str, Tensor]:
            return {
                name: beside(weight.detach().float(), tensors[f"{kind}.{name}"])
                for name, weight in self._parameters.items()
                if f"{kind}.{name}" in tensors
            }

        self._average, self._gradients, self._before = stored("average"), stored("gradient"), stored("before")


def _copies(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {name: value.detach().float().clone() for name, value in tensors.items()}


def _one_norms(tensors: Mapping[str, Tensor], names: Sequence[str] | Mapping[str, object]) -> Tensor:
    """The 1-norm of each, in the order of the names; NaN for those that are not there."""
    import torch

    from everlearn.training.processes import part_of, sums_over_parts

    norms = torch._foreach_norm([part_of(value) for value in tensors.values()], 1) if tensors else []
    values = sums_over_parts(torch.stack(list(norms)), list(tensors.values())).unbind() if tensors else []
    found = dict(zip(tensors, values, strict=True))
    none = torch.full((), torch.nan, device=next(iter(found.values())).device) if found else torch.tensor(torch.nan)
    return torch.stack([found.get(name, none) for name in names])
