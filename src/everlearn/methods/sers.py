"""SERS: pseudo-inputs with labels that evolve are rehearsed, and the nearer the tasks, the freer is the adapter.

Wang et al., "Self-Evolving Pseudo-Rehearsal for Catastrophic Forgetting with Task Similarity in LLMs", NeurIPS 2025.
Only its abstract could be read: the formulas are those of the released code (a fork of SSR's). After stage i

    x       ~ theta(0) filling the blanks in masked exemplars of task i          (pseudo-inputs)
    x       kept by a filter, then near a cluster's centre, 10 % of the task's size
    y       = theta(i) answering x greedily; where it agrees least with theta(0), both answer together

and a later stage t trains on d(t) and all sets made so far with the loss

    CE + lambda(W) * (1 - share of rehearsed rows) * 1/2 * sum over adapter tensors of mean((theta - theta*)^2)

with W the distance of d(t) to the sets under theta(t-1). Labels are never made again.

Parts: masks, prompt and filter in `everlearn.synthesis.masking` and `mask_filter`, labels in `evolution`; W, lambda
and the pull in `everlearn.training.task_distance` and `similarity_pull`. Where the released code contradicts what the
method is for, its purpose is the default and preset `faithful` the released behaviour: (a) rows are hard against the
base's own answers, not against blanks, which made the first rows hard; (b) probabilities are mixed, not raw logits;
(c) the pull goes to the last stage's adapter, not to zero; (d) lengths count new tokens. `improved` has SSR's mends
besides (counts that add up, spare rows, no copies, labels balanced) and filters by the exemplars instead of rules.

The three parts are independent: `hard_ratio: 0` and `strength_most: 0` leave two of them out. The report has W, lambda
and how many labels the mixture has changed.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field, model_validator

from everlearn.errors import RecipeError
from everlearn.files import read_json, write_json
from everlearn.findings import Findings
from everlearn.fingerprints import fingerprint_of
from everlearn.generation.protocol import Blend
from everlearn.methods.base import Facts, Forecast, StageContext
from everlearn.methods.registry import register
from everlearn.methods.synthesizing import Synthesizing, SynthesizingOptions, mean_tokens
from everlearn.shares import share_of
from everlearn.synthesis.mask_options import MaskOptions

if TYPE_CHECKING:
    import numpy as np

    from everlearn.artifacts import Artifact
    from everlearn.data.instance import Instance, Task
    from everlearn.generation.writing import Writing
    from everlearn.synthesis.job import Job
    from everlearn.synthesis.pipeline import Synthesis
    from everlearn.training.influence import Influence


class SERSOptions(MaskOptions, SynthesizingOptions):
    """What is written and labelled, and how strong the pull is."""

    strength_most: Annotated[float, Field(ge=0)] = 0.6
    """lambda for tasks that are far apart (published); 0: no pull."""
    strength_least: Annotated[float, Field(ge=0)] = 0.15
    """lambda for tasks at no distance (published)."""
    distance_scale: Annotated[float, Field(gt=0)] = 0.08
    """tau: the distance at which lambda has gone 63 % of the way (published)."""
    distance_rows: Annotated[int, Field(ge=1)] = 500
    """Most rows of either side that the distance is taken from, drawn by seed (published)."""
    pull_to: Literal["previous", "zero"] | None = None
    """improved: `previous`, the weights that the stage begins with. faithful: `zero`, which under adapters means the
    base; under full tuning it would be plain weight decay, so it is refused there."""
    pooled: Literal["tokens", "padding"] | None = None
    """Positions whose states the distance is taken from. improved: the rows' `tokens`. faithful: those of `padding` as
    well, in batches of two."""

    @model_validator(mode="after")
    def _strengths_are_in_order(self) -> SERSOptions:
        if 0 < self.strength_most < self.strength_least:
            raise ValueError(
                f"strength_least ({self.strength_least:g}) is above strength_most ({self.strength_most:g}): lower the "
                "one or raise the other, or set strength_most to 0 for no pull"
            )
        return self

    def answered(self, job: Job, selected: Artifact, place: str) -> Artifact:
        """By the latest model, and where that agrees least with the base by both."""
        from everlearn.evaluation.text_metrics import rouge_l
        from everlearn.synthesis.evolution import evolved_step

        return evolved_step(job, self, selected, place, lambda answer, reference: rouge_l(answer, [reference]))


@register
class SERS(Synthesizing):
    """Rehearses pseudo-inputs that the models label, and pulls the adapter by task similarity."""

    Options = SERSOptions
    options: SERSOptions
    title = "SERS"

    def __init__(self, options: SERSOptions) -> None:
        super().__init__(options)
        self._found: dict[str, dict[str, float]] = {}
        if options.strength_most:
            self.traits = self.traits | {"penalty"}

    def check(self, facts: Facts) -> None:
        """Refuses exemplars in which nothing can be masked, and what else cannot work.

        Raises:
            UserError: names the task or the option, and the remedy.
        """
        options = self.options
        if options.strength_most and self._pulls_to_zero and facts.model.tuning == "full":
            raise RecipeError(
                "method sers: a pull to zero has no meaning under full tuning, where zero is no model: set pull_to to "
                "previous, strength_most to 0, or model.tuning to lora."
            )
        if strange := [name for name in options.categories if name not in facts.stream.names]:
            raise RecipeError(
                f"method sers: categories names {strange[0]!r}, which is no task of the stream: use some of "
                f"{', '.join(facts.stream.names)}."
            )
        super().check(facts)

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """With what the distance reads."""
        found, stage, options = super().forecast(context, facts), context.stage, self.options
        rehearsed = found.mixture.rehearsed
        if not (rehearsed and options.strength_most):
            return found
        count = min(options.distance_rows, len(stage.rows), len(rehearsed))
        length = mean_tokens(stage.rows, facts.tokenizer) + mean_tokens(rehearsed, facts.tokenizer)
        return replace(found, read_tokens=found.read_tokens + round(count * length))

    def written(self, task: Task, context: StageContext, facts: Facts) -> list[Writing]:
        """The base answers as well where it is the reference, and both together what is hard."""
        raw, answers = super().written(task, context, facts)
        options, is_faithful = self.options, self._is_faithful
        hard = math.floor(share_of(options.hard_ratio, answers.count))
        found = [raw, answers]
        if options.hard_ratio and (options.reference or ("blank" if is_faithful else "base")) == "base":
            found.append(replace(answers, tokens=None, by_base=True))
        if not hard:
            return found
        mixed = replace(answers.sampling, blend=Blend(options.base_weight))
        return [*found, replace(answers, what=f"{answers.what} by both", count=hard, sampling=mixed)]

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """From the second stage on the pull, as strong as the task is far from what is rehearsed."""
        from everlearn.training.similarity_pull import PUBLISHED_GATE, SimilarityPull
        from everlearn.training.task_distance import strength

        options, rehearsed = self.options, self.rehearsed(context)
        if not rehearsed or not options.strength_most:
            return ()
        distance = self._distance(context, rehearsed)
        found = strength(
            distance, least=options.strength_least, most=options.strength_most, scale=options.distance_scale
        )
        self._found[context.stage.name] = {"task distance (W)": distance, "strength of the pull (lambda)": found}
        if self._is_faithful and found <= PUBLISHED_GATE:
            return ()
        names = context.model.lora.targets
        targets = None if context.model.tuning == "full" or isinstance(names, str) else names
        return [SimilarityPull(found, to_zero=self._pulls_to_zero, targets=targets)]

    @property
    def _is_faithful(self) -> bool:
        return self.options.preset == "faithful"

    @property
    def _pulls_to_zero(self) -> bool:
        return (self.options.pull_to or ("zero" if self._is_faithful else "previous")) == "zero"

    def _distance(self, context: StageContext, rehearsed: Sequence[Instance]) -> float:
        """W, measured once, with the model that the stage starts from."""
        own, options = context.stage.rows, self.options
        count = min(options.distance_rows, len(own), len(rehearsed))
        with_padding = (options.pooled or ("padding" if self._is_faithful else "tokens")) == "padding"
        seeds = {what: context.random_seed(what) for what in ("distance", "projection")}

        def make(folder: Path) -> None:
            from everlearn.training.rows import encode_rows
            from everlearn.training.task_distance import distance_of_rows

            model, draw = context.latest(), random.Random(seeds["distance"])
            drawn = [draw.sample(rows, count) for rows in (list(own), list(rehearsed))]
            new, old = (
                encode_rows(rows, context.template, model.tokenizer, context.training, model.context_length)
                for rows in drawn
            )
            with context.progress.step(f"measuring the distance of {context.stage.name}", 2 * count) as tick:
                found = distance_of_rows(
                    model, new, old, seed=seeds["projection"], with_padding=with_padding, tick=tick
                )
            write_json(folder / "distance.json", {"distance": found, "rows": count})

        inputs = {
            "model": context.latest_fingerprint,
            "rows": [fingerprint_of([row.to_json() for row in rows]) for rows in (own, rehearsed)],
            "count": count,
            "with_padding": with_padding,
            "template": context.template.name,
            "cuts": [context.training.max_prompt_tokens, context.training.max_target_tokens],
            "seeds": seeds,
        }
        stored = read_json(context.step("distance", inputs, make).path / "distance.json")
        assert isinstance(stored, dict), "the distance is in a mapping"
        return float(stored["distance"])

    def note(self, context: StageContext, made: Synthesis) -> None:
        """How many labels both models have made, and how many of them are other than the latest model's."""
        told = made.folder / "refined" / "counts.json"
        if not told.exists():  # with a minimum of 0 a task goes on without any row
            return
        counts = read_json(told)
        assert isinstance(counts, dict), "counts are a mapping"
        labels = {"labels by both models": counts["hard"], "of these changed": counts["changed"]}
        self._found.setdefault(context.stage.name, {}).update(labels)

    def findings(self, context: StageContext) -> Findings:
        """W, lambda and labels of the stage."""
        return Findings(dict(self._found.get(context.stage.name, {})))

    def state_json(self) -> dict[str, object]:
        """The sets, and what was found."""
        return {"sets": super().state_json(), "found": self._found}

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Takes both back."""
        sets, found = values["sets"], values["found"]
        assert isinstance(sets, dict), "sets are by task"
        assert isinstance(found, dict), "what was found is by stage"
        super().load_state(tensors, sets)
        self._found = {stage: dict(numbers) for stage, numbers in found.items()}
