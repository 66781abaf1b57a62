"""Whatever a library raises over a model's files, as one sentence.

Transformers, tokenizers, PEFT, safetensors and huggingface_hub raise dozens of kinds of exception over one wrong
value, bare ones and a Rust panic among them; which one it was helps nobody. Only what says that memory ran out is no
fault of the files and gets a sentence of its own.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from everlearn.errors import EverlearnError, ModelError
from everlearn.models.batching import ran_out_of_memory

_SHOWN = 200  # letters of a library's own words
_OF_THE_PROCESS = (KeyboardInterrupt, SystemExit, GeneratorExit)


@contextmanager
def told(what: str | Callable[[BaseException], str], remedy: str) -> Iterator[None]:
    """Turns what a library raises within the block into one sentence.

    Args:
        what: Names the model and the file that cannot be used; where that takes a search, the search.
        remedy: What to do.

    Raises:
        ModelError: something was raised.
    """
    try:
        yield
    except (EverlearnError, *_OF_THE_PROCESS):
        raise
    except BaseException as error:  # a panic in Rust is no Exception
        is_memory = isinstance(error, Exception) and ran_out_of_memory(error)
        what = what if isinstance(what, str) else "the model cannot be built" if is_memory else what(error)
        if is_memory:
            raise ModelError(
                f"{what}, because memory ran out ({reason_of(error)}): close other programs that use it, set "
                "model.dtype to bfloat16 or model.tuning to lora, or choose a smaller model."
            ) from None
        raise ModelError(f"{what} ({reason_of(error)}): {remedy}.") from None


@contextmanager
def without_panics() -> Iterator[None]:
    """Keeps what Rust writes of a panic off the terminal, past Python: the one sentence says what is wrong."""
    sys.stderr.flush()
    try:
        kept = os.dup(2)
    except OSError:  # the stream is closed
        yield
        return
    try:
        with open(os.devnull, "wb") as nowhere:
            os.dup2(nowhere.fileno(), 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)


def reason_of(error: BaseException) -> str:
    """A library's own words in one line, with the kind of error where they say little."""
    text = " ".join(str(error).split()).rstrip(".:")
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if len(text) > _SHOWN:
        text = f"{text[:_SHOWN]}..."
    return text if " " in text else f"{type(error).__name__} {text}".rstrip()
