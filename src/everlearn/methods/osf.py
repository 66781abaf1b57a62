"""OSF: the large singular directions of every weight are kept, training moves in the space that they leave.

    W = U_h S_h V_h + U_l S_l V_l        the largest directions, U_h S_h V_h, are frozen; U_l, S_l and V_l are trained

At the start of each stage the weights as they are by then are decomposed anew, so what a stage has learnt belongs to
what the next one keeps as far as it has grown large. It is nearly full tuning in parameters: what is handed back are
whole weights, and `model.tuning` must be `full`. The layers are linear ones; embeddings, norms and the output head
stay as they are.

Source: arXiv 2504.07097 (abstract), and PEFT's tuner OSF, which is used (read, and run at 0.21.2). Two things of it do
not hold what they promise. Its guide has a stage ended by `unload`, which gives back the weights from before the
stage: `merge_and_unload` is used. And it projects gradients only, which keeps SGD within the free space but not AdamW:
elementwise scaling of a projected gradient is not projected (in a run of 50 steps 5 % and 15 % of the change lay in
the kept directions). So U_l and V_l themselves are projected after each step (`project: weights`, chosen here),
U_l -= U_h U_h' U_l and V_l -= V_l V_h' V_h; `project: gradient` is PEFT alone. Layers that PEFT cannot decompose it
skips without a word: a model that has none of the others is refused.
Cost: a decomposition of every weight at each stage's start, about four copies of the layers' weights while training.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from everlearn.errors import RecipeError
from everlearn.methods.base import Facts, Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.models.state import PartSettings, Tuning
from everlearn.training.influence import Influence, OptimizerStep, Training
from everlearn.training.phase import Phase

if TYPE_CHECKING:
    from torch import Tensor

LOW = "low"
"""Name of the part that is trained."""
Share = Annotated[float, Field(gt=0, lt=1)]


class OsfOptions(MethodOptions):
    """How much is kept, of which layers, and how."""

    preserved: Share | Annotated[list[Share], Field(min_length=1)] = 0.5
    """Share of each layer's directions that are kept (PEFT: half). A list has one for each stage, the last one for
    all that follow (PEFT's example: 0.3, 0.5, 0.7)."""
    targets: Annotated[list[str], Field(min_length=1)] | Literal["all-linear"] = "all-linear"
    """Names of the layers, or all linear ones but the output head."""
    project: Literal["weights", "gradient"] = "weights"
    """`weights`: the trained directions are projected after each step, which holds for any optimizer (chosen here);
    `gradient`: gradients alone (PEFT)."""

    def preserved_at(self, stage: int) -> float:
        """The share of a stage, counted from 1."""
        shares = self.preserved if isinstance(self.preserved, list) else [self.preserved]
        return shares[min(stage, len(shares)) - 1]


def kept_directions(weight: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The largest singular directions of a weight, (outputs, count) and (count, inputs), float32."""
    import torch

    left, _, right = torch.linalg.svd(weight.detach().float(), full_matrices=False)
    return left[:, :count], right[:count]


def project_out(left: Tensor, right: Tensor, kept_left: Tensor, kept_right: Tensor) -> tuple[Tensor, Tensor]:
    """What of trained directions is orthogonal to those that are kept.

    Args:
        left: U_l, (outputs, trained).
        right: V_l, (trained, inputs).
        kept_left: U_h, (outputs, kept).
        kept_right: V_h, (kept, inputs).
    """
    return left - kept_left @ (kept_left.T @ left), right - (right @ kept_right.T) @ kept_right


class OrthogonalSubspace(Influence):
    """Takes out of the trained directions what has leaked into those that are kept."""

    def begin(self, training: Training) -> None:
        """Decomposes the weights once more: what PEFT keeps for itself differs between its releases."""
        weights = dict(training.model.named_parameters())
        self._pairs: list[tuple[Tensor, Tensor, Tensor, Tensor]] = []
        for name, left in training.parameters.items():
            layer, found, rest = name.partition(".osf_svd_params.")
            if not found or not rest.endswith(".U_low"):
                continue
            weight = weights[f"{layer}.base_layer.weight"]
            right = training.parameters[f"{name.removesuffix('U_low')}V_low"]
            kept = kept_directions(weight, min(weight.shape) - left.shape[1])
            self._pairs.append((left.data, right.data, *kept))

    def after_step(self, step: OptimizerStep) -> None:
        """Projects the weights as the optimizer has left them."""
        for left, right, *kept in self._pairs:
            projected = project_out(left.float(), right.float(), *kept)
            left.copy_(projected[0])
            right.copy_(projected[1])


@register
class Osf(Method):
    """Trains in the space that the large singular directions of the weights leave."""

    Options = OsfOptions
    options: OsfOptions
    traits = frozenset({"changes parts", "merges parts"})

    def check(self, facts: Facts) -> None:
        """Refuses LoRA, an older PEFT, and a model of which nothing, or not all that is named, could be trained.

        Raises:
            RecipeError: says what to change.
            ModelError: names a target that the model does not have.
        """
        import peft
        from torch.nn import Linear

        from everlearn.models.loading import skeleton
        from everlearn.models.targets import check_targets, named_modules

        if facts.model.tuning != "full":
            raise RecipeError(
                f"method {self.name}: it trains parts of whole weights, and model.tuning: {facts.model.tuning} leaves "
                "those as they are: set model.tuning to full."
            )
        if "OSF" not in peft.PeftType.__members__:
            raise RecipeError(
                f"method {self.name}: PEFT {peft.__version__} has no OSF yet: install a newer one (pip install -U "
                "peft)."
            )
        model = skeleton(facts.model)
        check_targets(model, self.options.targets, f"method.{self.name}.targets")
        layers = named_modules(model, self.options.targets)
        linear = {path: min(layer.weight.shape) for path, layer in layers.items() if isinstance(layer, Linear)}
        if not linear:
            raise RecipeError(
                f"method {self.name}: this {model.config.model_type} model has no layer that PEFT's OSF could "
                f"decompose among method.{self.name}.targets ({self.options.targets}), so nothing would be trained: "
                "use other targets or another method."
            )
        smallest = min(linear, key=lambda path: linear[path])
        for stage in range(1, len(self.stages(facts.stream)) + 1):
            share, size = self.options.preserved_at(stage), linear[smallest]
            if not 0 < int(size * share) < size:
                raise RecipeError(
                    f"method {self.name}: method.{self.name}.preserved {share:g} of the {size} directions of "
                    f"{smallest} leaves none to keep or none to train: give another share."
                )

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """One, which decomposes the weights as they are and merges what it has trained."""
        targets = self.options.targets
        settings = {
            "effective_rank": self.options.preserved_at(context.stage.index),
            "target_modules": targets if isinstance(targets, str) else list(targets),
        }
        tuning = Tuning(context.state, moves={LOW: 1.0}, adds={LOW: PartSettings("OSF", settings)}, after="merge")
        return [Phase(tuning=tuning)]

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """The projection after each step, unless PEFT's alone is asked for."""
        return [OrthogonalSubspace()] if self.options.project == "weights" else []
