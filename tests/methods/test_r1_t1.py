"""R1-T1: what it trains in which phase, and what it refuses before any training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from everlearn.data.embedded.translation import LANGUAGES, embedded_translations
from everlearn.data.instance import Instance, TaskStream
from everlearn.data.prompts import VanillaTemplate
from everlearn.data.translation import asked
from everlearn.data.walk_prompts import WalkTemplate
from everlearn.errors import DataError, MissingExtraError, RecipeError
from everlearn.methods.registry import make_method
from everlearn.methods.stack import refuse_unfit
from tests.methods.contexts import Bench, Told, facts_of, number_stream, with_walks

PLAIN = {"wording": "plain"}


def test_chains_come_first_and_the_reward_starts_from_them(tmp_path: Path, tiny_model: Path) -> None:
    method = make_method("r1_t1", PLAIN)
    context = Bench(tmp_path, tiny_model).context(method.stages(with_walks(number_stream()))[0])
    chains, reward = method.phases(context)
    assert (chains.policy, chains.is_released, reward.parent) == (None, False, chains.name)
    assert reward.policy is not None
    assert (reward.policy.beta, reward.policy.rollouts, reward.policy.temperature) == (0.001, 8, 0.8)
    assert reward.changes["learning_rate"] == 4e-7
    assert reward.policy.steps == 2 * (len(context.stage.rows) // 8)


def test_zero_leaves_the_chains_out_and_no_epoch_the_reward(tmp_path: Path, tiny_model: Path) -> None:
    stream = with_walks(number_stream())
    zero, alone = make_method("r1_t1", {"zero": True}), make_method("r1_t1", {"epochs": 0})
    context = Bench(tmp_path, tiny_model).context(zero.stages(stream)[0])
    (phase,) = zero.phases(context)
    assert phase.policy is not None
    assert phase.parent is None
    (phase,) = alone.phases(context)
    assert phase.policy is None


def test_rows_without_a_walk_are_asked_by_reward_alone(tmp_path: Path, tiny_model: Path) -> None:
    stream = with_walks(number_stream())
    first = stream[0]
    rows = (replace(first.train[0], walk=""), *first.train[1:])
    stream = replace(stream, tasks=(replace(first, train=rows), *stream.tasks[1:]))
    method = make_method("r1_t1", PLAIN)
    context = Bench(tmp_path, tiny_model).context(method.stages(stream)[0])
    assert method.rehearsal(context).rewritten == list(rows[1:])
    policy = method.phases(context)[1].policy
    assert policy is not None
    assert policy.rows == rows


def without_walks(stream: TaskStream, *names: str) -> TaskStream:
    """The stream with no walk in these tasks."""
    tasks = [
        replace(task, train=tuple(replace(row, walk="") for row in task.train)) if task.name in names else task
        for task in stream
    ]
    return replace(stream, tasks=tuple(tasks))


def test_after_examples_a_task_without_any_is_learnt_by_reward_alone(tmp_path: Path, tiny_model: Path) -> None:
    stream = without_walks(with_walks(number_stream()), "second")
    method = make_method("r1_t1", PLAIN)
    method.check(facts_of(stream))
    told, bench = Told(), Bench(tmp_path, tiny_model)
    stages = [replace(bench.context(stage), progress=told) for stage in method.stages(stream)]
    assert [len(method.phases(context)) for context in stages] == [2, 1, 2]
    (phase,) = method.phases(stages[1])
    assert phase.policy is not None
    assert (phase.policy.rows, phase.parent, phase.is_released) == (stream["second"].train, None, True)
    assert all(method.rehearsal(context).rewritten is None for context in stages)
    assert told.said == ["stage 02-second: no row has a walk, and earlier ones had: it is learnt by reward alone"]


@pytest.mark.parametrize(
    ("options", "missing", "fault"),
    [
        ({}, ("first",), r"no row of 01-first has a walk .*output\): write walks .*or set method.zero to true"),
        ({"epochs": 0}, ("second",), r"no row of 02-second has .*output\): write .*let method.epochs be above 0"),
    ],
)
def test_without_examples_before_it_or_a_reward_a_task_needs_walks(
    options: dict[str, object], missing: tuple[str, ...], fault: str
) -> None:
    with pytest.raises(RecipeError, match=fault):
        make_method("r1_t1", options).check(facts_of(without_walks(with_walks(number_stream()), *missing)))


def test_without_any_walk_it_says_how_to_write_some() -> None:
    with pytest.raises(RecipeError, match=r"has a walk to learn from.*synthesize --chains.*method.zero to true"):
        make_method("r1_t1", {"epochs": 0}).check(facts_of(number_stream()))


def test_walks_are_compared_with_the_patterns_of_a_file(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("everlearn.training.policy.check_trl", lambda: None)
    stream, file = with_walks(number_stream()), tmp_path / "own.yaml"
    method = make_method("r1_t1", {**PLAIN, "patterns": str(file)})
    with pytest.raises(DataError, match=r"own\.yaml"):
        method.check(facts_of(stream))
    file.write_text("[{id: W1, pattern: word by word, steps: [name each thing, put them in order]}]")
    method.check(facts_of(stream))
    context = Bench(tmp_path, tiny_model).context(method.stages(stream)[0])
    policies = [
        make_method("r1_t1", options).phases(context)[1].policy for options in (method.options.model_dump(), PLAIN)
    ]
    assert [policy and [one.id for one in policy.patterns][-1:] for policy in policies] == [["W1"], []]


def test_fewer_rows_than_a_step_asks_are_refused() -> None:
    with pytest.raises(RecipeError, match=r"asks 50 rows and 01-first has 40: lower method.prompts"):
        make_method("r1_t1", {"prompts": 50}).check(facts_of(with_walks(number_stream())))


def test_a_prompt_that_would_be_cut_is_refused_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("everlearn.training.policy.check_trl", lambda: None)
    facts = facts_of(with_walks(number_stream()))
    facts = replace(facts, training=facts.training.model_copy(update={"max_prompt_tokens": 9}))
    with pytest.raises(RecipeError, match=r"task first, training row .* tokens.*would cut its source"):
        make_method("r1_t1", PLAIN).check(facts)


def test_without_trl_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"everlearn\[rl\]"):
        make_method("r1_t1", PLAIN).check(facts_of(with_walks(number_stream())))


@pytest.mark.parametrize(
    ("options", "fault"),
    [
        ({"scorer": "table"}, "scorer table needs scorer_source, its file: give it"),
        ({"scorer_source": "x"}, "scorer chrf reads nothing: leave scorer_source out"),
        ({"scorer": "service", "scorer_source": "ftp://x"}, "give a server's address"),
        ({"pass_rows": 7}, "pass_rows 7 does not divide the 64 completions of a step"),
        ({"zero": True, "epochs": 0}, "keep one of them"),
        ({"patterns": "own.yaml", "epochs": 0}, "epochs: 0 leaves it out: drop one"),
    ],
)
def test_options_that_do_not_go_together_are_refused(options: dict[str, object], fault: str) -> None:
    with pytest.raises(RecipeError, match=fault):
        make_method("r1_t1", options)


def test_what_acts_in_each_step_is_not_stacked_with_a_reward() -> None:
    other = make_method("l2", {})
    with pytest.raises(RecipeError, match="trains by reward, where l2 would not act"):
        refuse_unfit([make_method("r1_t1", {}), other])
    refuse_unfit([make_method("r1_t1", {"epochs": 0}), other])


def test_an_answer_is_cut_out_of_its_tags_and_without_tags_there_is_none() -> None:
    template = WalkTemplate(VanillaTemplate(), published=False)
    assert template.answer("a walk</think>\n\n<answer> ja </answer>") == "ja"
    assert template.answer("ja") == ""


def test_the_published_prompt_asks_the_published_quiz() -> None:
    row = Instance(asked("German", "French"), "Guten Tag.", "Bonjour.", "t")
    text = WalkTemplate(VanillaTemplate(), published=True).text(row)
    assert text.startswith(" You are a helpful assistant.")
    assert text.endswith("French.\nSource sentence: Guten Tag.\n<think>")


def test_a_translation_follows_from_its_walk_by_order_alone() -> None:
    primer, *tasks = embedded_translations(3)
    first, second = LANGUAGES
    for row in primer.train:
        name, told = row.walk.split(" : ")
        assert row.instruction == f"Translate the phrase into {name}."
        pairs = [pair.split() for pair in told.split(" , ")]
        assert row.input == "the " + " ".join(word for word, _ in pairs)
        order = (first if name == first.name else second).order
        assert row.output == " ".join(pairs[place][1] for place in order)
    assert not set(first.words.values()) & set(second.words.values())
    assert [task.name for task in tasks] == [first.name, second.name]
    assert not any(row.walk for task in tasks for row in task.train)


def test_no_phrase_of_the_made_up_languages_is_asked_twice() -> None:
    tasks = embedded_translations(3)
    rows = [(row.query, row.input) for task in tasks for row in (*task.train, *task.evaluation)]
    assert len(rows) == len(set(rows))
    assert [len(task.train) for task in tasks] == [80, 240, 240]


def test_tags_that_a_tokenizer_has_as_tokens_are_these(tiny_model: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    template, row = WalkTemplate(VanillaTemplate(), published=False), Instance("", "x", "y", "t", walk="so")
    as_text = template.prompt_ids(row, tokenizer) + template.target_ids(row, tokenizer)
    text = tokenizer.decode(as_text, skip_special_tokens=True)
    assert text == "x<think> so </think>\n\n<answer> y </answer>"
    tokenizer.add_tokens(["<think>", "</think>"])
    think, closes = tokenizer.convert_tokens_to_ids(["<think>", "</think>"])
    found = template.prompt_ids(row, tokenizer) + template.target_ids(row, tokenizer)
    assert tokenizer.decode(found, skip_special_tokens=True) == text
    assert (found.count(think), found.count(closes)) == (1, 1)
