"""A chat template that no prompt can be made with is refused in one sentence, whatever it does, and in seconds."""

from __future__ import annotations

import threading

import psutil
import pytest

from everlearn.data import chat_source, template_trial
from everlearn.data.chat_prompts import ChatTemplate
from everlearn.data.instance import Instance, Turn
from everlearn.data.prompts import get_template
from everlearn.errors import DataError, ModelError
from tests.data.byte_tokenizer import CHATML, NO_END, NO_SYSTEM, THINKING, make_byte_tokenizer

IM = ("<|im_start|>", "<|im_end|>")
ENDLESS = "{% for a in range(99999) %}{% for b in range(99999) %}{% endfor %}{% endfor %}"
SQUARE = "{% for a in messages[0].content %}{% for b in messages[0].content %}{% endfor %}{% endfor %}"
NAMED = {"default": CHATML, "rag": "{{ 1 / 0 }}"}
DATED = "{% if strftime_now is defined %}{{ strftime_now('%d %b %Y, %A') }}\n{% endif %}" + CHATML


@pytest.fixture(autouse=True)
def limits(monkeypatch):
    chat_source._fault_of.cache_clear()
    monkeypatch.setattr(template_trial, "PROCESSOR_SECONDS", 1)
    monkeypatch.setattr(template_trial, "MEMORY_BYTES", 1 << 28)
    yield
    chat_source._fault_of.cache_clear()


def made(template: object) -> ChatTemplate:
    tokenizer = make_byte_tokenizer(chat_template=template, controls=IM)
    return get_template("auto", tokenizer)


@pytest.mark.parametrize(
    ("template", "reason"),
    [
        (ENDLESS, "takes longer than 1 seconds"),
        (SQUARE + CHATML, "takes longer than 1 seconds"),
        ("{{ 9 ** (9 ** (9 ** 9)) }}" + CHATML, "takes longer than 1 seconds"),
        ("{{ 'a' * 10000000000 }}", "takes more than 256 MiB of memory"),
        ("{{ 'a' | center(10000000000) }}", "takes more than 256 MiB of memory"),
        (CHATML + "{{ 'a' * 3000000 }}", "makes more than 1,000,020 characters of a conversation"),
        (CHATML.replace("{{ m['content'] }}", "{{ m['content'] * 99 }}"), "makes more than 2,200,000 characters"),
        ("{% if messages | length < 3 %}{{ 1 / 0 }}{% endif %}" + SQUARE, "takes longer than 1 seconds"),
        ("{{ range(999) | random }}" + CHATML, "renders the same conversation differently each time"),
        (CHATML + "{{ lipsum(n=1) }}", "renders the same conversation differently each time"),
        ("{% macro a() %}{{ a() }}{% endmacro %}{{ a() }}", r"refuses .*recursion"),
        ("{{ 1 / 0 }}", r"refuses a conversation of 2 turns \(division by zero\)"),
        ("{{ 'a' + 1 }}", "refuses"),
        ("{{ messages.nothing.at_all }}", "refuses"),
        ("{% if", "refuses"),
        ("{{ raise_exception('never') }}", r"refuses a conversation of 2 turns \(never\)"),
        ("{{ range(10 ** 9) }}", r"refuses .*Range too big"),
        ("hello", "does not show the question of a conversation of 1 turns"),
        (CHATML.replace("{{ m['content'] }}", ""), "does not show the question"),
        (CHATML.replace("{{ m['content'] }}", "{{ m['content'][:5] }}"), "does not show the question"),
        (CHATML.replace("{% for m in messages %}", "{% for m in messages[:1] %}"), "does not show the answer"),
        ({"tool_use": CHATML, "rag": CHATML}, r"is several \(tool_use, rag\), and none is called default"),
        (7, "is no text"),
        (["chatml"], "is no text"),
    ],
)
def test_it_is_refused_with_the_reason_and_the_remedy(template, reason):
    with pytest.raises(ModelError, match=rf"^model\.base: the chat template of .*{reason}") as caught:
        made(template)
    assert "set model.template to cue, vanilla, alpaca or llama2." in str(caught.value)


@pytest.mark.parametrize("template", [CHATML, NO_END, NO_SYSTEM, THINKING, DATED, NAMED])
def test_one_that_shows_the_conversation_is_taken(template):
    assert "colour" in made(template).text(Instance("", "colour of brick?", "red", "t"))


def test_a_fixed_template_is_not_troubled_by_the_chat_template():
    assert get_template("vanilla", make_byte_tokenizer(chat_template=ENDLESS)).name == "vanilla"


def test_it_is_tried_in_any_thread_and_leaves_no_process():
    faults: list[str] = []

    def work() -> None:
        try:
            made(ENDLESS)
        except ModelError as error:
            faults.append(str(error))

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert "takes longer than" in faults[0]
    assert not [child for child in psutil.Process().children() if "template_trial" in " ".join(child.cmdline())]


def test_it_is_tried_once(monkeypatch):
    made(CHATML)
    monkeypatch.setattr(template_trial.subprocess, "run", lambda *_, **__: pytest.fail("a second time"))
    made(CHATML)


def test_it_is_used_where_no_process_can_be_started(monkeypatch):
    def refuse(*_, **__):
        raise PermissionError

    monkeypatch.setattr(template_trial.subprocess, "run", refuse)
    assert made(CHATML).name == "chat"


def test_a_system_message_that_it_leaves_out_goes_before_the_first_question():
    deaf = CHATML.replace("{% for m in messages %}", "{% for m in messages if m['role'] != 'system' %}")
    row = Instance("", "q", "a", "t", history=(Turn("system", "Be kind."),))
    assert "user\nBe kind.\n\nq<|im_end|>" in made(deaf).text(row)


def test_rows_are_refused_whose_earlier_turns_it_leaves_out():
    forgetful = made(CHATML.replace("{% for m in messages %}", "{% for m in messages[-2:] %}"))
    talk = Instance("", "q2", "a2", "t", history=(Turn("user", "q1"), Turn("assistant", "a1")))
    forgetful.check([Instance("", "q", "a", "t")])
    with pytest.raises(DataError, match=r"does not show turn 1 of a conversation of 3 turns: mend the row .*'q2'"):
        forgetful.check([Instance("", "q", "a", "t"), talk])


def test_a_row_that_grows_without_bound_is_refused():
    growing = made(
        CHATML.replace("{{ m['content'] }}", "{{ m['content'] * (9999999 if m['content'] == 'x' else 1) }}")
    )
    with pytest.raises(DataError, match=r"makes more than 1,000,020 characters .*row that begins 'x'"):
        growing.text(Instance("", "x", "a", "t"))


def test_the_date_of_the_day_is_always_the_same_and_this_is_told():
    dated = made(DATED)
    assert dated.text(Instance("", "q", "a", "t")).startswith("26 Jul 2024, Friday\n<|im_start|>")
    assert "26 July 2024 stands in its place" in dated.notes[0]
    assert made(CHATML).notes == ()
