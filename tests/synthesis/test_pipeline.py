"""The steps together, on scripted engines: files, counts, resumption, presets, refusals."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import everlearn.models.embeddings as embeddings
from everlearn.data.instance import Instance, Task, Turn
from everlearn.data.prompts import AlpacaTemplate
from everlearn.errors import DataError, MissingExtraError, UserError
from everlearn.synthesis import selection_steps
from everlearn.synthesis.coverage import coverage_order
from everlearn.synthesis.options import DemonstrationOptions
from everlearn.synthesis.pipeline import Synthesis, synthesize_task
from everlearn.synthesis.selection import Chosen
from everlearn.synthesis.steps import in_chunks
from tests.synthesis.fakes import Workshop, answer_parity, make_workshop, number_task

STEPS = ("raw", "parsed", "filtered", "embedded", "selected", "refined")


@pytest.fixture(autouse=True)
def vectors_by_text(monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors that depend on the text alone, in place of a model's."""

    def embed(loaded: object, texts: Sequence[str], **_: object) -> np.ndarray:
        assert getattr(loaded, "name", "") == "base"
        return np.stack([np.random.RandomState(hash_of(text)).randn(8).astype(np.float32) for text in texts])

    monkeypatch.setattr(embeddings, "embed_texts", embed)


def hash_of(text: str) -> int:
    return int.from_bytes(text.encode()[-4:], "big") % 2**31


def options(**values: object) -> DemonstrationOptions:
    return DemonstrationOptions.model_validate({"clusters": 3, **values})


def run(workshop: Workshop, task: Task | None = None, **values: object) -> Synthesis:
    return synthesize_task(task or number_task(), options(**values), workshop.tools)


def rows_in(result: Synthesis, name: str) -> list[dict]:
    return [json.loads(line) for line in (result.folder / name).read_text(encoding="utf-8").splitlines()]


def counts_in(result: Synthesis, step: str) -> dict:
    return json.loads((result.folder / step / "counts.json").read_text(encoding="utf-8"))


def test_the_base_writes_and_the_latest_answers(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    result = run(workshop, ratio=0.25)
    assert result.asked == len(result.rows) == 10
    for row in result.rows:
        assert (row.origin, row.task, row.instruction) == ("synthetic", "numbers", number_task().train[0].instruction)
        assert row.output == answer_parity(row.input, random.Random()).strip()
    assert all(text.endswith("Input:") for texts, _ in workshop.base.calls for text in texts)
    assert all(text.startswith("<s>Say whether") for texts, _ in workshop.latest.calls for text in texts)


def test_every_step_leaves_its_files(tmp_path: Path) -> None:
    result = run(make_workshop(tmp_path))
    files = {path.relative_to(result.folder).as_posix() for path in result.folder.glob("*/*") if path.name != "done"}
    assert files == {
        "raw/raw.jsonl",
        "raw/counts.json",
        "parsed/kept.jsonl",
        "parsed/rejected.jsonl",
        "parsed/counts.json",
        "filtered/kept.jsonl",
        "filtered/rejected.jsonl",
        "filtered/counts.json",
        "embedded/embeddings.safetensors",
        "selected/selected.jsonl",
        "selected/counts.json",
        "refined/refined.jsonl",
        "refined/rejected.jsonl",
        "refined/counts.json",
    }
    assert [row["id"] for row in rows_in(result, "demonstrations.jsonl")] == [f"n{at}" for at in range(34, 40)]
    assert set(rows_in(result, "raw/raw.jsonl")[0]) == {"inputs", "outputs", "perm_idx", "sample", "finish_reason"}
    assert {"inputs", "outputs", "input", "raw_index", "perm_idx"} <= set(rows_in(result, "parsed/kept.jsonl")[0])
    assert {"cluster", "distance"} <= set(rows_in(result, "selected/selected.jsonl")[0])
    refined = rows_in(result, "refined/refined.jsonl")[0]
    assert {"inputs", "targets", "input", "outputs", "cluster", "finish_reason"} <= set(refined)


def test_the_faithful_preset_samples_as_published(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    result = run(workshop, preset="faithful")
    raw = rows_in(result, "raw/raw.jsonl")
    assert len({tuple(row["perm_idx"]) for row in raw}) == 6 * 5
    assert len(raw) == 6 * 5 * 3
    for _, sampling in workshop.base.calls:
        assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.repetition_penalty) == (
            0.9,
            0.6,
            50,
            1.2,
        )
        assert (sampling.max_length, sampling.stop, sampling.samples_per_prompt) == (2048, (), 3)
    assert not (result.folder / "filtered").exists()
    assert counts_in(result, "parsed") == {
        "raw": 90,
        "pieces": 270,
        "kept": 180,
        "dropped": {"no_output": 90},
    }


def test_equal_samples_of_a_prompt_count_once(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path, write=lambda text, stream: f" number {stream.choice('12')}1\nOutput: odd")
    raw = rows_in(run(workshop, preset="faithful", minimum=0.1), "raw/raw.jsonl")
    for subset in {tuple(row["perm_idx"]) for row in raw}:
        texts = [row["outputs"] for row in raw if tuple(row["perm_idx"]) == subset]
        assert len(texts) == len(set(texts)) <= 2


def test_an_improved_continuation_is_one_instance(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    result = run(workshop)
    assert workshop.base.calls[0][1].stop == ("\nInput:",)
    counts = counts_in(result, "parsed")
    assert counts["pieces"] == counts["raw"] == counts["kept"]


def test_copies_and_repetitions_are_not_rehearsed(tmp_path: Path) -> None:
    demonstration = number_task().demonstrations[0].input

    def write(text: str, stream: random.Random) -> str:
        drawn = stream.choice([demonstration, "number 77777", f"number {stream.randrange(10**4, 10**5)}"])
        return f" {drawn}\nOutput: odd"

    result = run(make_workshop(tmp_path, write=write), near_duplicates=1.0)
    dropped = counts_in(result, "filtered")["dropped"]
    assert dropped["copy_of_demonstration"] > 0
    assert dropped["duplicate"] > 0
    inputs = [row.input for row in result.rows]
    assert len(inputs) == len(set(inputs)) == 4
    assert demonstration not in inputs


def test_labels_are_balanced_by_the_latest_model_s_answers(tmp_path: Path) -> None:
    def write(text: str, stream: random.Random) -> str:
        number = stream.randrange(10_000, 99_999)
        return f" number {number + number % 2 if stream.random() < 0.7 else number}\nOutput: odd"

    task = number_task(rows=60, labels=True)
    result = run(make_workshop(tmp_path, write=write), task, ratio=0.3)
    assert Counter(row.output for row in result.rows) == {"even": 12, "odd": 6}
    rejected = Counter(row["reason"] for row in rows_in(result, "refined/rejected.jsonl"))
    assert rejected["surplus"] == counts_in(result, "refined")["selected"] - 18


def test_answers_outside_the_labels_are_replaced_from_the_spare_rows(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    workshop.latest.write = lambda text, stream: " maybe" if text[-1] in "012" else answer_parity(text, stream)
    result = run(workshop, number_task(labels=True), ratio=0.5)
    assert len(result.rows) == 20
    assert counts_in(result, "refined")["dropped"]["unknown_label"] > 0


def test_unended_answers_are_dropped_when_improved_and_kept_when_faithful(tmp_path: Path) -> None:
    def ramble(text: str, stream: random.Random) -> str:
        return " and" * 400 if text[-1] in "01234" else answer_parity(text, stream)

    lengths = {}
    for preset in ("faithful", "improved"):
        workshop = make_workshop(tmp_path / preset)
        workshop.latest.write = ramble
        lengths[preset] = {len(row.output) > 10 for row in run(workshop, preset=preset, ratio=0.5).rows}
    assert lengths == {"faithful": {True, False}, "improved": {False}}


def test_answers_that_repeat_their_input_are_dropped_and_counted_when_improved(tmp_path: Path) -> None:
    def repeat(text: str, stream: random.Random) -> str:
        return text.rpartition("\n\n")[2] if text[-1] in "012" else answer_parity(text, stream)

    repeated = {}
    for preset in ("faithful", "improved"):
        workshop = make_workshop(tmp_path / preset)
        workshop.latest.write = repeat
        result = run(workshop, preset=preset, ratio=0.5, refinement_tokens=40)
        repeated[preset] = sum("number" in row.output for row in result.rows)
    assert repeated["faithful"] > 0 == repeated["improved"]
    assert counts_in(result, "refined")["dropped"]["copy_of_input"] > 0


def test_without_refinement_the_base_model_s_answers_stay(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    task = number_task(labels=True)
    result = run(workshop, task, refine=False, ratio=0.5)
    assert not workshop.latest.calls
    assert len(result.rows) == 20
    assert {row.output for row in result.rows} == {"even", "odd"}
    assert not (result.folder / "refined").exists()


def test_synthesis_stands_alone_without_a_latest_model(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path, refined=False)
    task = replace(number_task(), train=())
    result = synthesize_task(task, options(), workshop.tools, count=12)
    assert len(result.rows) == 12


def test_a_killed_synthesis_goes_on_with_the_same_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import everlearn.synthesis.continuations as continuations
    import everlearn.synthesis.refinement_step as refinement_step

    monkeypatch.setattr(continuations, "CHUNK_SEQUENCES", 20)
    monkeypatch.setattr(refinement_step, "AT_ONCE", 3)
    whole = run(make_workshop(tmp_path / "whole"), preset="faithful", ratio=0.25)
    workshop = make_workshop(tmp_path / "killed")
    base_prompts = []
    for engine, stop in ((workshop.base, 1), (workshop.base, 1), (workshop.latest, 1), (workshop.latest, 2)):
        engine.stop_after = stop
        with pytest.raises(KeyboardInterrupt):
            run(workshop, preset="faithful", ratio=0.25)
        base_prompts += [texts for texts, _ in workshop.base.calls]
        for one in (workshop.base, workshop.latest):
            one.calls, one.stop_after = [], None
    resumed = run(workshop, preset="faithful", ratio=0.25)
    assert resumed.rows == whole.rows
    for name in ("raw/raw.jsonl", "refined/refined.jsonl"):
        assert (resumed.folder / name).read_bytes() == (whole.folder / name).read_bytes()
    assert not list(resumed.folder.glob("*/*-0*.jsonl"))
    base_prompts += [texts for texts, _ in workshop.base.calls]
    finished_once = Counter(texts[0] for texts in base_prompts)
    assert sorted(finished_once.values())[-2:] == [2, 2]  # the two chunks that a kill interrupted, no other
    assert sum(finished_once.values()) == len(finished_once) + 2


def test_the_same_call_makes_nothing_again(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    first = run(workshop)
    workshop.base.calls, workshop.latest.calls, workshop.steps.made = [], [], []
    assert run(workshop) == first
    assert (workshop.base.calls, workshop.latest.calls, workshop.steps.made) == ([], [], [])


def test_another_latest_model_refines_again_and_nothing_else(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    run(workshop)
    workshop.steps.made = []
    synthesize_task(number_task(), options(), replace(workshop.tools, latest_fingerprint="other"))
    assert workshop.steps.made == ["synthesis/refined"]


@pytest.mark.parametrize(
    ("change", "first"),
    [
        ({"temperature": 0.5}, "raw"),
        ({"demonstrations": 1}, "raw"),
        ({"top_p": 0.5}, "raw"),
        ({"top_k": 9}, "raw"),
        ({"repetition_penalty": 1.1}, "raw"),
        ({"max_length": 999}, "raw"),
        ({"max_new_tokens": 99}, "raw"),
        ({"stop": ["|"]}, "raw"),
        ({"samples_per_prompt": 2}, "raw"),
        ({"max_prompts": 9}, "raw"),
        ({"preset": "faithful"}, "raw"),
        ({"layout": "alpaca"}, "raw"),
        ({"save_more": True}, "parsed"),
        ({"near_duplicates": 0.99}, "filtered"),
        ({"embedded_text": "query"}, "embedded"),
        ({"clusters": 2}, "selected"),
        ({"selection": "supervised"}, "embedded"),
        ({"refinement_tokens": 7}, "refined"),
        ({"refinement_prompt": "published"}, "refined"),
    ],
)
def test_a_changed_option_repeats_the_first_step_that_depends_on_it_and_all_after_it(
    tmp_path: Path, change: dict[str, object], first: str
) -> None:
    workshop = make_workshop(tmp_path)
    run(workshop)
    workshop.steps.made = []
    with suppress(UserError):  # the scripted engine writes for one layout alone
        run(workshop, **change)
        assert workshop.steps.made[-1] == "synthesis/refined"
    following = [f"synthesis/{name}" for name in STEPS[STEPS.index(first) :]]
    if change.get("preset") == "faithful":
        following.remove("synthesis/filtered")
    assert workshop.steps.made == following[: len(workshop.steps.made)]
    assert workshop.steps.made


@pytest.mark.parametrize(
    ("task", "tools", "first"),
    [
        ({}, {"base_fingerprint": "other"}, "raw"),
        ({}, {"seed": 1}, "raw"),
        ({"name": "other"}, {}, "raw"),
        ({"demonstrations": number_task(demonstrations=7).demonstrations}, {}, "raw"),
        ({"labels": ("even", "odd")}, {}, "refined"),
        ({}, {"template": AlpacaTemplate()}, "refined"),
        ({}, {"latest_fingerprint": "other"}, "refined"),
        ({"train": number_task(rows=41).train, "labels": ("even", "odd")}, {}, "refined"),
    ],
)
def test_another_task_or_model_repeats_the_first_step_that_depends_on_it(
    tmp_path: Path, task: dict[str, object], tools: dict[str, object], first: str
) -> None:
    workshop = make_workshop(tmp_path)
    workshop.latest.write = lambda text, stream: " even"
    run(workshop)
    workshop.steps.made = []
    changed = replace(number_task(), **task)  # type: ignore[arg-type]
    synthesize_task(changed, options(), replace(workshop.tools, **tools))  # type: ignore[arg-type]
    assert workshop.steps.made[0] == f"synthesis/{first}"


def test_random_selection_is_repeated_for_other_candidates(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    run(workshop, selection="random")
    workshop.steps.made = []
    run(workshop, selection="random", near_duplicates=0.99)
    assert workshop.steps.made == ["synthesis/filtered", "synthesis/selected", "synthesis/refined"]


def test_a_shared_system_message_stands_before_every_refined_question(tmp_path: Path) -> None:
    turns = (Turn("system", "Be kind."),)
    task = number_task()
    workshop = make_workshop(tmp_path)
    result = run(workshop, replace(task, demonstrations=tuple(replace(row, history=turns) for row in task.train[:6])))
    questions = [text for texts, _ in workshop.latest.calls for text in texts]
    assert questions
    assert all(text.startswith("<s>Be kind.\n\nSay whether") for text in questions)
    assert {row.history for row in result.rows} == {turns}


@pytest.mark.parametrize(("option", "context", "most"), [(600, 4096, 600), (2048, 700, 700)])
def test_prompt_and_refined_answer_have_the_length_that_option_and_context_allow(
    tmp_path: Path, option: int, context: int, most: int
) -> None:
    workshop = make_workshop(tmp_path, context=context)
    run(workshop, max_length=option)
    assert {sampling.max_length for _, sampling in workshop.latest.calls} == {most}


def test_random_selection_needs_no_embeddings(tmp_path: Path) -> None:
    result = run(make_workshop(tmp_path), preset="faithful", selection="random", ratio=0.5)
    assert len(result.rows) == 20
    assert not (result.folder / "embedded").exists()


def test_rows_chosen_by_coverage_need_no_embeddings_and_are_chosen_anew_where_answers_are_lost(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    workshop.latest.write = lambda text, stream: "" if "1" in text.split()[-1] else answer_parity(text, stream)
    result = run(workshop, clusters=None, ratio=0.25)
    assert not (result.folder / "embedded").exists()
    inputs = [str(row["input"]) for row in rows_in(result, "selected/selected.jsonl")]
    left = [text for text in inputs if "1" not in text]
    assert len(inputs) == 20
    assert len(left) > 10, "spare rows are answered, some of them with nothing"
    assert {row.input for row in result.rows} == {left[at] for at in coverage_order(left, 10)}


def test_supervised_selection_embeds_the_training_rows_too(tmp_path: Path) -> None:
    from safetensors.numpy import load_file

    result = run(make_workshop(tmp_path), selection="supervised", ratio=0.25)
    arrays = load_file(result.folder / "embedded" / "embeddings.safetensors")
    assert arrays["reference"].shape == (40, 8)
    assert len(result.rows) == 10


def test_too_few_instances_are_refused_with_counts_and_remedy(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path, write=lambda text, stream: f" {stream.random()}")
    message = (
        r"task numbers: only 0 valid .* at least 4 .*dropped: 90 no output.*: raise the method's samples_per_prompt, "
        r"lower its clusters, and ratio or minimum, .*needs another --name, under which finished steps are found again"
    )
    with pytest.raises(UserError, match=message):
        run(workshop, preset="faithful")
    assert (tmp_path / "synthesis" / "raw" / "raw.jsonl").exists()


def test_fewer_rows_than_clusters_are_refused_when_faithful(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path, write=lambda text, stream: " number 8\nOutput: even")
    with pytest.raises(UserError, match=r"only 6 valid synthetic instances, at least 20 .*, lower its clusters, or"):
        run(workshop, number_task(demonstrations=3), preset="faithful", clusters=20, minimum=0)


@pytest.mark.parametrize(
    ("values", "remedy"),
    [
        ({"preset": "faithful", "max_prompts": 1}, "samples_per_prompt or max_prompts"),
        ({"max_prompts": 1}, "oversampling"),
        ({"samples_per_prompt": 2}, "oversampling"),
        ({"samples_per_prompt": 2, "max_prompts": 1}, "samples_per_prompt or max_prompts"),
    ],
)
def test_the_remedy_for_too_few_candidates_makes_more_samples(
    tmp_path: Path, values: dict[str, object], remedy: str
) -> None:
    workshop = make_workshop(tmp_path, write=lambda text, stream: f" {stream.random()}")
    with pytest.raises(UserError, match=f"raise the method's {remedy}, lower"):
        run(workshop, **values)
    counts = tmp_path / "synthesis" / "raw" / "counts.json"
    before = json.loads(counts.read_text())["raw"]
    for name in remedy.split(" or "):
        with pytest.raises(UserError):
            run(workshop, **{**values, name: 3 * int(values.get(name) or 5)})
        assert json.loads(counts.read_text())["raw"] > before


def test_answers_that_are_lost_are_told_from_too_few_candidates(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path)
    workshop.latest.write = lambda text, stream: " neither"
    message = (
        r"only 0 valid .*dropped: .*8 unknown label.*train longer \(training.epochs\).* or set its refine to false"
    )
    with pytest.raises(UserError, match=message):
        run(workshop, number_task(labels=True))
    assert len(run(workshop, number_task(labels=True), refine=False).rows) == 4


def test_fewer_rows_than_asked_for_are_said_when_improved(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path, write=lambda text, stream: f" number {stream.randrange(7)}7777\nOutput: odd")
    result = run(workshop, ratio=0.5, near_duplicates=1.0)
    assert 5 <= len(result.rows) <= 7
    assert any("synthetic instances rather than 20" in line and "duplicate" in line for line in workshop.lines)
    with pytest.raises(UserError, match="at least 18"):
        run(workshop, ratio=0.5, near_duplicates=1.0, minimum=0.9)


def test_no_instances_at_all_can_be_allowed(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path, write=lambda text, stream: "nothing")
    assert run(workshop, minimum=0).rows == ()


def test_inputs_without_answers_can_be_kept(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path, write=lambda text, stream: f" number {stream.randrange(10**4, 10**5)}")
    result = run(workshop, save_more=True, near_duplicates=1.0)
    assert len(result.rows) == 4
    assert all(row.output for row in result.rows)


def free_task() -> Task:
    """A task whose rows have instructions of their own."""
    pool = tuple(
        Instance(f"Write sentence {at}.", f"text {at}" if at % 2 else "", f"Done {at}.", "alpaca") for at in range(5)
    )
    return Task("alpaca", pool * 8, (), pool)


def write_freely(text: str, stream: random.Random) -> str:
    number = stream.randrange(10**6)
    body = f" Sum {number}.\nInput: {number} 4\nOutput: many\n\nInstruction: Name {number}."
    return body + "\nInput: <noinput>\nOutput: it"


@pytest.mark.parametrize(
    ("preset", "layout", "adds_up", "one_each"),
    [
        ("improved", "superni", True, False),
        ("faithful", "superni", False, False),
        ("improved", "alpaca", True, True),
    ],
)
def test_clusters_give_as_many_rows_as_the_preset_and_the_layout_say(
    preset: str, layout: str, adds_up: bool, one_each: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []
    select = selection_steps.select_clustered

    def note(*arguments: object, **how: object) -> list[Chosen]:
        asked.append((how["adds_up"], how["one_each"], how["clusters"]))
        return select(*arguments, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(selection_steps, "select_clustered", note)
    task = number_task() if layout == "superni" else free_task()
    workshop = make_workshop(tmp_path, **({} if layout == "superni" else {"write": write_freely}))
    workshop.latest.write = lambda text, stream: " even"
    run(workshop, task, preset=preset, near_duplicates=1.0)
    assert asked == [(adds_up, one_each, 3)]


def test_free_instructions_are_invented_too(tmp_path: Path) -> None:
    workshop = make_workshop(tmp_path, write=write_freely)
    workshop.latest.write = lambda text, stream: " ok"
    result = run(workshop, free_task(), near_duplicates=1.0)
    assert workshop.base.calls[0][0][0].startswith("<s>Create task instructions following exmaples below.")
    assert workshop.base.calls[0][1].stop == ("\nInstruction:",)
    assert len(result.rows) == 4
    assert all(row.instruction.startswith("Sum") and row.input and row.output == "ok" for row in result.rows)


def test_prompts_that_cannot_fit_are_refused_by_length(tmp_path: Path) -> None:
    message = r"shortest synthesis prompt has 1\d\d tokens.*at most \d+ fit.*context of 120: lower"
    with pytest.raises(DataError, match=message):
        run(make_workshop(tmp_path, context=120))


def test_a_sentence_model_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"everlearn\[embeddings\]"):
        run(make_workshop(tmp_path), embedding="some/sentence-model")


def test_a_task_without_demonstrations_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="task numbers has no demonstrations"):
        run(make_workshop(tmp_path), number_task(demonstrations=0))


def test_what_fails_while_rows_are_written_by_a_model_is_no_fault_of_their_file(tmp_path: Path) -> None:
    def produce(number: int, items: Sequence[int]) -> Iterator[dict[str, object]]:
        yield {"text": "a"}
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        in_chunks(tmp_path, "raw", [[1]], produce)
    assert not list(tmp_path.iterdir())
