"""Tables wider than a small screen: in a frame that scrolls sideways, by keyboard too, and has a name of its own."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from everlearn.report.page.markup import Child, Html, el


def scrolling_table(
    label: str,
    heads: Sequence[Child],
    rows: Iterable[Child],
    *,
    css: str,
    caption: str | None = None,
    style: str | None = None,
) -> Html:
    """A table in its frame.

    Args:
        label: What the frame is called where it cannot be seen.
        heads: One for each column: a cell, or the text of one.
        rows: The table's body.
        css: Class of the table.
        caption: Above the table.
        style: Values for the style sheet.
    """
    cells = (head if isinstance(head, Html) else el("th", head, scope="col") for head in heads)
    table = el(
        "table",
        el("caption", caption) if caption else None,
        el("thead", el("tr", *cells)),
        el("tbody", *rows),
        class_=css,
        style=style,
    )
    return el("div", table, class_="scroll", tabindex="0", role="region", aria_label=label)
