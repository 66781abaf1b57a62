"""How many tokens a forward pass takes at once, which rows go together, and what to do when it was too many."""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterator, Sequence
from typing import TypeVar

Item = TypeVar("Item")

CPU_TOKENS = 1024
"""On one core of an AMD EPYC, against 8,192, 1,024 took 0.6 of the time (perplexity of the embedded base) and 0.65
(its embeddings): the activations stay in the processor's caches. Fewer were no faster."""
_NO_MEMORY = ("os error 12", "Cannot allocate memory", "CUDA out of memory", "std::bad_alloc", "not enough memory")
"""How safetensors (which hides the system's error in its text), torch's mapping of files and C++ say it."""
MOST_LOGITS = 1 << 27
"""Most logits computed at once (512 MiB of float32): large vocabularies get smaller batches."""


def tokens_at_once(device: str, elsewhere: int, *, vocabulary: int | None = None) -> int:
    """Tokens of one batch, padding included; at least 1.

    Args:
        device: Its type.
        elsewhere: How many on anything but a CPU.
        vocabulary: Logits of every position are computed, this many each; None: they are not.
    """
    tokens = CPU_TOKENS if device == "cpu" else elsewhere
    return tokens if vocabulary is None else max(1, min(tokens, MOST_LOGITS // vocabulary))


def by_length(
    items: Sequence[Item],
    length: Callable[[Item], int],
    most_tokens: int,
    side: Callable[[int], int] = lambda length: 0,
) -> Iterator[list[Item]]:
    """Items of like length together, the longest first.

    Args:
        items: To be computed.
        length: Tokens of one.
        most_tokens: Of one batch, padding included; an item that is longer is one alone.
        side: Of a length (`Sides.of`); a batch holds items of one side.
    """
    batch: list[Item] = []
    for item in sorted(items, key=length, reverse=True):
        is_full = batch and (len(batch) + 1) * length(batch[0]) > most_tokens
        if is_full or (batch and side(length(item)) != side(length(batch[0]))):
            yield batch
            batch = []
        batch.append(item)
    if batch:
        yield batch


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error of Python, torch or safetensors says that the device has no more memory."""
    from accelerate.utils.memory import should_reduce_batch_size

    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    return bool(should_reduce_batch_size(error)) or any(words in str(error) for words in _NO_MEMORY)


def release_device_memory() -> None:
    """Gives back what no tensor uses any more, so that a smaller batch finds room."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
