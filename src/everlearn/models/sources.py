"""Where a base model comes from: the embedded one, a local folder, or the hub, all reduced to one local folder.

What cannot work is refused here, from file names and headers alone, before any weight is read: no weights in
safetensors form (pickled `.bin` files are never opened), no configuration, no tokenizer, an adapter in place of a
model. A hub name becomes the folder of its snapshot in the Hugging Face cache; only files at the top of the
repository are fetched, and without a second copy of the weights in Mistral's own layout. Which commit a name means is
asked once in a process: a run stays with it when the repository moves on.

The identity of a base is the commit of a hub model, and for a folder a hash of its content: small files whole,
tensors by their description and a sample at both ends of each, so that a large model costs milliseconds.
"""

from __future__ import annotations

import errno
import hashlib
import json
import struct
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import IO

from everlearn.data.instance import fingerprint_of
from everlearn.errors import ModelError
from everlearn.files import disk_error
from everlearn.recipe import EMBEDDED, ModelConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_OWN_LAYOUT = "consolidated"
_DESCRIPTIONS = ["*.json", "*.txt", "*.model", "*.jinja"]
_WHOLE_BYTES = 64 * 2**20
_SAMPLE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class BaseSource:
    """A base model on disk.

    Attributes:
        folder: Holds configuration, tokenizer and (once loaded) weights.
        name: As the recipe gives it, for messages.
        commit: Of a hub model; None for a folder.
    """

    folder: Path
    name: str
    commit: str | None = None


def find_base(config: ModelConfig, *, weights: bool = True) -> BaseSource:
    """The folder of the recipe's base model, checked from the outside.

    Args:
        config: Names the base.
        weights: Whether the weights must be at hand; without, a hub model costs only its small files.

    Raises:
        ModelError: there is no such model, or its files cannot be used; the message says what to change.
    """
    if config.base == EMBEDDED:
        from everlearn.models.embedded_base import embedded_base_path

        source = BaseSource(embedded_base_path(), EMBEDDED)
    elif Path(config.base).is_dir():
        source = BaseSource(Path(config.base), config.base)
    elif Path(config.base).exists() or config.base.startswith((".", "/", "~")) or config.base.count("/") > 1:
        raise ModelError(
            f"model.base: there is no model folder {config.base}: give a folder, a Hugging Face name or 'embedded'."
        )
    else:
        return _from_hub(config, weights=weights)
    _check_files(source)
    _check_weights(source.name, {file.name for file in source.folder.iterdir()})
    return source


def base_fingerprint(config: ModelConfig) -> str:
    """Identifies the base model's weights, tokenizer and number format, whatever its folder is called."""
    source = find_base(config, weights=False)
    content = source.commit or content_hash(source.folder)
    return fingerprint_of("base", content, config.dtype)


def content_hash(folder: Path) -> str:
    """Hash of a model or adapter folder: configuration and tokenizer whole, weights as the module head says."""
    digest = hashlib.sha256()
    for file in sorted(folder.iterdir()):
        if file.suffix not in (".json", ".txt", ".model", ".jinja", ".safetensors"):
            continue
        digest.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as stream:
            if file.suffix == ".safetensors" and file.stat().st_size > _WHOLE_BYTES:
                _sample_tensors(stream, digest)
            else:
                digest.update(stream.read())
    return digest.hexdigest()[:32]


def _sample_tensors(stream: IO[bytes], digest: hashlib._Hash) -> None:
    (header_bytes,) = struct.unpack("<Q", stream.read(8))
    header = stream.read(header_bytes)
    digest.update(header)
    for name, tensor in sorted(json.loads(header).items()):
        if name == "__metadata__":
            continue
        start, end = (8 + header_bytes + offset for offset in tensor["data_offsets"])
        for at in (start, max(start, end - _SAMPLE_BYTES)):
            stream.seek(at)
            digest.update(stream.read(min(_SAMPLE_BYTES, end - at)))


def _from_hub(config: ModelConfig, *, weights: bool) -> BaseSource:
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = config.base
    try:
        folder = _descriptions(name, config.revision)
        if weights:
            folder = _snapshot(name, folder.name, [*_DESCRIPTIONS, "*.safetensors"])
    except GatedRepoError:
        raise ModelError(
            f"model.base {name!r} is gated on the Hugging Face hub: accept its licence there and log in with "
            "'hf auth login'."
        ) from None
    except RevisionNotFoundError:
        raise ModelError(
            f"model.revision {config.revision!r} does not exist for {name!r}: give a branch, tag or commit that does."
        ) from None
    except RepositoryNotFoundError:
        raise ModelError(
            f"model.base {name!r} is neither a local folder nor a public model of the Hugging Face hub: "
            "check the spelling, or log in with 'hf auth login' if it is private."
        ) from None
    except HFValidationError:
        raise ModelError(
            f"model.base {name!r} is neither a local folder nor a name that the Hugging Face hub could have: check "
            "the spelling."
        ) from None
    except (OSError, ValueError, RuntimeError) as error:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise disk_error(Path(str(error.filename or "the Hugging Face cache")), error) from None
        raise ModelError(
            f"model.base {name!r} is no local folder and the Hugging Face hub cannot be reached for it "
            f"({type(error).__name__}): go online once, or give the folder of a downloaded model."
        ) from None
    source = BaseSource(folder, name, folder.name)
    _check_files(source)
    present = {file.name for file in folder.iterdir()}
    if not weights:
        try:
            present |= _files_at(name, folder.name)
        except (OSError, ValueError, RuntimeError):
            return source  # offline: the weights are looked for when they are loaded
    _check_weights(name, present)
    return source


@cache
def _descriptions(name: str, revision: str | None) -> Path:
    """The snapshot of a revision with its small files; named after its commit."""
    return _snapshot(name, revision, _DESCRIPTIONS)


@cache
def _files_at(name: str, commit: str) -> frozenset[str]:
    from huggingface_hub import list_repo_files

    return frozenset(list_repo_files(name, revision=commit))


def _snapshot(name: str, revision: str | None, wanted: list[str]) -> Path:
    from huggingface_hub import snapshot_download

    unwanted = ["*/*", f"{_OWN_LAYOUT}*"]
    return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))


def _check_files(source: BaseSource) -> None:
    present = {file.name for file in source.folder.iterdir()}
    if "config.json" not in present:
        if "adapter_config.json" in present:
            raise ModelError(
                f"model.base {source.name} holds a PEFT adapter, not a model: give the model it was trained on."
            )
        raise ModelError(
            f"model.base {source.name} has no config.json: give a folder that save_pretrained has written."
        )
    if not present & set(TOKENIZER_FILES):
        raise ModelError(
            f"model.base {source.name} has no tokenizer: save one beside the weights with "
            "tokenizer.save_pretrained(folder)."
        )


def _check_weights(name: str, files: set[str]) -> None:
    loadable = [file for file in files if "/" not in file and not file.startswith(_OWN_LAYOUT)]
    if any(file.endswith(".safetensors") for file in loadable):
        return
    if any(file.endswith((".bin", ".pt", ".pth", ".ckpt")) for file in files):
        raise ModelError(
            f"model.base {name} has its weights only in pickled form (.bin), which can run code when opened: convert "
            "a copy that you trust with save_pretrained, which writes safetensors."
        )
    raise ModelError(f"model.base {name} has no weights (*.safetensors): complete the folder.")
