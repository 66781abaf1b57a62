"""A small fixed set of ordinary texts, as rows of raw text: what a model is to keep reading as it does.

`first`: the first tokens of each text, the rest dropped; shorter texts stay short. `packed`: the texts one after the
other, an end token between, cut into windows of full length. No template, no end token after a text, and BOS before it
only where that is asked for. Source: GeRe (arXiv 2508.04676; spec section 2), which takes `first`.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from everlearn.data.control_tokens import plain_ids
from everlearn.data.instance import Instance
from everlearn.data.text import TextAccount, TextSource
from everlearn.errors import DataError
from everlearn.files import read_json, read_jsonl, write_json, write_jsonl

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Windows = Literal["first", "packed"]
GENERAL = "general text"
"""In the place of a task's name."""


@dataclass(frozen=True)
class GeneralSet:
    """Texts as they are trained on.

    Attributes:
        rows: Of raw text, in order.
        notes: Sentences for the user: what of the texts is not used as it stands.
    """

    rows: tuple[Instance, ...]
    notes: tuple[str, ...] = ()


def read_general_set(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    *,
    count: int,
    window: int,
    windows: Windows,
    first: tuple[int, ...] = (),
    measured: Collection[str] = (),
) -> GeneralSet:
    """Reads texts in order until there are as many windows as asked for.

    Args:
        source: A file, a folder, a dataset.
        tokenizer: Of the model.
        count: Windows asked for.
        window: Most tokens of one.
        windows: How texts become windows.
        first: Tokens that every window begins with.
        measured: Texts on which forgetting is measured, which must not be trained on.

    Raises:
        DataError: the source cannot be read, holds fewer windows, or a text that is measured.
    """
    account = TextAccount()
    read = _Reading(source, measured, account)
    if windows == "packed":
        rows, notes = _packed(read.texts(tokenizer), tokenizer, count, window, first)
    else:
        rows, notes = _first(read.texts(tokenizer), tokenizer, count, window, first)
    if len(rows) < count:
        raise DataError(_too_few(source.name, len(rows), count, window, windows, read.count))
    passed = {"hold no text and are passed over": account.blank, "are mended (half a surrogate pair)": account.mended}
    notes += [f"{rows_} of {account.rows:,} rows {fate}" for fate, rows_ in passed.items() if rows_]
    return GeneralSet(tuple(rows), tuple(notes))


def keep_general_set(given: GeneralSet, about: Mapping[str, object], folder: Path) -> None:
    """Writes texts, so that a run goes on where their source cannot be read any more.

    Args:
        given: The texts.
        about: From what and how they were read, as JSON.
        folder: Receives them.
    """
    write_jsonl(folder / "texts.jsonl", (row.to_json() for row in given.rows))
    write_json(folder / "about.json", about)


def kept_general_set(folders: Iterable[Path], about: Mapping[str, object], fault: DataError) -> GeneralSet | None:
    """Texts that were kept; None where they are in none of the folders.

    Args:
        folders: That `keep_general_set` has written.
        about: As it was given.
        fault: Why they cannot be read from their source.
    """
    for folder in folders:
        if read_json(folder / "about.json") == about:
            rows = tuple(map(Instance.from_json, read_jsonl(folder / "texts.jsonl")))
            why = str(fault).rstrip(".")
            return GeneralSet(rows, (f"its texts cannot be read ({why}): those that the run has kept are used",))
    return None


class _Reading:
    """Counts the texts that are read."""

    def __init__(self, source: TextSource, measured: Collection[str], account: TextAccount) -> None:
        self._source, self._measured, self._account = source, frozenset(map(str.strip, measured)), account
        self.count = 0

    def texts(self, tokenizer: PreTrainedTokenizerBase) -> Iterator[tuple[str, list[int]]]:
        """Texts and their tokens."""
        for text in self._source.documents(self._account):
            self.count += 1
            if text in self._measured:
                raise DataError(
                    f"text {self.count} of {self._source.name} is one of those on which perplexity is measured: take "
                    "it out, or measure on another evaluation.general_text."
                )
            yield text, plain_ids(text, tokenizer)


def _first(
    texts: Iterator[tuple[str, list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    window: int,
    first: tuple[int, ...],
) -> tuple[list[Instance], list[str]]:
    rows: list[Instance] = []
    longer = shorter = empty = 0
    for text, ids in texts:
        if len(rows) == count:
            break
        tokens = (*first, *ids)
        if len(tokens) < 2:
            empty += 1
            continue
        longer, shorter = longer + (len(tokens) > window), shorter + (len(tokens) < window)
        read = text if len(tokens) <= window else tokenizer.decode(ids[: window - len(first)])
        rows.append(row_of(tokens[:window], read, len(rows)))
    fates = {
        f"are longer than {window} tokens and lose their end": longer,
        f"are shorter than {window} tokens and stay so": shorter,
        "have no token to predict and are passed over": empty,
    }
    return rows, [f"{texts_:,} of {len(rows) + empty:,} texts {fate}" for fate, texts_ in fates.items() if texts_]


def _packed(
    texts: Iterator[tuple[str, list[int]]],
    tokenizer: PreTrainedTokenizerBase,
    count: int,
    window: int,
    first: tuple[int, ...],
) -> tuple[list[Instance], list[str]]:
    rows: list[Instance] = []
    waiting: list[int] = []
    size, joined = window - len(first), 0
    for _, ids in texts:
        waiting += [*ids, int(tokenizer.eos_token_id)]
        joined += 1
        while len(waiting) >= size and len(rows) < count:
            tokens = (*first, *waiting[:size])
            rows.append(row_of(tokens, tokenizer.decode(waiting[:size]), len(rows)))
            waiting = waiting[size:]
        if len(rows) == count:
            break
    return rows, [f"{joined:,} texts are joined and cut into {len(rows):,} windows of {window} tokens"]


def row_of(tokens: tuple[int, ...], text: str, number: int) -> Instance:
    """One row of raw text.

    Args:
        tokens: As they are trained.
        text: For the reader.
        number: Its place in the set.
    """
    return Instance("", "", text, GENERAL, id=str(number), tokens=tokens)


def _too_few(name: str, found: int, count: int, window: int, windows: Windows, texts: int) -> str:
    if not texts:
        return f"{name} holds no text: name a file, a folder or a dataset with texts."
    if windows == "packed":
        what = f"its {texts:,} texts fill {found:,} windows of {window} tokens"
        return f"{name} is too small: {what}, {count:,} were asked for: add texts, or lower count or max_tokens."
    remedy = f"set count to {found}" if found else "name longer texts"
    return (
        f"{name} is too small: it has {found:,} texts of two tokens and more, {count:,} were asked for: "
        f"add texts, or {remedy}."
    )
