"""What of the versions' raw text is not trained on, in words, from their account in the manifest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from everlearn.data.account import listed


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
