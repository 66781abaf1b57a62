"""MoELoRA: the adapter of each layer is a mixture of experts, weighed token by token by a router.

    y = W x + s * sum_e softmax(R x)_e * B_e A_e dropout_e(x)        E experts of rank r / E, s = alpha / r

One set of experts and one router is trained on through all stages: there is no top-k, no balancing, nothing is frozen,
and no task identity is asked for. So forgetting is reduced by what experts may keep apart, and the router forgets too.
Rank, alpha, dropout and layers are those of `model.lora`.

Source: CoIN (arXiv 2403.08350, from memory) and its code (zackschen/CoIN, read), from which the formula and the start
values are; what it is in the layers is told in `models/experts.py`. Its runs have 8 experts, rank 128 and alpha 256 on
LLaVA-7B, its class 4 experts. Cost: E small products more a layer. The gate depends on the token, so experts cannot be
merged into a weight, and PEFT does not load what is handed back (the card says how).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

from pydantic import Field

from everlearn.errors import RecipeError
from everlearn.methods.base import Facts, Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.models.state import MOVING, PartSettings, Tuning
from everlearn.training.phase import Phase


class MoELoraOptions(MethodOptions):
    """How an adapter is divided."""

    experts: Annotated[int, Field(ge=2)] = 4
    """Experts of each layer, which divide the rank (CoIN's class: 4, its runs: 8)."""


@register
class MoELora(Method):
    """Trains an adapter of gated experts through all stages."""

    Options = MoELoraOptions
    options: MoELoraOptions
    title = "MoE-LoRA"
    lora_alone = ("its experts are low-rank adapters", "has none")

    def check(self, facts: Facts) -> None:
        """Refuses full tuning, and a rank that the experts do not divide.

        Raises:
            RecipeError: says what to set.
        """
        super().check(facts)
        rank, experts = facts.model.lora.rank, self.options.experts
        if rank % experts:
            raise RecipeError(
                f"method {self.name}: {experts} experts cannot share model.lora.rank {rank} evenly: give a rank that "
                f"is a multiple of {experts}, such as {(rank // experts + 1) * experts}, or other experts."
            )

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """The first stage adds the experts, which are carried on from then on."""
        if context.stage.index > 1:
            return [Phase()]
        experts = PartSettings("MOE_LORA", {"experts": self.options.experts})
        return [Phase(tuning=Tuning(context.state, adds={MOVING: experts}))]
