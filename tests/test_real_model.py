"""The benchmark on real pretrained models, as far as it can be tested without one."""

from __future__ import annotations

import gzip
import importlib.util
import json
from pathlib import Path
from types import ModuleType

import pytest

from everlearn.checking import checked
from everlearn.data.stream import load_stream
from everlearn.methods.stack import assemble
from everlearn.recipe import LONGEST_NAME, MethodConfig, make_recipe, set_dotted
from everlearn.runs.compare import labels_of


@pytest.fixture(scope="module")
def benchmark() -> ModuleType:
    spec = importlib.util.spec_from_file_location("_", Path(__file__).parents[1] / "benchmarks" / "real_model.py")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("size", ["tiny", "small", "published"])
def test_every_size_is_a_recipe_whose_methods_can_be_compared(benchmark: ModuleType, size: str) -> None:
    tree: dict[str, object] = {}
    for key, value in benchmark.SIZES[size]["recipe"].items():
        set_dotted(tree, key, value)
    make_recipe(tree)
    methods = [checked(MethodConfig, one, where=size) for one in benchmark.methods_of(benchmark.SIZES[size])]
    assert [assemble(method).name for method in methods][-1] == "ssr"
    assert max(map(len, labels_of(methods))) < LONGEST_NAME - len("-s42")


def test_both_kinds_of_data_are_read(benchmark: ModuleType, tmp_path: Path) -> None:
    for folder in ("superni", "long_sequence"):
        (tmp_path / folder).mkdir()
    for name in benchmark.SUPERNI["1"]:
        for part, count in (("train", 4), ("eval", 2)):
            rows = [
                {"id": f"{part}{n}", "input": f"{part} {n}", "output": str(n), "full_prompt": f"Do.\n\n{part} {n}"}
                for n in range(count)
            ]
            with gzip.open(tmp_path / "superni" / f"{name}.{part}.jsonl.gz", "wt") as file:
                file.writelines(json.dumps(row) + "\n" for row in rows)
    labels = {name: ["yes", "no"] for name in benchmark.LONG}
    (tmp_path / "long_sequence" / "labels.json").write_text(json.dumps(labels))
    for name in benchmark.LONG:
        rows = [{"sentence": f"row {n}", "label": "yes" if n % 2 else "no"} for n in range(20)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / "long_sequence" / f"{name}.train.jsonl").write_text(text)
    for order, names in benchmark.SUPERNI.items():
        stream = load_stream(make_recipe({"stream": {"tasks": benchmark.tasks_of(order, tmp_path)}}).stream, seed=0)
        assert tuple(task.name for task in stream) == names
        assert {row.instruction for task in stream for row in task.train} == {"Do."}
    stream = load_stream(make_recipe({"stream": {"tasks": benchmark.tasks_of("long", tmp_path)}}).stream, seed=0)
    assert [task.name for task in stream] == list(benchmark.LONG)
    assert all(task.labels == ("yes", "no") and task.metric == "accuracy" for task in stream)
    assert "Answer with one of: yes, no." in stream.tasks[0].train[0].instruction
