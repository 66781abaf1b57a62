"""Which blocks a step of a segment reads: those of its versions in the order of the run, or of the annealing mix."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

import numpy as np
import torch
from torch import Tensor

from everlearn.data.blocks import TokenFiles
from everlearn.seeds import derive
from everlearn.shares import share_of
from everlearn.training.block_order import BlockOrder
from everlearn.updates.config import UpdateRecipe
from everlearn.updates.plan import Segment


class Batches:
    """The blocks of every step of a run.

    Args:
        recipe: Says how large a batch is, and in which order versions are read.
        files: Token files of the versions.
        annealing: Those of the annealing mix, if there is one.
        steps: Optimizer steps of each version.
    """

    def __init__(
        self, recipe: UpdateRecipe, files: Sequence[TokenFiles], annealing: TokenFiles | None, steps: tuple[int, ...]
    ) -> None:
        self._recipe = recipe
        self._ends = list(accumulate(steps))
        width, batch = recipe.training.block_tokens, recipe.training.batch_blocks
        self._blocks = [one.train(width) for one in files]
        self._order = BlockOrder(steps, tuple(len(b) for b in self._blocks), batch, recipe.seed)
        if annealing:
            self._annealing = annealing.train(width)
            most = len(self._annealing) // batch
            seed = derive(recipe.seed, "annealing")
            self._annealing_order = BlockOrder((most,), (len(self._annealing),), batch, seed)

    def read(self, segment: Segment, step: int, share: slice) -> Tensor:
        """One process's blocks of a step.

        Args:
            segment: That is trained.
            step: Of the segment.
            share: Of the batch.

        Returns:
            Shape (blocks, block_tokens).
        """
        position = segment.start + step
        if segment.data == "annealing":
            return torch.from_numpy(self._annealing.read([b for _, b in self._annealing_order.at(position)[share]]))
        is_mixed = segment.kind == "scratch" and self._recipe.path.ptfs_order == "mixed"
        is_mixed = is_mixed and segment.releases != 1  # one version is shuffled anyway
        batch = self._order.at(position, mixed_until=segment.end if is_mixed else None)
        if segment.kind == "branch" and segment.releases and segment.releases > 1:
            replayed = round(share_of(self._recipe.path.branch_replay_ratio, len(batch)))
            batch[:replayed] = self._order.earlier(position, self._ends[segment.releases - 2], replayed)
        chosen = batch[share]
        rows = np.empty((len(chosen), self._recipe.training.block_tokens), dtype=np.int64)
        for version in {version for version, _ in chosen}:
            places = [place for place, (of, _) in enumerate(chosen) if of == version]
            rows[places] = self._blocks[version].read([chosen[place][1] for place in places])
        return torch.from_numpy(rows)
