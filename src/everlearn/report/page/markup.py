"""Building HTML and SVG in which every piece of text is escaped.

`el` is the only way to make markup here: names are checked, text children and attribute values are escaped, and
only what `el` or `join` returned (type `Html`) passes as markup. So no model output, task name or recipe text can
become a tag, whatever it contains. Control characters and lone surrogates, which no UTF-8 page may hold, are shown
as visible symbols.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from html import escape

from everlearn.visible import printable

_NAME = re.compile(r"^[A-Za-z][A-Za-z0-9-]*$")
_EMPTY = frozenset({"meta", "br", "col", "hr", "input"})
_LINK = re.compile(r"^#[A-Za-z0-9_.-]*$")


class Html(str):
    """Markup that is escaped already; made in this file alone."""

    __slots__ = ()


Child = str | Html | int | None
Attribute = str | int | float | bool | None


def el(tag: str, /, *children: Child, **attributes: Attribute) -> Html:
    """One element.

    Args:
        tag: Tag name.
        children: `Html` is taken as it is, other text is escaped, None is left out.
        attributes: Python names (`class_`, `stroke_width`, `viewBox`); underscores become dashes. None and False are
            left out, True gives the bare attribute.
    """
    assert _NAME.match(tag), f"{tag!r} is a tag name"
    parts = [f"<{tag}"]
    for key, value in attributes.items():
        if value is None or value is False:
            continue
        key = key.rstrip("_").replace("_", "-")
        assert _NAME.match(key), f"{key!r} is an attribute name"
        assert not key.startswith("on"), "the report holds no event handlers"
        if value is True:
            parts.append(f" {key}")
            continue
        text = f"{value:g}" if isinstance(value, float) else str(value)
        assert key not in ("href", "src") or _LINK.match(text), "links stay within the page"
        parts.append(f' {key}="{escape(printable(text))}"')
    if tag in _EMPTY:
        return Html("".join((*parts, ">")))
    return Html("".join((*parts, ">", join(children), f"</{tag}>")))


def join(children: Iterable[Child]) -> Html:
    """The children one after another; text is escaped."""
    parts: list[str] = []
    for child in children:
        if isinstance(child, Html):
            parts.append(child)
        elif child is not None:
            parts.append(escape(printable(str(child)), quote=False))
    return Html("".join(parts))


def shown(text: str, limit: int = 600) -> Html:
    """Text from data or a model: direction by its own letters, line breaks kept, cut with the rest counted."""
    if len(text) > limit + 40:
        rest = el("span", f" … {len(text) - limit:,} more characters".replace(",", "\u202f"), class_="more")
        return el("div", text[:limit], rest, class_="text", dir="auto")
    if not text.strip():
        return el("div", "empty" if not text else "only white space", class_="text none")
    return el("div", text, class_="text", dir="auto")


def name_of(text: str) -> Html:
    """A name from data within a sentence, kept apart from the direction of the words around it."""
    return el("bdi", text)


def stylesheet(css: str) -> Html:
    """The package's own style sheet as a style element; never text from data."""
    assert "</" not in css, "a style sheet holds no tags"
    return Html(f"<style>{css}</style>")
