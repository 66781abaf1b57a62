from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.cli.main import main
from everlearn.data.stream import load_stream
from everlearn.errors import DataError, RecipeError
from everlearn.files import read_jsonl
from everlearn.recipe import StreamConfig, TaskConfig
from tests.data.byte_tokenizer import make_byte_tokenizer
from tests.tiny_models import make_tokenizer

SUPERNI = "dsg expl para pe pos qa qg sa sum trans".split()


@pytest.fixture
def files(tmp_path) -> Path:
    for name in ("one", "two"):
        rows = [{"instruction": f"Do {name}.", "input": f"{name}{at}", "output": f"answer {at}"} for at in range(20)]
        text = "".join(json.dumps(row) + "\n" for row in rows)
        (tmp_path / f"{name}.jsonl").write_text(text, encoding="utf-8")
    return tmp_path


def config(files: Path, *names: str, **more) -> StreamConfig:
    tasks = [{"name": name, "train": str(files / f"{name}.jsonl"), "demonstrations": 4} for name in names]
    return StreamConfig(**{"tasks": tasks, **more})


def spoil(files: Path, name: str, *lines: str) -> None:
    with (files / f"{name}.jsonl").open("a", encoding="utf-8") as file:
        file.writelines(line + "\n" for line in lines)


def test_tasks_arrive_as_listed_or_in_the_given_order(files):
    assert load_stream(config(files, "one", "two"), seed=1).names == ["one", "two"]
    assert load_stream(config(files, "one", "two", order=["two", "one"]), seed=1).names == ["two", "one"]
    assert load_stream(config(files, "one", "two", order=["two"]), seed=1).names == ["two"]


def test_every_instance_belongs_to_its_task(files):
    for task in load_stream(config(files, "one", "two"), seed=1):
        for row in (*task.train, *task.evaluation, *task.demonstrations):
            assert row.task == task.name
            assert row.instruction == f"Do {task.name}."
            assert row.origin == "real"


def test_an_unknown_task_in_the_order_is_refused_with_the_nearest(files):
    with pytest.raises(RecipeError, match=r"stream.order: no task 'tow': did you mean 'two'\?"):
        load_stream(config(files, "one", "two", order=["tow"]), seed=1)


@pytest.mark.parametrize("order", [["one", "one"], []])
def test_an_order_names_each_task_once(files, order):
    with pytest.raises(RecipeError, match=r"stream.order: name at least one task, and each one once"):
        load_stream(config(files, "one", "two", order=order), seed=1)


def test_duplicated_task_names_are_refused(files):
    with pytest.raises(RecipeError, match="the name 'one' stands for two tasks"):
        load_stream(config(files, "one", "one"), seed=1)


def test_a_stream_without_tasks_is_refused():
    with pytest.raises(RecipeError, match=r"stream.tasks is empty"):
        load_stream(StreamConfig(tasks=[]), seed=1)


@pytest.mark.parametrize("part", ["train", "evaluation", "demonstrations"])
def test_a_missing_file_is_refused_with_its_task_and_key(files, part):
    tasks = [{"name": name, "train": str(files / "one.jsonl")} for name in ("one", "billing")]
    tasks[1][part] = str(files / "three.jsonl")
    with pytest.raises(
        DataError, match=r"^stream.tasks\[1\] 'billing' " + part + ": no file or folder .*three.jsonl: "
    ):
        load_stream(StreamConfig(tasks=tasks, order=["billing"]), seed=1)


def test_a_missing_file_ends_the_command_with_its_task_and_key(files, capsys):
    (files / "recipe.yaml").write_text("stream: {tasks: [{name: billing, train: tow.jsonl}]}", encoding="utf-8")
    assert main(["run", str(files / "recipe.yaml"), "--runs-dir", str(files / "runs"), "--quiet"]) == 2
    assert capsys.readouterr().err == (
        "everlearn: stream.tasks[0] 'billing' train: no file or folder tow.jsonl: mend the path in the recipe.\n"
    )


def test_a_file_that_cannot_be_used_is_named_with_its_task_and_key(files):
    (files / "three.jsonl").write_text("", encoding="utf-8")
    with pytest.raises(DataError, match=r"^stream.tasks\[1\] 'three' train: .*three.jsonl "):
        load_stream(config(files, "one", "three"), seed=1)


def test_strict_streams_name_the_bad_rows_of_all_tasks_and_the_remedy(files):
    spoil(files, "one", "{")
    spoil(files, "two", '{"instruction": "Do two.", "input": "x"}', "[]")
    with pytest.raises(DataError) as caught:
        load_stream(config(files, "one", "two"), seed=1)
    message = str(caught.value)
    assert message.startswith("3 of 43 rows cannot be used: ")
    assert "one.jsonl, line 21: not valid JSON" in message
    assert "two.jsonl, line 21: no output; line 22: not an object" in message
    assert "stream.bad_rows to tolerant" in message


def test_tolerant_streams_set_bad_rows_aside_and_say_so(files):
    spoil(files, "one", "{", '{"instruction": "Do one.", "input": "x"}')
    aside = files / "run" / "bad_rows.jsonl"
    stream = load_stream(config(files, "one", bad_rows="tolerant"), seed=1, bad_rows_file=aside)
    assert len(stream["one"].train) + len(stream["one"].evaluation) == 20
    assert list(read_jsonl(aside)) == [
        {
            "file": str(files / "one.jsonl"),
            "line": 21,
            "reason": "not valid JSON (Expecting property name enclosed in double quotes, column 2)",
            "row": "{",
        },
        {
            "file": str(files / "one.jsonl"),
            "line": 22,
            "reason": "no output",
            "row": {"instruction": "Do one.", "input": "x"},
        },
    ]
    assert len(stream.notes) == 1
    assert stream.notes[0].startswith(f"2 of 22 rows cannot be used and are set aside in {aside}, the first: ")


def test_bad_rows_leave_no_file_when_there_are_none(files):
    aside = files / "bad_rows.jsonl"
    load_stream(config(files, "one", bad_rows="tolerant"), seed=1, bad_rows_file=aside)
    assert not aside.exists()


def test_bad_rows_do_not_change_which_good_rows_are_held_out(files):
    before = load_stream(config(files, "one"), seed=1)
    spoil(files, "one", "{")
    after = load_stream(config(files, "one", bad_rows="tolerant"), seed=1)
    assert after.tasks == before.tasks


def test_text_that_the_tokenizer_cannot_write_is_noted(files):
    rows = [{"input": f"слово {at}", "output": "ответ"} for at in range(20)]
    (files / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    stream = load_stream(config(files, "one"), seed=1, tokenizer=make_tokenizer())
    assert len(stream.notes) == 1
    assert stream.notes[0].startswith("task one: the model's tokenizer cannot write")
    plain = [{"input": f"the cat runs {'red ' * at}", "output": "yes"} for at in range(20)]
    (files / "one.jsonl").write_text("".join(json.dumps(row) + "\n" for row in plain), encoding="utf-8")
    assert load_stream(config(files, "one"), seed=1, tokenizer=make_tokenizer()).notes == ()


def test_the_embedded_stream_is_limited_with_its_demonstrations():
    whole = load_stream(StreamConfig(), seed=1)
    assert len(whole) == 5
    limited = load_stream(StreamConfig(train_limit=30, evaluation_limit=7, order=["routing"]), seed=1)
    assert limited.names == ["routing"]
    task = limited["routing"]
    assert (len(task.train), len(task.evaluation)) == (30, 7)
    assert set(task.demonstrations) <= set(task.train)


def test_loading_needs_no_heavy_library():
    import subprocess
    import sys

    code = (
        "import sys; import everlearn.data.stream, everlearn.data.prompts, everlearn.runs.recipe_writer; "
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'pandas'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def superni_stream(shared_dir: Path, names: list[str], **more) -> StreamConfig:
    folder = shared_dir / "data/superni"
    tasks = [
        {
            "name": name,
            "train": str(folder / f"{name}.train.jsonl.gz"),
            "evaluation": str(folder / f"{name}.eval.jsonl.gz"),
        }
        for name in names
    ]
    return StreamConfig(**{"tasks": tasks, **more})


def test_the_real_superni_stream_is_read_whole(shared_dir):
    stream = load_stream(superni_stream(shared_dir, SUPERNI), seed=42)
    published = json.loads((shared_dir / "data/superni/rehearsal_samples.json").read_text(encoding="utf-8"))
    assert stream.notes == ()
    for task in stream:
        assert len(task.train) == (220 if task.name in ("qg", "sum") else 2000)
        assert len(task.evaluation) == 500
        assert [row.id for row in task.demonstrations] == published[task.name]["smp001"]
        assert len({row.instruction for row in (*task.train, *task.evaluation)}) == 1
        assert all(row.query == f"{row.instruction}\n\n{row.input}" for row in task.train)
    labels = {task.name: task.labels for task in stream if task.labels}
    assert labels == {"pos": ("False", "True"), "sa": ("negative", "positive")}
    assert {task.metric for task in stream} == {"rouge_l", "accuracy"}


def test_extra_rows_of_superni_serve_as_new_demonstrations(shared_dir):
    tasks = superni_stream(shared_dir, ["sum"]).tasks
    extra = str(shared_dir / "data/superni/sum.extra.jsonl.gz")
    stream = load_stream(StreamConfig(tasks=[{**tasks[0].model_dump(), "demonstrations": extra}]), seed=42)
    assert len(stream["sum"].demonstrations) == 20
    other = str(shared_dir / "data/superni/qa.extra.jsonl.gz")
    with pytest.raises(DataError, match="belongs to another task"):
        load_stream(StreamConfig(tasks=[{**tasks[0].model_dump(), "demonstrations": other}]), seed=42)


def test_rows_that_name_control_tokens_are_counted(tmp_path):
    rows = [{"input": f"what is the {word} end?", "output": "yes"} for word in ("</s>", "red", "<s>")]
    file = tmp_path / "manual.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    config = StreamConfig(tasks=[TaskConfig(name="manual", train=str(file), evaluation=str(file))])
    notes = load_stream(config, seed=0, tokenizer=make_byte_tokenizer()).notes
    assert "task manual: 4 rows mention the model's control tokens (`</s>`, `<s>`): they are read as text." in notes


def test_every_task_has_an_account_in_the_order_of_the_stream(files):
    spoil(files, "one", json.dumps({"instruction": "Do.", "input": "x", "output": "y", "note": "n"}), "{}")
    stream = load_stream(config(files, "one", "two", order=["two", "one"], bad_rows="tolerant"), seed=1)
    assert [account.task for account in stream.accounts] == ["two", "one"]
    told = stream.accounts[1]
    part = told.parts["train"]
    assert (part.rows, part.set_aside, part.instances, part.unread) == (22, 1, 21, {"note": 1})
    assert part.reasons == ["line 22: no output"]
    assert told.held_out == len(stream["one"].evaluation)
    assert told.metric == "rouge_l"
    assert told.metric_reason.endswith("too many for labels")
    assert [account.task for account in stream.ordered(["one"]).accounts] == ["one"]


def test_the_embedded_stream_has_accounts_too():
    stream = load_stream(StreamConfig(train_limit=5, evaluation_limit=3), seed=1)
    assert [account.task for account in stream.accounts] == stream.names
    parts = stream.accounts[0].parts
    assert (parts["train"].instances, parts["evaluation"].instances) == (5, 3)
    assert not any(account.sentences() for account in stream.accounts)
