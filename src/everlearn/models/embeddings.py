"""Texts as vectors, for clustering: the mean of the model's last hidden states, or a sentence-transformers model.

The model at hand needs no download; its vectors group texts by wording and topic, which is all that selection asks
of them (in the paper random selection does about as well). The published embedding is the pooled output of
princeton-nlp/sup-simcse-roberta-base (arXiv 2403.01244, spec section 3); a sentence-transformers model is the nearest
option here (the same one by name: its mean hidden states, because it names no pooling). Not normalised: whoever
clusters decides that.

Padding stands on the right under an attention mask, texts of similar length share a batch. BOS is not part of the
mean: its state is the same for all texts.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from everlearn.data.control_tokens import plain_ids
from everlearn.data.prompts import bos_ids
from everlearn.errors import MissingExtraError, ModelError
from everlearn.fingerprints import fingerprint_of
from everlearn.models.faults import told
from everlearn.models.features import pooled
from everlearn.models.folders import PICKLED, content_hash
from everlearn.ordinary_files import inside, is_folder, is_regular, read_text, shown

if TYPE_CHECKING:
    from torch import Tensor

    from everlearn.crew import Crew
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Tick

LONGEST_TEXT = 512
"""Texts are cut to that many tokens, as published."""


def embed_texts(
    loaded: LoadedModel, texts: Sequence[str], *, batch_tokens: int | None = None, tick: Tick | None = None
) -> np.ndarray:
    """Mean-pooled last hidden states of a language model.

    Args:
        loaded: The model; adapters count as they are switched.
        texts: To embed; an empty one is represented by the end token.
        batch_tokens: Most tokens of a batch, padding included; None: by the device.
        tick: Called with (texts done, texts in all).

    Returns:
        One row a text, (texts, width), float32.
    """
    return loaded.shared_out(_embedded, (texts, batch_tokens), tick)


def _embedded(
    loaded: LoadedModel, order: tuple[Sequence[str], int | None], crew: Crew, tick: Tick | None
) -> np.ndarray:
    """The same in all processes, each some of the batches."""
    texts, batch_tokens = order
    tokenizer = loaded.tokenizer
    bos = bos_ids(tokenizer)
    most = min(LONGEST_TEXT, loaded.reads) - len(bos)
    ids = [plain_ids(text, tokenizer)[:most] or [tokenizer.eos_token_id] for text in texts]

    def mean(states: Tensor, mask: Tensor, _: Sequence[int]) -> Tensor:
        weights = mask.clone()
        weights[:, : len(bos)] = 0
        weights = weights[:, :, None].float()  # (batch, length, 1)
        return (states.float() * weights).sum(1) / weights.sum(1)

    return pooled(loaded, [[*bos, *one] for one in ids], mean, crew, tick, batch_tokens=batch_tokens)


def check_sentence_model(name: str) -> None:
    """Refuses a sentence-transformers model when the package is absent.

    Raises:
        MissingExtraError: names what to install.
    """
    if find_spec("sentence_transformers") is None:
        raise MissingExtraError(
            f"embedding {name!r} needs the package sentence-transformers: run "
            "\"pip install 'everlearn[embeddings]'\", or set embedding: model."
        )


def embed_sentences(name: str, texts: Sequence[str], *, device: str | None = None) -> np.ndarray:
    """Embeddings of a sentence-transformers model.

    Args:
        name: Of the model, on the hub or a folder with safetensors weights.
        texts: To embed.
        device: Torch device; None: the package's choice.

    Returns:
        One row a text, (texts, width), float32.

    Raises:
        MissingExtraError: the package is absent.
        ModelError: the model cannot be loaded.
    """
    check_sentence_model(name)
    from sentence_transformers import SentenceTransformer

    with told(f"embedding {shown(name)!r} cannot be loaded", "check the name, or set embedding: model"):
        folder = _sentence_folder(name)
        _check_sentence_folder(folder, name)
        model = SentenceTransformer(
            str(folder), device=device, trust_remote_code=False, model_kwargs={"use_safetensors": True}
        )
    vectors = model.encode(list(texts), convert_to_numpy=True, show_progress_bar=False)
    return np.asarray(vectors, dtype=np.float32)


def sentence_fingerprint(name: str) -> str:
    """Identifies the content of a sentence model's folder; empty for one of the hub.

    Raises:
        ModelError: the folder cannot be read.
    """
    if not is_folder(name, ModelError):
        return ""
    parts = [Path(name), *(path for path in inside(name, ModelError) if is_folder(path, ModelError))]
    return fingerprint_of("sentences", [content_hash(part) for part in parts])


def _sentence_folder(name: str) -> Path:
    """The model's folder; of one on the hub, no pickled file is fetched."""
    if is_folder(name, ModelError):
        return Path(name)
    from huggingface_hub import snapshot_download

    return Path(snapshot_download(name, ignore_patterns=[*(f"*{suffix}" for suffix in PICKLED), "onnx/*", "*.onnx"]))


def _check_sentence_folder(folder: Path, name: str) -> None:
    """Refuses pickled weights in any of its parts, and parts that are classes from elsewhere.

    Raises:
        ModelError: says which.
    """
    for part in [folder, *(path for path in inside(folder, ModelError) if is_folder(path, ModelError))]:
        files = {path.name for path in inside(part, ModelError)}
        pickled = sorted(file for file in files if file.endswith(PICKLED))
        if pickled and "model.safetensors" not in files:
            raise ModelError(
                f"embedding {shown(name)!r}: {pickled[0]} is pickled, which can run code when opened: convert a copy "
                "that you trust to safetensors, or set embedding: model."
            )
    parts = folder / "modules.json"
    kinds = json.loads(read_text(parts, ModelError)) if is_regular(parts, ModelError) else []
    if any(not str(part["type"]).startswith("sentence_transformers.") for part in kinds):
        raise ModelError(
            f"embedding {shown(name)!r}: modules.json names a class that is none of sentence-transformers, and no "
            "other code is run: choose another model, or set embedding: model."
        )
