"""SERS within the stage loop's hooks: sets, labels, the pull, refusals."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from everlearn.data.instance import Instance, Task, TaskStream
from everlearn.errors import DataError, RecipeError, UserError
from everlearn.files import read_json, read_jsonl
from everlearn.generation.protocol import Blend
from everlearn.methods.base import Method, one_stage_per_task
from everlearn.methods.registry import make_method
from everlearn.recipe import ModelConfig
from everlearn.synthesis.options import resolve
from everlearn.synthesis.parsing import RawText
from everlearn.training.similarity_pull import SimilarityPull
from tests.methods.contexts import Bench, facts_of, number_stream, stored_and_loaded

STREAM = number_stream(labels=True)
FEW = {"clusters": 3, "ratio": 0.25}
GOLDEN = Path(__file__).parents[1] / "golden" / "sers"
ORDERS = {
    "cl": "trans sa qa sum qg pe para pos dsg expl".split(),
    "cl2": "qa qg sa sum trans dsg expl para pe pos".split(),
    "cl3": "sum qg trans qa sa para dsg pos expl pe".split(),
}


def after_stages(bench: Bench, method: Method, count: int) -> None:
    for stage in method.stages(STREAM)[:count]:
        method.after_stage(bench.context(stage))


MIXTURES = json.loads((GOLDEN / "rehearsal_mix.json").read_text())["cases"]


@pytest.mark.parametrize("case", MIXTURES, ids=[case["id"] for case in MIXTURES])
def test_a_stage_trains_on_its_own_rows_and_the_sets_of_all_earlier_tasks_in_order(
    case: dict, tmp_path: Path, tiny_model: Path
) -> None:
    names, at = ORDERS[case["order"]], case["stage"]
    rows = (Instance("i", "x", "y", "t"),) * 2000
    stage = one_stage_per_task([Task(name, rows, ()) for name in names])[at - 1]
    method = make_method("sers", {})
    made = {name: [Instance("i", f"p{k}", "y", name).to_json() for k in range(200)] for name in names[: at - 1]}
    method.load_state({}, {"sets": made, "found": {}})
    rehearsed = method.rehearsal(Bench(tmp_path, tiny_model).context(stage)).rows
    blocks = [["real", stage.tasks[0].name, len(stage.rows)]]
    tasks = [row.task for row in rehearsed]
    blocks += [["pseudo", name, tasks.count(name)] for name in dict.fromkeys(tasks)]
    assert blocks == case["expected_blocks"]
    assert (len(stage.rows) + len(rehearsed), len(rehearsed)) == (case["expected_rows"], case["expected_replay_rows"])
    assert case["expected_labelled_by_stage"] == {task.name: names.index(task.name) + 1 for task in stage.seen}


def test_the_base_fills_blanks_the_latest_answers_and_both_label_the_hard_rows(
    tmp_path: Path, tiny_model: Path
) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("sers", FEW)
    after_stages(bench, method, 1)
    filled = [text for texts, sampling in bench.writer.calls for text in texts if sampling.temperature]
    assert all("____" in text.split("Input:")[-1] for text in filled)
    base = [sampling for _, sampling in bench.writer.calls if not sampling.temperature]
    assert [sampling.blend for sampling in base] == [None]
    greedy, mixed = bench.answerer.calls
    assert (greedy[1].blend, mixed[1].blend) == (None, Blend(0.5, "probabilities"))
    assert len(mixed[0]) == len(greedy[0]) // 5 == 4
    folder = tmp_path / "1" / "synthesis"
    answered = list(read_jsonl(folder / "refined" / "refined.jsonl")) + list(
        read_jsonl(folder / "refined" / "rejected.jsonl")
    )
    assert len(answered) == len(greedy[0])
    counts = read_json(folder / "refined" / "counts.json")
    assert (counts["hard"], counts["kept"]) == (4, 10)  # type: ignore[index, call-overload]
    rows = method.rehearsal(bench.context(method.stages(STREAM)[1])).rows
    assert all(row.origin == "synthetic" and row.output in ("even", "odd") for row in rows)


def test_hard_rows_are_those_on_which_base_and_latest_agree_least(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)

    def write(text: str, stream: object) -> str:
        """The base answers even numbers as the latest does, and odd ones otherwise."""
        if text.rstrip().endswith("Output:"):
            return f" is the number {10_000 + len(text) * 7 + stream.randrange(5000)}\n"  # type: ignore[attr-defined]
        return " even"

    bench.writer.write = write
    method = make_method("sers", {**FEW, "spare": 0})
    after_stages(bench, method, 1)
    rows = list(read_jsonl(tmp_path / "1" / "synthesis" / "refined" / "refined.jsonl"))
    hard = [row for row in rows if row["is_hard"]]
    assert len(hard) == 2
    assert all(row["latest_answer"] == "odd" and row["agreement"] == 0 for row in hard)
    assert any(row["agreement"] == pytest.approx(100, abs=1e-3) for row in rows)


def test_labelling_that_was_killed_goes_on_where_it_stood(tmp_path: Path, tiny_model: Path) -> None:
    found = []
    for name, stop_after in (("whole", None), ("killed", 1)):
        bench = Bench(tmp_path / name, tiny_model)
        method = make_method("sers", FEW)
        bench.answerer.stop_after = stop_after
        if stop_after:
            with pytest.raises(KeyboardInterrupt):
                after_stages(bench, method, 1)
            bench.answerer.stop_after = None
        after_stages(bench, method, 1)
        found.append(method.rehearsal(bench.context(method.stages(STREAM)[1])).rows)
        calls = [sampling.blend is not None for _, sampling in bench.answerer.calls]
        assert calls == [False, True, *([True] if stop_after else [])]
    assert found[0] == found[1]


def test_too_few_answers_are_refused_with_what_this_method_has(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    bench.answerer.write = lambda text, stream: " perhaps"
    with pytest.raises(UserError, match=r"only 0 valid .* unknown label") as caught:
        after_stages(bench, make_method("sers", FEW), 1)
    assert str(caught.value).count("refine to false") == 0
    assert "lower its minimum" in str(caught.value)


@pytest.mark.parametrize(("preset", "of", "most"), [("improved", "probabilities", None), ("faithful", "logits", 513)])
def test_a_preset_says_what_is_mixed_and_which_lengths_count(
    preset: str, of: str, most: int | None, tmp_path: Path, tiny_model: Path
) -> None:
    bench = Bench(tmp_path, tiny_model)
    rows = [f"is the big number {at} and so on " + "word " * 15 + str(at) for at in range(6)]
    demonstrations = tuple(replace(STREAM["first"].demonstrations[at], input=text) for at, text in enumerate(rows))
    stream = replace(STREAM, tasks=(replace(STREAM["first"], demonstrations=demonstrations), *STREAM.tasks[1:]))
    bench.writer.write = lambda text, stream: " " + "word " * 30 + str(stream.randrange(9999)) + "\n"
    method = make_method("sers", {**FEW, "preset": preset, "selection": "random"})
    method.after_stage(bench.context(method.stages(stream)[0]))
    greedy, mixed = bench.answerer.calls
    assert mixed[1].blend == Blend(0.5, of)  # type: ignore[arg-type]
    if most:
        assert (greedy[1].max_new_tokens, mixed[1].max_new_tokens, mixed[1].max_length) == (512, 512, most)
        assert not (tmp_path / "1" / "synthesis" / "referenced").exists()
        assert len(bench.writer.calls) == 1
    else:
        assert mixed[1].max_length == greedy[1].max_length > 513


def test_a_task_of_which_nothing_is_written_is_not_rehearsed_where_that_is_allowed(
    tmp_path: Path, tiny_model: Path
) -> None:
    bench = Bench(tmp_path, tiny_model)
    bench.writer.write = lambda text, stream: ""
    method = make_method("sers", {**FEW, "minimum": 0})
    after_stages(bench, method, 1)
    second = bench.context(method.stages(STREAM)[1])
    assert not method.rehearsal(second).rows
    assert list(method.influences(second)) == []
    assert method.findings(bench.context(method.stages(STREAM)[0])).numbers == {}  # type: ignore[union-attr]


def test_labels_are_never_made_again_and_survive_a_kill(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("sers", FEW)
    stages = method.stages(STREAM)
    after_stages(bench, method, 1)
    before = method.rehearsal(bench.context(stages[1])).rows
    method.after_stage(bench.context(stages[1]))
    assert method.rehearsal(bench.context(stages[2])).rows[: len(before)] == before
    resumed = stored_and_loaded(method, make_method("sers", FEW), tmp_path / "state")
    for one in (method, resumed):
        assert one.rehearsal(bench.context(stages[2])).rows == method.rehearsal(bench.context(stages[2])).rows
        assert one.findings(bench.context(stages[0])).numbers == {"labels by both models": 4, "of these changed": 0}  # type: ignore[union-attr]


@pytest.mark.parametrize(("preset", "to_zero"), [("improved", False), ("faithful", True)])
def test_from_the_second_stage_on_the_adapter_is_pulled_as_strongly_as_the_task_is_far(
    preset: str, to_zero: bool, tmp_path: Path, tiny_model: Path
) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("sers", {"preset": preset})
    first, second, _ = method.stages(STREAM)
    assert list(method.influences(bench.context(first))) == []
    method.load_state({}, {"sets": {"first": [row.to_json() for row in STREAM["first"].train[:9]]}, "found": {}})
    (pull,) = method.influences(bench.context(second))
    assert isinstance(pull, SimilarityPull)
    found = method.findings(bench.context(second)).numbers  # type: ignore[union-attr]
    distance, strength = found["task distance (W)"], found["strength of the pull (lambda)"]
    assert distance > 0  # type: ignore[operator]
    assert 0.15 < strength < 0.6  # type: ignore[operator]
    assert pull.inputs() == {"strength": strength, "to_zero": to_zero, "targets": None}
    assert read_json(tmp_path / "2" / "distance" / "distance.json") == {"distance": distance, "rows": 9}


def test_a_pull_up_to_the_published_gate_is_left_out_by_the_faithful_preset_alone(
    tmp_path: Path, tiny_model: Path
) -> None:
    bench = Bench(tmp_path, tiny_model)
    for preset, count in (("improved", 1), ("faithful", 0)):
        method = make_method("sers", {"preset": preset, "strength_least": 0.1, "strength_most": 0.15})
        method.load_state({}, {"sets": {"first": [row.to_json() for row in STREAM["first"].train[:9]]}, "found": {}})
        assert len(method.influences(bench.context(method.stages(STREAM)[1]))) == count


def test_the_three_parts_can_be_left_out(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    method = make_method("sers", {**FEW, "hard_ratio": 0, "strength_most": 0})
    assert method.traits == {"rehearses", "synthesizes"}
    after_stages(bench, method, 1)
    assert len(bench.answerer.calls) == 1
    assert list(method.influences(bench.context(method.stages(STREAM)[1]))) == []
    assert make_method("sers", {}).traits == {"rehearses", "synthesizes", "penalty"}


def test_the_published_prompts_are_all_pairs_and_the_rules_are_those_of_the_category() -> None:
    method = make_method("sers", {"preset": "faithful", "categories": {"first": "pe"}})
    writer = method.options.writer(STREAM["first"], resolve(method.options, 10), is_refined=True)  # type: ignore[attr-defined, arg-type]
    assert writer.plan == (30, 1)
    loaded = type("Loaded", (), {"tokenizer": facts_of(STREAM).tokenizer, "context_length": 4096})()
    prompts = writer.prompts(loaded.tokenizer, loaded.context_length, 0)
    assert [prompt.subset for prompt in prompts] == [(i, j) for i in range(6) for j in range(6) if i != j]
    assert all(prompt.text.startswith("Replace `____` in the context") for prompt in prompts)
    words = " ".join(["word"] * 30)
    texts = ("12, " + words, "a " + words, "12, ____ " + words)
    sifted = writer.parse([RawText("Output: ", f"x Output: {text}", (0, 1)) for text in texts], loaded)
    assert [row.input for row in sifted.kept] == [texts[0]]
    assert sifted.dropped == {"no_number_first": 1, "blank_left": 1}


def test_masks_that_follow_a_category_are_made_anew_with_another_one() -> None:
    def described(**options: object) -> object:
        method = make_method("sers", {"preset": "faithful", **options})
        return method.options.writer(STREAM["first"], resolve(method.options, 10), is_refined=True).describe()  # type: ignore[attr-defined, arg-type]

    assert described(categories={"first": "qa"}) != described() != described(categories={"first": "pe"})
    assert described(categories={"second": "qa"}) == described()


def changed(**values: object) -> TaskStream:
    return replace(STREAM, tasks=(replace(STREAM.tasks[0], **values), *STREAM.tasks[1:]))  # type: ignore[arg-type]


SHORT = tuple(replace(row, input="17") for row in STREAM["first"].demonstrations)


@pytest.mark.parametrize(
    ("stream", "options", "message"),
    [
        (changed(demonstrations=()), {}, "task first has no demonstrations"),
        (changed(demonstrations=SHORT), {}, "task first: masking leaves nothing to be filled"),
        (STREAM, {"preset": "faithful"}, "20 clusters, but only 4 synthetic rows are asked for task first"),
        (STREAM, {"categories": {"frist": "qa"}}, "categories names 'frist', which is no task of the stream"),
    ],
)
def test_what_cannot_work_is_refused_before_training(
    stream: TaskStream, options: dict[str, object], message: str
) -> None:
    with pytest.raises((DataError, RecipeError), match=message):
        make_method("sers", options).check(facts_of(stream))


def test_prompts_longer_than_the_context_are_refused_before_training() -> None:
    make_method("sers", {}).check(facts_of(STREAM))
    with pytest.raises(DataError, match=r"task first: even the shortest masked prompt .* context of 40"):
        make_method("sers", {}).check(facts_of(STREAM, context_length=40))


def test_a_pull_to_zero_is_refused_under_full_tuning() -> None:
    facts = replace(facts_of(STREAM), model=ModelConfig(base="embedded", tuning="full"))
    make_method("sers", {}).check(facts)
    with pytest.raises(RecipeError, match="method sers: a pull to zero has no meaning under full tuning"):
        make_method("sers", {"pull_to": "zero"}).check(facts)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"strength_least": 0.7}, r"strength_least \(0.7\) is above strength_most \(0.6\)"),
        ({"shown": 2, "prompt": "published"}, r"shown \(2\) is above 1, but prompt: published"),
        ({"shown": 2, "preset": "faithful"}, r"shown \(2\) is above 1, but prompt: published"),
    ],
)
def test_options_that_exclude_each_other_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(RecipeError, match=f"method sers: {message}"):
        make_method("sers", options)
