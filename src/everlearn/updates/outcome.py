"""What a run of version updates leaves to read: its plan, its manifest, the ledger of its cost, and its quality."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from everlearn.files import read_vouched, write_vouched
from everlearn.recipe import ModelConfig
from everlearn.recipe_paths import kept_path
from everlearn.run_folder import UPDATE
from everlearn.seeds import derive
from everlearn.updates.account import accounts_of
from everlearn.updates.cost import ledger, planned
from everlearn.updates.folder import UpdateFolder
from everlearn.updates.prepare import Prepared, cache_of
from everlearn.updates.quality import block_likelihoods, cell, matrix_of

if TYPE_CHECKING:
    from everlearn.progress import Progress
    from everlearn.updates.config import QualityConfig, UpdateRecipe


def measure(recipe: UpdateRecipe, prepared: Prepared, store: UpdateFolder, progress: Progress) -> dict[str, object]:
    """Perplexity of every release on every version's held-out blocks; what was measured before is kept.

    Returns:
        What `quality.json` holds, without the cells.
    """
    from everlearn.models.loading import load_model

    path, device = store.path / "quality.json", recipe.training.device
    stored: Any = read_vouched(path) if path.exists() else {}
    cells: dict[str, dict[str, Any]] = stored.get("cells", {})
    with progress.step("measuring releases", len(prepared.ids)) as tick:
        for at, release in enumerate(prepared.ids):
            missing = [name for name in prepared.ids if name not in cells.get(release, {})]
            if missing:
                loaded = load_model(ModelConfig(base=str(store.release(release)), tuning="full", device=device))
                for name in missing:
                    blocks = np.load(store.heldout(name), allow_pickle=False)
                    seed = derive(recipe.seed, "bootstrap", name)
                    found = cell(block_likelihoods(loaded.model, blocks).tolist(), recipe.quality, seed)
                    cells.setdefault(release, {})[name] = found
            tick(at + 1)
    quality: dict[str, object] = {**matrix_of(cells, prepared.ids)}
    if recipe.quality.microtasks:
        known = stored.get("microtasks", {})
        quality["microtasks"] = {
            name: known.get(name) or _microtasks(store.release(name), recipe.quality, device, progress)
            for name in prepared.ids
        }
    write_vouched(path, {**quality, "cells": cells})
    return quality


def write_ledger(recipe: UpdateRecipe, prepared: Prepared, store: UpdateFolder) -> dict[str, Any]:
    """Planned and executed work of a finished run; both agree, which is checked."""
    segments = prepared.plan.segments()
    executed = {segment.id: store.segment(segment.id) for segment in segments}
    rows = ledger(segments, executed, tokens_per_step=prepared.tokens_per_step)
    differing = [row["id"] for row in rows if row["planned_steps"] != row["executed_steps"]]
    assert not differing, f"executed steps differ from the plan in {differing}"
    costs = costs_of(prepared)
    steps, tokens = (sum(row[key] for row in rows) for key in ("executed_steps", "executed_tokens"))
    report: dict[str, Any] = {
        "segments": rows,
        "costs": costs,
        "executed": {
            "paradigm": recipe.paradigm,
            "steps": steps,
            "tokens": tokens,
            "flops": tokens * prepared.flops_per_token,
            "seconds": round(sum(row["seconds"] for row in rows), 3),
            "repeated_steps": sum(row["repeated_steps"] for row in rows),
            "ratio_to_ptfs": steps / next(cost["steps"] for cost in costs if cost["paradigm"] == "ptfs"),
            "state_bytes": _size(store.path / "states"),
            "release_bytes": _size(store.path / "releases"),
        },
    }
    write_vouched(store.path / "ledger.json", report)
    return report


def costs_of(prepared: Prepared) -> list[dict[str, Any]]:
    """Planned cost of each paradigm over the run's versions."""
    found = planned(prepared.plan, tokens_per_step=prepared.tokens_per_step, flops_per_token=prepared.flops_per_token)
    return [cost.to_json() for cost in found]


def describe_plan(recipe: UpdateRecipe, prepared: Prepared) -> dict[str, object]:
    """What `plan.json` holds."""
    return {
        "paradigm": recipe.paradigm,
        "maximal_rate": recipe.schedule.maximal_rate,
        "versions": [{"id": name, "steps": steps} for name, steps in zip(prepared.ids, prepared.steps, strict=True)],
        "fingerprint": prepared.plan.fingerprint(),
        "remarks": prepared.plan.remarks(),
        "segments": [segment.to_json() for segment in prepared.plan.segments()],
        "costs": costs_of(prepared),
    }


def describe_run(recipe: UpdateRecipe, prepared: Prepared, processes: int, folder: Path) -> dict[str, object]:
    """What `manifest.json` in the run folder holds beside the status of the run and of its segments."""
    from everlearn import __version__
    from everlearn.environment import machine, versions

    return {
        "everlearn": __version__,
        "kind": UPDATE,
        "label": recipe.paradigm,
        "versions": versions(),
        "machine": {**machine(), "processes": processes},
        "seed": recipe.seed,
        "cache_dir": kept_path(os.path.abspath(cache_of(recipe)), folder),
        "folder": str(folder.absolute()),
        "tokenizer": prepared.tokenizer_fingerprint,
        "model": {
            "parameters": prepared.parameters,
            "flops_per_token": prepared.flops_per_token,
            "tokens_per_step": prepared.tokens_per_step,
        },
        "updates": text_of(recipe, prepared),
    }


def text_of(recipe: UpdateRecipe, prepared: Prepared) -> list[dict[str, Any]]:
    """The versions' text as the manifest holds it."""
    most, width = recipe.quality.heldout_blocks, recipe.training.block_tokens
    return accounts_of(prepared, heldout_blocks=most, block_tokens=width)


def _microtasks(release: Path, quality: QualityConfig, device: str, progress: Progress) -> Mapping[str, object]:
    """Few-shot micro-task accuracy of a release."""
    from everlearn.data.embedded.corpus import held_out_microtasks
    from everlearn.evaluation.general import microtask_accuracy
    from everlearn.generation.engine import make_generator
    from everlearn.models.loading import load_model

    loaded = load_model(ModelConfig(base=str(release), tuning="full", device=device))
    with progress.step(f"answering micro-tasks with {release.name}") as tick:
        return microtask_accuracy(
            make_generator(loaded),
            loaded.tokenizer,
            held_out_microtasks(),
            tick,
            samples=quality.bootstrap_samples,
            confidence=quality.confidence,
        )


def _size(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
