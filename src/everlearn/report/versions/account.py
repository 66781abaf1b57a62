"""What the versions' text held: a table, and what of it is not trained on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everlearn.data.text_account import remarks
from everlearn.report.page.markup import Html, el, name_of
from everlearn.report.page.numbers import NONE, count
from everlearn.report.page.tables import scrolling_table

HEADS = ("Version", "documents", "rows", "without text", "tokens to train on", "trained on", "held out", "measured")


def account_section(accounts: Sequence[Mapping[str, Any]]) -> Html:
    """Table and sentences for the report."""
    keys = ("documents", "rows", "blank_rows", "train_tokens", "trained_tokens", "heldout_tokens", "measured_tokens")
    rows = [
        el(
            "tr",
            el("th", name_of(str(account["id"])), el("span", str(account["data"]), class_="tag"), scope="row"),
            *(el("td", count(account[key]) if account.get(key) else NONE, class_="num") for key in keys),
        )
        for account in accounts
    ]
    told = remarks(accounts)
    return el(
        "div",
        scrolling_table("What the text held", HEADS, rows, css="numbers"),
        el(
            "p",
            "Trained on: whole steps of whole blocks; what is left at the end is not. Measured: at most "
            "quality.heldout_blocks blocks of the held-out text.",
            class_="soft",
        ),
        el("ul", *(el("li", name_of(text)) for text in told), class_="told") if told else None,
    )
