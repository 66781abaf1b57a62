"""The account of a version's text: what of it is not trained on, told in plan, manifest and report."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from everlearn.data.account import listed
from everlearn.report.markup import Html, el, name_of
from everlearn.report.numbers import NONE, count
from everlearn.report.tables import scrolling_table

if TYPE_CHECKING:
    from everlearn.updates.prepare import Prepared

HEADS = ("Version", "documents", "rows", "without text", "tokens to train on", "trained on", "held out", "measured")


def accounts_of(prepared: Prepared, *, heldout_blocks: int, block_tokens: int) -> list[dict[str, Any]]:
    """What the manifest holds of each version's text."""
    return [
        {
            "id": version.id,
            "data": version.data,
            "fingerprint": files.fingerprint,
            "documents": files.documents,
            "rows": files.text.rows,
            "blank_rows": files.text.blank,
            "mended_rows": files.text.mended,
            "unread": files.text.unread,
            "train_tokens": files.train_tokens,
            "trained_tokens": steps * prepared.tokens_per_step,
            "heldout_tokens": files.heldout_tokens,
            "measured_tokens": min(heldout_blocks, files.heldout_tokens // block_tokens) * block_tokens,
            "steps": steps,
            "asked_steps": version.steps,
        }
        for version, files, steps in zip(prepared.versions, prepared.files, prepared.steps, strict=True)
    ]


def remarks(accounts: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is left out of the versions' text, one sentence each; what fills no whole step is in the table alone."""
    said = []
    for account in accounts:
        version = f"version {account['id']}: "
        if account.get("blank_rows"):
            said.append(
                f"{version}{account['blank_rows']:,} of {account['rows']:,} rows hold no text and are passed over."
            )
        if account.get("mended_rows"):
            said.append(
                f"{version}{account['mended_rows']:,} rows held half a letter, replaced by \N{REPLACEMENT CHARACTER}."
            )
        if account.get("unread"):
            keys = listed(f"{key!r} ({rows:,} rows)" for key, rows in account["unread"].items())
            said.append(f"{version}keys that are not read: {keys}.")
        if account.get("asked_steps"):
            left = account["train_tokens"] - account["trained_tokens"]
            said.append(f"{version}steps leaves {left:,} of {account['train_tokens']:,} tokens out of training.")
    return said


def data_line(accounts: Sequence[Mapping[str, Any]]) -> str | None:
    """What is left out of all versions' text in one line for the terminal; None where nothing is."""
    blank = sum(account["blank_rows"] for account in accounts)
    mended = sum(account["mended_rows"] for account in accounts)
    unread = dict.fromkeys(key for account in accounts for key in account["unread"])
    told = [f"{blank:,} rows without text"] if blank else []
    told += [f"{mended:,} rows mended"] if mended else []
    told += [f"keys {listed(map(repr, unread))} not read"] if unread else []
    return f"data: {', '.join(told)}; the report says of which versions" if told else None


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
