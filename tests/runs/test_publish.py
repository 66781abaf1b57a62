"""What a run hands back behaves as it was measured, wherever the folder is: by the code of its own card."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from transformers import AutoTokenizer, GenerationConfig

from everlearn.data.instance import Instance
from everlearn.data.prompts import get_template
from everlearn.data.walk_prompts import WalkTemplate
from everlearn.files import read_jsonl, sha256_of
from everlearn.recipe import Recipe, make_recipe
from everlearn.runs.loop import execute
from everlearn.runs.model_card import escaped
from tests.conftest import make_tiny_model
from tests.data.byte_tokenizer import CHATML

TASKS = ("colours", "ani_mals")
MARKS = ("<|im_start|>", "<|im_end|>")
# Until an answer depends on its input: at the rate of the adapters all answers come to one, which one by the machine.
FULL = {"epochs": 40, "batch_size": 4, "learning_rate": 3e-3}
LESSONS = {"colours": ["red", "blue"], "ani_mals": ["cat", "dog"]}


def base(folder: Path, chat_template: str | None = None, context: int = 256) -> Path:
    """A model that stops at `</s>` by its own configuration, and samples."""
    make_tiny_model(folder, texts=["what is it? red blue cat dog\n" * 3], context=context, marks=MARKS)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    tokenizer.chat_template = chat_template
    tokenizer.save_pretrained(folder)
    drawn = {"do_sample": True, "temperature": 5.0, "repetition_penalty": 3.0}
    GenerationConfig(eos_token_id=2, max_length=999, **drawn).save_pretrained(folder)
    return folder


def recipe_of(folder: Path, model: dict[str, Any], **sections: Any) -> Recipe:
    data = folder / "data"
    data.mkdir(parents=True, exist_ok=True)
    tasks = []
    for name in TASKS:
        rows = [{"input": f"what is {name} {at}?", "output": LESSONS[name][at % 2]} for at in range(8)]
        for part in ("train", "evaluation"):
            (data / f"{name}.{part}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        parts = {part: str(data / f"{name}.{part}.jsonl") for part in ("train", "evaluation")}
        tasks.append({"name": name, **parts, "demonstrations": 2})
    tree = {
        "name": "lessons",
        "runs_dir": str(folder / "runs"),
        "model": model,
        "stream": {"tasks": tasks},
        "method": "sequential",
        "training": {"epochs": 12, "batch_size": 4, "learning_rate": 1e-2},
        "evaluation": {"max_new_tokens": 9, "bootstrap_samples": 100, "general": False},
    }
    return make_recipe({**tree, **sections})


def predictions(run: Path) -> list[dict[str, Any]]:
    last = run / "stages" / f"{len(TASKS):02d}-{TASKS[-1]}" / "predictions"
    return [row for name in TASKS for row in read_jsonl(last / name / "predictions.jsonl")]


def code_of(folder: Path) -> str:
    found = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), re.S)
    assert found
    return found[1].replace('FOLDER = "."', f"FOLDER = {str(folder)!r}")


def answers_elsewhere(run: Path, elsewhere: Path, rows: list[dict[str, Any]]) -> list[str]:
    """What the moved model answers, asked as its card says."""
    shutil.move(run / "model", elsewhere)
    space: dict[str, Any] = {}
    exec(code_of(elsewhere), space)
    return [space["answer"](row["input"]).strip() for row in rows]


@pytest.mark.parametrize(
    ("tuning", "template", "chat_template"),
    [("lora", "chat", CHATML), ("full", "chat", CHATML), ("lora", "vanilla", None), ("full", "alpaca", CHATML)],
)
def test_the_model_elsewhere_gives_the_predictions_of_the_run(tmp_path, tuning, template, chat_template):
    folder = base(tmp_path / "base", chat_template)
    model = {"base": str(folder), "tuning": tuning, "template": template, "dtype": "float32", "lora": {"rank": 8}}
    run = execute(recipe_of(tmp_path, model, **({"training": FULL} if tuning == "full" else {}))).folder
    rows = predictions(run)
    assert {row["finish_reason"] for row in rows} >= {"eos"}
    stage = run / "stages" / "02-ani_mals" / "training" / ("adapter" if tuning == "lora" else "model")
    sums = {path.name: sha256_of(path) for path in stage.iterdir() if path.is_file()}
    assert answers_elsewhere(run, tmp_path / "moved", rows) == [row["prediction"] for row in rows]
    assert {path.name: sha256_of(path) for path in stage.iterdir() if path.is_file()} == sums


@pytest.mark.parametrize("quantization", ["nf4", "int8"])
def test_an_adapter_over_quantized_weights_answers_elsewhere_as_it_was_measured(tmp_path, quantization, monkeypatch):
    # which by itself packs such weights anew on some processors, and cannot do so with layers as small as these
    monkeypatch.setattr(pytest.importorskip("bitsandbytes").nn.modules, "has_avx512bf16", lambda: False)
    folder = base(tmp_path / "base", CHATML)
    model = {"base": str(folder), "quantization": quantization, "dtype": "float32", "lora": {"rank": 8}}
    training = {"epochs": 2, "batch_size": 4, "learning_rate": 1e-2, "optimizer": "adamw_8bit"}
    run = execute(recipe_of(tmp_path, model, training=training)).folder
    rows = predictions(run)
    card = (run / "model" / "README.md").read_text()
    assert f"trained and measured on a base quantized to {quantization} by bitsandbytes" in card
    assert f"quantization: {quantization}" in card
    assert answers_elsewhere(run, tmp_path / "moved", rows) == [row["prediction"] for row in rows]


def test_a_wording_that_takes_the_question_apart_is_in_the_code_where_no_chat_template_makes_it(tmp_path, monkeypatch):
    monkeypatch.setattr("everlearn.data.handed_template.handed_template", lambda *_: None)
    model = {"base": str(base(tmp_path / "base")), "template": "relation_classification_state", "tuning": "full"}
    recipe = recipe_of(tmp_path, {**model, "dtype": "float32"}, training=FULL)
    for file in (tmp_path / "data").iterdir():
        told = [json.loads(line) for line in file.read_text().splitlines()]
        marked = [{**row, "input": f"[E11] {row['output']} [E12] is [E21] it [E22]{row['input'][7:]}"} for row in told]
        file.write_text("".join(json.dumps(row) + "\n" for row in marked))
    run = execute(recipe).folder
    rows = predictions(run)
    assert "[E11]" in rows[0]["input"]
    assert {row["prediction"] for row in rows} >= {"cat", "dog"}
    assert answers_elsewhere(run, tmp_path / "moved", rows) == [row["prediction"] for row in rows]


@pytest.mark.parametrize(
    ("template", "chat_template", "wording"), [("chat", CHATML, "published"), ("vanilla", None, "plain")]
)
def test_a_model_that_thinks_is_asked_as_it_was_and_its_answer_cut_out(tmp_path, template, chat_template, wording):
    folder = base(tmp_path / "base", chat_template, context=1024)
    method = {"name": "r1_t1", "epochs": 0, "wording": wording}
    model = {"base": str(folder), "template": template, "tuning": "full", "dtype": "float32"}
    recipe = recipe_of(tmp_path, model, method=method, training={"epochs": 1})
    for file in (tmp_path / "data").glob("*.train.jsonl"):
        rows = [json.loads(line) for line in file.read_text().splitlines()]
        file.write_text("".join(json.dumps({**row, "walk": "so"}) + "\n" for row in rows))
    run = execute(recipe).folder
    shutil.move(run / "model", tmp_path / "moved")
    space: dict[str, Any] = {}
    exec(code_of(tmp_path / "moved"), space)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    asked = []

    def thinks(ids, attention_mask):
        asked.append(ids[0].tolist())
        written = tokenizer.encode("so</think>\n\n<answer>cat</answer>", add_special_tokens=False)
        return torch.cat([ids, torch.tensor([written])], dim=1)

    space["model"].generate = thinks
    assert space["answer"]("what is it?") == "cat"
    as_in_the_run = WalkTemplate(get_template(template, tokenizer), published=wording == "published")
    assert asked == [as_in_the_run.prompt_ids(Instance("", "what is it?", "", "t"), tokenizer)]


def test_generation_settings_are_those_of_the_measurement(tmp_path):
    folder = base(tmp_path / "base", CHATML)
    run = execute(recipe_of(tmp_path, {"base": str(folder), "lora": {"rank": 2}}, training={"epochs": 1})).folder
    settings = GenerationConfig.from_pretrained(run / "model")
    tokenizer = AutoTokenizer.from_pretrained(run / "model")
    assert settings.eos_token_id == [tokenizer.convert_tokens_to_ids("<|im_end|>"), 2]
    assert (settings.do_sample, settings.max_new_tokens) == (False, 9)
    assert not settings.temperature
    assert not settings.repetition_penalty
    assert tokenizer.chat_template == CHATML


def test_a_local_base_is_named_by_its_absolute_path(tmp_path, monkeypatch):
    base(tmp_path / "base")
    monkeypatch.chdir(tmp_path)
    run = execute(recipe_of(tmp_path, {"base": "base", "lora": {"rank": 2}}, training={"epochs": 1})).folder
    settings = json.loads((run / "model" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str((tmp_path / "base").resolve())


def test_an_adapter_of_the_embedded_base_carries_its_base(tmp_path):
    tree = {"runs_dir": str(tmp_path / "runs"), "name": "small", "method": "sequential"}
    stream = {"tasks": "embedded", "train_limit": 8, "evaluation_limit": 4, "order": ["sentiment"]}
    run = execute(
        make_recipe(
            {
                **tree,
                "model": {"base": "embedded"},
                "stream": stream,
                "training": {"epochs": 1},
                "evaluation": {"max_new_tokens": 8, "bootstrap_samples": 100, "general": False},
            }
        )
    ).folder
    settings = json.loads((run / "model" / "adapter_config.json").read_text())
    assert settings["base_model_name_or_path"] == str((run / "model" / "base").resolve())
    rows = list(read_jsonl(run / "stages" / "01-sentiment" / "predictions" / "sentiment" / "predictions.jsonl"))
    shutil.move(run / "model", tmp_path / "moved")
    space: dict[str, Any] = {}
    exec(code_of(tmp_path / "moved"), space)
    asked = ["\n\n".join(part for part in (row.get("instruction"), row["input"]) if part) for row in rows]
    assert [space["answer"](question).strip() for question in asked] == [row["prediction"] for row in rows]
    assert str(Path(__file__).parents[2] / "src") not in (tmp_path / "moved" / "README.md").read_text()


def test_the_card_says_what_was_taught_and_escapes_it(tmp_path):
    folder = base(tmp_path / "base")
    run = execute(recipe_of(tmp_path, {"base": str(folder), "lora": {"rank": 2}}, training={"epochs": 1})).folder
    card = (run / "model" / "README.md").read_text(encoding="utf-8")
    front = yaml.safe_load(card.split("---")[1])
    assert front["library_name"] == "peft"
    assert "base_model" not in front
    matrix = json.loads((run / "matrix.json").read_text())
    (line,) = [line for line in card.splitlines() if line.startswith(r"| 2 | ani\_mals | 8 | 8 |")]
    assert line.endswith(f"{matrix['values'][-1][1]:.1f} |")
    for part in ("everlearn ", "rank: 2", "learning_rate", "## Licence", str(folder)):
        assert part in card or escaped(part) in card, part


def test_a_run_that_goes_on_makes_the_folder_again_and_leaves_what_others_put_there(tmp_path):
    folder = base(tmp_path / "base")
    recipe = recipe_of(tmp_path, {"base": str(folder), "lora": {"rank": 2}}, training={"epochs": 1})
    run = execute(recipe).folder
    whole = {path.name: sha256_of(path) for path in (run / "model").iterdir()}
    (run / "model" / "generation_config.json").unlink()
    (run / "model" / "README.md").write_text("half")
    (run / "model" / "mine.txt").write_text("mine")
    (run / ".partial" / "handed-back").mkdir(parents=True)
    (run / ".partial" / "handed-back" / "half").write_text("half")
    execute(recipe)
    assert {path.name: sha256_of(path) for path in (run / "model").iterdir() if path.name != "mine.txt"} == whole
    assert (run / "model" / "mine.txt").read_text() == "mine"
    assert not (run / ".partial").exists()


def test_text_is_escaped_for_markdown():
    assert escaped("a|b\n# <b>`x`[y](z)\u202e") == r"a\|b \# \<b\>\`x\`\[y\]\(z\)\\u202e"
