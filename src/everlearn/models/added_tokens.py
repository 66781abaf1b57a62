"""Tokens that a model gains beside those of its tokenizer: their embeddings are made here and trained with the rest.

A recipe knows nothing of them: they are those of a method's wording, whose name is in all that depends on them.
"""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

from pydantic import Field

from everlearn.recipe import ModelConfig

if TYPE_CHECKING:
    from transformers import PreTrainedModel, PreTrainedTokenizerBase


class Extended(ModelConfig):
    """A model of a recipe with further tokens."""

    added_tokens: Annotated[tuple[str, ...], Field(exclude=True)] = ()
    """In the order of their numbers."""


def with_tokens(config: ModelConfig, tokens: Sequence[str]) -> ModelConfig:
    """The same model with these further tokens and no others."""
    fields = {name: getattr(config, name) for name in ModelConfig.model_fields}
    if not tokens:
        return ModelConfig.model_construct(**fields)
    return Extended.model_construct(**fields, added_tokens=tuple(tokens))


def tokens_of(config: ModelConfig) -> tuple[str, ...]:
    """The further tokens of a model."""
    return config.added_tokens if isinstance(config, Extended) else ()


def add_tokens(tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> PreTrainedTokenizerBase:
    """Gives a tokenizer the further tokens of a model: text of the data never becomes one of them."""
    from transformers import AddedToken

    if tokens := tokens_of(config):
        tokenizer.add_tokens(
            [AddedToken(token, special=True, normalized=False) for token in tokens], special_tokens=True
        )
    return tokenizer


def add_embeddings(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, config: ModelConfig) -> None:
    """Makes room for the further tokens that the weights have no rows for.

    A new row is the mean of those there are and a little noise, which follows from the token's name alone.
    """
    import torch

    matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    if not tokens_of(config) or len(matrices[0]) >= len(tokenizer):
        return
    before = len(matrices[0])
    means = [(matrix.detach().mean(0), matrix.detach().std(0)) for matrix in matrices]
    model.resize_token_embeddings(len(tokenizer), mean_resizing=False)
    matrices = [model.get_input_embeddings().weight, model.get_output_embeddings().weight]
    with torch.no_grad():
        for matrix, (mean, spread) in zip(matrices, means, strict=True):
            for at in range(before, len(tokenizer)):
                name = tokenizer.convert_ids_to_tokens(at)
                noise = torch.randn(len(mean), generator=torch.Generator().manual_seed(zlib.crc32(name.encode())))
                matrix[at] = mean + 0.1 * spread * noise.to(mean)
