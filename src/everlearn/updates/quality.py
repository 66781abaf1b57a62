"""How good each release is: perplexity on the held-out text of every version, old, own and still to come.

One negative log-likelihood per block; intervals by a percentile bootstrap over blocks. The blocks are the same for all
releases and paradigms, so differences are taken pairwise.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from everlearn.data.blocks import Blocks
from everlearn.evaluation.bootstrap import percentile_interval, resampled_means
from everlearn.files import unfinished
from everlearn.models.batching import tokens_at_once

if TYPE_CHECKING:
    from transformers import PreTrainedModel

    from everlearn.updates.config import QualityConfig

Likelihoods = NDArray[np.float64]
_BATCH_TOKENS = 16_384
"""Tokens computed at once on a GPU."""


def keep_heldout(blocks: Blocks, most: int, path: Path) -> None:
    """Writes at most so many held-out blocks, evenly spread over the text, unless they are there."""
    if path.exists():
        return
    chosen = np.unique(np.linspace(0, len(blocks) - 1, min(most, len(blocks))).round().astype(int))
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = unfinished(path)
    with partial.open("wb") as file:
        np.save(file, blocks.read(chosen.tolist()).astype(np.int32), allow_pickle=False)
    partial.replace(path)


def block_likelihoods(model: PreTrainedModel, blocks: NDArray[np.int32]) -> Likelihoods:
    """Mean negative log-likelihood per predicted token of each block.

    Args:
        model: On its device; in evaluation mode afterwards.
        blocks: Shape (blocks, block_tokens); the first token of a block is given.
    """
    import torch
    from torch.nn.functional import cross_entropy

    most = tokens_at_once(model.device.type, _BATCH_TOKENS, vocabulary=model.config.get_text_config().vocab_size)
    rows = max(1, most // blocks.shape[1])
    found = []
    model.eval()
    with torch.inference_mode():
        for at in range(0, len(blocks), rows):
            ids = torch.from_numpy(blocks[at : at + rows].astype(np.int64)).to(model.device)
            logits = model(input_ids=ids, use_cache=False).logits[:, :-1].float()  # (rows, tokens - 1, vocabulary)
            losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
            found.append(losses.mean(1).cpu().numpy().astype(np.float64))  # Apple's GPUs have no float64
    return np.concatenate(found)


def cell(likelihoods: Sequence[float], quality: QualityConfig, seed: int) -> dict[str, object]:
    """Perplexity with its interval, and the blocks' likelihoods for pairwise comparison."""
    values = np.asarray(likelihoods, dtype=float)
    means = resampled_means(values, quality.bootstrap_samples, seed)
    low, high = percentile_interval(np.exp(means), quality.confidence)
    return {
        "perplexity": math.exp(values.mean()),
        "interval": [low, high],
        "blocks": len(values),
        "likelihoods": [round(float(value), 6) for value in values],
    }


def matrix_of(cells: Mapping[str, Mapping[str, Any]], versions: Sequence[str]) -> dict[str, object]:
    """Releases by held-out versions, as `quality.json` holds it.

    Args:
        cells: For each release and version, what `cell` gave.
        versions: Names in order of arrival.
    """
    releases = [name for name in versions if name in cells]
    own = [cells[name][name]["perplexity"] for name in releases]
    return {
        "versions": list(versions),
        "releases": releases,
        "perplexity": [[cells[name][version]["perplexity"] for version in versions] for name in releases],
        "intervals": [[cells[name][version]["interval"] for version in versions] for name in releases],
        "own": dict(zip(releases, own, strict=True)),
        "seen": {
            name: math.exp(
                float(np.mean([math.log(cells[name][v]["perplexity"]) for v in versions[: versions.index(name) + 1]]))
            )
            for name in releases
        },
        "definitions": {
            "perplexity": "exp of the mean negative log-likelihood per token on a version's held-out blocks",
            "own": "perplexity of a release on the held-out text of its own version",
            "seen": "geometric mean of its perplexities on the held-out texts of all versions up to its own",
        },
    }


def difference(
    one: Mapping[str, Any], two: Mapping[str, Any], versions: Sequence[str], quality: QualityConfig, seed: int
) -> dict[str, object]:
    """How much higher the first release's perplexity is than the second's, in per cent, paired over blocks.

    Args:
        one: Cells of the first release by version.
        two: Of the second.
        versions: Whose held-out texts count, each with the same weight.
        quality: Of the interval.
        seed: Of the resampling.
    """
    means, total = [], 0.0
    for version in versions:
        gaps = np.asarray(one[version]["likelihoods"]) - np.asarray(two[version]["likelihoods"])
        means.append(resampled_means(gaps, quality.bootstrap_samples, seed))
        total += float(gaps.mean())
    low, high = percentile_interval(100 * np.expm1(np.mean(means, axis=0)), quality.confidence)
    return {"percent": 100 * math.expm1(total / len(versions)), "interval": [low, high]}
