"""Keys and values of a running batch whose rows share prefixes; prompts join and rows leave at any time.

For every architecture whose attention goes through Transformers' attention interface and whose cache is of the
plain kind (Llama, Qwen, GPT-2, GPT-NeoX and most others), and for those with windows of attention (Gemma 3, Mistral)
as long as a row fits the window. `SharedState.fits` finds that out by trying.
"""

from __future__ import annotations

import inspect
from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer

from everlearn.generation.decoding import Batch, Prompt
from everlearn.generation.prefix_tree import Node
from everlearn.generation.row_store import RowStore
from everlearn.generation.shared_cache import (
    PrefillPass,
    Segment,
    UnsupportedAttentionError,
    attending,
    run,
)
from everlearn.models.padding import tolerance


class SharedState:
    """Implements `KeyValueState`.

    Args:
        model: Within `attending(model)` whenever a method is called.
        pad_token: Any token id.
        max_rows: Most rows at a time, unless a single batch has more.
        max_tokens: Most tokens cached at a time, unless a single batch has more.
        last_position: Of the rows to come; None: that of the model's context.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        pad_token: int,
        max_rows: int,
        max_tokens: int,
        last_position: int | None = None,
    ) -> None:
        self._model = model
        self._pad_token = pad_token
        self._max_rows = max_rows
        self._max_tokens = max_tokens
        accepted = inspect.signature(model.forward).parameters
        self._last_only: dict[str, int] = {"logits_to_keep": 1} if "logits_to_keep" in accepted else {}
        context = getattr(model.config.get_text_config(), "max_position_embeddings", 1 << 30)
        self._last_position = context - 1 if last_position is None else last_position
        self._store = RowStore(max_rows, max_tokens)
        self._positions: list[int] = []  # of the next token of each row
        self._needed: list[int] = []  # most columns that each row may come to use
        self._path: list[tuple[Node, Segment]] = []  # computed nodes from the root to the last one used

    def takes(self, batch: Batch, copies: int) -> bool:
        """Whether rows and tokens stay within their limits."""
        rows = self._store.count + len(batch.prompts) * copies
        if not self._store.count or rows > self._max_rows:
            return not self._store.count
        columns = max(*self._needed, max(_columns(prompt, batch.node) for prompt in batch.prompts))
        return rows * columns + self._shared_tokens(batch.node) <= self._max_tokens

    def admit(self, batch: Batch, copies: int) -> Tensor:
        """Computes what the prompts have beyond their node, and the node where it is not yet computed."""
        prefix = self._segment(batch.node)
        shared = prefix.length if prefix else 0
        tails = [prompt.token_ids[shared:] for prompt in batch.prompts]
        length = max(map(len, tails))
        pads = [length - len(tail) for tail in tails]
        ids = [[*([self._pad_token] * pad), *tail] for pad, tail in zip(pads, tails, strict=True)]
        logits, done = self._prefill(prefix, ids, pads)
        for prompt, pad in zip(batch.prompts, pads, strict=True):
            self._positions += [len(prompt.token_ids)] * copies
            self._needed += [pad + _columns(prompt, batch.node)] * copies
        self._store.add(done.keys, done.values, pads, copies, prefix, max(self._needed))
        return logits

    def step(self, tokens: Tensor) -> Tensor:
        """One token further in every row."""
        # a finished row that has not left yet may be beyond its end
        positions = torch.tensor([min(position, self._last_position) for position in self._positions])
        self._store.begin_step()
        logits = run(self._model, self._store, tokens[:, None], positions[:, None].to(tokens.device), self._last_only)
        self._store.end_step()
        self._positions = [position + 1 for position in self._positions]
        return logits

    def keep(self, rows: Sequence[int]) -> None:
        """Drops all rows but these."""
        self._store.keep(rows)
        self._positions = [self._positions[row] for row in rows]
        self._needed = [self._needed[row] for row in rows]

    def _segment(self, node: Node | None) -> Segment | None:
        """The keys and values of a node, computed below the nearest ancestor at hand."""
        if node is None:
            self._path.clear()
            return None
        for place, (known, segment) in enumerate(self._path):
            if known is node:
                del self._path[place + 1 :]
                return segment
        parent = self._segment(node.parent)
        _, done = self._prefill(parent, [list(node.token_ids)], [0])
        segment = done.segment()
        self._path.append((node, segment))
        return segment

    def _prefill(self, prefix: Segment | None, ids: list[list[int]], pads: list[int]) -> tuple[Tensor, PrefillPass]:
        device = self._model.device
        length = len(ids[0])
        padding = torch.tensor(pads, device=device) if any(pads) else None
        forward_pass = PrefillPass(prefix, padding, length, self._model.dtype)
        first = prefix.length if prefix else 0
        positions = torch.arange(first, first + length, device=device)[None]
        if padding is not None:
            positions = (positions - padding[:, None]).clamp(min=0)
        return run(
            self._model, forward_pass, torch.tensor(ids, device=device), positions, self._last_only
        ), forward_pass

    def _shared_tokens(self, node: Node | None) -> int:
        lengths = {id(c.segment): c.segment.length for c in self._store.cohorts if c.segment is not None}
        return sum(lengths.values()) + (node.depth if node else 0)

    @staticmethod
    def fits(model: PreTrainedModel) -> bool:
        """Whether this model computes the same with shared prefixes as without, tried on a few tokens."""
        kinds = {type(layer) for layer in DynamicCache(config=model.config).layers}
        if not model._can_set_attn_implementation() or not kinds <= {DynamicLayer, DynamicSlidingWindowLayer}:
            return False
        vocabulary = model.config.get_text_config().vocab_size
        prompts = [[token % vocabulary for token in ids] for ids in ((5, 17, 3, 11, 29), (5, 17, 8, 2))]
        following = 7 % vocabulary
        plain = [_last_logits(model, [*ids, following]) for ids in prompts]
        state = SharedState(model, 0, 2, 1 << 20)
        node = Node(None, tuple(prompts[0][:2]), 2)
        try:
            with attending(model):
                state.admit(Batch([Prompt(i, ids, 1) for i, ids in enumerate(prompts)], node), 1)
                shared = state.step(torch.full((2,), following, device=model.device))
        except (UnsupportedAttentionError, AssertionError, AttributeError, RuntimeError, TypeError, ValueError):
            return False
        expected = torch.cat(plain)
        return bool((shared - expected).square().mean().sqrt() <= tolerance(model) * expected.std())


def _columns(prompt: Prompt, node: Node | None) -> int:
    """Most tokens that a row of this prompt may come to hold of its own."""
    return len(prompt.token_ids) - (node.depth if node else 0) + (prompt.pause or prompt.limit)


def _last_logits(model: PreTrainedModel, ids: list[int]) -> Tensor:
    """(1, vocabulary) logits after a prompt, the plain way."""
    row = torch.tensor([ids], device=model.device)
    output: Tensor = model(input_ids=row, attention_mask=torch.ones_like(row), use_cache=False).logits
    return output[:, -1].float()
