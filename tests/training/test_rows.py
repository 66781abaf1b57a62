"""Training rows are checked before training, tokenizing only those that may be too long."""

from __future__ import annotations

from dataclasses import replace

import pytest

from everlearn.data.instance import Instance, Turn
from everlearn.data.prompts import get_template
from everlearn.errors import DataError
from everlearn.recipe import TrainingConfig
from everlearn.training.rows import EncodedRow, check_rows, encode_rows, hash_of, overlong
from tests.data.byte_tokenizer import make_byte_tokenizer
from tests.tiny_models import make_tokenizer


def row(words: int, **others: object) -> Instance:
    return Instance("", "cat " * words, "yes", "animals", id=f"of-{words}", **others)  # type: ignore[arg-type]


class Counting:
    """A template that counts the prompts it tokenizes."""

    def __init__(self, tokenizer) -> None:  # type: ignore[no-untyped-def]
        self.inner = get_template("vanilla", tokenizer)
        self.count = 0

    def __getattr__(self, name: str) -> object:
        return getattr(self.inner, name)

    def prompt_ids(self, *arguments: object) -> list[int]:
        self.count += 1
        return self.inner.prompt_ids(*arguments)  # type: ignore[arg-type]


def test_only_rows_that_may_be_too_long_are_tokenized() -> None:
    tokenizer = make_tokenizer()
    template = Counting(tokenizer)
    check_rows([row(2), row(40), row(3)], template, tokenizer, TrainingConfig(), 100)  # type: ignore[arg-type]
    assert template.count == 1


def test_no_row_is_looked_at_where_the_cuts_fit_into_the_context() -> None:
    tokenizer = make_tokenizer()
    template = Counting(tokenizer)
    config = TrainingConfig(max_prompt_tokens=60, max_target_tokens=40)
    check_rows([row(500)], template, tokenizer, config, 100)  # type: ignore[arg-type]
    assert template.count == 0


@pytest.mark.parametrize(("letter", "most"), [("c", 97), ("é", 48)])
def test_a_row_is_counted_in_bytes_with_its_control_tokens(letter: str, most: int) -> None:
    tokenizer = make_byte_tokenizer()
    template = get_template("vanilla", tokenizer)
    fitting, longer = (Instance("", letter * count, "y", "letters", id=f"of-{count}") for count in (most, most + 1))
    check_rows([fitting], template, tokenizer, TrainingConfig(), 100)
    with pytest.raises(DataError, match=f"training row {longer.id}"):
        check_rows([longer], template, tokenizer, TrainingConfig(), 100)


def test_a_long_answer_is_looked_at_too() -> None:
    tokenizer = make_tokenizer()
    long = Instance("", "cat", "cat " * 120, "animals", id="long")
    with pytest.raises(DataError, match="training row long"):
        check_rows([long], get_template("vanilla", tokenizer), tokenizer, TrainingConfig(), 100)


@pytest.mark.parametrize("long", [row(99), row(10, history=(Turn("user", "dog " * 95), Turn("assistant", "no")))])
def test_a_row_longer_than_the_context_is_named(long: Instance) -> None:
    tokenizer = make_tokenizer()
    template = get_template("vanilla", tokenizer)
    with pytest.raises(DataError, match=rf"'animals', training row {long.id}: .* tokens, the model's context is 100"):
        check_rows([row(2), long], template, tokenizer, TrainingConfig(), 100)


def test_rows_that_are_cut_are_found_by_tokenizing_only_those_that_may_be() -> None:
    tokenizer = make_tokenizer()
    template = Counting(tokenizer)
    config = TrainingConfig(max_prompt_tokens=60, max_target_tokens=40)
    found = overlong([row(2), row(59), row(60), row(500)], template, tokenizer, config)  # type: ignore[arg-type]
    assert found.prompts == {2, 3}, "a prompt has a token for each word, and BOS"
    assert not found.answers
    assert template.count == 3


def test_an_answer_is_cut_where_its_end_token_does_not_fit() -> None:
    tokenizer = make_byte_tokenizer()
    template = get_template("vanilla", tokenizer)
    rows = [Instance("", "q", "a" * count, "letters") for count in (39, 40)]
    found = overlong(rows, template, tokenizer, TrainingConfig(max_target_tokens=40))
    assert (found.prompts, found.answers) == (frozenset(), {1})


def test_raw_text_is_trained_as_its_tokens_are_without_template_and_cut() -> None:
    tokenizer = make_tokenizer()
    template = get_template("vanilla", tokenizer)
    config = TrainingConfig(max_prompt_tokens=2, max_target_tokens=2)
    text = Instance("", "", "the cat", "general text", tokens=tuple(range(4, 14)))
    assert text.form == "text"
    assert Instance.from_json(text.to_json()) == text
    assert "tokens" not in row(2).to_json(), "rows of tasks keep their fingerprints"
    (one,) = encode_rows([text], template, tokenizer, config, 10)
    assert (one.ids, one.prompt_length, one.answer_count, one.is_text) == (text.tokens, 0, 9, True)
    assert not overlong([text], template, tokenizer, config).answers
    with pytest.raises(DataError, match="have 10 tokens, the model's context is 9"):
        encode_rows([text], template, tokenizer, config, 9)
    with pytest.raises(DataError, match="has no token to predict"):
        encode_rows([Instance("", "", "the", "general text", tokens=(4,))], template, tokenizer, config, 9)


def test_a_token_of_the_vocabulary_is_one_number_in_all_rows() -> None:
    class Numbers:
        """A template whose ids are beyond those that Python keeps one object of."""

        def prompt_ids(self, *_: object) -> list[int]:
            return [int("70001"), int("70002")]

        def target_ids(self, *_: object) -> list[int]:
            return [int("70001")]

    rows = encode_rows([row(1), row(2)], Numbers(), make_tokenizer(), TrainingConfig(), 100)  # type: ignore[arg-type]
    assert len({id(token) for one in rows for token in one.ids}) == 2


def test_the_hash_of_rows_tells_order_group_and_where_the_answer_begins() -> None:
    one, other = EncodedRow((1, 2, 3), 1), EncodedRow((4, 5), 1)
    others = [
        [other, one],
        [replace(one, prompt_length=2), other],
        [replace(one, group="kept"), other],
        [replace(one, classes=((2, 0),)), other],
        [EncodedRow((1, 2, 3, 4), 1), EncodedRow((5,), 1)],
    ]
    assert hash_of([one, other]) == hash_of(iter([replace(one), other]))
    assert len({hash_of(rows) for rows in [[one, other], *others]}) == len(others) + 1
