"""A tiny run of version updates for tests: three small versions, a model of two layers, seconds in all."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

from everlearn.updates.config import UpdateRecipe

WORDS = "sun moon star tree leaf root stone river bird fish wolf bear red blue green old new big".split()
MODEL = {
    "model_type": "llama",
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "tie_word_embeddings": True,
}


def write_versions(folder: Path, count: int = 3, documents: int = 90) -> list[dict[str, str]]:
    """Text files of made-up sentences, and their recipe entries."""
    entries = []
    for number in range(1, count + 1):
        rng = random.Random(number)
        texts = [" ".join(["The", *rng.choices([*WORDS, f"word{number}"], k=14)]) + "." for _ in range(documents)]
        path = folder / f"text{number}.txt"
        path.write_text("\n\n".join(texts))
        entries.append({"id": f"v{number}", "data": str(path)})
    return entries


def tiny_tree(folder: Path, *, versions: int = 3, **changes: Any) -> dict[str, Any]:
    """A recipe as a dictionary; changes are sections to update or keys to set."""
    folder.mkdir(exist_ok=True)
    tree: dict[str, Any] = {
        "name": "tiny",
        "seed": 1,
        "versions": write_versions(folder, versions),
        "model": {"config": MODEL, "vocabulary_size": 320},
        "schedule": {"maximal_rate": 1e-2, "warm_up_steps": 2},
        "path": {},
        "training": {"block_tokens": 16, "batch_blocks": 16, "precision": "float32", "checkpoint_every": 3},
        "quality": {"heldout_ratio": 0.1, "heldout_blocks": 8, "bootstrap_samples": 100},
        "runs_dir": str(folder / "runs"),
        "cache_dir": str(folder / "cache"),
    }
    for key, value in changes.items():
        tree[key] = {**tree[key], **value} if isinstance(tree.get(key), dict) and isinstance(value, dict) else value
    return tree


def tiny_recipe(folder: Path, **changes: Any) -> UpdateRecipe:
    """The recipe itself."""
    return UpdateRecipe.model_validate(tiny_tree(folder, **changes))
