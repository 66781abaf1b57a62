"""How many tokens a forward pass without gradients takes at once, and what to do when it was too many."""

from __future__ import annotations

CPU_TOKENS = 1024
"""On one core of an AMD EPYC, against 8,192, 1,024 took 0.6 of the time (perplexity of the embedded base) and 0.65
(its embeddings): the activations stay in the processor's caches. Fewer were no faster."""
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


def ran_out_of_memory(error: Exception) -> bool:
    """Whether an error of torch says that the device has no more memory."""
    from accelerate.utils.memory import should_reduce_batch_size

    return bool(should_reduce_batch_size(error))


def release_device_memory() -> None:
    """Gives back what no tensor uses any more, so that a smaller batch finds room."""
    from accelerate.utils.memory import clear_device_cache

    clear_device_cache(garbage_collection=True)
