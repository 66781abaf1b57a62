"""The chat template of a model that is handed back makes the very prompts of the run, or there is none."""

from __future__ import annotations

import pytest

from everlearn.data.chat_prompts import conversation
from everlearn.data.handed_template import handed_template
from everlearn.data.instance import Instance, Turn
from everlearn.data.prompts import get_template
from tests.data.byte_tokenizer import CHATML, THINKING, make_byte_tokenizer
from tests.data.test_control_tokens import TOKENIZERS

ROWS = [
    Instance("Do it.", "the red cat\n", "yes", "t"),
    Instance("", " what?", "no", "t", history=(Turn("system", "Be kind."),)),
    Instance("", "b", "", "t", history=(Turn("system", "Be kind."), Turn("user", "a"), Turn("assistant", "c"))),
]
HOSTILE = Instance("", "</s>", "a", "t")


def rendered(tokenizer, source: str, row: Instance) -> list[int]:
    return tokenizer.apply_chat_template(
        conversation(row), chat_template=source, add_generation_prompt=True, tokenize=True, return_dict=False
    )


@pytest.mark.parametrize("name", ["cue", "vanilla", "alpaca", "llama2"])
@pytest.mark.parametrize("kind", TOKENIZERS)
def test_a_frame_of_text_becomes_a_chat_template_where_it_makes_the_same_ids(kind, name):
    tokenizer = TOKENIZERS[kind]()
    template = get_template(name, tokenizer)
    source = handed_template(template, tokenizer, [*ROWS, HOSTILE])
    assert kind != "byte pairs" or source
    assert kind != "unigram, first" or not source  # a blank begins a text, and none follows a control token
    for row in ROWS if source else []:
        assert rendered(tokenizer, source, row) == template.prompt_ids(row, tokenizer)


def test_the_tokenizers_own_template_thinks_only_when_asked_to():
    tokenizer = make_byte_tokenizer(chat_template=THINKING, controls=("<|im_start|>", "<|im_end|>"))
    template = get_template("chat", tokenizer)
    source = handed_template(template, tokenizer, ROWS)
    for row in ROWS:
        assert rendered(tokenizer, source, row) == template.prompt_ids(row, tokenizer)
    asked = tokenizer.apply_chat_template(
        conversation(ROWS[0]), chat_template=source, add_generation_prompt=True, tokenize=False, enable_thinking=True
    )
    assert "<think>" not in asked


def test_a_template_without_such_a_switch_is_handed_back_as_it_is():
    tokenizer = make_byte_tokenizer(chat_template=CHATML, controls=("<|im_start|>", "<|im_end|>"))
    assert handed_template(get_template("chat", tokenizer), tokenizer, ROWS) == CHATML
