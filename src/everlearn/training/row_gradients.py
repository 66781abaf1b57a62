"""Gradients of every row's own scalar from one backward pass over a batch of rows.

The gradient of a row by a weight is made of what its module was given and of the gradient at what it gave back:
(tokens, in) and (tokens, out) for a linear layer, whose product over the row's own tokens is what a backward pass over
that row alone would have left. So a batch needs one forward and one backward pass, and the weights' gradients by row
exist for one parameter and a few rows at a time only (all of a batch's would be as many copies of the model as it has
rows). Linear layers and embeddings have their product in closed form; any other module that holds weights (norms) is
differentiated by itself, row by row, by `torch.func`. A weight used in several places (tied embeddings) has the sum.

This holds where each module that holds weights sees one row per first index and nothing else of the batch. Experts
that are given the tokens routed to them do not: `NotByRowError`, and the caller goes row by row.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.func import functional_call, vjp, vmap
from transformers.pytorch_utils import Conv1D

if TYPE_CHECKING:
    from torch.nn import Module

_AT_ONCE = {"cpu": 1 << 18}
"""Elements of the gradients by row that exist at once, by kind of device: on a CPU so few that they stay in its
caches; others: 2^26 (256 MiB)."""


class NotByRowError(Exception):
    """The gradients of this model's rows cannot be told apart in a batch."""


@dataclass(frozen=True)
class _Use:
    """One call of a module: what it was given, (rows, ...), and what it gave back, (rows, ...)."""

    module: Module
    given: Tensor
    back: Tensor


class RowGradients:
    """Watches the modules that hold some parameters, and gives the gradients by row of what was computed.

    Args:
        model: In evaluation mode.
        parameters: By name; all require gradients.
    """

    def __init__(self, model: Module, parameters: Mapping[str, Tensor]) -> None:
        self._parameters = parameters
        names = {id(parameter): name for name, parameter in parameters.items()}
        self._held: dict[Module, dict[str, str]] = {}
        for module in model.modules():
            own = {place: names[id(one)] for place, one in module.named_parameters(recurse=False) if id(one) in names}
            if own:
                self._held[module] = own
        self._uses: list[_Use] = []

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Forward passes within the block are remembered until their gradients are asked for."""
        handles = [module.register_forward_hook(self._remember, with_kwargs=True) for module in self._held]
        try:
            yield
        finally:
            self._uses.clear()
            for handle in handles:
                handle.remove()

    def _remember(self, module: Module, given: tuple[object, ...], named: dict[str, object], back: object) -> None:
        values = [*given, *named.values()]
        if len(values) != 1 or not isinstance(values[0], Tensor) or not isinstance(back, Tensor):
            raise NotByRowError(f"{type(module).__name__} takes or gives more than one tensor")
        self._uses.append(_Use(module, values[0].detach(), back))

    def add_to(self, sums: Mapping[str, Tensor], scalars: Tensor, of: Callable[[Tensor], Tensor]) -> None:
        """Adds what is made of each row's gradient, summed over the rows, to the sums.

        Args:
            sums: By parameter name, of its shape.
            scalars: One for each row of the batch, (rows,), as the last forward pass gave them.
            of: Elementwise, such as the square, 0 for 0; may work in place.

        Raises:
            NotByRowError: they cannot be told apart; then nothing was added.
        """
        uses, self._uses = self._uses, []
        by_name: dict[str, list[tuple[_Use, str, Tensor]]] = {}
        used = {name for use in uses for name in self._held[use.module].values()}
        unseen = {name: parameter for name, parameter in self._parameters.items() if name not in used}
        wanted = [use.back for use in uses] + list(unseen.values())
        found = torch.autograd.grad(scalars.sum(), wanted, allow_unused=True)
        if any(gradient is not None for gradient in found[len(uses) :]):
            raise NotByRowError("a weight acts outside of the module that holds it")
        for use, gradient in zip(uses, found, strict=False):
            if gradient is None:
                continue
            if not len(use.given) == len(gradient) == len(scalars) or gradient.ndim < 2:
                raise NotByRowError(f"{type(use.module).__name__} sees rows of a batch together")
            for place, name in self._held[use.module].items():
                by_name.setdefault(name, []).append((use, place, gradient))
        for name, several in by_name.items():
            _add(sums[name], several, of)


def _add(total: Tensor, uses: Sequence[tuple[_Use, str, Tensor]], of: Callable[[Tensor], Tensor]) -> None:
    """Adds one parameter's sum over the rows, a few rows at a time."""
    if len(uses) == 1 and type(uses[0][0].module) is nn.Embedding:
        _add_embedding(total, uses[0][0], uses[0][2], of)
        return
    uses = sorted(uses, key=lambda use: type(use[0].module) is nn.Embedding)
    rows = max(1, _AT_ONCE.get(total.device.type, 1 << 26) // max(total.numel(), 1))
    for at in range(0, len(uses[0][2]), rows):
        by_row = None
        for use, place, gradient in uses:
            by_row = _by_row(use.module, place, use.given[at : at + rows], gradient[at : at + rows], by_row)
        assert by_row is not None, "a use for each parameter"
        total += of(by_row).sum(0) if len(by_row) > 1 else of(by_row)[0]


def _by_row(module: Module, place: str, given: Tensor, gradient: Tensor, before: Tensor | None) -> Tensor:
    """The gradient of each row by one parameter of the module, (rows, *its shape), in float32 at least.

    Args:
        module: That was used.
        place: Of the parameter in it.
        given: Its input, (rows, ...).
        gradient: At its output, (rows, ...).
        before: Of other uses of the same parameter, to be added; lost.
    """
    if type(module) is nn.Embedding:
        count, width = module.weight.shape
        found = _full(gradient.new_zeros(len(given), count, width)) if before is None else before
        words = _full(found).view(-1, width)
        words.index_add_(0, _places(module, given).flatten(), _of_words(module, given, gradient))
        return found
    if type(module) in (nn.Linear, Conv1D):
        back = _full(gradient).flatten(1, -2)  # (rows, tokens, out)
        if place == "bias":
            return back.sum(1) if before is None else before.add_(back.sum(1))
        into = _full(given).flatten(1, -2)  # (rows, tokens, in)
        found = into.mT @ back if type(module) is Conv1D else back.mT @ into
    else:
        weight = module.get_parameter(place).detach()

        def of_one_row(given: Tensor, gradient: Tensor) -> Tensor:
            pull = vjp(lambda value: functional_call(module, {place: value}, (given[None],))[0], weight)[1]
            return _full(pull(gradient)[0])

        found = vmap(of_one_row)(given, gradient)
    return found if before is None else before.add_(found)


def _add_embedding(total: Tensor, use: _Use, gradient: Tensor, of: Callable[[Tensor], Tensor]) -> None:
    """The same where only the words that stand in the rows have a gradient."""
    assert isinstance(use.module, nn.Embedding), "the one module whose weight is looked up"
    words, which = _places(use.module, use.given).flatten().unique(return_inverse=True)  # each word of each row
    found = _full(gradient.new_zeros(len(words), use.module.embedding_dim))
    found.index_add_(0, which, _of_words(use.module, use.given, gradient))
    total.index_add_(0, words % use.module.num_embeddings, of(found))


def _places(module: nn.Embedding, given: Tensor) -> Tensor:
    """A number of its own for each word of each row."""
    return given.flatten(1) + module.num_embeddings * torch.arange(len(given), device=given.device)[:, None]


def _of_words(module: nn.Embedding, given: Tensor, gradient: Tensor) -> Tensor:
    """The gradient at each word of the rows, (words of all, width); the padding has none."""
    found = _full(gradient).flatten(0, -2)
    return found if module.padding_idx is None else found * (given.flatten() != module.padding_idx)[:, None]


def _full(tensor: Tensor) -> Tensor:
    """Sums are taken in float32 at least."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))
