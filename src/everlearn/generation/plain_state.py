"""Keys and values for any causal language model, through Transformers' own cache; nothing is shared.

Used for architectures whose attention or cache is of a special kind (state spaces, capped scores) and for rows longer
than a window of attention; the others have the faster `shared_state`. Prompts are padded on the left, where the model
computes the same behind padding as without (`bears_padding`). Where it does not, or where it may come to compute
otherwise from some length on, prompts of equal length come together, and each step is prepared as `model.generate` has
it prepared: Phi-3 computes all it has read anew where its rotary embedding changes.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel

from everlearn.generation.decoding import Batch, Prompt
from everlearn.models.padding import hides_padding, keeps_unknown_states, tolerance


class PlainState:
    """One batch at a time: rows leave, none joins.

    Args:
        model: Any causal language model with a cache.
        pad_token: Any token id.
        last_position: Of the rows to come; None: that of the model's context.
        is_padded: Whether prompts of several lengths may come together.
        before: Vectors that stand before the first token of each row, (tokens, width): a soft prompt; the rows of the
            cache then begin with them. Only where rows may be padded.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pad_token: int,
        last_position: int | None = None,
        *,
        is_padded: bool = True,
        before: Tensor | None = None,
    ) -> None:
        self._model = model
        self._pad_token = pad_token
        self._is_padded = is_padded
        accepted = set(inspect.signature(model.forward).parameters)
        self._has_positions = "position_ids" in accepted
        self._last_only: dict[str, int] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        context = getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30)
        self._before = before
        self._last_position = context - 1 if last_position is None else last_position
        self._mask = torch.empty((0, 0), dtype=torch.long, device=model.device)  # (rows, tokens so far)
        self._ids = self._mask  # alike; only where no row is padded

    def takes(self, batch: Batch, copies: int) -> bool:
        """Only an empty batch takes prompts."""
        return not len(self._mask)

    def admit(self, batch: Batch, copies: int) -> Tensor:
        """Computes the prompts and copies what is cached for each of their rows."""
        prompts = batch.prompts
        longest = max(len(prompt.token_ids) for prompt in prompts)
        assert self._is_padded or all(len(prompt.token_ids) == longest for prompt in prompts), "no row is padded"
        pads = [longest - len(prompt.token_ids) for prompt in prompts]
        ids = [[*([self._pad_token] * pad), *prompt.token_ids] for pad, prompt in zip(pads, prompts, strict=True)]
        soft = 0 if self._before is None else len(self._before)
        mask = [[0] * pad + [1] * (soft + longest - pad) for pad in pads]
        self._cache = DynamicCache(config=self._model.config)
        self._ids = self._mask[:0]
        self._mask = torch.tensor(mask, device=self._model.device)
        logits = self._forward(torch.tensor(ids, device=self._model.device), pads)
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
        if not self._is_padded:
            self._ids = self._ids[rows]
        self._cache.reorder_cache(rows)  # layers of linear attention have no other way to take rows

    def _forward(self, ids: Tensor, pads: Sequence[int] | None = None) -> Tensor:
        soft = 0 if pads is None or self._before is None else len(self._before)
        inputs: dict[str, Any] = {"attention_mask": self._mask, "past_key_values": self._cache, "use_cache": True}
        inputs |= self._last_only
        if self._has_positions:
            # a finished row that has not left yet may be at the end of the context
            positions = (self._mask.cumsum(dim=1) - 1).clamp(min=0, max=self._last_position)
            inputs["position_ids"] = positions[:, -ids.shape[1] - soft :] if self._is_padded else positions
        if self._is_padded:
            if pads is not None and self._before is not None:
                inputs["inputs_embeds"] = self._embedded(ids, pads, self._before)
            else:
                inputs["input_ids"] = ids
            logits: Tensor = self._model(**inputs).logits
            return logits[:, -1].float()
        self._ids = torch.cat([self._ids, ids], dim=1) if len(self._ids) else ids
        output = self._model(
            **self._model.prepare_inputs_for_generation(self._ids, next_sequence_length=ids.shape[1], **inputs)
        )
        self._cache = output.get("past_key_values", self._cache)  # Phi-3 begins another where it computes anew
        last: Tensor = output.logits[:, -1]
        return last.float()

    def _embedded(self, ids: Tensor, pads: Sequence[int], before: Tensor) -> Tensor:
        """Padding, the soft prompt, and the tokens of each row, (rows, tokens, width)."""
        words = self._model.get_input_embeddings()(ids)
        soft = before.to(words.dtype)
        return torch.stack([torch.cat([row[:pad], soft, row[pad:]]) for row, pad in zip(words, pads, strict=True)])


@torch.inference_mode()
def bears_padding(model: PreTrainedModel) -> bool:
    """Whether rows behind padding are computed as without; tried on a few tokens where that is not known."""
    if hides_padding(model):
        return True
    if keeps_unknown_states(model):
        return False
    vocabulary = model.config.get_text_config().vocab_size
    rows = [[token % vocabulary for token in ids] for ids in ((5, 17, 3), (5, 17, 8, 2, 11, 29, 23, 13, 7, 31, 19))]
    prompts = [Prompt(at, ids, 2) for at, ids in enumerate(rows)]
    alone = torch.cat([_two_steps(model, [prompt]) for prompt in prompts])
    difference = (_two_steps(model, prompts) - alone).square().mean().sqrt()
    return bool(difference <= tolerance(model) * alone.std())


def _two_steps(model: PreTrainedModel, prompts: Sequence[Prompt]) -> Tensor:
    """(prompts, 2, vocabulary) logits of the first two new tokens."""
    state = PlainState(model, 0)
    following = torch.zeros(len(prompts), dtype=torch.long, device=model.device)
    return torch.stack([state.admit(Batch(prompts), 1), state.step(following)], dim=1)
