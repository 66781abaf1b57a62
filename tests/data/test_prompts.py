from __future__ import annotations

import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from everlearn.data.instance import Instance, Turn
from everlearn.data.prompts import TEMPLATE_NAMES, bos_ids, get_template
from everlearn.errors import ModelError, RecipeError
from tests.data.byte_tokenizer import CHATML, make_byte_tokenizer, read

TEXT_TEMPLATES = ("cue", "vanilla", "alpaca", "llama2")
TOKENIZER = make_byte_tokenizer()


def row(query: str, output: str, **more) -> Instance:
    return Instance("", query, output, "task", **more)


def test_text_templates_render_the_published_prompts(golden_dir):
    golden = json.loads((golden_dir / "ssr/training_templates.json").read_text(encoding="utf-8"))
    assert len(golden["cases"]) >= 4
    for case in golden["cases"]:
        template = get_template(case["template"], TOKENIZER)
        instance = row(case["query"], case["response"])
        prompt = read(TOKENIZER, template.prompt_ids(instance, TOKENIZER))
        assert prompt.replace("<s>", "<BOS>") == case["prompt_rendered"]
        assert "<BOS>" + template.text(instance) == case["prompt_rendered"]
        target = read(TOKENIZER, template.target_ids(instance, TOKENIZER))
        assert target.replace("</s>", "<EOS>") == case["target_rendered"]


def test_instruction_and_input_are_joined_by_a_blank_line():
    instance = Instance("Do it.", "Now", "Done.", "task")
    assert get_template("vanilla", TOKENIZER).text(instance) == "Do it.\n\nNow"


def test_a_long_prompt_keeps_its_first_ids_bos_included():
    instance = row("abcdefgh", "x")
    for name in TEXT_TEMPLATES:
        template = get_template(name, TOKENIZER)
        whole = template.prompt_ids(instance, TOKENIZER)
        assert template.prompt_ids(instance, TOKENIZER, 5) == whole[:5]
        assert whole[0] == TOKENIZER.bos_token_id


def test_a_target_that_fits_ends_with_eos_and_a_longer_one_loses_it():
    template = get_template("vanilla", TOKENIZER)
    assert read(TOKENIZER, template.target_ids(row("q", "abc"), TOKENIZER, 4)) == "abc</s>"
    assert read(TOKENIZER, template.target_ids(row("q", "abcd"), TOKENIZER, 4)) == "abcd"


@pytest.mark.parametrize("name", TEXT_TEMPLATES)
def test_special_tokens_in_the_data_stay_text(name):
    template = get_template(name, TOKENIZER)
    instance = row("<s>q</s>", "a</s>b")
    prompt, target = template.prompt_ids(instance, TOKENIZER), template.target_ids(instance, TOKENIZER)
    assert prompt.count(TOKENIZER.bos_token_id) == 1
    assert TOKENIZER.eos_token_id not in prompt
    assert target.index(TOKENIZER.eos_token_id) == len(target) - 1
    assert read(TOKENIZER, target) == "a</s>b</s>"


def test_earlier_exchanges_are_encoded_like_rows_of_their_own():
    history = (Turn("system", "Be kind."), Turn("user", "q1"), Turn("assistant", "a1"))
    instance = row("q2", "a2", history=history)

    def rendered(name: str) -> str:
        return read(TOKENIZER, get_template(name, TOKENIZER).prompt_ids(instance, TOKENIZER))

    assert rendered("vanilla") == "<s>Be kind.\n\nq1a1</s><s>q2"
    assert rendered("cue") == "<s>Be kind.\n\nq1\n\nAnswer:\na1</s><s>q2\n\nAnswer:\n"
    assert rendered("llama2") == "<s>[INST] <<SYS>>\nBe kind.\n<</SYS>>\n\nq1 [/INST] a1</s><s>[INST] q2 [/INST] "
    assert rendered("alpaca") == (
        "<s>Be kind.\n\n### Instruction:\nq1\n\n### Response:\na1</s><s>### Instruction:\nq2\n\n### Response:\n"
    )
    assert get_template("vanilla", TOKENIZER).text(instance) == "Be kind.\n\nq1a1\n\nq2"


def test_bos_follows_the_tokenizer():
    assert bos_ids(make_byte_tokenizer(bos=None)) == []
    assert bos_ids(make_byte_tokenizer()) == [make_byte_tokenizer().bos_token_id]
    assert bos_ids(make_byte_tokenizer(adds_bos=False)) == []
    same = make_byte_tokenizer(bos="<end>", eos="<end>", adds_bos=False)
    assert bos_ids(same) == []
    opt = make_byte_tokenizer(bos="<end>", eos="<end>", adds_bos=True)
    assert bos_ids(opt) == [opt.eos_token_id]


def test_auto_takes_the_chat_template_where_there_is_one():
    assert get_template("auto", TOKENIZER).name == "cue"
    with_chat = make_byte_tokenizer(chat_template=CHATML, controls=("<|im_start|>", "<|im_end|>"))
    assert get_template("auto", with_chat).name == "chat"
    assert get_template("alpaca", with_chat).name == "alpaca"


def test_chat_without_a_chat_template_is_refused_with_the_remedy():
    with pytest.raises(RecipeError, match=r"no chat template: use cue, vanilla, alpaca or llama2"):
        get_template("chat", TOKENIZER)


def test_an_unknown_template_is_refused_with_the_nearest():
    with pytest.raises(RecipeError, match="did you mean 'vanilla'"):
        get_template("vanila", TOKENIZER)


def test_a_tokenizer_without_eos_is_refused():
    with pytest.raises(ModelError, match="no EOS token"):
        get_template("vanilla", make_byte_tokenizer(eos=None))


def test_all_template_names_of_the_recipe_are_known():
    from typing import get_args

    from everlearn.recipe import ModelConfig

    assert set(get_args(ModelConfig.model_fields["template"].annotation)) == set(TEMPLATE_NAMES)


@settings(max_examples=60, deadline=None)
@given(query=st.text(min_size=1), output=st.text(), name=st.sampled_from(TEXT_TEMPLATES))
def test_ids_spell_the_text_exactly(query, output, name):
    template = get_template(name, TOKENIZER)
    instance = row(query, output)
    assert read(TOKENIZER, template.prompt_ids(instance, TOKENIZER)) == "<s>" + template.text(instance)
    assert read(TOKENIZER, template.target_ids(instance, TOKENIZER)) == output + "</s>"
