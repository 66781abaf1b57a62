"""Makes torch hold a device that is none: `stand_in.cpp`, which refuses to mix its tensors with the CPU's.

Torch takes one such device a process, for good: only processes of their own call `register`.
"""

from __future__ import annotations

import types
from functools import cached_property
from pathlib import Path

import torch

NAME = "stand_in"


def register(library: Path) -> None:
    """Adds the device, and tells the Trainer and safetensors, which know devices by name, what it is."""
    torch.utils.rename_privateuse1_backend(NAME)
    torch.ops.load_library(str(library))
    module = types.ModuleType(f"torch.{NAME}")
    module.is_available = module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module._is_in_bad_fork = lambda: False
    module.get_amp_supported_dtype = lambda: [torch.bfloat16, torch.float16]
    # it draws from the CPU's generator, which is kept and seeded anyway
    module.manual_seed_all = lambda seed: None
    module.get_rng_state = lambda device: torch.empty(0)
    module.set_rng_state = lambda state, device: None
    torch._register_device_module(NAME, module)
    torch.utils.generate_methods_for_privateuse1_backend()
    torch.__future__.set_swap_module_params_on_conversion(True)  # weights that are moved stay tied, as on a GPU
    _tell_trainer()
    _tell_safetensors()


def _tell_trainer() -> None:
    from accelerate import PartialState
    from transformers import TrainingArguments

    PartialState.default_device = property(lambda state: torch.device(NAME, 0))
    set_up = TrainingArguments.__dict__["_setup_devices"].func

    def device_of(arguments: TrainingArguments) -> torch.device:
        chosen = set_up(arguments)
        return chosen if arguments.use_cpu else torch.device(NAME, 0)

    TrainingArguments._setup_devices = cached_property(device_of)
    TrainingArguments._setup_devices.__set_name__(TrainingArguments, "_setup_devices")


def _tell_safetensors() -> None:
    import peft.utils.save_and_load
    from safetensors.torch import load_file

    def load(file: str, device: str | torch.device = "cpu") -> dict[str, torch.Tensor]:
        on_cpu = load_file(file, "cpu")
        return {name: tensor.to(device) for name, tensor in on_cpu.items()}

    peft.utils.save_and_load.safe_load_file = load
