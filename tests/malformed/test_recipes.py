"""No recipe means something else than it says: each is refused in one sentence, at once."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import BaseModel

from everlearn.checking import checked
from everlearn.errors import RecipeError
from everlearn.methods.registry import method_class, method_names
from everlearn.recipe import Recipe, load_recipe, make_recipe
from everlearn.recipe_file import dump, parse
from everlearn.updates.config import UpdateRecipe, load_update_recipe
from tests.malformed.answers import refusal
from tests.malformed.recipes import TEXTS, nested, wrong_numbers
from tests.malformed.spoilt_json import means

KINDS: dict[str, type[BaseModel]] = {
    "recipe": Recipe,
    "update": UpdateRecipe,
    **{name: method_class(name).Options for name in method_names()},
}


def write(folder: Path, content: str | bytes) -> Path:
    path = folder / "own" / "r.yaml"
    path.parent.mkdir()
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize("name", TEXTS)
def test_a_text_that_is_no_recipe_is_refused_in_one_short_sentence_at_once(name: str, tmp_path: Path) -> None:
    content, words = TEXTS[name]
    path = write(tmp_path, content)
    began = time.process_time()
    with pytest.raises(RecipeError) as caught:
        load_recipe(path)
    said = str(caught.value)
    assert words in said
    assert "\n" not in said
    assert len(said) <= 2100
    assert time.process_time() - began < 20


@pytest.mark.parametrize("text", ["seed: 1\nseed: 2\n", "seed: true\n", "versions: [{id: a, data: .}]\n"])
def test_recipes_of_updates_are_read_as_strictly(text: str, tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"stands twice|valid integer|folder of the recipe itself"):
        load_update_recipe(write(tmp_path, text))


@pytest.mark.parametrize("kind", KINDS)
def test_every_number_refuses_what_is_no_such_number(kind: str) -> None:
    for key, value in wrong_numbers(KINDS[kind]):
        with pytest.raises(RecipeError, match=key.split(".")[0]):
            print(key, value, checked(KINDS[kind], nested(key, value), where="here"))


@pytest.mark.parametrize("kind", KINDS)
def test_defaults_are_what_they_are_when_they_are_given(kind: str) -> None:
    made = checked(KINDS[kind], {}, where="here")
    assert repr(checked(KINDS[kind], made.model_dump(mode="json"), where="here")) == repr(made)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-4", 1e-4),
        ("010", 10),
        ("0x10", 16),
        ("-7", -7),
        ("[yes, no, on, 2026-01-01, 1:30]", ["yes", "no", "on", "2026-01-01", "1:30"]),
        ("{<<: {a: 1, b: 2}, a: 3}", {"a": 3, "b": 2}),
        ("\N{BYTE ORDER MARK}a: 1", {"a": 1}),
        ("'<<': 1", {"<<": 1}),
    ],
)
def test_yaml_means_what_it_says(text: str, value: object) -> None:
    assert parse(text, "here") == value


@pytest.mark.parametrize(
    "text", ["yes", "1e5", "12345e7", "010", "1_000", "1:30", "2026-01-01", "~", "true", "<<", "=", "0o7", "a: b", ""]
)
def test_text_is_written_so_that_every_reader_takes_it_for_text(text: str) -> None:
    tree: dict[str, Any] = {"labels": [text], "number": 1e-5}
    assert parse(dump(tree), "here") == tree
    assert yaml.safe_load(dump(tree)) == tree


WHOLE = """\
name: a
seed: 7
model: {base: embedded, tuning: full}
stream:
  tasks:
    - name: one
      train: t.jsonl
      labels: ["yes", "no"]
    - {name: two, train: u.csv, evaluation_ratio: 0.2}
method: {name: sequential}
training:
  epochs: 2
  learning_rate: 1e-4
"""
PIECES = (
    ":", ": ", "-", "- ", "  ", "\n", "\n\n", "\t", "#", " #", "'", '"', "{", "}", "[", "]", ",", "&a ", "*a", "<<: ",
    "!", "!!int ", "|", ">", "%", "@", "?", "? ", "---\n", "...\n", "~", "null", "true", "yes", ".inf", "0x1", "1e999",
    "9" * 30, "\0", "\ud7ff", "\u2028", "\N{BYTE ORDER MARK}", "\\", "é", "seed: 8\n", "name: b\n", "training: {}\n",
)  # fmt: skip
edits = st.lists(
    st.tuples(st.sampled_from(["add", "add", "drop", "line", "twice"]), st.integers(0, 400), st.integers(0, 60)),
    min_size=1,
    max_size=4,
)


def edited(text: str, changes: list[tuple[str, int, int]]) -> str:
    for how, place, number in changes:
        at, lines = place % (len(text) + 1), text.split("\n")
        line = place % len(lines)
        if how == "add":
            text = text[:at] + PIECES[number % len(PIECES)] + text[at:]
        elif how == "drop":
            text = text[:at] + text[at + 1 + number % 9 :]
        else:
            kept = [lines[line]] * (how == "twice") + lines[line + 1 :]
            text = "\n".join([*lines[: line + (how == "twice")], *kept])
    return text


def written(node: yaml.Node) -> object:
    """What stands in a text: the words of each value, and every key, also one that stands twice."""
    if isinstance(node, yaml.MappingNode):
        return [(key.value, written(value)) for key, value in node.value]
    return [written(value) for value in node.value] if isinstance(node, yaml.SequenceNode) else node.value


def says(text: object, value: object) -> bool:
    """Whether a value is what the words of a text say."""
    if isinstance(value, dict):
        pairs = [(key, inner) for key, inner in text] if isinstance(text, list) else []
        return [key for key, _ in pairs] == list(value) and all(says(inner, value[key]) for key, inner in pairs)
    if isinstance(value, list):
        return isinstance(text, list) and len(text) == len(value) and all(map(says, text, value))
    assert isinstance(text, str)
    if isinstance(value, bool) or value is None:
        return text.lower() in ({None: ("", "~", "null"), True: ("true",), False: ("false",)}[value])
    if isinstance(value, int | float):
        return float(int(text, 0) if text[:2] == "0x" else text.replace(".inf", "inf").replace(".nan", "nan")) == value
    return value == text


@settings(max_examples=400)
@given(changes=edits)
def test_an_edited_text_is_refused_or_every_word_of_it_is_in_the_recipe(changes):
    text = edited(WHOLE, changes)
    tree: list[object] = []
    if refusal(text, lambda: tree.append(parse(text, "here"))) is not None or not isinstance(tree[0], dict):
        return
    if not any(sign in text for sign in ("*a", "<<", "!!int")):
        node = yaml.compose(text, Loader=yaml.SafeLoader)
        assert node is None or says(written(node), tree[0])
    if refusal(text, lambda: make_recipe(tree[0])) is None:
        assert means(tree[0], make_recipe(tree[0]).model_dump(mode="json"))
