"""SSR end to end on a slice of real Super-NaturalInstructions data with four tiny architectures.

The models are randomly initialised, so their scores mean nothing; that every step works on them is what is tested. The
marks of the synthesis prompt are single tokens of the tiny tokenizer, so that random text has whole instances in it.
"""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from everlearn.files import read_json, read_jsonl
from everlearn.recipe import make_recipe
from everlearn.runs.loop import execute
from tests.conftest import ARCHITECTURES, make_tiny_model
from tests.tiny_models import RANDOM_SSR

TASKS = ("trans", "para", "qa")


def slice_of(
    shared: Path, folder: Path, tasks: tuple[str, ...] = TASKS, *, train: int = 40, evaluation: int = 4
) -> list[dict[str, object]]:
    """Training and evaluation rows of each task, the shortest ones."""
    entries: list[dict[str, object]] = []
    for task in tasks:
        entry: dict[str, object] = {"name": task, "demonstrations": 4}
        for kind, name, count in (("train", "train", train), ("eval", "evaluation", evaluation)):
            with gzip.open(shared / "data" / "superni" / f"{task}.{kind}.jsonl.gz", "rt", encoding="utf-8") as file:
                rows = sorted((json.loads(line) for line in file), key=lambda row: len(row["full_prompt"]))[:count]
            path = folder / f"{task}.{kind}.jsonl"
            path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
            entry[name] = str(path)
        entries.append(entry)
    return entries


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_ssr_runs_on_real_instances(architecture: str, shared_dir: Path, tmp_path: Path) -> None:
    tasks = slice_of(shared_dir, tmp_path)
    texts = [str(row["full_prompt"]) for task in tasks for row in read_jsonl(Path(str(task["train"])))]
    model = make_tiny_model(tmp_path / "model", architecture, texts, context=2048, marks=("Input:", "Output:"))
    recipe = make_recipe(
        {
            "name": architecture,
            "runs_dir": str(tmp_path / "runs"),
            "model": {"base": str(model), "lora": {"targets": "all-linear"}},
            "stream": {"tasks": tasks},
            "method": {**RANDOM_SSR, "max_new_tokens": 200, "ratio": 0.05, "refinement_tokens": 8},
            "training": {"epochs": 1, "batch_size": 8},
            "evaluation": {"max_new_tokens": 4, "bootstrap_samples": 100, "unseen_tasks": False, "general": False},
        }
    )
    folder = execute(recipe).folder
    stages = read_json(folder / "manifest.json")["stages"]  # type: ignore[index, call-overload]
    assert [stage["tasks"] for stage in stages] == [[task] for task in TASKS]
    for stage in stages[:-1]:
        synthesis = folder / "stages" / stage["name"] / "synthesis"
        raw = list(read_jsonl(synthesis / "raw" / "raw.jsonl"))
        assert 12 <= len(raw) <= 36
        counts = read_json(synthesis / "parsed" / "counts.json")
        assert counts["pieces"] == counts["kept"] + sum(counts["dropped"].values())  # type: ignore[index, call-overload]
    rehearsed = list(read_jsonl(folder / "stages" / stages[-1]["name"] / "rehearsal.jsonl"))
    assert rehearsed
    assert {row["origin"] for row in rehearsed} == {"synthetic"}
    assert (folder / "stages" / stages[-1]["name"] / "predictions" / "qa" / "predictions.jsonl").exists()
