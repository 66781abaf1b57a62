"""A base model in a GGUF file (the form of llama.cpp), written out once as an ordinary folder of safetensors.

Transformers reads such a file, but cannot save what it has read and passes over some of what the file says. So the
tokenizer is held to the file's rules (`gguf_tokenizer.py`), Llama's long-context scaling is found again in the factors
that stand for it, other scaling is refused, and tensors that are not read are told. Weights become bfloat16, unless
all matrices are float16, or float32: quantization has lost more than the last bits of these numbers.

The folder stands where libraries keep such things for the Hugging Face hub (`HF_HOME`), under the sum of the file, so
that runs, processes and models that were handed back find it again.
"""

from __future__ import annotations

import contextlib
import io
import math
import re
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.errors import ModelError
from everlearn.files import disk_error, make_folder, read_mapping, write_json
from everlearn.fingerprints import fingerprint_of
from everlearn.made_once import make_once
from everlearn.models.faults import told
from everlearn.models.folders import file_hash
from everlearn.models.gguf_tokenizer import PROBES, held_to_rules
from everlearn.ordinary_files import inside, is_folder, is_regular, opened, shown
from everlearn.visible import tell

if TYPE_CHECKING:
    import torch
    from gguf import GGUFReader
    from transformers import PretrainedConfig, PreTrainedModel

_ENDING = ".gguf"
_PART = re.compile(r"(.+)-(\d{5})-of-(\d{5})\.gguf")
_RECORD = "gguf.json"
_FORM = 1
"""Of the folders that are written; a change makes them anew."""
_FLOATS = ("F32", "F16", "BF16")
_NAME = "_model_name_or_path"
"""Where Transformers puts the file's title in a configuration."""
_FREQUENCIES = "rope_freqs.weight"
_LOW, _HIGH, _FIRST_CONTEXT = 1.0, 4.0, 8192
"""Of Llama 3.1 and 3.2, which are those that such factors are made of."""


def gguf_files(place: str, label: str) -> list[Path]:
    """The GGUF files of a model: a file, with its other parts where it is one of several, or those in a folder.

    Args:
        place: File or folder.
        label: How a sentence about it begins.

    Returns:
        In order; nothing where there is no such file, or a folder holds weights in another form as well.

    Raises:
        ModelError: parts are missing, or a folder holds several models.
    """
    path = Path(place)
    if not is_folder(path, ModelError):
        return _parts(path, label) if path.name.lower().endswith(_ENDING) and is_regular(path, ModelError) else []
    names = [file for file in inside(path, ModelError) if not file.name.startswith(".")]
    if any(file.suffix == ".safetensors" for file in names):
        return []
    found = [file for file in names if file.name.lower().endswith(_ENDING) and is_regular(file, ModelError)]
    models = {match[1] if (match := _PART.fullmatch(file.name)) else file.name: file for file in reversed(found)}
    if len(models) > 1:
        raise ModelError(
            f"{label} holds {len(models)} models as GGUF files ({', '.join(shown(name) for name in sorted(models))}): "
            "name one of the files."
        )
    return _parts(next(iter(models.values())), label) if models else []


def _parts(file: Path, label: str) -> list[Path]:
    match = _PART.fullmatch(file.name)
    if match is None:
        return [file]
    count = int(match[3])
    parts = [file.with_name(f"{match[1]}-{number:05}-of-{match[3]}.gguf") for number in range(1, count + 1)]
    missing = [part.name for part in parts if not is_regular(part, ModelError)]
    if missing or not parts:
        raise ModelError(
            f"{label} is split into {count} files, and {len(missing)} of them are not beside it "
            f"({shown(missing[0]) if missing else 'all'}): put them there."
        )
    return parts


def written_out(files: Sequence[Path], label: str) -> tuple[Path, str]:
    """The folder of safetensors that a GGUF model has become, made where it is not yet there.

    Args:
        files: As `gguf_files` gives them.
        label: How a sentence about it begins.

    Returns:
        The folder, and a sentence on what its weights were made of.

    Raises:
        ModelError: the package gguf is not installed, or the model cannot be read or means something that Transformers
            does not keep.
        RunError: the folder cannot be written.
    """
    from filelock import FileLock
    from huggingface_hub import constants

    key = fingerprint_of("gguf", _FORM, [file_hash(file) for file in files])
    shared = Path(constants.HF_ASSETS_CACHE).expanduser() / "everlearn" / "gguf"
    folder = shared / key
    if not (folder / _RECORD).exists():
        if find_spec("gguf") is None:
            raise ModelError(
                f"{label} is a GGUF file, which the package gguf reads: pip install 'everlearn[gguf]', or give the "
                "folder of the model that it was made from."
            )
        make_folder(shared)
        try:
            with FileLock(shared / f"{key}.lock"):  # who comes second waits and finds it
                make_once(folder, _RECORD, partial(_write, files, label), shared=shared)
        except OSError as error:
            raise disk_error(shared, error) from None
    return folder, f"{label}: {read_mapping(folder / _RECORD)['told']}"


def _write(files: Sequence[Path], label: str, folder: Path) -> None:
    """Writes configuration, weights, tokenizer and record, which takes up to a minute for 250 MB."""
    from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

    readers = _opened(files, label)
    facts = _facts(readers[0])
    parts = int(facts.get("split.count") or 1)
    if parts != len(files):
        raise ModelError(
            f"{label} is one of {parts} files of a split model under a name of its own: call them "
            f"NAME-00001-of-{parts:05}.gguf and so on."
        )
    made_from = "give the folder of the model that the file was made from"
    if sys.stderr.isatty():  # Transformers' bars tell nothing of what takes long
        size = sum(file.stat().st_size for file in files) / 1e6
        tell(f"{label}: writing {size:,.0f} MB out as safetensors, once, at about 4 MB a second", file=sys.stderr)
    with tempfile.TemporaryDirectory(dir=folder) as beside, _quiet():  # parts put together may be large
        given = Path(beside) / f"model{_ENDING}"
        if parts > 1:
            _join(readers, given)
        else:
            given.symlink_to(files[0].resolve())
        options = {"gguf_file": given.name, "trust_remote_code": False}
        with told(f"{label} cannot be read by Transformers", made_from):
            settings = AutoConfig.from_pretrained(beside, **options)
            tokenizer = AutoTokenizer.from_pretrained(beside, **options)
        tokenizer = held_to_rules(tokenizer, facts, label)
        with told(f"{label} cannot be read by Transformers", made_from):
            model, report = AutoModelForCausalLM.from_pretrained(
                beside, config=settings, dtype=_format(readers), output_loading_info=True, **options
            )
    _check_read(report, label)
    left = _scaling(model.config, readers, facts, label)
    numbers = sum(int(tensor.n_elements) for reader in readers for tensor in reader.tensors) - left
    unread = numbers - model.num_parameters()
    with told(f"{label} cannot be written as safetensors", made_from), _quiet():
        _save(model, folder)
        tokenizer.name_or_path = tokenizer.init_kwargs["name_or_path"] = ""
        tokenizer.init_kwargs.pop("gguf_file", None)
        tokenizer.save_pretrained(folder)
        again = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    if any(again(text)["input_ids"] != tokenizer(text)["input_ids"] for text in PROBES):
        raise ModelError(f"{label}: its tokenizer is another one when it was written and read again: {made_from}.")
    write_json(
        folder / _RECORD,
        {
            "architecture": settings.model_type,
            "licence": facts.get("general.license"),
            "told": _sentence(readers, str(model.dtype).removeprefix("torch."), unread),
        },
    )


def _opened(files: Sequence[Path], label: str) -> list[GGUFReader]:
    from gguf import GGUFReader

    readers = []
    for file in files:
        with opened(file, ModelError) as start:
            if start.read(4) != b"GGUF":
                raise ModelError(f"{label}: {shown(file.name)} does not begin as a GGUF file does: download it again.")
        with told(f"{label}: {shown(file.name)} is no whole GGUF file", "download it again"):
            readers.append(GGUFReader(file))
    return readers


def _facts(reader: GGUFReader) -> dict[str, Any]:
    return {name: field.contents() for name, field in reader.fields.items()}


def _join(readers: Sequence[GGUFReader], target: Path) -> None:
    """Puts the parts of a split model into one file, which is all that Transformers reads."""
    from gguf import GGUFWriter

    facts = readers[0].fields
    writer = GGUFWriter(target, facts["general.architecture"].contents(), endianess=readers[0].endianess)
    for name, field in facts.items():
        if not name.startswith(("GGUF.", "split.")) and name != "general.architecture":
            writer.add_key_value(name, field.contents(), field.types[0], field.types[-1] if field.types[1:] else None)
    tensors = [tensor for reader in readers for tensor in reader.tensors]
    for tensor in tensors:
        shape, held = tensor.data.shape, tensor.data
        writer.add_tensor_info(tensor.name, shape, held.dtype, held.nbytes, tensor.tensor_type)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    for tensor in tensors:
        writer.write_tensor_data(tensor.data)
    writer.close()


def _format(readers: Sequence[GGUFReader]) -> torch.dtype:
    """In which form the weights are written: float16 or float32 where the matrices are in no other."""
    import torch

    forms = {tensor.tensor_type.name for reader in readers for tensor in reader.tensors if len(tensor.shape) > 1}
    return {frozenset({"F16"}): torch.float16, frozenset({"F32"}): torch.float32}.get(frozenset(forms), torch.bfloat16)


def _check_read(report: Mapping[str, Any], label: str) -> None:
    for key in ("missing_keys", "mismatched_keys"):
        if names := sorted(str(name) for name in report[key]):
            raise ModelError(
                f"{label}: {len(names)} tensors of this model do not come out of the file, {shown(names[0])} among "
                "them: give the folder of the model that the file was made from."
            )


def _scaling(config: PretrainedConfig, readers: Sequence[GGUFReader], facts: Mapping[str, Any], label: str) -> int:
    """Puts the scaling of rotary angles, which the file has as factors, into the configuration.

    Returns:
        How many numbers stood for it.

    Raises:
        ModelError: it has a scaling that Transformers did not read and that is not known here.
    """
    import torch

    factors = [tensor for reader in readers for tensor in reader.tensors if tensor.name.startswith("rope_")]
    stated = facts.get(f"{facts['general.architecture']}.rope.scaling.type", "none")
    rope = config.get_text_config().rope_parameters if hasattr(config.get_text_config(), "rope_parameters") else None
    if not factors and stated == "none":
        return 0
    if [tensor.name for tensor in factors] == [_FREQUENCIES] and rope and stated == "none":
        given = torch.tensor(factors[0].data.copy(), dtype=torch.float64)
        scaled = {
            "rope_type": "llama3",
            "factor": float(given.max()),
            "low_freq_factor": _LOW,
            "high_freq_factor": _HIGH,
            "original_max_position_embeddings": _FIRST_CONTEXT,
        }
        expected = _factors(float(rope["rope_theta"]), len(given), float(given.max()))
        if torch.allclose(given, expected, rtol=1e-3):
            config.get_text_config().rope_parameters = {**rope, **scaled}
            return len(given)
    elif not factors and (rope or {}).get("rope_type", "default") != "default":
        return 0
    raise ModelError(
        f"{label}: it scales its rotary angles for long texts in a way that Transformers does not read from such "
        f"files ({shown(factors[0].name if factors else stated)}): give the folder of the model that it was made from."
    )


def _factors(base: float, count: int, factor: float) -> torch.Tensor:
    """By how much each wavelength grows in Llama 3.1 (Transformers' `rope_type: llama3`)."""
    import torch

    lengths = 2 * math.pi * base ** (torch.arange(count, dtype=torch.float64) / count)
    smooth = (_FIRST_CONTEXT / lengths - _LOW) / (_HIGH - _LOW)
    return torch.where(
        lengths < _FIRST_CONTEXT / _HIGH,
        torch.ones(()),
        torch.where(lengths > _FIRST_CONTEXT / _LOW, factor, 1 / ((1 - smooth) / factor + smooth)),
    )


def _save(model: PreTrainedModel, folder: Path) -> None:
    """Writes the model without what says that it is quantized, which it is no more."""
    for holder, name in (
        (model, "hf_quantizer"),
        (model, "quantization_method"),
        (model.config, "quantization_config"),
    ):
        if getattr(holder, name, None) is not None:
            delattr(holder, name)
    model.is_quantized = False
    model.save_pretrained(folder)


def _sentence(readers: Sequence[GGUFReader], dtype: str, unread: int) -> str:
    forms = Counter(tensor.tensor_type.name for reader in readers for tensor in reader.tensors)
    listed = ", ".join(f"{count:,} in {name}" for name, count in forms.most_common())
    text = f"its weights are a GGUF file's (tensors: {listed}), written out as {dtype}"
    if set(forms) - set(_FLOATS):
        text += "; what their quantization has lost stays lost"
    if unread > 0:
        text += f"; {unread:,} numbers of the file belong to no part of the model that Transformers builds"
    return f"{text}."


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keeps Transformers' bars and advice on loading such files off the terminal."""
    from transformers.utils import logging

    level = logging.get_verbosity()
    logging.set_verbosity_error()
    try:
        with contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.set_verbosity(level)
