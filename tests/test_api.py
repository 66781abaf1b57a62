"""What a person writes who guesses at the Python API is refused with a sentence."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import everlearn
from everlearn.errors import RecipeError


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: everlearn.run(stream="embedded"), "stream is of type str: give what everlearn.load_stream returns"),
        (lambda: everlearn.run(stream=[{"name": "a", "train": "a.jsonl"}]), "stream is of type list"),
        (lambda: everlearn.run({"name": "mine"}), "recipe is of type dict"),
        (lambda: everlearn.compare({"name": "mine"}, ["ssr"]), "recipe is of type dict"),
        (lambda: everlearn.compare("embedded", "ssr"), r"methods is the text 'ssr': give a list of methods"),
    ],
)
def test_a_value_of_another_kind_is_refused_with_what_is_wanted(call: Callable[[], object], words: str) -> None:
    with pytest.raises(RecipeError, match=words):
        call()
