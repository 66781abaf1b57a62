"""Benchmarks by lm-evaluation-harness on tasks over files on disk, against what the model itself says."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lm_eval", reason="lm-evaluation-harness is not installed: pip install 'everlearn[bench]'")

from everlearn.errors import RecipeError
from everlearn.evaluation.benchmark_tasks import Benchmark, find_benchmarks
from everlearn.evaluation.benchmarks import measure_benchmark
from everlearn.layout import BASE_STAGE
from everlearn.models.loading import LoadedModel, load_model
from everlearn.recipe import EvaluationConfig, ModelConfig, make_recipe
from everlearn.runs.loop import execute
from tests.conftest import make_tiny_model
from tests.evaluation.harness_tasks import write_tasks
from tests.runs.test_loop import tiny_recipe


def asking(tasks: Any, folder: Path, **keys: Any) -> EvaluationConfig:
    given = {"general_tasks": tasks, "general_include_path": str(folder), **keys}
    return make_recipe({"evaluation": given}, where="recipe").evaluation


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tasks(tmp_path_factory.mktemp("tasks"))


@pytest.fixture(scope="module", params=["full", "lora"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    base = make_tiny_model(tmp_path_factory.mktemp("model"), context=64)
    config = ModelConfig(base=str(base), tuning=request.param, device="cpu", dtype="float32")
    found = load_model(config, trainable=request.param == "lora")
    torch.manual_seed(0)
    for name, weight in found.model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(weight)
    found.model.eval()
    return found


def found(evaluation: EvaluationConfig, loaded: LoadedModel) -> Benchmark:
    (benchmark,) = find_benchmarks(evaluation, loaded.tokenizer, loaded.context_length)
    return benchmark


def measured(benchmark: Benchmark, loaded: LoadedModel, folder: Path) -> dict[str, Any]:
    folder.mkdir(exist_ok=True)
    measure_benchmark(benchmark, loaded, folder, lambda *_: None)
    return json.loads((folder / "scores.json").read_text())


def right_by_hand(loaded: LoadedModel, rows: list[dict[str, Any]], prompt: str) -> float:
    """Share of rows whose right answer the model finds more likely."""

    def likelihood(text: str, answer: str) -> float:
        before = loaded.tokenizer(text).input_ids
        whole = torch.tensor([loaded.tokenizer(text + answer).input_ids])
        with torch.no_grad():
            logits = loaded.model(input_ids=whole).logits.float().log_softmax(-1)
        return float(sum(logits[0, at - 1, whole[0, at]] for at in range(len(before), whole.shape[1])))

    right = 0
    for row in rows:
        text = prompt + f"{row['question']} Answer:"
        found = [likelihood(text, answer) for answer in (" yes", " no")]
        right += (found[1] > found[0]) == bool(row["label"])
    return right / len(rows)


@pytest.mark.parametrize("shots", [0, 1])
def test_scores_are_those_of_the_model_at_hand(loaded: LoadedModel, folder: Path, tmp_path: Path, shots: int) -> None:
    before = {name: weight.clone() for name, weight in loaded.model.named_parameters()}
    scores = measured(found(asking([{"task": "colours_of_mine", "shots": shots}], folder), loaded), loaded, tmp_path)
    rows = [json.loads(line) for line in (folder / "colours_of_mine.jsonl").read_text().splitlines()]
    right = 0.0
    for at, row in enumerate(rows):
        shown = rows[1 if at == 0 else 0]  # the first one that is not the row itself
        example = f"{shown['question']} Answer: {('yes', 'no')[shown['label']]}\n\n"
        right += right_by_hand(loaded, [row], example * shots)
    (entry,) = scores["results"]
    assert (entry["name"], entry["version"], entry["questions"], scores["shots"]) == (
        "colours_of_mine",
        "3.0",
        6,
        [shots],
    )
    assert entry["metrics"][0]["metric"] == "acc"
    assert entry["metrics"][0]["value"] == pytest.approx(right / len(rows))
    assert all(torch.equal(weight, before[name]) for name, weight in loaded.model.named_parameters())


def test_a_group_is_weighted_by_the_harness_and_a_killed_one_goes_on(
    loaded: LoadedModel, folder: Path, tmp_path: Path
) -> None:
    benchmark = found(asking(["both_of_mine"], folder), loaded)
    scores = measured(benchmark, loaded, tmp_path / "out")
    group, *parts = scores["results"]
    assert (group["is_group"], group["version"], group["questions"], benchmark.questions) == (True, "2.0", 8, 8)
    values = [part["metrics"][0]["value"] for part in parts]
    assert group["metrics"][0]["value"] == pytest.approx((6 * values[0] + 2 * values[1]) / 8)
    killed = tmp_path / "killed"
    killed.mkdir()
    altered = json.loads((tmp_path / "out" / "part-000.json").read_text())
    altered["result"]["acc,none"] = 0.125
    (killed / "part-000.json").write_text(json.dumps(altered))
    again = measured(benchmark, loaded, killed)["results"]
    assert [part["metrics"][0]["value"] for part in again[1:]] == [0.125, values[1]]  # the first was not asked again


def test_prompts_that_do_not_fit_are_counted_and_a_limit_is_kept(
    loaded: LoadedModel, folder: Path, tmp_path: Path
) -> None:
    benchmark = found(asking([{"task": "colours_of_mine", "shots": 5, "limit": 3}], folder), loaded)
    scores = measured(benchmark, loaded, tmp_path / "out")
    assert (scores["prompts"], scores["cut"], scores["results"][0]["questions"], scores["results"][0]["of"]) == (
        6,
        6,
        3,
        6,
    )


def test_what_scores_depend_on_is_content_and_not_place(folder: Path, loaded: LoadedModel, tmp_path: Path) -> None:
    asked = [{"task": "sizes_of_mine", "shots": 1}]
    own, other = found(asking(asked, folder), loaded), found(asking(asked, write_tasks(tmp_path / "a")), loaded)
    assert own.inputs == other.inputs
    changed = write_tasks(tmp_path / "a")  # the very folder that was read before
    text = (changed / "sizes_of_mine.jsonl").read_text()
    (changed / "sizes_of_mine.jsonl").write_text(text.replace("the siz 1", "the siz 7"))
    assert found(asking(asked, changed), loaded).inputs != own.inputs
    assert found(asking(["sizes_of_mine"], folder), loaded).inputs != own.inputs


def test_generators_are_given_back_as_they_were(loaded: LoadedModel, folder: Path, tmp_path: Path) -> None:
    random.seed(3)
    torch.manual_seed(3)
    expected = random.random(), float(torch.rand(()))
    random.seed(3)
    torch.manual_seed(3)
    measured(found(asking(["sizes_of_mine"], folder), loaded), loaded, tmp_path / "out")
    assert (random.random(), float(torch.rand(()))) == expected


@pytest.mark.parametrize(
    ("more", "asked", "words"),
    [
        ("num_fewshot: 0", {"task": "sizes_of_mine", "shots": 2}, "made to be asked without examples"),
        ("process_docs: !function evil.run", "sizes_of_mine", r"sizes_of_mine\.yaml would run code \(!function"),
        ("doc_to_text: \"{{ ''.__class__.__mro__ }}\"", "sizes_of_mine", "cannot be read .*'__class__'.* is unsafe"),
        ("description: '{{nothing}'", "sizes_of_mine", "cannot be asked|cannot be read"),
        ("", {"task": "sizes_of_mine", "shots": 40}, "sizes_of_mine cannot be asked"),
        ("dataset_name: gone\ndataset_path: json\ndataset_kwargs: {data_files: {test: gone.jsonl}}", "sizes_of_mine",
         "cannot be read.*see to its file and its data_files"),
        ("dataset_path: nobody/nothing\ndataset_kwargs: {}", "sizes_of_mine",
         "nobody/nothing on the hub.*no network.*general_include_path"),
        ("metric_list: [{metric: seqeval_of_hub}]", "sizes_of_mine", "would run code.*seqeval_of_hub"),
        ("output_type: generate_until\ngeneration_kwargs: {max_gen_toks: 64, until: ['.']}", "sizes_of_mine",
         "lets a model write 64 tokens"),
    ],
)  # fmt: skip
def test_what_cannot_be_asked_is_refused_in_a_sentence(
    loaded: LoadedModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, more: str, asked: Any, words: str
) -> None:
    import datasets
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    (tmp_path / "evil.py").write_text("raise SystemExit('code was run')")
    with pytest.raises(RecipeError, match=words) as refused:
        found(asking([asked], write_tasks(tmp_path, more=more)), loaded)
    assert str(refused.value).startswith("evaluation.general_tasks: ")


def test_a_chat_template_that_is_not_there_is_refused(loaded: LoadedModel, folder: Path) -> None:
    with pytest.raises(RecipeError, match=r"general_chat_template.*no chat template"):
        found(asking(["sizes_of_mine"], folder, general_chat_template=True), loaded)


def test_a_run_asks_the_base_and_the_last_stage_once(tmp_path: Path, folder: Path) -> None:
    base = make_tiny_model(tmp_path / "model")
    recipe = tiny_recipe(tmp_path, base)
    evaluation = recipe.evaluation.model_copy(
        update={"general_tasks": asking(["both_of_mine"], folder).general_tasks, "general_include_path": str(folder)}
    )
    recipe = recipe.model_copy(update={"evaluation": evaluation})
    run = execute(recipe).folder
    names = [stage["name"] for stage in json.loads((run / "manifest.json").read_text())["stages"]]
    asked = {path.parents[2].name for path in run.glob("stages/*/benchmarks/both_of_mine/scores.json")}
    assert asked == {BASE_STAGE, names[-1]}
    told = json.loads((run / "stages" / names[-1] / "scores.json").read_text())["benchmarks"]["both_of_mine"]
    assert told["results"][0]["name"] == "both_of_mine"
    wrong = evaluation.model_copy(update={"general_stages": [9]})
    with pytest.raises(RecipeError, match=r"general_stages: there is no stage 9"):
        execute(recipe.model_copy(update={"evaluation": wrong, "name": "other"}))
