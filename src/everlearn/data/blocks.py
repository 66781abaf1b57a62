"""Text tokenised once into packed blocks: token files that are mapped into memory, with a fingerprint.

Documents are encoded in batches by several threads (the fast tokenizers release Python's lock), each followed by the
end token, and written one after the other as little-endian integers; a block is any `block_tokens` of them in a row,
so nothing is padded. Documents go to the held-out file by a hash of their content, so that copies of one never stand
on both sides. Restarts, other paradigms and other block sizes find the files by fingerprint. Text that looks like a
special token is encoded as text.
"""

from __future__ import annotations

import mmap
import os
import zlib
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from everlearn.data.control_tokens import deaf_copy, plain_ids
from everlearn.data.text import TextAccount, TextSource
from everlearn.errors import DataError, RunError
from everlearn.files import read_mapping, write_json
from everlearn.fingerprints import fingerprint_of
from everlearn.made_once import make_once

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.progress import Progress

Tokens = NDArray[np.int64]
RECORD = "blocks.json"
_BATCH_CHARACTERS = 1 << 19
_RESIDENT_BYTES = 64 << 20


@dataclass(frozen=True, slots=True)
class TokenFiles:
    """The tokenised text of one source.

    Attributes:
        folder: Holds `train.bin`, `heldout.bin` and `blocks.json`.
        fingerprint: Of text, tokenizer and split.
        dtype: Of the integers in the files.
        train_tokens: Tokens to train on.
        heldout_tokens: Tokens set aside.
        documents: Documents in all.
        text: What of the source did not become documents as it stands; of files made by older versions unknown.
    """

    folder: Path
    fingerprint: str
    dtype: str
    train_tokens: int
    heldout_tokens: int
    documents: int
    text: TextAccount

    def train(self, block_tokens: int) -> Blocks:
        """The blocks to train on."""
        return Blocks(self.folder / "train.bin", self.dtype, block_tokens)

    def heldout(self, block_tokens: int) -> Blocks:
        """The blocks set aside."""
        return Blocks(self.folder / "heldout.bin", self.dtype, block_tokens)


class Blocks:
    """Blocks of a token file, mapped into memory.

    Pages that were read count as this process's memory although the system may take them back at any time; they are
    given back by hand every 64 MiB, so that memory stays flat however large the file is.
    """

    def __init__(self, path: Path, dtype: str, block_tokens: int) -> None:
        self._dtype = np.dtype(dtype)
        self._count = path.stat().st_size // (self._dtype.itemsize * block_tokens)
        self._width = block_tokens
        self._touched = 0
        self._map: mmap.mmap | None = None
        if self._count:
            with path.open("rb") as file:
                self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def __len__(self) -> int:
        return self._count

    def read(self, indices: Sequence[int]) -> Tokens:
        """The blocks with these numbers.

        Returns:
            Shape (len(indices), block_tokens).
        """
        assert self._map is not None, "an empty file has no blocks"
        size = self._width * self._dtype.itemsize
        rows = np.empty((len(indices), self._width), dtype=np.int64)
        for at, index in enumerate(indices):
            rows[at] = np.frombuffer(self._map, self._dtype, self._width, index * size)
        self._touched += len(indices) * max(size, mmap.PAGESIZE)
        if self._touched > _RESIDENT_BYTES and hasattr(self._map, "madvise"):
            self._map.madvise(mmap.MADV_DONTNEED)
            self._touched = 0
        return rows


def tokenise(
    source: TextSource,
    tokenizer: PreTrainedTokenizerBase,
    cache: Path,
    *,
    what: str,
    tokenizer_fingerprint: str,
    heldout_ratio: float,
    heldout: TextSource | None = None,
    progress: Progress | None = None,
) -> TokenFiles:
    """Makes or finds the token files of a source.

    Args:
        source: The text.
        tokenizer: With an end token.
        cache: Folder of token files.
        what: Names the version in messages.
        tokenizer_fingerprint: Identifies the tokenizer.
        heldout_ratio: Share of the documents set aside; 0 for none.
        heldout: Text of its own to hold out; then nothing is set aside.
        progress: Where to show it.

    Raises:
        DataError: there is no text, or it cannot be read.
        RunError: the disk is full.
    """
    ratio = 0.0 if heldout else heldout_ratio
    fingerprint = fingerprint_of(
        "blocks-1", source.fingerprint(), heldout.fingerprint() if heldout else "", tokenizer_fingerprint, ratio
    )
    folder = cache / "blocks" / fingerprint

    def make(partial: Path) -> None:
        record = _write(source, heldout, tokenizer, partial, ratio, what, progress)
        write_json(partial / RECORD, {"fingerprint": fingerprint, **record})

    make_once(folder, RECORD, make, shared=cache)
    return read_token_files(folder)


def read_token_files(folder: Path) -> TokenFiles:
    """The token files that stand in a folder.

    Raises:
        RunError: there are none, or they are corrupt.
    """
    try:
        record = read_mapping(folder / RECORD)
        counts = {name: int(record[f"{name}_tokens"]) for name in ("train", "heldout")}
        width = np.dtype(record["dtype"]).itemsize
        if any((folder / f"{name}.bin").stat().st_size != width * count for name, count in counts.items()):
            raise ValueError("a file of another length")
        return TokenFiles(
            folder,
            str(record["fingerprint"]),
            str(record["dtype"]),
            counts["train"],
            counts["heldout"],
            int(record["documents"]),
            TextAccount(**record.get("text", {})),
        )
    except (RunError, OSError, ValueError, TypeError, KeyError):
        raise RunError(
            f"{folder} is damaged: delete this folder and run 'everlearn resume', which makes it from the text again."
        ) from None


def _write(
    source: TextSource,
    heldout: TextSource | None,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    ratio: float,
    what: str,
    progress: Progress | None,
) -> dict[str, object]:
    dtype = np.dtype("<u2" if len(tokenizer) <= 1 << 16 else "<u4")
    counts = {"train": 0, "heldout": 0}
    documents, account = 0, TextAccount()
    with ExitStack() as stack:
        files: dict[str, IO[bytes]] = {
            name: stack.enter_context((folder / f"{name}.bin").open("wb")) for name in counts
        }
        tick = stack.enter_context(progress.step(f"tokenising {what}")) if progress else None
        sources = [(source, ratio)] + ([(heldout, 1.0)] if heldout else [])
        for text, share in sources:
            for encoded in _encoded(text.documents(account), tokenizer, share, dtype):
                for name, (tokens, number) in encoded.items():
                    files[name].write(tokens)
                    counts[name] += len(tokens) // dtype.itemsize
                    documents += number
                if tick:
                    tick(counts["train"] + counts["heldout"], note="tokens")
        for file in files.values():
            file.flush()
            os.fsync(file.fileno())
    if not documents:
        raise DataError(f"{what} has no text: {source.name} holds no document that is not blank; give it text.")
    return {
        "dtype": dtype.str,
        "train_tokens": counts["train"],
        "heldout_tokens": counts["heldout"],
        "documents": documents,
        "text": asdict(account),
    }


def _encoded(
    documents: Iterable[str], tokenizer: PreTrainedTokenizerBase, heldout_ratio: float, dtype: np.dtype
) -> Iterator[dict[str, tuple[bytes, int]]]:
    """Batches of documents as the bytes of their tokens, by side and in order, encoded ahead by threads."""
    threads = max(1, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    border = heldout_ratio * 2**32
    encode = _encoder(tokenizer)
    end = tokenizer.eos_token_id

    def work(texts: list[str]) -> dict[str, tuple[bytes, int]]:
        sides: dict[str, list[NDArray[np.integer]]] = {"train": [], "heldout": []}
        for text, ids in zip(texts, encode(texts), strict=True):
            is_heldout = bool(border) and zlib.crc32(text.encode()) < border
            sides["heldout" if is_heldout else "train"].append(np.array([*ids, end], dtype=dtype))
        return {name: (np.concatenate(parts).tobytes() if parts else b"", len(parts)) for name, parts in sides.items()}

    with ThreadPoolExecutor(threads) as pool:
        waiting: deque[Future[dict[str, tuple[bytes, int]]]] = deque()
        for batch in _batches(documents):
            waiting.append(pool.submit(work, batch))
            if len(waiting) > 2 * threads:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _batches(documents: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    size = 0
    for document in documents:
        batch.append(document)
        size += len(document)
        if size >= _BATCH_CHARACTERS:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


def _encoder(tokenizer: PreTrainedTokenizerBase) -> Callable[[list[str]], list[list[int]]]:
    """Texts to lists of ids with the tokenizer's own special tokens, but for its end token."""
    end = tokenizer.eos_token_id
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        whole = tokenizer.build_inputs_with_special_tokens
        return lambda texts: [_without(whole(plain_ids(text, tokenizer)), end) for text in texts]
    own = deaf_copy(tokenizer)
    return lambda texts: [_without(encoding.ids, end) for encoding in own.encode_batch_fast(texts)]


def _without(ids: list[int], end: int) -> list[int]:
    return ids[:-1] if ids and ids[-1] == end else ids
