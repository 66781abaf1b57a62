"""The likelihoods of blocks under a model."""

from __future__ import annotations

import numpy as np
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForCausalLM

from everlearn.updates.quality import block_likelihoods
from tests.tiny_models import make_config


class WithoutFloat64(TorchDispatchMode):
    """Apple's GPUs: whatever is computed there must not be float64."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        found = func(*args, **(kwargs or {}))
        if isinstance(found, torch.Tensor) and found.dtype == torch.float64:
            raise TypeError(f"{func} makes a float64 tensor")
        return found


def test_likelihoods_are_means_over_a_blocks_predicted_tokens_on_a_device_without_float64() -> None:
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(make_config("llama", 50))
    blocks = np.random.default_rng(0).integers(0, 50, (5, 16)).astype(np.int32)
    with WithoutFloat64():
        found = block_likelihoods(model, blocks)
    assert found.dtype == np.float64
    for row, value in zip(blocks, found, strict=True):
        ids = torch.tensor(row[None].astype(np.int64))
        np.testing.assert_allclose(value, model(input_ids=ids, labels=ids).loss.item(), rtol=1e-5)
