"""Where a base model comes from: the embedded one, a local folder, a GGUF file, or the hub, all reduced to one folder.

What cannot work is refused here, from file names and headers alone, before any weight is read: no weights in
safetensors form (pickled files are never opened, see `folders.py`), no configuration, no tokenizer, an adapter in
place of a model. A hub name becomes the folder of its snapshot in the Hugging Face cache; only files at the top of the
repository are fetched, and without a second copy of the weights in Mistral's own layout. Which commit a name means is
asked once in a process: a run stays with it when the repository moves on.

The identity of a base is the commit of a hub model, for a folder a hash of its content, the sum of a GGUF file.
"""

from __future__ import annotations

import errno
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

from everlearn.errors import ModelError
from everlearn.files import disk_error
from everlearn.fingerprints import fingerprint_of
from everlearn.models.folders import OWN_LAYOUT, check_tensors, content_hash, loadable_files, present_in, weight_names
from everlearn.models.gguf import gguf_files, written_out
from everlearn.models.json_files import read_object
from everlearn.ordinary_files import is_folder, shown, stat_of
from everlearn.recipe import EMBEDDED, ModelConfig

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "spiece.model", "vocab.json", "vocab.txt", "tekken.json")
_DESCRIPTIONS = ["*.json", "*.txt", "*.model", "*.jinja"]


@dataclass(frozen=True, slots=True)
class BaseSource:
    """A base model on disk.

    Attributes:
        folder: Holds configuration, tokenizer and (once loaded) weights.
        name: As the recipe gives it, for messages.
        commit: Of a hub model; None for a folder.
        key: What of a recipe names it.
        stored: Numbers that its weights hold, where they are at hand.
        content: Identifies what the folder was written out of, whichever version did so.
        note: What the user should know of where they come from.
    """

    folder: Path
    name: str
    commit: str | None = None
    key: str = "model.base"
    stored: int | None = None
    content: str | None = None
    note: str | None = None

    @property
    def label(self) -> str:
        """How a message begins that is about its files."""
        return f"{self.key} {shown(self.name)}"


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
    elif files := gguf_files(config.base, BaseSource(Path(), config.base).label):
        folder, note = written_out(files, BaseSource(Path(), config.base).label)
        source = BaseSource(folder, config.base, content=folder.name, note=note)
    elif is_folder(config.base, ModelError):
        source = BaseSource(Path(config.base), config.base)
    elif stat_of(config.base, ModelError) or config.base.startswith((".", "/", "~")) or config.base.count("/") > 1:
        raise ModelError(
            f"model.base: there is no model folder {shown(config.base)}: give a folder, a Hugging Face name or "
            "'embedded'."
        )
    else:
        return _from_hub(config, weights=weights)
    if config.revision is not None:
        raise ModelError(
            f"model.revision {config.revision!r} chooses among the versions of a model on the Hugging Face hub, and "
            f"{source.label} is none of them: leave model.revision out."
        )
    return checked_source(source)


def checked_source(source: BaseSource) -> BaseSource:
    """Refuses a model folder whose files are not what their names say; the same with what the weights hold.

    Raises:
        ModelError: says which file, and what to do.
    """
    loadable_files(source.folder, source.label)
    _check_files(source)
    names = _weight_names(source, present_in(source.folder))
    return replace(source, stored=check_tensors(source.folder, names, source.label))


def weight_files(source: BaseSource) -> list[Path]:
    """The files of a folder that Transformers takes the weights from.

    Raises:
        ModelError: as `folders.weight_names`.
    """
    return [source.folder / name for name in _weight_names(source, present_in(source.folder))]


def base_fingerprint(config: ModelConfig) -> str:
    """Identifies a base's weights, tokenizer, number format and quantization, whatever its folder is called."""
    source = find_base(config, weights=False)
    content = source.commit or source.content or content_hash(source.folder, source.label)
    quantized = [] if config.quantization == "none" else [config.quantization]
    return fingerprint_of("base", content, config.dtype, *quantized)


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
    present = present_in(folder)
    if weights:
        check_tensors(folder, _weight_names(source, present), source.label)
        return source
    try:
        present |= _files_at(name, folder.name)
    except (OSError, ValueError, RuntimeError):
        return source  # offline: the weights are looked for when they are loaded
    _weight_names(source, present)
    return source


def _weight_names(source: BaseSource, present: set[str]) -> list[str]:
    settings = read_object(source.folder / "config.json", source.label)
    return weight_names(source.folder, source.label, settings, present)


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

    unwanted = ["*/*", f"{OWN_LAYOUT}*"]
    return Path(snapshot_download(name, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted))


def _check_files(source: BaseSource) -> None:
    present = present_in(source.folder)
    if "config.json" not in present:
        if "adapter_config.json" in present:
            raise ModelError(f"{source.label} holds a PEFT adapter, not a model: give the model it was trained on.")
        raise ModelError(f"{source.label} has no config.json: give a folder that save_pretrained has written.")
    if not present & set(TOKENIZER_FILES):
        raise ModelError(
            f"{source.label} has no tokenizer: save one beside the weights with tokenizer.save_pretrained(folder)."
        )
