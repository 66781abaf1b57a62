"""How a model is trained on raw text: the section `training` of an update recipe, and settings of pre-training."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from everlearn.recipe import Section

Decay = Annotated[float, Field(ge=0, lt=1)]


class TextTrainingConfig(Section):
    """The optimizer's step and the machine."""

    block_tokens: Annotated[int, Field(ge=8, le=1 << 20)] = 1024
    """Length of a packed block."""
    batch_blocks: Annotated[int, Field(ge=1)] = 32
    """Blocks of one optimizer step, over all processes."""
    micro_batch_blocks: Annotated[int, Field(ge=1)] | None = None
    """Blocks computed at once by a process; nothing: all of its share."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.1
    """AdamW's decoupled decay, on matrices only."""
    betas: Annotated[tuple[Decay, Decay], Field(strict=False)] = (0.9, 0.95)
    """AdamW's moment decays."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the computation (autocast); weights and optimizer stay float32. `auto`: bfloat16 where it is native."""
    attention: Literal["auto", "sdpa", "eager"] = "auto"
    """`auto`: torch's fused attention, but plain matrix products on a CPU in bfloat16 with blocks of at most 512
    tokens, where they were measured to be faster (1.1 to 1.4 times the whole step)."""
    gradient_checkpointing: bool = False
    """Recompute activations in the backward pass: less memory, slower."""
    sharding: Literal["none", "fsdp"] = "none"
    """With several processes: whole copies of the model, or weights and optimizer sharded over them (FSDP2)."""
    checkpoint_every: Annotated[int, Field(ge=1)] = 500
    """Optimizer steps between checkpoints; only the newest is kept."""
    device: str = "auto"
    """`auto`: cuda, then mps, then cpu; or a torch device name."""
