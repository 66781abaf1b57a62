"""Loading and saving any causal language model that Transformers knows, with or without an adapter.

Weights are read from safetensors only and no code of a model's repository is ever run. Frozen weights under an
adapter are bfloat16 where the device multiplies it natively (float16 on other CUDA GPUs), else float32; full tuning
keeps float32 weights everywhere unless the recipe says otherwise, because small updates vanish in bfloat16.

A checkpoint of a stage is a folder with `adapter/` (PEFT) or `model/` (Transformers, tokenizer included).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from everlearn.crew import Crew
from everlearn.devices import choose_device, has_native_bfloat16, needs_float16
from everlearn.errors import ModelError
from everlearn.files import write_error
from everlearn.fingerprints import fingerprint_of
from everlearn.models import adapters
from everlearn.models.added_tokens import add_embeddings, add_tokens
from everlearn.models.descriptions import context_of, read_config, read_tokenizer
from everlearn.models.faults import told
from everlearn.models.folders import content_hash
from everlearn.models.kinds import check_takes_prompt, soft_prompt
from everlearn.models.padding import check_padding
from everlearn.models.quantization import keep_quantized_layout, loaded_bytes, settings_of
from everlearn.models.sources import BaseSource, base_fingerprint, checked_source, find_base, weight_files
from everlearn.models.state import MOVING, Part, PartSettings, Tuning
from everlearn.ordinary_files import is_folder, is_regular, shown
from everlearn.recipe import ModelConfig

if TYPE_CHECKING:
    import torch
    from peft import PeftModel
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

Order = TypeVar("Order")
Result = TypeVar("Result")
Work = Callable[["LoadedModel", Order, Crew, Any], Result]

__all__ = [
    "LoadedModel",
    "Sizes",
    "base_fingerprint",
    "base_of",
    "context_length",
    "dtype_of",
    "load_model",
    "load_tokenizer",
    "save_checkpoint",
    "sizes_of",
    "weights_in",
    "without_bars",
    "write_blank_adapter",
]


@dataclass(frozen=True)
class LoadedModel:
    """A model ready for use.

    Attributes:
        model: In evaluation mode.
        tokenizer: With pad and end token.
        fingerprint: Identifies base and checkpoint.
        base_fingerprint: Identifies the base alone.
        context_length: Most tokens of prompt and answer together, beside a soft prompt, where it writes.
        device: Where the weights are.
        everywhere: Does work on it in all processes, which can have the same model; None: only this one has it.
        own_context: What it takes in itself, where another engine writes that takes less; None: the same.
    """

    model: PreTrainedModel | PeftModel
    tokenizer: PreTrainedTokenizerBase
    fingerprint: str
    base_fingerprint: str
    context_length: int
    device: torch.device
    everywhere: Callable[[Work[Any, Any], Any, Any], Any] | None = field(default=None, compare=False, repr=False)
    own_context: int | None = None

    @property
    def reads(self) -> int:
        """Most tokens that it takes in where it does not write."""
        return self.own_context or self.context_length

    def shared_out(self, work: Work[Order, Result], order: Order, show: Any = None) -> Result:
        """Does work on this model in all processes that can have it, each a share.

        Args:
            work: A function of a module: of the model, the order, the processes that share the work, and `show`.
            order: Plain data.
            show: By which the first process shows how far it is; the others are given None.

        Returns:
            What the work has given in the first process.
        """
        if self.everywhere is None:
            return work(self, order, Crew(), show)
        found: Result = self.everywhere(work, order, show)
        return found


@dataclass(frozen=True)
class Sizes:
    """What a model takes.

    Attributes:
        moving: Weights that tuning moves.
        kept_bytes: Of what a stage's training leaves on the disk: the adapter, or all weights.
        width: Of its hidden states.
        loaded_bytes: Of the weights in memory, without an adapter.
        layers: How many it has.
    """

    moving: int
    kept_bytes: int
    width: int
    loaded_bytes: int
    layers: int


def sizes_of(config: ModelConfig) -> Sizes:
    """Sizes of a model that `checking.check_model` has found to be one, without reading weights.

    Args:
        config: With the layers that get adapters by their names.
    """
    return _sizes_of(config.model_dump_json())


@cache
def _sizes_of(text: str) -> Sizes:
    """Of a configuration as text, once for all runs with it."""
    import torch

    config = ModelConfig.model_validate_json(text)
    model: PreTrainedModel | PeftModel = skeleton(config)
    settings = model.config.get_text_config()
    loaded = loaded_bytes(model, config.quantization, weights_dtype(config, choose_device(config.device)))
    width, layers = settings.hidden_size, settings.num_hidden_layers
    if config.tuning == "full":
        return Sizes(model.num_parameters(), loaded, width, loaded, layers)
    with torch.device("meta"):
        model = adapters.attach_adapter(model, config.lora, seed=0)
    moving = sum(weight.numel() for weight in model.parameters() if weight.requires_grad)
    kept = moving * torch.float32.itemsize  # adapters are trained and kept in float32
    return Sizes(moving, kept, width, loaded, layers)


def skeleton(config: ModelConfig) -> PreTrainedModel:
    """The base without its weights: the layers of a model that `checking.check_model` has found to be one."""
    import torch
    from transformers import AutoModelForCausalLM

    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(read_config(find_base(config, weights=False)))


def write_blank_adapter(config: ModelConfig, rank: int, folder: Path) -> None:
    """Writes an adapter of the recipe's shape but the rank, which changes nothing: all of it is zero."""
    import torch
    from peft import get_peft_model_state_dict
    from safetensors.torch import save_file

    with torch.device("meta"):
        model = adapters.attach_adapter(skeleton(config), config.lora.model_copy(update={"rank": rank}), seed=0)
    tensors = get_peft_model_state_dict(model, save_embedding_layers=False)
    save_file({name: torch.zeros(one.shape) for name, one in tensors.items()}, folder / "adapter_model.safetensors")
    settings = model.peft_config[MOVING]
    settings.target_modules = sorted(settings.target_modules)
    settings.inference_mode = True
    settings.save_pretrained(str(folder))


def load_tokenizer(config: ModelConfig) -> PreTrainedTokenizerBase:
    """The base model's tokenizer, with a pad and an end token.

    Raises:
        ModelError: it has no end token, or cannot be read.
    """
    return add_tokens(read_tokenizer(find_base(config, weights=False)), config)


def context_length(config: ModelConfig) -> int:
    """Most tokens that the model can take in, prompt and answer together."""
    return context_of(read_config(find_base(config, weights=False)))


def load_model(
    config: ModelConfig,
    *,
    checkpoint: Path | None = None,
    trainable: bool = False,
    seed: int = 0,
    beside: Sequence[Part] = (),
    moving: Sequence[str] = (MOVING,),
    adds: Mapping[str, PartSettings] | None = None,
) -> LoadedModel:
    """Loads the base model, or the model that a stage has left.

    Args:
        config: Which base and how it is tuned.
        checkpoint: Folder with a stage's `adapter/` or `model/`, or that inner folder; None: the base alone.
        trainable: Prepares training: the adapter trainable (a fresh one where there is none), or all weights.
        seed: Of a fresh adapter's first matrices.
        beside: Further adapters of the model, frozen unless they move.
        moving: Names of the adapters that are to be trained.
        adds: Trainable parts of other kinds to be put on, by name.

    Raises:
        ModelError: as `checking.check_model`, files that are damaged or do not fit together, or a model whose answers
            depend on the rows that it is computed with.
    """
    source = find_base(config)
    tokenizer = add_tokens(read_tokenizer(source), config)
    device = choose_device(config.device)
    base_hash = base_fingerprint(config)
    fingerprint = base_hash
    inner = checkpoint and weights_in(checkpoint, config)
    if checkpoint is not None and inner is not None:
        if not is_folder(inner, ModelError):
            raise ModelError(
                f"{checkpoint} has no {inner.name}/ folder: it is no checkpoint of a model tuned with "
                f"tuning: {config.tuning}; set model.tuning as in the run that made it, or give another folder."
            )
        fingerprint = fingerprint_of(base_hash, content_hash(inner))
    weights = source
    if inner is not None and config.tuning == "full":
        weights = checked_source(BaseSource(inner, str(inner), key="checkpoint"))
    plain = _read_weights(weights, read_config(weights), weights_dtype(config, device), config.quantization, device)
    add_embeddings(plain, tokenizer, config)
    if config.quantization == "none":  # else it is there
        with told(f"{source.label} cannot be moved to {device}", "set model.device to cpu"):
            plain = plain.to(device)
    model: PreTrainedModel | PeftModel = plain
    _check_numbers(model, weights.label)
    model.requires_grad_(trainable and config.tuning == "full")
    if source.commit is not None:  # else a saved adapter names this machine's cache folder as its base
        model.name_or_path = model.config._name_or_path = source.name
    if config.tuning == "lora" and inner is not None:
        model = adapters.load_adapter(model, inner, trainable=trainable)
    elif config.tuning == "lora" and trainable and not adds:
        model = adapters.attach_adapter(model, config.lora, seed=seed, revision=source.commit)
    for name, part in (adds or {}).items():
        model = adapters.attach_adapter(model, config.lora, seed=seed, revision=source.commit, part=part, name=name)
    if beside:
        model, fingerprint = _with_parts(model, fingerprint, config, beside, moving if trainable else ())
    prompt = soft_prompt(model)
    if prompt is not None:
        check_takes_prompt(plain, len(prompt))
    context = context_of(read_config(source)) - (0 if prompt is None else len(prompt))
    _check_answers(model.eval(), source.label if inner is None else str(inner))
    check_padding(plain, source.label)
    return LoadedModel(model, tokenizer, fingerprint, base_hash, context, device)


def _with_parts(
    model: PreTrainedModel | PeftModel,
    fingerprint: str,
    config: ModelConfig,
    parts: Sequence[Part],
    moving: Sequence[str],
) -> tuple[PeftModel, str]:
    """The model with further adapters on it, and its fingerprint.

    Raises:
        ModelError: one is no adapter, or does not fit.
    """
    from peft import PeftModel

    carried = [MOVING] if isinstance(model, PeftModel) else []
    active = [part.name for part in parts if part.is_active] + carried
    for part in parts:
        assert part.kind == "adapter", "all weights leave room for no part beside them"
        inner = weights_in(part.folder, config)
        model = adapters.load_adapter(model, inner, name=part.name)
        fingerprint = fingerprint_of(fingerprint, part.name, part.is_active, content_hash(inner))
    adapters.activate(model, active, moving)
    return model, fingerprint


def weights_in(checkpoint: Path, config: ModelConfig) -> Path:
    """The inner folder of a checkpoint, which is the checkpoint itself for a run's final model."""
    name, settings = ("adapter", "adapter_config.json") if config.tuning == "lora" else ("model", "config.json")
    return checkpoint if is_regular(checkpoint / settings, ModelError) else checkpoint / name


@contextmanager
def base_of(loaded: LoadedModel) -> Iterator[LoadedModel]:
    """The base model within a model tuned with adapters: the adapter is switched off until the block ends."""
    from peft import PeftModel

    if not isinstance(loaded.model, PeftModel):
        assert loaded.fingerprint == loaded.base_fingerprint, "a fully tuned model does not hold its base"
        yield loaded
        return
    with adapters.adapter_off(loaded.model):
        yield replace(loaded, fingerprint=loaded.base_fingerprint, everywhere=None)


def save_checkpoint(loaded: LoadedModel, folder: Path, *, tuning: Tuning | None = None) -> LoadedModel:
    """Writes `folder/adapter`, or `folder/model` with the tokenizer, loadable by PEFT or Transformers as they are.

    An adapter's tokenizer is the base's, which may be twenty times its size; what a run hands back has its own.

    Args:
        loaded: The model; what is merged is no longer on it.
        folder: Where to.
        tuning: Says how several parts become one.

    Returns:
        The model as it was written.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    from peft import PeftModel
    from safetensors import SafetensorError

    if tuning is not None and tuning.after == "merge":
        assert isinstance(loaded.model, PeftModel), "what is merged are parts"
        loaded = replace(loaded, model=loaded.model.merge_and_unload())
    target = folder / ("adapter" if isinstance(loaded.model, PeftModel) else "model")
    try:
        target.mkdir(parents=True, exist_ok=True)
        if isinstance(loaded.model, PeftModel):
            active = list(loaded.model.active_adapters)
            if tuning is not None and tuning.after == "concatenate" and len(active) > 1:
                adapters.save_concatenated(loaded.model, active, target)
            else:
                assert active == [MOVING], "one adapter is kept, so no other computes along"
                adapters.save_adapter(loaded.model, target)
        else:
            with without_bars():
                loaded.model.save_pretrained(str(target))
            save_tokenizer(loaded.tokenizer, target)
    except (OSError, SafetensorError) as error:
        raise write_error(target, error) from None
    return loaded


def save_tokenizer(tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Writes a tokenizer's files into a folder.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    try:
        tokenizer.save_pretrained(str(folder))
    except Exception as error:
        # the tokenizers library raises bare exceptions, the system's error in their text
        if not isinstance(error, OSError) and type(error) is not Exception:
            raise
        raise write_error(folder, error) from None


def dtype_of(config: ModelConfig) -> str:
    """The number format that a model is computed in here, as torch calls it."""
    return str(weights_dtype(config, choose_device(config.device))).removeprefix("torch.")


def weights_dtype(config: ModelConfig, device: torch.device) -> torch.dtype:
    """The same on a device."""
    import torch

    if config.dtype != "auto":
        found: torch.dtype = getattr(torch, config.dtype)
        return found
    if config.tuning == "full":
        return torch.float32
    if has_native_bfloat16(device):
        return torch.bfloat16
    return torch.float16 if needs_float16(device) else torch.float32


def _read_weights(
    source: BaseSource, settings: PretrainedConfig, dtype: torch.dtype, quantization: str, device: torch.device
) -> PreTrainedModel:
    """The model of a folder whose files have been checked; quantized on the device, else in the CPU's memory.

    Raises:
        ModelError: the weights are not those of the configuration, are damaged, or find no room.
    """
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    what = f"{source.label}: the weights in {shown(source.folder)}"
    quantized: dict[str, Any] = {}
    if quantization != "none":
        _check_stored_numbers(source)
        # it tells of each product of int8 that its inputs become float16, which the recipe's key says once
        logging.getLogger("bitsandbytes").setLevel(logging.ERROR)
        asked = BitsAndBytesConfig(**settings_of(quantization, str(dtype).removeprefix("torch.")))
        quantized = {"quantization_config": asked, "device_map": {"": device}}
    with told(f"{what} cannot be read", "download or save the model again"), without_bars():
        model, report = AutoModelForCausalLM.from_pretrained(
            source.folder,
            config=settings,
            dtype=dtype,
            use_safetensors=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,
            output_loading_info=True,
            **quantized,
        )
    keep_quantized_layout(model)
    if report["mismatched_keys"]:
        tensor, stored, expected = min(report["mismatched_keys"])
        raise ModelError(
            f"{source.label}: config.json and the weights do not belong together: the tensor {tensor} is of shape "
            f"{tuple(stored)}, by the configuration {tuple(expected)}: download or save the model again."
        )
    if report["missing_keys"]:
        names = sorted(report["missing_keys"])
        raise ModelError(
            f"{what} lack {len(names)} tensors of this model, {names[0]} among them: download or save the model again."
        )
    return model


def _check_numbers(model: PreTrainedModel, name: str) -> None:
    """Refuses weights that are no numbers.

    Raises:
        ModelError: names a tensor.
    """
    import torch

    with torch.inference_mode():
        for path, weight in model.named_parameters():
            if not torch.isfinite(weight.sum(dtype=torch.float32)):
                raise _no_numbers(name, path)
        for path, angles in model.named_buffers():
            if path.endswith("inv_freq") and not torch.isfinite(angles).all():
                raise ModelError(
                    f"{name}: config.json: rope_parameters (rope_theta) give no finite angles: mend them."
                )


def _check_stored_numbers(source: BaseSource) -> None:
    """As `_check_numbers`, in the files of what is quantized: a block of four bits does not show it any more.

    Raises:
        ModelError: names a tensor.
    """
    import torch
    from safetensors import safe_open

    for file in weight_files(source):
        with safe_open(str(file), framework="pt") as tensors:
            for name in list(tensors.keys()):
                if not torch.isfinite(tensors.get_tensor(name).sum(dtype=torch.float32)):
                    raise _no_numbers(source.label, name)


def _no_numbers(label: str, tensor: str) -> ModelError:
    return ModelError(
        f"{label}: its tensor {tensor} holds numbers that are infinite or none at all (NaN): download or save the "
        "model again."
    )


def _check_answers(model: PreTrainedModel | PeftModel, name: str) -> None:
    """Refuses a model that cannot compute.

    Raises:
        ModelError: says what was raised, or that no numbers came out.
    """
    import torch

    remedy = "mend its config.json, or download or save the model again"
    with torch.inference_mode(), told(f"{name} cannot compute", remedy):
        logits = model(input_ids=torch.zeros((1, 2), dtype=torch.long, device=model.device)).logits
    if not torch.isfinite(logits).all():
        raise ModelError(f"{name} answers with numbers that are infinite or none at all (NaN): {remedy}.")


@contextmanager
def without_bars() -> Iterator[None]:
    """Keeps Transformers' own progress bars off the terminal, where everlearn shows its own."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()
