from __future__ import annotations

import pytest

from everlearn.data.chat_prompts import ChatTemplate
from everlearn.data.instance import Instance, Turn
from everlearn.errors import DataError
from tests.data.byte_tokenizer import CHATML, LLAMA2_CHAT, NO_END, NO_SYSTEM, THINKING, make_byte_tokenizer, read

IM = ("<|im_start|>", "<|im_end|>")
TALK = Instance(
    "",
    "q2",
    "a2",
    "task",
    history=(Turn("system", "Be kind."), Turn("user", "q1"), Turn("assistant", "a1")),
)


def rendered(template: str, instance: Instance, controls=IM) -> tuple[str, str]:
    tokenizer = make_byte_tokenizer(chat_template=template, controls=controls)
    chat = ChatTemplate(tokenizer)
    return (
        read(tokenizer, chat.prompt_ids(instance, tokenizer)),
        read(tokenizer, chat.target_ids(instance, tokenizer)),
    )


def test_chatml_target_ends_with_the_end_of_turn_and_not_with_its_line_break():
    prompt, target = rendered(CHATML, Instance("Do it.", "Now", "Done.", "task"))
    assert prompt == "<|im_start|>user\nDo it.\n\nNow<|im_end|>\n<|im_start|>assistant\n"
    assert target == "Done.<|im_end|>"


def test_history_and_system_are_turns_of_the_chat():
    prompt, target = rendered(CHATML, TALK)
    assert prompt == (
        "<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nq1<|im_end|>\n<|im_start|>assistant\na1<|im_end|>\n"
        "<|im_start|>user\nq2<|im_end|>\n<|im_start|>assistant\n"
    )
    assert target == "a2<|im_end|>"


def test_a_template_that_writes_bos_itself_gets_no_second_one():
    prompt, target = rendered(LLAMA2_CHAT, Instance("", "hi", "hello", "task"))
    assert prompt == "<s>[INST] hi [/INST]"
    assert target == " hello </s>"
    prompt, _ = rendered(LLAMA2_CHAT, TALK)
    assert prompt == "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nq1 [/INST] a1 </s><s>[INST] q2 [/INST]"


def test_thoughts_are_switched_off_and_not_part_of_the_target():
    prompt, target = rendered(THINKING, Instance("", "hi", "hello", "task"))
    assert prompt.endswith("<|im_start|>assistant\n<think>\n\n</think>\n\n")
    assert target == "hello<|im_end|>"


def test_a_refused_system_message_goes_before_the_first_question():
    prompt, target = rendered(NO_SYSTEM, TALK, ("<start_of_turn>", "<end_of_turn>"))
    assert prompt.startswith("<s><start_of_turn>user\nBe kind.\n\nq1<end_of_turn>\n<start_of_turn>model\na1")
    assert target == "a2<end_of_turn>"


def test_a_template_without_end_of_turn_falls_back_to_eos():
    prompt, target = rendered(NO_END, Instance("", "hi", "hello", "task"))
    assert prompt == "user: hi\nassistant: "
    assert target == "hello</s>"


def test_a_template_whose_prompt_is_no_beginning_of_the_conversation_gives_answer_and_end():
    rewriting = "{{ messages | length }}" + CHATML
    prompt, target = rendered(rewriting, Instance("", "hi", "hello", "task"))
    assert prompt.startswith("1<|im_start|>")
    assert target == "hello<|im_end|>"


def test_answers_end_at_the_end_of_turn_or_eos():
    tokenizer = make_byte_tokenizer(chat_template=CHATML, controls=IM)
    ends = ChatTemplate(tokenizer).end_ids(tokenizer)
    assert tokenizer.convert_ids_to_tokens(list(ends)) == ["<|im_end|>", "</s>"]


def test_an_end_of_several_marks_is_kept_whole_and_answers_end_at_its_last():
    controls = ("<|im_start|>", "<|im_end|>", "<|eom|>", "<|eot|>")
    template = CHATML.replace("<|im_end|>", " <|eom|><|eot|> \n<|eom|>.")
    tokenizer = make_byte_tokenizer(chat_template=template, controls=controls)
    chat = ChatTemplate(tokenizer)
    assert read(tokenizer, chat.target_ids(Instance("", "q", "a", "t"), tokenizer)) == "a <|eom|><|eot|> \n<|eom|>"
    assert tokenizer.convert_ids_to_tokens(list(chat.end_ids(tokenizer))) == ["<|eom|>", "</s>"]


def test_a_token_of_white_space_ends_no_turn():
    assert rendered(CHATML, Instance("", "q", "a", "t"), (*IM, "\n"))[1] == "a<|im_end|>"


def test_a_long_query_is_shortened_and_the_cue_of_the_assistant_kept():
    tokenizer = make_byte_tokenizer(chat_template=CHATML, controls=IM)
    chat = ChatTemplate(tokenizer)
    instance = Instance("", "0123456789" * 10, "x", "task")
    whole = chat.prompt_ids(instance, tokenizer)
    cut = chat.prompt_ids(instance, tokenizer, 40)
    assert len(cut) == 40 < len(whole)
    text = read(tokenizer, cut)
    assert text.startswith("<|im_start|>user\n01234")
    assert text.endswith("<|im_end|>\n<|im_start|>assistant\n")


def test_the_target_is_cut_to_its_limit():
    tokenizer = make_byte_tokenizer(chat_template=CHATML, controls=IM)
    chat = ChatTemplate(tokenizer)
    assert read(tokenizer, chat.target_ids(Instance("", "q", "abcdef", "t"), tokenizer, 4)) == "abcd"


def test_display_text_leaves_out_bos():
    chat = ChatTemplate(make_byte_tokenizer(chat_template=LLAMA2_CHAT))
    assert chat.text(Instance("", "hi", "x", "task")) == "[INST] hi [/INST]"


def test_a_conversation_that_the_template_refuses_is_named():
    refusing = CHATML + "{% if 'bad' in messages[0]['content'] %}{{ raise_exception('no') }}{% endif %}"
    chat = ChatTemplate(make_byte_tokenizer(chat_template=refusing, controls=IM))
    with pytest.raises(DataError, match=r"refuses a conversation of 1 turns \(no\).*'bad row'"):
        chat.text(Instance("", "bad row", "x", "task"))
