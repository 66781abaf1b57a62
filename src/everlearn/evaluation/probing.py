"""Probes: what the features of a frozen model still tell apart, whatever its own answers say.

A probe is a fresh head without bias over the state h of the last prompt token, fitted on the training rows of all
tasks, later ones included, and scored on their held-out rows:

- linear: w_c . h, and cosine linear: w_c . h / (|w_c| |h|), no scale, both trained by cross-entropy;
- prototype: mu_c . h with mu_c the mean of the class's training features (a raw product, no distance), and cosine
  prototype: mu_c . h / (|mu_c| |h|).

Class-incremental: one head over the classes of all tasks. Task-incremental: a head for each task.
Source: arXiv 2312.07887 and its released code (read), which trains 20 epochs of about N / 128 Adam steps at 1e-3: on
few rows that is near chance, and below 128 it crashes. So the default here trains until the loss is flat (L-BFGS; the
linear probe's problem is convex), and `published` is the option, for any N. The released code extracts features with
dropout on; here it is off.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal, get_args

import numpy as np

from everlearn.recipe import Probe

if TYPE_CHECKING:
    from torch import Tensor

    from everlearn.progress import Tick

PROBES: tuple[Probe, ...] = get_args(Probe)
Schedule = Literal["converged", "published"]
Order = Callable[[int], np.ndarray]
"""Epoch to the order of the rows in it."""

_TRAINED = ("linear", "cosine_linear")
_COSINE = ("cosine_linear", "cosine_prototype")
EPOCHS, RATE, CHUNK = 20, 1e-3, 128  # published
FLAT = 1e-4
"""The loss is flat where an iteration lowers it by less than this (by this share of it where it is above 1)."""
MOST_ITERATIONS = 1000
_LEAST_MOMENT = 1e-4  # of the largest: axes along which features hardly differ are not stretched further


@dataclass(frozen=True)
class Rows:
    """Rows of one head.

    Attributes:
        features: (rows, width).
        labels: (rows,): column of each row's class in the head.
        classes: Columns of the head.
    """

    features: np.ndarray
    labels: np.ndarray
    classes: int


@dataclass(frozen=True)
class Fitted:
    """A head.

    Attributes:
        weights: (classes, width); rows of NaN for classes of which a prototype has seen no row.
        steps: Steps or iterations it took; 0 of a prototype.
        loss: Mean cross-entropy over the training rows at the end; NaN of a prototype.
        is_flat: Whether the loss was flat then.
    """

    weights: np.ndarray
    steps: int = 0
    loss: float = float("nan")
    is_flat: bool = True


def fitted(probe: Probe, rows: Rows, schedule: Schedule, seed: int, tick: Tick | None = None) -> Fitted:
    """Fits one probe.

    Args:
        probe: Which.
        rows: To fit it on.
        schedule: Of the trained ones.
        seed: Of the published schedule's start and shuffles; the other draws nothing.
        tick: Called with epochs or iterations done, their most, and the loss in words.
    """
    is_cosine = probe in _COSINE
    if probe not in _TRAINED:
        return Fitted(prototypes(rows))
    if schedule == "published":
        draws = np.random.default_rng(seed)
        bound = rows.features.shape[1] ** -0.5  # torch's start of a linear layer, and that of the cosine head
        start = draws.uniform(-bound, bound, (rows.classes, rows.features.shape[1])).astype(rows.features.dtype)
        return trained_as_published(rows, start, is_cosine, lambda _: draws.permutation(len(rows.labels)), tick)
    return trained_until_flat(rows, is_cosine, tick)


def predicted(probe: Probe, head: Fitted, features: np.ndarray) -> np.ndarray:
    """The column that a head gives the most, for each row (rows,)."""
    import torch

    logits = _logits(torch.from_numpy(features), torch.from_numpy(head.weights), probe in _COSINE)
    return logits.nan_to_num(nan=-torch.inf).argmax(-1).numpy()


def prototypes(rows: Rows) -> np.ndarray:
    """The mean feature of each class, (classes, width)."""
    sums = np.zeros((rows.classes, rows.features.shape[1]))
    np.add.at(sums, rows.labels, rows.features)
    counts = np.bincount(rows.labels, minlength=rows.classes)[:, None]
    means = np.divide(sums, counts, out=np.full_like(sums, np.nan), where=counts > 0)
    return means.astype(rows.features.dtype)


def trained_as_published(
    rows: Rows, start: np.ndarray, is_cosine: bool, order: Order, tick: Tick | None = None
) -> Fitted:
    """20 epochs of Adam at 1e-3 over floor(N / 128) chunks of the shuffled rows, at least one.

    Args:
        rows: To train on.
        start: Weights, (classes, width).
        is_cosine: Whether logits are cosines.
        order: Of the rows in each epoch.
        tick: As in `fitted`.
    """
    import torch
    from torch.nn.functional import cross_entropy

    features, labels = torch.from_numpy(rows.features), torch.from_numpy(rows.labels)
    weights = torch.from_numpy(start).clone().requires_grad_()
    optimizer = torch.optim.Adam([weights], lr=RATE)
    steps, loss = 0, torch.tensor(float("nan"))
    for epoch in range(EPOCHS):
        for part in torch.as_tensor(order(epoch)).chunk(max(1, len(labels) // CHUNK)):
            loss = cross_entropy(_logits(features[part], weights, is_cosine), labels[part])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            steps += 1
        if tick:
            tick(epoch + 1, EPOCHS, f"loss {float(loss.detach()):.3f}")
    with torch.no_grad():
        loss = cross_entropy(_logits(features, weights, is_cosine), labels)
    return Fitted(weights.detach().numpy(), steps, float(loss), is_flat=False)


def trained_until_flat(rows: Rows, is_cosine: bool, tick: Tick | None = None) -> Fitted:
    """L-BFGS on the mean cross-entropy of all rows, until an iteration lowers it by less than `FLAT`.

    It goes in the axes of the features' second moments, each in its own measure: features of a language model lie in
    a narrow cone. That changes the way to the minimum and not the minimum (on features of 150 classes 111 iterations
    in place of more than 500). The linear head starts at zero, the cosine one (not convex) at the class means.

    Args:
        rows: To train on.
        is_cosine: Whether logits are cosines.
        tick: As in `fitted`.
    """
    import torch
    from scipy.optimize import minimize  # type: ignore[import-untyped]
    from torch.nn.functional import cross_entropy, normalize

    features, labels = torch.from_numpy(rows.features), torch.from_numpy(rows.labels)
    features = normalize(features, dim=-1) if is_cosine else features
    moments, axes = torch.linalg.eigh(features.T.double() @ features.double() / len(features))
    lengths = moments.clamp_min(max(_LEAST_MOMENT * float(moments[-1]), torch.finfo(torch.float64).tiny)).sqrt()
    way = (axes / lengths).to(features.dtype)  # weights = what is optimised @ way.T
    seen = features if is_cosine else features @ way
    shape = (rows.classes, features.shape[1])
    start = torch.zeros(shape, dtype=torch.float64)
    if is_cosine:
        start = torch.from_numpy(prototypes(rows)).double().nan_to_num(nan=1.0) @ axes * lengths
    done = 0

    def loss_and_gradient(flat: np.ndarray) -> tuple[float, np.ndarray]:
        optimised = torch.from_numpy(flat.reshape(shape)).to(features.dtype).requires_grad_()
        loss = cross_entropy(seen @ (normalize(optimised @ way.T, dim=-1) if is_cosine else optimised).T, labels)
        (gradient,) = torch.autograd.grad(loss, optimised)
        return float(loss.detach()), gradient.double().numpy().ravel()

    def told(intermediate_result: Mapping[str, float]) -> None:
        nonlocal done
        done += 1
        if tick:
            tick(done, MOST_ITERATIONS, f"loss {intermediate_result['fun']:.4f}")

    options = {"maxiter": MOST_ITERATIONS, "ftol": FLAT, "gtol": 0.0}
    found = minimize(
        loss_and_gradient, start.numpy().ravel(), jac=True, method="L-BFGS-B", callback=told, options=options
    )
    weights = (torch.from_numpy(found.x.reshape(shape)).to(features.dtype) @ way.T).numpy()
    return Fitted(weights, int(found.nit), float(found.fun), is_flat=bool(found.nit < MOST_ITERATIONS))


def _logits(features: Tensor, weights: Tensor, is_cosine: bool) -> Tensor:
    """(rows, classes)."""
    from torch.nn.functional import normalize

    if is_cosine:
        features, weights = normalize(features, dim=-1), normalize(weights, dim=-1)
    return features @ weights.T
