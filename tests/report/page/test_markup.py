from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.report.page.markup import Html, el, join, name_of, shown
from everlearn.visible import printable
from tests.report.pages import parse


def test_text_is_escaped_and_markup_is_not():
    assert el("p", "<b>", el("i", "a & b")) == "<p>&lt;b&gt;<i>a &amp; b</i></p>"


def test_attributes_are_escaped():
    assert el("p", title='"><script>') == '<p title="&quot;&gt;&lt;script&gt;"></p>'


def test_attributes_may_be_absent_or_bare():
    assert el("details", open=True, id=None, hidden=False) == "<details open></details>"


def test_python_names_become_attribute_names():
    assert (
        el("path", stroke_width=1.5, class_="x", viewBox="0")
        == '<path stroke-width="1.5" class="x" viewBox="0"></path>'
    )


@pytest.mark.parametrize("name", ["onclick", "onload"])
def test_event_handlers_are_refused(name: str):
    with pytest.raises(AssertionError):
        el("p", **{name: "x"})


@pytest.mark.parametrize("target", ["https://example.com", "javascript:alert(1)", "//x", "file.html"])
def test_links_out_of_the_page_are_refused(target: str):
    with pytest.raises(AssertionError):
        el("a", "x", href=target)


def test_control_characters_are_shown_as_symbols():
    assert printable("a\x00b\x1b\x7f\x85\ud800\uffffc\r\nd\te") == "a\u2400b\u241b\u2421\ufffd\ufffd\ufffdc\nd\te"


def test_long_text_is_cut_and_the_rest_counted():
    text = parse(shown("x" * 1000, 600)).text
    assert text == "x" * 600 + " … 400 more characters"


def test_a_plain_string_never_passes_as_markup():
    assert not isinstance("<b>" + el("i"), Html)
    assert join(("<b>", el("i"))) == "&lt;b&gt;<i></i>"


@given(st.text(alphabet=st.characters(exclude_categories=())))
def test_any_text_comes_back_as_text_alone(text: str):
    page = el("div", el("p", text, title=text), shown(text, 10_000), name_of(text))
    page.encode("utf-8")
    tree = parse(page)
    assert {element.tag for element in tree.all()} <= {"div", "p", "bdi"}
    assert tree.one("p").text == printable(text)
    assert tree.one("p").attributes["title"] == printable(text)
