"""Held-out general text, on which perplexity tells whether a model has lost its general ability."""

from __future__ import annotations

from importlib import resources

from everlearn.errors import DataError
from everlearn.ordinary_files import read_text

_MOST_BYTES = 64 << 20  # chosen here: its perplexity is measured after every stage


def general_passages(path: str | None = None, *, embedded: bool = False) -> list[str]:
    """Passages to measure perplexity on.

    Args:
        path: A UTF-8 text file with blank lines between passages; nothing means everlearn's own.
        embedded: Whether the model is the embedded base, whose general text is generated.

    Raises:
        DataError: the file cannot be read or holds no text.
    """
    if path is None and embedded:
        from everlearn.data.embedded.corpus import held_out_text

        return held_out_text(seed=0)
    try:
        text = (
            read_text(path, most=_MOST_BYTES)
            if path is not None
            else (resources.files("everlearn.data") / "general_text.txt").read_text(encoding="utf-8")
        )
    except DataError as error:
        raise DataError(f"evaluation.general_text: {error}") from None
    passages = [passage.strip() for passage in text.split("\n\n") if passage.strip()]
    if not passages:
        raise DataError(f"evaluation.general_text: {path} holds no text: give passages apart by blank lines.")
    return passages
