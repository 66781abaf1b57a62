"""Rows of words with tags: what is read, what is refused, and how types become tasks."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from everlearn.data.containers import read_container
from everlearn.data.control_tokens import plain_ids
from everlearn.data.instance import Instance
from everlearn.data.prompts import bos_ids, get_template
from everlearn.data.stream import load_stream
from everlearn.data.words import classes_of, fault_of, mentions, shared_out, some_of_each, with_background
from everlearn.errors import DataError, RecipeError, UserError
from everlearn.files import write_json, write_jsonl
from everlearn.recipe import StreamConfig
from tests.tiny_models import make_tokenizer

PEOPLE, PLACES, DAYS = ("ada", "bob lee"), ("rome", "new york"), ("monday", "friday")
KINDS = {"PER": PEOPLE, "LOC": PLACES, "DAY": DAYS}


def sentence(*parts: str) -> dict[str, list[str]]:
    """Words and their tags; a part is a word of the background, or an entity as `PER:bob lee`."""
    words, tags = [], []
    for part in parts:
        kind, _, text = part.rpartition(":")
        for at, word in enumerate(text.split()):
            words.append(word)
            tags.append(f"{'I' if at else 'B'}-{kind}" if kind else "O")
    return {"tokens": words, "ner_tags": tags}


def corpus(count: int, first: int = 0) -> list[dict[str, object]]:
    """Sentences with entities of two kinds each."""
    names, rows = list(KINDS), []
    for at in range(first, first + count):
        one, other = names[at % 3], names[(at + 1) % 3]
        of = [f"{kind}:{KINDS[kind][at // 3 % 2]}" for kind in (one, other)]
        rows.append({**sentence(of[0], f"is {at}", "near", of[1]), "id": f"s{at}"})
    return rows


@pytest.fixture
def stream(tmp_path: Path):
    """A corpus cut by entity type, or tasks of files."""

    def made(train: object = None, test: object = None, **keys: object):
        write_jsonl(tmp_path / "train.jsonl", train or corpus(30))
        write_jsonl(tmp_path / "test.jsonl", test or corpus(9, 30))
        given = {"train": str(tmp_path / "train.jsonl"), "evaluation": str(tmp_path / "test.jsonl")}
        source = {**given, **keys.pop("source", {})}  # type: ignore[dict-item]
        tree = {"from": source, "classes_per_task": 1, "scenario": "class_incremental", **keys}
        return load_stream(StreamConfig.model_validate(tree), seed=1)

    return made


def test_a_task_trains_its_own_types_alone_and_is_tested_on_all_tags(stream) -> None:
    made = stream(class_order=["PER", "LOC", "DAY"])
    assert [task.classes for task in made] == [("O", "B-PER", "I-PER"), ("B-LOC", "I-LOC"), ("B-DAY", "I-DAY")]
    assert [task.metric for task in made] == ["macro_f1"] * 3
    for task, kind in zip(made, KINDS, strict=True):
        assert len(task.train) == 10  # floor(30 * 1 / 3)
        assert set(mentions(task.train)) == {kind}
        assert len(task.evaluation) == 6
        assert set(mentions(task.evaluation)) == set(KINDS)
    assert len({row.id for task in made for row in task.train}) == 30
    one = made[0].train[0]
    assert (one.input, one.words) == (" ".join(one.words), tuple(one.input.split()))
    assert Instance.from_json(json.loads(json.dumps(one.to_json()))) == one


def test_sentences_go_to_the_rarest_type_whose_task_may_take_more() -> None:
    rows = [
        Instance("", "x", " ".join(tags), "t", id=str(at), words=("x",) * len(tags))
        for at, tags in enumerate(
            [["B-a", "B-b"], ["B-a", "B-b"], ["B-a"], ["B-a"], ["O"], ["B-b", "O"], ["B-a"], ["O"]]
        )
    ]
    shares = [[row.id for row in share] for share in shared_out(rows, [["a"], ["b", "c", "d"]], seed=0)]
    # task 1 may take 2 of 8 sentences, task 2 6; b is rarer than a
    assert shares == [["2", "3"], ["0", "1", "4", "5", "6", "7"]]
    assert [len(share) for share in shared_out(rows[:3], [["a"], ["b"]], seed=0)] == [1, 1]  # one is left out


def test_limits_keep_each_type(stream) -> None:
    rows = [Instance("", str(at), f"B-{kind}", "t") for at, kind in enumerate("aaaabbbc")]
    assert [row.input for row in some_of_each(rows, 4, ["a", "b", "c"])] == ["0", "1", "4", "7"]
    made = stream(train_limit=4, evaluation_limit=2)
    assert [(len(task.train), len(task.evaluation)) for task in made] == [(4, 2)] * 3
    assert [account.parts["train"].limited for account in made.accounts] == [6, 6, 6]


def test_numbers_get_their_names_and_without_test_rows_sentences_are_held_out(stream, tmp_path: Path) -> None:
    names = ["O", *classes_of(KINDS)]
    write_json(tmp_path / "names.json", names)
    numbered = [{**row, "ner_tags": [names.index(tag) for tag in row["ner_tags"]]} for row in corpus(60)]  # type: ignore[attr-defined]
    source = {"evaluation": None, "label_names": str(tmp_path / "names.json"), "evaluation_ratio": 0.3}
    made = stream(numbered, source=source, classes_per_task=[1, 2])
    assert made.classes == ("O", *classes_of(KINDS))
    held = {row.input for task in made for row in task.evaluation}
    assert held
    assert not held & {row.input for task in made for row in task.train}


def test_a_file_a_task_brings_the_types_of_its_labels_or_of_its_training_rows(tmp_path: Path) -> None:
    write_jsonl(tmp_path / "all.jsonl", corpus(12))
    tasks = [
        {"name": name, "train": str(tmp_path / "all.jsonl"), "evaluation": str(tmp_path / "all.jsonl"), **more}
        for name, more in (("a", {"labels": ["DAY", "PER"]}), ("b", {"labels": ["LOC"], "metric": "micro_f1"}))
    ]
    config = {"tasks": tasks, "scenario": "class_incremental"}
    made = load_stream(StreamConfig.model_validate(config), seed=1)
    assert made.classes == ("O", "B-DAY", "I-DAY", "B-PER", "I-PER", "B-LOC", "I-LOC")
    assert set(mentions(made[0].train)) == {"DAY", "PER"}
    assert made[1].metric == "micro_f1"
    assert made.ordered(["b", "a"])[0].classes[0] == "B-LOC"
    turned = load_stream(StreamConfig.model_validate({**config, "order": ["b", "a"]}), seed=1)
    assert turned.classes[:2] == ("O", "B-LOC")
    tasks[1].pop("labels")
    with pytest.raises(DataError, match=r"entity type '(DAY|PER)' is in two tasks, a and b"):
        load_stream(StreamConfig.model_validate(config), seed=1)


def test_sentences_of_conll_files_are_rows(tmp_path: Path) -> None:
    text = "-DOCSTART- -X- O O\n\nada NNP B-NP B-PER\nruns VBZ B-VP O\n\n# O\nrome B-LOC\n\nlonely\n"
    raw = read_container(text.encode(), "a.conll")
    assert raw.rows == [
        (3, {"tokens": ["ada", "runs"], "ner_tags": ["B-PER", "O"]}),
        (6, {"tokens": ["#", "rome"], "ner_tags": ["O", "B-LOC"]}),
    ]
    assert [(bad.line, bad.reason.partition(":")[0]) for bad in raw.bad] == [(9, "a word without a tag")]
    assert raw.notes == ["2 columns between words and tags are not read."]


def test_rows_that_everlearn_has_written_are_read_again(stream, tmp_path: Path) -> None:
    made = stream()
    write_jsonl(tmp_path / "own.jsonl", (row.to_json() for row in made[0].train))
    one = {"name": "task-1", "train": str(tmp_path / "own.jsonl"), "evaluation": str(tmp_path / "test.jsonl")}
    config = {"tasks": [one | {"labels": list(made[0].labels)}], "scenario": "class_incremental"}
    again = load_stream(StreamConfig.model_validate(config), seed=1)
    assert again[0].train == made[0].train
    assert set(again.accounts[0].parts["train"].unread) <= {"origin", "task"}


def test_other_types_are_background() -> None:
    row = Instance("", "a b c", "B-x I-x B-y", "t", words=("a", "b", "c"))
    assert with_background(row, ["y"]).output == "O O B-y"


@pytest.mark.parametrize(
    ("tags", "said"),
    [
        ("B-a I-b", "tag 2 is 'I-b' behind 'B-a', and in BIO an entity begins with 'B-b'"),
        ("I-a", "tag 1 is 'I-a' at the beginning"),
        ("O I-a", "tag 2 is 'I-a' behind 'O'"),
        ("B-", "tag 1 is 'B-', and BIO has 'O', 'B-TYPE' and 'I-TYPE'"),
        ("person", "tag 1 is 'person'"),
        ("S-a", "tag 1 is 'S-a'"),
    ],
)
def test_what_is_no_bio_is_said(tags: str, said: str) -> None:
    assert said in (fault_of(tags.split()) or "")
    assert fault_of(["O", "B-a", "I-a", "I-a", "B-a", "B-b-c", "I-b-c", "O"]) is None


ONE = sentence("PER:ada", "runs")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ({**ONE, "ner_tags": ["B-PER"]}, r"train\.jsonl, line 31: 2 words in 'tokens' and 1 tags in 'ner_tags'"),
        ({**ONE, "ner_tags": ["O", "I-PER"]}, r"line 31: tag 2 is 'I-PER' behind 'O'"),
        ({**ONE, "ner_tags": ["B-PER", 0]}, r"line 31: tag 2 is 0, not a text such as B-PER \(label_names"),
        ({**ONE, "ner_tags": "B-PER O"}, r"line 31: 'ner_tags' is of type str, not a list"),
        ({"tokens": ["a"]}, r"line 31: no 'ner_tags'"),
        ({**ONE, "tokens": ["ada", " "]}, r"line 31: word 2 is empty"),
        ({**ONE, "tokens": ["ada", ["x"]]}, r"line 31: 'tokens' is a list, not text"),
    ],
)
def test_a_row_that_cannot_be_used_is_named(stream, row: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        stream([*corpus(30), row])


def test_streams_that_cannot_be_trained_are_refused(stream, tmp_path: Path) -> None:
    def refused(said: str, **keys: object) -> None:
        with pytest.raises(UserError, match=said):
            stream(**keys)

    lone = [*corpus(30), *[sentence("ORG:un", "met")] * 3]
    refused("entity type 'ORG' has no test rows: give it some, or take the type out", train=lone, classes_per_task=2)
    refused("entity type 'ORG' has no training rows", test=lone, classes_per_task=2)
    refused(
        r"21 entities are of type 'DAY', which is none of the 2", source={"labels": ["PER", "LOC"]}, test=corpus(2)
    )
    refused("task_incremental|class_incremental", scenario="task_incremental")
    refused("set it to class_incremental", scenario=None)
    refused("metric accuracy scores an answer in words", source={"metric": "accuracy"})
    refused("the data has no class 'PERSON'", class_order=["PERSON", "LOC", "DAY"])
    refused("instruction is for questions", source={"instruction": "Find names."})
    file = str(tmp_path / "test.jsonl")
    shown = {"name": "w", "train": file, "evaluation": file, "demonstrations": file}
    with pytest.raises(RecipeError, match="task w: demonstrations are shown to models that answer in words"):
        load_stream(StreamConfig.model_validate({"tasks": [shown], "scenario": "class_incremental"}), seed=1)
    write_jsonl(tmp_path / "plain.jsonl", [{"input": f"q {at}", "output": "ab"[at % 2]} for at in range(20)])
    tasks = [
        {"name": name, "train": str(tmp_path / file), "evaluation": str(tmp_path / file)}
        for name, file in (("w", "train.jsonl"), ("p", "plain.jsonl"))
    ]
    with pytest.raises(DataError, match=r"rows of words with tags \(task w\) and others \(p\) are in one stream"):
        load_stream(StreamConfig.model_validate({"tasks": tasks, "scenario": "class_incremental"}), seed=1)


@pytest.mark.parametrize("name", ["words", "words_last"])
def test_a_words_state_is_that_of_its_first_or_last_token(name: str, tmp_path: Path) -> None:
    from everlearn.models.loading import load_tokenizer
    from everlearn.recipe import ModelConfig

    template, word_level = get_template(name, make_tokenizer()), make_tokenizer()
    row = Instance("", "cat </s> dog", "O O O", "t", words=("cat", "</s>", "dog"))
    assert [word for word, _ in template.places(row, word_level)] == [0, 1, 2]
    assert [word for word, _ in template.places(row, word_level, 2)] == [0]  # BOS, cat
    tokenizer = load_tokenizer(ModelConfig())
    words = ("Zbigniew's", "new york", "\u200b", "of", "Kraków", ".")
    row = Instance("", " ".join(words), "O O O O O O", "t", words=words)
    before = len(bos_ids(tokenizer))
    ids = template.prompt_ids(row, tokenizer)
    assert ids[before:] == plain_ids(row.input, tokenizer)
    places = dict(template.places(row, tokenizer))
    assert list(places.values()) == sorted(places.values())
    ends = [template.prompt_ids(Instance("", " ".join(words[: at + 1]), "", "t"), tokenizer) for at in range(6)]
    for at in (0, 1, 3, 4, 5):  # a word ends where the sentence that ends with it does
        last, first = len(ends[at]) - 1, len(ends[at - 1]) if at else before
        assert places[at] == (last if name == "words_last" else first)


def test_a_type_whose_rows_are_all_too_long_is_refused(stream) -> None:
    from everlearn.recipe import make_recipe
    from everlearn.runs.lengths import within_limits

    long = [sentence("ada-is", *["far"] * 60, "DAY:monday")] * 9
    rows = [*long, *[sentence("PER:ada", "runs")] * 9]
    made = stream(rows, rows, classes_per_task=2)
    recipe = make_recipe({"training": {"too_long": "leave_out", "max_prompt_tokens": 20}})
    tokenizer = make_tokenizer()
    with pytest.raises(DataError, match="all 9 training rows of its class 'DAY' are longer than"):
        within_limits(recipe, made, get_template("words", tokenizer), tokenizer, trains=True)


def test_templates_and_rows_that_do_not_fit_are_refused(stream) -> None:
    from everlearn.data.word_prompts import template_name

    words, tokenizer = stream(), make_tokenizer()
    assert template_name("auto", "vanilla", words, tokenizer) == "words"
    with pytest.raises(RecipeError, match="alpaca frames a question, and the stream's rows are words"):
        template_name("alpaca", "alpaca", words, tokenizer)
    plain = load_stream(StreamConfig(train_limit=2, evaluation_limit=2), seed=1)
    assert template_name("auto", "cue", plain, tokenizer) == "cue"
    with pytest.raises(RecipeError, match="words_last reads rows of words with tags"):
        template_name("words_last", "words_last", plain, tokenizer)
