"""How much each tuned parameter matters to some rows: the mean over rows of a power of the gradient of a row's scalar.

The empirical Fisher information is the mean squared gradient of a row's loss, the mean cross-entropy of the gold
answer's tokens, at the weights as they are, in evaluation mode. Source: SSR's EWC baseline (arXiv 2403.01244, spec
section 8) after Kirkpatrick et al. 2017 (arXiv 1612.00796). Memory-aware synapses (MAS, Aljundi et al. 2018, arXiv
1711.09601) take the mean absolute gradient of the squared norm of a row's output.

Rows are computed together and told apart in the backward pass (`row_gradients.py`), where both ways agree on two rows
of the model at hand; else one by one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from everlearn.models.adapters import inner_model
from everlearn.models.batching import by_length, ran_out_of_memory, release_device_memory
from everlearn.models.parameters import tuned_parameters
from everlearn.models.sides import Sides
from everlearn.seeds import derive
from everlearn.training.processes import Processes
from everlearn.training.row_gradients import NotByRowError, RowGradients

if TYPE_CHECKING:
    import numpy as np

    from everlearn.crew import Crew
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Tick
    from everlearn.training.rows import EncodedRow

Scalar = Callable[[Tensor, Tensor], Tensor]
"""Of a row: the logits that predict its answer, (answer tokens, vocabulary), and its tokens, which end in the answer,
to a scalar."""
Power = Literal["square", "absolute"]
_POWERS: dict[Power, Callable[[Tensor], Tensor]] = {"square": torch.square, "absolute": torch.abs}
_IN_PLACE: dict[Power, Callable[[Tensor], Tensor]] = {"square": Tensor.square_, "absolute": Tensor.abs_}

_MOST_TOKENS = {"cpu": 2048}
"""Tokens computed at once, by kind of device; others: 16,384."""
_MOST_LOGITS = 1 << 27
"""Logits computed at once (512 MiB of float32)."""
_CHEAP_ALONE = 4
"""So few rows are computed one by one at once: whether both ways agree takes two such passes."""
_TOLERANCE = {torch.float32: 1e-4, torch.float64: 1e-4}
"""Of both ways, relative to the largest entry of a parameter; in formats of 16 bits: 0.05."""
_CANNOT = (NotByRowError, TypeError, ValueError, RuntimeError, IndexError, AttributeError, NotImplementedError)


def answer_loss(logits: Tensor, ids: Tensor) -> Tensor:
    """The mean cross-entropy of the gold answer's tokens."""
    return cross_entropy(logits.float(), ids[-len(logits) :])


def negative_log_likelihood(logits: Tensor, ids: Tensor) -> Tensor:
    """The cross-entropy of the gold answer's tokens summed: of a longer answer the information is larger."""
    return cross_entropy(logits.float(), ids[-len(logits) :], reduction="sum")


def output_norm(logits: Tensor, ids: Tensor) -> Tensor:
    """The squared norm of the logits at the last token of the prompt."""
    return logits[0].float().square().sum()


def probability_norm(logits: Tensor, ids: Tensor) -> Tensor:
    """The squared norm of the probabilities there."""
    return logits[0].float().softmax(0).square().sum()


@dataclass(frozen=True)
class OfSampledTokens:
    """Another scalar, of tokens that the model draws itself at the places of the gold answer's.

    The expectation over them makes the empirical information the true one (one draw a row).

    Attributes:
        scalar: Of logits and tokens.
        seed: Of the draws; each row has a stream of its own, rows with the same answer too.
    """

    scalar: Scalar
    seed: int

    def __call__(self, logits: Tensor, ids: Tensor) -> Tensor:
        """The scalar of the drawn tokens."""
        stream = torch.Generator().manual_seed(derive(self.seed, *ids.tolist()))
        chances = logits.detach().cpu().double().softmax(-1).cumsum(-1)  # Apple's GPUs have no float64
        drawn = torch.rand(len(logits), 1, generator=stream, dtype=torch.float64)
        tokens = torch.searchsorted(chances, drawn * chances[:, -1:])[:, 0]
        return self.scalar(logits, tokens.to(logits.device))


def mean_powers(scalars: Iterable[Tensor], parameters: Sequence[Tensor], power: Power) -> list[Tensor]:
    """Mean over scalars of a power of the gradient of each with respect to each parameter, element by element.

    Args:
        scalars: Made one after the other, so that only one graph is alive.
        parameters: Tensors that require gradients; one that a scalar does not depend on has gradient 0.
        power: Of the gradient.

    Returns:
        One tensor a parameter, of its shape, float32: in bfloat16 a sum of some hundred squares stands still.
    """
    sums = [_sum_for(parameter) for parameter in parameters]
    count = 0
    for scalar in scalars:
        gradients = torch.autograd.grad(scalar, parameters, allow_unused=True)
        for total, gradient in zip(sums, gradients, strict=True):
            if gradient is not None:
                total += _POWERS[power](gradient.to(total.dtype))
        count += 1
    return [total / max(1, count) for total in sums]


def _sum_for(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter, dtype=torch.promote_types(parameter.dtype, torch.float32))


def fisher_information(
    loaded: LoadedModel, rows: Sequence[EncodedRow], tick: Tick | None = None, *, scalar: Scalar = answer_loss
) -> dict[str, np.ndarray]:
    """The Fisher information of the tuned parameters on rows: the mean squared gradient; see `importance`."""
    return importance(loaded, rows, tick, scalar=scalar, power="square")


def importance(
    loaded: LoadedModel,
    rows: Sequence[EncodedRow],
    tick: Tick | None = None,
    *,
    scalar: Scalar,
    power: Power,
    together: bool = True,
) -> dict[str, np.ndarray]:
    """The mean over rows of a power of the gradient of each row's scalar by the tuned parameters.

    Args:
        loaded: The model that has just learnt the rows' task.
        rows: Encoded as in training.
        tick: Called with (rows done, rows in all).
        scalar: Of a row.
        power: Of the gradient, element by element.
        together: Whether rows may be computed together; it makes no difference but in speed.

    Returns:
        Parameter name to array of its shape, float32.
    """
    return loaded.shared_out(_of_share, (rows, scalar, power, together), tick)


def _of_share(
    loaded: LoadedModel, order: tuple[Sequence[EncodedRow], Scalar, Power, bool], crew: Crew, tick: Tick | None
) -> dict[str, np.ndarray]:
    """The same in all processes, each some of the rows."""
    every, scalar, power, together = order
    rows = every if crew.count == 1 else sorted(every, key=lambda row: -len(row.ids))[crew.rank :: crew.count]
    model, tuned = loaded.model, tuned_parameters(loaded.model)
    training = model.training
    model.eval()

    def told(done: int, of: int) -> None:
        if tick:
            tick(min(done * crew.count, len(every)), len(every))

    try:
        with _requiring_gradients(list(tuned.values())):
            means = None
            if together and len(rows) > _CHEAP_ALONE and _agree(loaded, tuned, rows, scalar, power):
                means = _together(loaded, tuned, rows, scalar, power, told)
            if means is None:
                means = _one_by_one(loaded, tuned, rows, scalar, power, told)
    finally:
        model.train(training)
    if crew.count > 1:
        sums = {name: mean * len(rows) for name, mean in means.items()}
        Processes(loaded.device, crew.rank, crew.count).sums(sums)
        means = {name: total / len(every) for name, total in sums.items()}
    return {name: mean.float().cpu().numpy() for name, mean in means.items()}


def _one_by_one(
    loaded: LoadedModel,
    tuned: Mapping[str, Tensor],
    rows: Sequence[EncodedRow],
    scalar: Scalar,
    power: Power,
    tick: Callable[[int, int], None],
) -> dict[str, Tensor]:
    def scalars() -> Iterator[Tensor]:
        for done, row in enumerate(rows, 1):
            ids = torch.tensor(row.ids, device=loaded.device)
            first = max(row.prompt_length, 1)
            found = loaded.model(input_ids=ids[None], attention_mask=torch.ones_like(ids[None]), use_cache=False)
            logits = found.logits[0, -len(ids) :]  # no soft prompt's
            yield scalar(logits[first - 1 : -1], ids)
            tick(done, len(rows))

    found = mean_powers(scalars(), list(tuned.values()), power)
    return dict(zip(tuned, found, strict=True))


def _agree(
    loaded: LoadedModel, tuned: Mapping[str, Tensor], rows: Sequence[EncodedRow], scalar: Scalar, power: Power
) -> bool:
    """Whether a short and a longer row have the same result together as one by one."""
    ordered = sorted(rows, key=lambda row: len(row.ids))
    two = [ordered[0], ordered[len(ordered) // 2]]

    def quietly(done: int, of: int) -> None:
        return None

    found = _together(loaded, tuned, two, scalar, power, quietly)
    if found is None:
        return False
    expected = _one_by_one(loaded, tuned, two, scalar, power, quietly)
    gaps = [
        (found[name] - expected[name]).abs().max() - _TOLERANCE.get(parameter.dtype, 0.05) * expected[name].abs().max()
        for name, parameter in tuned.items()
        if parameter.numel()
    ]
    return bool((torch.stack(gaps) <= 0).all())


def _together(
    loaded: LoadedModel,
    tuned: Mapping[str, Tensor],
    rows: Sequence[EncodedRow],
    scalar: Scalar,
    power: Power,
    tick: Callable[[int, int], None],
) -> dict[str, Tensor] | None:
    """The means from batches of rows; None: this model's rows cannot be told apart, or take other arguments."""
    inner = inner_model(loaded.model)
    vocabulary = inner.get_output_embeddings().weight.shape[0]
    watched = RowGradients(loaded.model, tuned)
    sums = {name: _sum_for(parameter) for name, parameter in tuned.items()}
    most = _MOST_TOKENS.get(loaded.device.type, 16384)
    waiting = list(by_length(rows, lambda row: len(row.ids), most, Sides(inner).of))
    done = 0
    with watched.watching():
        while waiting:
            part = waiting.pop()
            kept = max(len(row.ids) for row in part) - min(max(row.prompt_length, 1) for row in part)
            is_too_much = len(part) > 1 and len(part) * kept * vocabulary > _MOST_LOGITS
            if not is_too_much:
                try:
                    scalars = torch.stack(list(_scalars(loaded, part, scalar)))
                    watched.add_to(sums, scalars, _IN_PLACE[power])
                except _CANNOT as error:
                    if not ran_out_of_memory(error):
                        return None
                    is_too_much = True
            if is_too_much:
                if len(part) == 1:
                    return None
                release_device_memory()
                waiting += [part[: len(part) // 2], part[len(part) // 2 :]]
                continue
            done += len(part)
            tick(done, len(rows))
    return {name: total / max(1, len(rows)) for name, total in sums.items()}


def _scalars(loaded: LoadedModel, rows: Sequence[EncodedRow], scalar: Scalar) -> Iterator[Tensor]:
    """Each row's scalar from one forward pass; what follows a row in its line is not seen by it."""
    longest = max(len(row.ids) for row in rows)
    ids = torch.zeros((len(rows), longest), dtype=torch.long)
    for at, row in enumerate(rows):
        ids[at, : len(row.ids)] = torch.tensor(row.ids)
    ids = ids.to(loaded.device)
    firsts = [max(row.prompt_length, 1) for row in rows]
    kept = torch.arange(min(firsts) - 1, longest - 1, device=loaded.device)
    positions = torch.arange(longest, device=loaded.device).expand(len(rows), -1)
    logits = loaded.model(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),  # left out: a warning where a row ends in the padding's token
        position_ids=positions,
        logits_to_keep=kept,
        use_cache=False,
    ).logits
    for row, first, own, of_row in zip(rows, firsts, ids, logits.unbind(), strict=True):
        place = first - min(firsts)
        yield scalar(of_row[place : place + len(row.ids) - first], own[: len(row.ids)])


@contextmanager
def _requiring_gradients(parameters: Sequence[Tensor]) -> Iterator[None]:
    """Within the block all of them require gradients; afterwards each does what it did."""
    before = [parameter.requires_grad for parameter in parameters]
    try:
        for parameter in parameters:
            parameter.requires_grad_(True)
        yield
    finally:
        for parameter, did in zip(parameters, before, strict=True):
            parameter.requires_grad_(did)
