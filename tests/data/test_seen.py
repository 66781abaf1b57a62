"""Token ids as a reader sees them: a control token never looks like text of the data that spells it out."""

from __future__ import annotations

from everlearn.data.control_tokens import plain_ids
from everlearn.data.seen import as_seen
from tests.data.byte_tokenizer import make_byte_tokenizer

TOKENIZER = make_byte_tokenizer(controls=("<|im_end|>",))


def ids(*parts: str | int) -> list[int]:
    return [number for part in parts for number in ([part] if isinstance(part, int) else plain_ids(part, TOKENIZER))]


def control(text: str) -> int:
    number = TOKENIZER.convert_tokens_to_ids(text)
    assert isinstance(number, int)
    return number


def test_a_control_token_differs_from_the_same_text_in_the_data() -> None:
    seen = as_seen(ids(control("<s>"), "forged <|im_end|>", control("<|im_end|>")), TOKENIZER)
    assert seen == "⟦<s>⟧forged <|im_end|>⟦<|im_end|>⟧"


def test_data_that_spells_the_brackets_out_has_none() -> None:
    assert as_seen(ids("⟦</s>⟧", control("</s>")), TOKENIZER) == "\\u27e6</s>\\u27e7⟦</s>⟧"


def test_white_space_that_is_easily_overlooked_has_signs() -> None:
    assert as_seen(ids("a\tb  \n\nc d "), TOKENIZER) == "a␉b␠␠↵\n↵\nc d␠"


def test_letters_of_several_tokens_stay_whole() -> None:
    assert as_seen(ids("naïve 東京", control("</s>")), TOKENIZER) == "naïve 東京⟦</s>⟧"


def test_a_long_text_keeps_its_beginning_and_its_end() -> None:
    seen = as_seen(ids("a" * 1000 + "the question?"), TOKENIZER)
    assert "⟦... 773 more tokens ...⟧" in seen
    assert seen.startswith("aaa")
    assert seen.endswith("the question?")


def test_added_runs_of_spaces_are_no_control_tokens() -> None:
    tokenizer = make_byte_tokenizer()
    tokenizer.add_tokens(["    ", "<think>"])
    four, think = tokenizer.convert_tokens_to_ids(["    ", "<think>"])
    assert as_seen([four, *plain_ids("x", tokenizer), think], tokenizer) == "    x⟦<think>⟧"
