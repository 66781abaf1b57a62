"""What is loaded of a model or adapter folder: which files, that they are what their names say, and their hash.

Weights are what Transformers would choose: `model.safetensors`, else what its index names. All of them are safetensors
files directly within the folder, whose headers are read here, so that no pickle is opened under whatever name; a link
may lead to the Hugging Face cache's own store of files and nowhere else. Everything that Transformers may open is
hashed whole (a sample of large tensors would miss a change in their middle), once a process for a state of the files:
a gigabyte takes about a second.
"""

from __future__ import annotations

import hashlib
import math
import re
from functools import lru_cache
from pathlib import Path
from typing import Any

from everlearn.errors import ModelError
from everlearn.models.faults import told
from everlearn.models.json_files import read_object
from everlearn.ordinary_files import inside, is_folder, is_regular, opened, shown, stat_of

WEIGHTS = "model.safetensors"
INDEX = "model.safetensors.index.json"
OWN_LAYOUT = "consolidated"
_TEMPLATES = "additional_chat_templates"
_NEVER_LOADED = (
    ".md", ".py", ".pyc", ".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle", ".h5", ".msgpack", ".onnx", ".gguf",
    ".png", ".jpg", ".svg", ".pdf", ".log", ".lock",
)  # fmt: skip
"""Everything else counts: names of tokenizer files follow no rule."""
PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
_DISTRIBUTED = re.compile(r"shard-\d{5}-model-\d{5}-of-\d{5}\.safetensors")
_CHUNK = 1 << 20


def loadable_files(folder: Path, label: str) -> list[Path]:
    """All files that Transformers or PEFT may open in a folder, sorted.

    Args:
        folder: Of a model or an adapter.
        label: How a sentence about it begins.

    Raises:
        ModelError: the folder cannot be looked into, or such a name is a link to nothing, a pipe or a device.
    """
    found = inside(folder, ModelError)
    if is_folder(folder / _TEMPLATES, ModelError):
        found += [file for file in inside(folder / _TEMPLATES, ModelError) if file.suffix == ".jinja"]
    files = []
    for file in found:
        if file.name.startswith(".") or file.suffix.lower() in _NEVER_LOADED or is_folder(file, ModelError):
            continue
        try:
            with opened(file, ModelError):
                files.append(file)
        except ModelError as error:
            raise ModelError(f"{label}: {error}") from None
    return files


def content_hash(folder: Path, label: str = "") -> str:
    """Hash of all that may be loaded of a model or adapter folder, whatever the folder is called.

    Raises:
        ModelError: as `loadable_files`.
    """
    files = loadable_files(folder, label or str(folder))
    return _hash_of(tuple(_state_of(file, file.relative_to(folder).as_posix()) for file in files))


def file_hash(file: Path) -> str:
    """Hash of one file's content, whatever it is called."""
    return _hash_of((_state_of(file, ""),))


def _state_of(file: Path, name: str) -> tuple[str, str, int, int, int, int]:
    state = stat_of(file, ModelError)
    assert state is not None, "it was opened a moment ago"
    return str(file), name, state.st_size, state.st_mtime_ns, state.st_ctime_ns, state.st_ino


@lru_cache(maxsize=64)
def _hash_of(states: tuple[tuple[str, str, int, int, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for path, name, size, *_ in states:
        digest.update(f"{name}\0{size}\0".encode(errors="surrogateescape"))
        with opened(path, ModelError) as file:
            while part := file.read(_CHUNK):
                digest.update(part)
    return digest.hexdigest()[:32]


def weight_names(folder: Path, label: str, settings: dict[str, Any], present: set[str]) -> list[str]:
    """The files that Transformers takes the weights from.

    Args:
        folder: Holds configuration and, where there is one, the index.
        label: How a sentence about it begins.
        settings: What `config.json` holds.
        present: Names of the files that are there, or would be after a download.

    Raises:
        ModelError: none, only pickled ones, an index that is damaged or names something else than safetensors files
            beside it, or a layout that is read by other rules.
    """
    chosen = _own_choice(settings, label)
    if any(_DISTRIBUTED.match(file) for file in present):
        raise ModelError(
            f"{label} holds a distributed checkpoint (shard-...): save the model with save_pretrained to an empty "
            "folder."
        )
    if "adapter_config.json" in present:
        raise ModelError(
            f"{label} holds a PEFT adapter beside the model, which Transformers would load too: give the model alone, "
            "or merge them with merge_and_unload() and save the result to an empty folder."
        )
    first = chosen or (WEIGHTS if WEIGHTS in present else INDEX)
    if first not in present:
        raise ModelError(_no_weights(label, chosen, present))
    if not first.endswith(".json"):
        return [first]
    if not (folder / first).is_file():
        return []  # of a hub model whose index is not at hand
    return _named_by_index(folder / first, label, present)


def _own_choice(settings: dict[str, Any], label: str) -> str | None:
    """The file that a configuration itself names for the weights."""
    for part in (settings, settings.get("text_config")):
        chosen = part.get("transformers_weights") if isinstance(part, dict) else None
        if chosen is None:
            continue
        if isinstance(chosen, str) and Path(chosen).name == chosen and chosen.endswith((".safetensors", INDEX[5:])):
            return chosen
        raise ModelError(
            f"{label}: config.json: transformers_weights is {chosen!r}, not the name of a safetensors file in the "
            "folder: take the key out."
        )
    return None


def _no_weights(label: str, chosen: str | None, present: set[str]) -> str:
    if any(file.endswith(PICKLED) for file in present):
        return (
            f"{label} has its weights only in pickled form (.bin), which can run code when opened: convert a copy "
            "that you trust with save_pretrained, which writes safetensors."
        )
    others = sorted(file for file in present if file.endswith(".safetensors") and "/" not in file)
    others = [file for file in others if not file.startswith(OWN_LAYOUT)]
    if others:
        return (
            f"{label} has no weights called {chosen or WEIGHTS}, nor an index of several: complete the folder, or "
            f"rename {others[0]} if it is the model."
        )
    return f"{label} has no weights (*.safetensors): complete the folder."


def _named_by_index(index: Path, label: str, present: set[str]) -> list[str]:
    tree = read_object(index, label)
    for key in ("metadata", "weight_map"):
        if not isinstance(tree.get(key), dict) or (key == "weight_map" and not tree[key]):
            raise ModelError(
                f"{label}: {index.name}: its {key} is no object with keys: download or save the model again."
            )
    files = list(dict.fromkeys(tree["weight_map"].values() if _hashable(tree["weight_map"]) else [None]))
    for file in files:
        if not isinstance(file, str) or Path(file).name != file or not file.endswith(".safetensors"):
            raise ModelError(
                f"{label}: {index.name} names {shown(str(file))!r}, which is no safetensors file in the same folder "
                "(others can run code when opened): save the model with save_pretrained."
            )
        if file not in present:
            raise ModelError(f"{label}: {index.name} names {shown(file)!r}, which is not there: complete the folder.")
    return sorted(files)


def _hashable(values: dict[str, object]) -> bool:
    return all(isinstance(value, str) for value in values.values())


def check_tensors(folder: Path, names: list[str], label: str, remedy: str = "download or save the model again") -> int:
    """Reads the headers of safetensors files.

    Args:
        folder: Holds them.
        names: Of the files.
        label: How a sentence about it begins.
        remedy: What to do where one is damaged.

    Returns:
        How many numbers they hold.

    Raises:
        ModelError: one is no safetensors file, is cut short, or is a link that leads out of the folder.
    """
    from safetensors import safe_open

    count = 0
    for file in (folder / each for each in names):
        if not is_regular(file, ModelError):
            raise ModelError(f"{label}: {file.name} is not there: complete the folder.")
        target = file.resolve()
        if target.parent != folder.resolve() and not _is_of_the_hub_cache(target):
            raise ModelError(
                f"{label}: {file.name} is a link out of the folder, to {shown(target)}: put the file itself there."
            )
        with (
            told(f"{label}: {file.name} is no readable safetensors file", remedy),
            safe_open(str(file), framework="pt") as tensors,
        ):
            count += sum(math.prod(tensors.get_slice(name).get_shape()) for name in list(tensors.keys()))
    return count


def _is_of_the_hub_cache(target: Path) -> bool:
    """Whether a file stands where the hub's cache keeps what its snapshots link to."""
    return target.parent.name == "blobs" and target.parent.parent.name.startswith("models--")


def present_in(folder: Path) -> set[str]:
    """Names of the regular files at the top of a folder.

    Raises:
        ModelError: it cannot be looked into.
    """
    return {file.name for file in inside(folder, ModelError) if is_regular(file, ModelError)}
