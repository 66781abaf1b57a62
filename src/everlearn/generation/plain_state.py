"""Keys and values for any causal language model, through Transformers' own cache; nothing is shared.

Prompts are padded on the left. Used for architectures whose attention or cache is of a special kind (sliding
windows, state spaces); the others have the faster `shared_state`.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from everlearn.generation.decoding import Batch


class PlainState:
    """One batch at a time: rows leave, none joins."""

    def __init__(self, model: PreTrainedModel, pad_token: int) -> None:
        self._model = model
        self._pad_token = pad_token
        accepted = set(inspect.signature(model.forward).parameters)
        self._has_positions = "position_ids" in accepted
        self._last_only: dict[str, int] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        self._last_position = getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30) - 1
        self._mask = torch.empty((0, 0), dtype=torch.long, device=model.device)  # (rows, tokens so far)

    def takes(self, batch: Batch, copies: int) -> bool:
        """Only an empty batch takes prompts."""
        return not len(self._mask)

    def admit(self, batch: Batch, copies: int) -> Tensor:
        """Computes the prompts and copies what is cached for each of their rows."""
        prompts = batch.prompts
        longest = max(len(prompt.token_ids) for prompt in prompts)
        pads = [longest - len(prompt.token_ids) for prompt in prompts]
        ids = [[*([self._pad_token] * pad), *prompt.token_ids] for pad, prompt in zip(pads, prompts, strict=True)]
        mask = [[0] * pad + [1] * (longest - pad) for pad in pads]
        self._cache = DynamicCache(config=self._model.config)
        self._mask = torch.tensor(mask, device=self._model.device)
        logits = self._forward(torch.tensor(ids, device=self._model.device))
        if copies > 1:
            self._take(torch.arange(len(prompts), device=self._model.device).repeat_interleave(copies))
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """One token further in every row."""
        self._mask = torch.cat([self._mask, self._mask.new_ones((len(tokens), 1))], dim=1)
        return self._forward(tokens[:, None])

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""
        self._take(torch.tensor(rows, dtype=torch.long, device=self._model.device))

    def _take(self, rows: Tensor) -> None:
        self._mask = self._mask[rows]
        self._cache.reorder_cache(rows)  # layers of linear attention have no other way to take rows

    def _forward(self, ids: Tensor) -> Tensor:
        extra: dict[str, Tensor | int] = dict(self._last_only)
        if self._has_positions:
            # a finished row that has not left yet may be at the end of the context
            positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0, max=self._last_position)
            extra["position_ids"] = positions[:, -ids.shape[1] :]
        output = self._model(
            input_ids=ids, attention_mask=self._mask, past_key_values=self._cache, use_cache=True, **extra
        )
        return output.logits[:, -1].float()
