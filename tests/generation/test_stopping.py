from __future__ import annotations

from types import SimpleNamespace

import pytest

from everlearn.generation.stopping import Stopper, end_tokens
from tests.conftest import make_tiny_model
from tests.tiny_models import make_tokenizer


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    """A byte-level tokenizer that merges across words and lines, as real ones do."""
    from transformers import AutoTokenizer

    texts = ["Input: the red cat\nOutput: yes\n\nInput: a día\nOutput: no\n\n" * 5]
    return AutoTokenizer.from_pretrained(make_tiny_model(tmp_path_factory.mktemp("model"), texts=texts))


def feed(stopper: Stopper, token_ids: list[int]) -> tuple[int, str | None]:
    """After how many tokens a completion ends, and why."""
    for count in range(1, len(token_ids) + 1):
        reason = stopper.reason(token_ids[:count])
        if reason:
            return count, reason
    return len(token_ids), None


def test_a_stop_string_is_found_at_the_first_token_that_completes_it(tokenizer):
    text = "the red cat\nOutput: yes\n\nInput: a"
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    stopper = Stopper(tokenizer, ("\n\nInput:",), frozenset({2}))
    count, reason = feed(stopper, ids)
    assert reason == "stop"
    assert "\n\nInput:" in tokenizer.decode(ids[:count])
    assert "\n\nInput:" not in tokenizer.decode(ids[: count - 1])
    kept, kept_ids, why = stopper.finish(ids[:count], "stop")
    assert (kept, why) == ("the red cat\nOutput: yes", "stop")
    assert tokenizer.decode(kept_ids).startswith(kept)
    assert len(tokenizer.decode(kept_ids[:-1])) < len(kept)


def test_the_earliest_of_several_stop_strings_cuts(tokenizer):
    ids = tokenizer("yes\n\nInput: red", add_special_tokens=False)["input_ids"]
    assert Stopper(tokenizer, ("red", "Input", "\n\n"), frozenset()).finish(ids, "stop")[0] == "yes"


def test_characters_of_several_tokens_can_end_a_stop_string(tokenizer):
    ids = tokenizer("abc é 中 x", add_special_tokens=False)["input_ids"]
    count, reason = feed(Stopper(tokenizer, ("中",), frozenset()), ids)
    assert reason == "stop"
    assert tokenizer.decode(ids[:count]).endswith("中")


def test_a_stop_string_at_the_very_end_of_a_long_text_is_found(tokenizer):
    ids = tokenizer("the red cat " * 60 + "Output: yes", add_special_tokens=False)["input_ids"]
    assert feed(Stopper(tokenizer, ("Output: yes",), frozenset()), ids) == (len(ids), "stop")


def test_end_tokens_come_before_stop_strings_and_are_dropped(tokenizer):
    stopper = Stopper(tokenizer, ("x",), frozenset({2}))
    assert stopper.reason([5, 2]) == "eos"
    assert stopper.finish([5, 2], "eos")[1:] == ((5,), "eos")


def test_an_empty_stop_string_ends_nothing(tokenizer):
    ids = tokenizer("yes", add_special_tokens=False)["input_ids"]
    stopper = Stopper(tokenizer, ("",), frozenset())
    assert feed(stopper, ids) == (len(ids), None)
    assert stopper.finish(ids, "length")[0] == "yes"


def test_special_tokens_do_not_show(tokenizer):
    ids = tokenizer("yes", add_special_tokens=False)["input_ids"]
    assert Stopper(tokenizer, (), frozenset()).finish([1, *ids], "length")[0] == "yes"


def test_a_word_tokenizer_with_separated_words_stops_too():
    words = make_tokenizer()
    ids = words("the cat runs", add_special_tokens=False)["input_ids"]
    assert feed(Stopper(words, ("the cat",), frozenset()), ids) == (2, "stop")


def test_end_tokens_are_those_of_model_and_tokenizer():
    model = SimpleNamespace(generation_config=SimpleNamespace(eos_token_id=[7, 9]))
    assert end_tokens(model, make_tokenizer()) == {7, 9, 2}
    model.generation_config.eos_token_id = None
    assert end_tokens(model, make_tokenizer()) == {2}
