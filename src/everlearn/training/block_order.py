"""Which block is read at which sample index: a shuffle that is computed, not stored.

The order depends on the seed, the version and the sample index alone, never on the path, the number of processes or
where a run was interrupted; so a branch and the main tail read the same blocks, and a cursor is one number. The
permutation is a small Feistel network with cycle walking (Black and Rogaway, Ciphers with Arbitrary Finite Domains,
CT-RSA 2002), so that a shuffle of any size costs no memory. It shuffles; it is no cryptography.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from everlearn.seeds import derive

Indices = NDArray[np.int64]
_ROUNDS = 6


def permuted(indices: Indices, size: int, seed: int) -> Indices:
    """The images of `indices` under a permutation of range(size).

    Args:
        indices: Any shape; each in [0, size).
        size: Size of the range.
        seed: Chooses the permutation.
    """
    if size <= 1:
        return np.zeros_like(indices)
    bits = int(size - 1).bit_length()
    keys = [np.uint64(derive(seed, "round", turn) * 0x9E3779B97F4A7C15 % 2**64) for turn in range(_ROUNDS)]
    values = _feistel(indices.astype(np.uint64), bits, keys)
    while (outside := values >= size).any():
        values[outside] = _feistel(values[outside], bits, keys)
    return values.astype(np.int64)


def _feistel(values: NDArray[np.uint64], bits: int, keys: list[np.uint64]) -> NDArray[np.uint64]:
    """A permutation of the numbers of `bits` bits; the halves trade places (and widths) each round."""
    left_bits, right_bits = bits // 2, bits - bits // 2
    left, right = values >> np.uint64(right_bits), values & _mask(right_bits)
    for key in keys:
        left, right = right, left ^ (_mixed(right, key) & _mask(left_bits))
        left_bits, right_bits = right_bits, left_bits
    return (left << np.uint64(right_bits)) | right


def _mask(bits: int) -> np.uint64:
    return np.uint64((1 << bits) - 1)


def _mixed(values: NDArray[np.uint64], key: np.uint64) -> NDArray[np.uint64]:
    """splitmix64's finishing step: every bit of the input reaches every bit of the output."""
    mixed = values + key
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


class BlockOrder:
    """The blocks of every optimizer step over the data of all versions.

    Args:
        steps: Optimizer steps of each version.
        blocks: Blocks that each version has; at least steps * batch_blocks.
        batch_blocks: Blocks of a step.
        seed: Root seed of the run.
    """

    def __init__(self, steps: tuple[int, ...], blocks: tuple[int, ...], batch_blocks: int, seed: int) -> None:
        self._blocks = blocks
        self._batch = batch_blocks
        self._seed = seed
        self._ends = np.cumsum([0, *steps]) * batch_blocks  # sample indices at which versions begin and end

    def at(self, position: int, *, mixed_until: int | None = None) -> list[tuple[int, int]]:
        """(version, block) of each sample of one step, both 0-based.

        Args:
            position: Of the step in the data of all versions one after the other.
            mixed_until: With a position: the samples before it are shuffled together across versions.
        """
        samples = np.arange(position * self._batch, (position + 1) * self._batch, dtype=np.int64)
        if mixed_until is not None:
            seed = derive(self._seed, "mixed", mixed_until)
            samples = permuted(samples, mixed_until * self._batch, seed)
        return self._blocks_of(samples)

    def earlier(self, position: int, until: int, count: int) -> list[tuple[int, int]]:
        """`count` samples to replay at a step, drawn from those before the position `until`, all alike often."""
        size = until * self._batch
        samples = np.arange(position * self._batch, position * self._batch + count, dtype=np.int64) % size
        return self._blocks_of(permuted(samples, size, derive(self._seed, "replay", until)))

    def _blocks_of(self, samples: Indices) -> list[tuple[int, int]]:
        versions = np.searchsorted(self._ends, samples, side="right") - 1
        chosen: list[tuple[int, int]] = [(0, 0)] * len(samples)
        for version in np.unique(versions):
            inside = np.flatnonzero(versions == version)
            seed = derive(self._seed, "order", int(version))
            found = permuted(samples[inside] - self._ends[version], self._blocks[version], seed)
            for place, block in zip(inside, found, strict=True):
                chosen[place] = (int(version), int(block))
        return chosen
