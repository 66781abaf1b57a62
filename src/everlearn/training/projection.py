"""The gradient of a step made harmless for rows of earlier tasks, to first order: A-GEM and GEM.

The gradients of all tuned parameters count as one vector g; those of memory rows are taken at the present weights.
Both change g only where it would raise a memory's loss (a negative dot product), before clipping. An optimizer that
rescales the step elementwise (Adam) keeps the direction's promise no longer exactly.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from everlearn.seeds import derive
from everlearn.training.influence import Influence, OptimizerStep, Training

if TYPE_CHECKING:
    from torch import Tensor

    from everlearn.training.rows import EncodedRow


def turn_from(gradients: Sequence[Tensor], reference: Sequence[Tensor]) -> Tensor:
    """A-GEM in place: g - (g.r / r.r) r where g.r < 0; nothing waits for the device.

    Args:
        gradients: g, tensors of any shapes that count as one vector; changed.
        reference: r, of the same shapes.

    Returns:
        1 where g was changed, else 0.
    """
    import torch

    dot = torch.stack([(one * other).sum() for one, other in zip(gradients, reference, strict=True)]).sum()
    square = torch.stack([(one * one).sum() for one in reference]).sum()
    conflicts = (dot < 0) & (square > 0)
    factor = torch.where(conflicts, dot / square, torch.zeros_like(dot))
    for one, other in zip(gradients, reference, strict=True):
        one.sub_(factor * other)
    return conflicts.to(dot.dtype)


def turn_into_cone(
    gradients: Sequence[Tensor], memories: Sequence[Sequence[Tensor]], *, margin: float, epsilon: float, relative: bool
) -> np.ndarray:
    """GEM in place: g + G' v with v of `cone_weights`, where g conflicts with any memory.

    Args:
        gradients: g, tensors that count as one vector; changed.
        memories: Rows of G, one vector a task.
        margin: Least v.
        epsilon: Added to the diagonal of G G'.
        relative: Whether it is a factor of the mean of that diagonal.

    Returns:
        G g as it was before.
    """
    import torch

    blocks = []  # of G [G' g], tensor by tensor, so that G is never copied as a whole
    for at, gradient in enumerate(gradients):
        rows = torch.stack([memory[at].flatten() for memory in memories])
        blocks.append(rows @ torch.cat([rows, gradient.to(rows.dtype).reshape(1, -1)]).T)
    products = torch.stack(blocks).cpu().double().sum(0).numpy()
    gram, dots = products[:, :-1], products[:, -1]
    if not np.isfinite(products).all() or (dots >= 0).all():  # what is no number is refused with the loss
        return dots
    if relative:
        epsilon *= float(np.diagonal(gram).mean())
    for weight, memory in zip(cone_weights(gram, dots, margin, epsilon).tolist(), memories, strict=True):
        for gradient, other in zip(gradients, memory, strict=True):
            gradient.add_(other.to(gradient.dtype), alpha=weight)
    return dots


def cone_weights(gram: np.ndarray, dots: np.ndarray, margin: float, epsilon: float) -> np.ndarray:
    """GEM's v: the least of 1/2 v' (G G' + epsilon I) v + (G g)' v over v >= margin, exact, in float64.

    With w = v - margin and A = G G' + epsilon I = F' F it is the non-negative least-squares problem
    min |F w + F'^+ (G g + A margin)|, w >= 0. F comes from the eigenvectors of A, so gradients may depend on each
    other or vanish.

    Args:
        gram: G G', (tasks, tasks).
        dots: G g, (tasks,).
        margin: Least v.
        epsilon: Added to the diagonal.
    """
    from scipy.optimize import nnls  # type: ignore[import-untyped]

    matrix = gram + epsilon * np.eye(len(gram))
    values, vectors = np.linalg.eigh(matrix)
    roots = np.sqrt(np.where(values > len(values) * np.finfo(float).eps * values[-1], values, 0.0))
    inverse = np.divide(1.0, roots, out=np.zeros_like(roots), where=roots > 0)
    pulled = dots + matrix @ np.full(len(gram), margin)
    found, _ = nnls(roots[:, None] * vectors.T, -inverse * (vectors.T @ pulled), maxiter=100 * len(gram))
    return np.asarray(found) + margin


class Projection(Influence):
    """Base of both: finds the memory rows among the rows of the phase and notes conflicts in the history.

    Args:
        groups: Names of the groups of memory rows, one a task.
        tells: Whether to say what weakens the promise (once a run is enough).
    """

    def __init__(self, groups: Sequence[str], tells: bool) -> None:
        self._groups, self._tells = groups, tells

    def begin(self, training: Training) -> None:
        """Finds the memory rows."""
        from torch.nn import Dropout

        self._training = training
        self.memories: list[list[EncodedRow]] = [
            [row for row in training.rows if row.group == name] for name in self._groups
        ]
        rate = max((part.p for part in training.model.modules() if isinstance(part, Dropout)), default=0.0)
        if rate > 0 and self._tells:
            training.say(
                f"dropout is on ({rate:g}): gradients of memory rows are taken under other masks than those of the "
                "step, so more steps than need be are changed; with model.lora.dropout 0 none is."
            )

    def gradients_of(self, rows: Sequence[EncodedRow], step: OptimizerStep) -> list[Tensor]:
        """The gradient of the mean loss of rows at the present weights, float32, in the order of the parameters."""
        found = self._training.gradients_of(rows)
        return [found[name] for name in step.parameters]

    def gradients(self, step: OptimizerStep) -> list[Tensor]:
        """Those of the step; zeros where it has none."""
        import torch

        for weight in step.parameters.values():
            weight.grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        return [weight.grad for weight in step.parameters.values() if weight.grad is not None]


class OnAverage(Projection):
    """A-GEM: no conflict with the gradient of a few rows, drawn anew in each step from all memories.

    Args:
        groups: As in `Projection`.
        tells: As in `Projection`.
        sample: Rows drawn.
    """

    def __init__(self, groups: Sequence[str], tells: bool, *, sample: int) -> None:
        super().__init__(groups, tells)
        self._sample = sample

    def after_backward(self, step: OptimizerStep) -> None:
        """Projects; notes whether there was a conflict."""
        rows = [row for memory in self.memories for row in memory]
        stream = random.Random(derive(self._training.seed, "memory", step.number))
        drawn = stream.sample(rows, min(self._sample, len(rows)))
        step.note("conflicts", turn_from(self.gradients(step), self.gradients_of(drawn, step)))


class OnEveryTask(Projection):
    """GEM: no conflict with the gradient of any task's memory.

    Args:
        groups: As in `Projection`.
        tells: As in `Projection`.
        margin: As in `cone_weights`.
        epsilon: As in `turn_into_cone`.
        relative: As in `turn_into_cone`.
    """

    def __init__(
        self,
        groups: Sequence[str],
        tells: bool,
        *,
        margin: float,
        epsilon: float,
        relative: bool,
    ) -> None:
        super().__init__(groups, tells)
        self._margin, self._epsilon, self._relative = margin, epsilon, relative

    def after_backward(self, step: OptimizerStep) -> None:
        """Projects; notes with how many tasks there was a conflict."""
        import torch

        memories = [self.gradients_of(rows, step) for rows in self.memories]
        dots = turn_into_cone(
            self.gradients(step), memories, margin=self._margin, epsilon=self._epsilon, relative=self._relative
        )
        step.note("conflicts", torch.tensor(float((dots < 0).sum())))
