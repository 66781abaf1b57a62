"""Merging after each stage: what is measured and handed back is made of the models of all stages so far.

With theta_i the weights at the end of stage i and D_i = theta_i - theta_0 their change from the base:

    soup         (1/t) sum_i theta_i
    arithmetic   theta_0 + scale * sum_i D_i
    ties         theta_0 + scale * mean of the D_i that agree: of each D_i the largest entries are kept (over the whole
                 model), each entry's sign is that of the kept sum, and the kept values of that sign are averaged
    dare_linear  arithmetic, and
    dare_ties    TIES without trimming, of D_i whose entries are kept with probability `density`, divided by it

Sources: model soups (arXiv 2203.05482), task arithmetic (2212.04089), TIES (2306.01708; its code
prateeky2806/ties-merging for threshold and tied votes), DARE (2311.03099; code yule-BUAA/MergeLM). Ids and the papers'
defaults are from memory. PEFT's TIES differs: it trims tensor by tensor, and merges A and B apart. Here the products
are merged (`models/merges.py`).
The first stage has nothing to merge. That a stage starts from the model before it is chosen here: merges were proposed
for models trained each from the base, which is `start: base`.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from everlearn.errors import RecipeError
from everlearn.files import read_mapping
from everlearn.methods.base import Facts, Method, MethodOptions, StageContext, Trait
from everlearn.methods.registry import register
from everlearn.models.loading import save_checkpoint
from everlearn.models.merges import How, Recipe, merge_adapters, merge_models
from everlearn.models.state import ModelState, Tuning
from everlearn.training.phase import Phase

SCALES: dict[How, float] = {"arithmetic": 0.4, "ties": 1.0, "dare_linear": 0.4, "dare_ties": 1.0}
"""Where nothing is tuned: TIES 1, task arithmetic 0.4 (both as TIES' paper has them, from memory)."""


class MergingOptions(MethodOptions):
    """What is merged, how, and what goes on from it."""

    how: How = "soup"
    """`soup` (mean of the weights), `arithmetic` (sum of the changes), `ties`, `dare_linear` or `dare_ties`."""
    start: Literal["previous", "base"] = "previous"
    """What a stage is trained from: the model that the stage before has trained, or the base."""
    use: Literal["evaluate_only", "continue_from_merged"] = "evaluate_only"
    """Whether the merge is only measured and handed back, or the next stage is trained from it too."""
    scale: Annotated[float, Field(gt=0, le=10)] | None = None
    """Factor of the merged change. Nothing means 0.4 for sums and 1 for TIES."""
    density: Annotated[float, Field(gt=0, le=1)] | None = None
    """Share of entries that TIES or DARE keeps. Nothing means 0.2 (TIES' paper, from memory; for DARE the same)."""
    rank: Annotated[int, Field(ge=1)] | None = None
    """Of the merged adapter. Nothing means the sum of the ranks, with which means and sums are exact, or the recipe's
    rank where the next stage goes on from the merge. What a smaller rank leaves out is said."""

    @model_validator(mode="after")
    def _refuse_what_is_not_used(self) -> MergingOptions:
        if self.use == "continue_from_merged" and self.start == "base":
            raise ValueError("use: continue_from_merged starts each stage from the merge, so start: base cannot hold")
        if self.how in ("soup", "arithmetic") and self.density is not None:
            raise ValueError(f"density is what ties or dare keeps, and how: {self.how} keeps everything: leave it out")
        if self.how == "soup" and self.scale is not None:
            raise ValueError("scale is a factor of changes, and how: soup is a mean of weights: leave it out")
        return self


@register
class Merging(Method):
    """Measures and hands back a merge of the models of all stages so far."""

    Options = MergingOptions
    options: MergingOptions
    traits: frozenset[Trait] = frozenset({"averages weights"})

    def __init__(self, options: MergingOptions) -> None:
        super().__init__(options)
        if options.start == "base" or options.use == "continue_from_merged":
            self.traits |= {"starts elsewhere"}

    def check(self, facts: Facts) -> None:
        """Refuses a rank of whole models.

        Raises:
            RecipeError: says what to leave out.
        """
        if self.options.rank is not None and facts.model.tuning != "lora":
            raise RecipeError(
                f"method {self.name}: rank is that of a merged adapter, and model.tuning: {facts.model.tuning} has "
                "none: leave it out."
            )

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """One, from what the options name."""
        if context.stage.index == 1 or self.options.use == "continue_from_merged":
            return [Phase()]
        if self.options.start == "base":
            return [Phase(tuning=Tuning(ModelState(context.base_fingerprint)))]
        return [Phase(tuning=Tuning(context.phase_of(context.stage.index - 1, None)))]

    def released(self, context: StageContext) -> ModelState | None:
        """The merge of the models that all stages so far have trained."""
        options, index = self.options, context.stage.index
        if index == 1:
            return None
        trained = [context.phase_of(at, None) for at in range(1, index + 1)]
        (part,) = trained[-1].parts
        inners = [state.parts[0].folder / part.kind for state in trained]
        density = 1.0 if options.how in ("soup", "arithmetic") else options.density or 0.2
        scale = options.scale or SCALES.get(options.how, 1.0)
        recipe = Recipe(options.how, scale, density, context.random_seed("merge"))
        rank = options.rank
        if rank is None and part.kind == "adapter" and options.use == "continue_from_merged":
            rank = read_mapping(inners[-1] / "adapter_config.json")["r"]

        def make(folder: Path) -> None:
            if part.kind == "adapter":
                left = merge_adapters(inners, folder / part.kind, recipe, rank)
                if left < 1 - 1e-6:
                    context.progress.say(
                        f"stage {context.stage.name}: the merged adapter's rank leaves {100 * left:.1f} % of the "
                        "merged change (of its squared norm); a larger rank leaves more."
                    )
                return
            base = folder / "base"  # written as the models are, for as long as it is read
            if options.how != "soup":
                save_checkpoint(context.base(), base)
            merge_models(inners, base / part.kind if base.exists() else None, folder / part.kind, recipe)
            shutil.rmtree(base, ignore_errors=True)

        inputs = {
            "trained": [state.fingerprint for state in trained],
            "base": context.base_fingerprint,
            "recipe": [recipe.how, recipe.scale, recipe.density, recipe.seed if recipe.how.startswith("dare") else 0],
            "rank": rank,
        }
        artifact = context.step("released", inputs, make, version=self.version)
        return ModelState(artifact.fingerprint, (replace(part, folder=artifact.path),), made_of=tuple(trained))
