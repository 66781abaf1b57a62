"""Options of synthesis from masked exemplars whose labels evolve (SERS)."""

from __future__ import annotations

import math
from abc import ABC
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from everlearn.shares import share_of
from everlearn.synthesis.mask_filter import Category
from everlearn.synthesis.masking import Script
from everlearn.synthesis.options import Selection, Settings, SynthesisOptions

if TYPE_CHECKING:
    from everlearn.data.instance import Task
    from everlearn.synthesis.writers.writer import Writer


class MaskOptions(SynthesisOptions, ABC):
    """What is written from masked exemplars, and who labels it. Source: the released code (spec sections 2 to 5)."""

    script: Script = "llama2"
    """Which of the released scripts' masks, prompt and rules: `llama2` (20 to 60 % of the words), or `chatglm` (10 to
    50 %), of which `selection: drawn`, a hard_ratio of 0.1 and a base_weight of 0.6 are options of their own."""
    rounds: Annotated[int, Field(ge=1, le=1000)] | None = None
    """How often each exemplar is masked beside each other one ("retry"). Left out: the script's, 1 (`llama2`) or 3."""
    prompt: Literal["published", "pairs"] | None = None
    """faithful: the `published` one, a request in words and one worked pair. improved: the request and some `pairs` of
    `Input:` and `Output:`, which smaller base models go on with as well."""
    shown: Annotated[int, Field(ge=1, le=100)] | None = None
    """Worked pairs in a prompt; more than one with prompt: pairs only. Left out: 1 (published), or as many of 4 pairs
    as there is room for (chosen here: with one, the embedded base fills nothing in)."""
    oversampling: Annotated[float, Field(ge=1, le=1000)] = 5
    """Only improved: pseudo-inputs for each row asked for, drawn among all pairs (5 as for SSR, chosen here)."""
    categories: dict[str, Category] = Field(default_factory=dict)
    """Only faithful: task to the category whose published rules its inputs are filtered by. A task that is not named
    here has the category of its own name, where there is one, else the rules for all."""
    max_length: Annotated[int, Field(ge=8)] = 1024
    """Most tokens of prompt and continuation (published); the model's context bounds it. Longer prompts are left
    out."""
    embedded_text: Literal["input", "query"] = "query"
    """What is embedded: the instruction as well (published), or the input alone."""
    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    """Only improved: inputs more alike than this (character 4-grams, Jaccard) are the same. Left out: 1, only equal
    ones, since what is filled in is alike by design."""

    improved_selection: ClassVar[Selection] = "coverage"
    """Of 120 pseudo-inputs with 38 words of an embedded task, the 30 near centres held 26, those by coverage 34."""

    hard_ratio: Annotated[float, Field(ge=0, le=1)] = 0.2
    """Share of the rows that both models label together, those on which they agree least (published: 0.2 and 0.1);
    0: the latest model labels all."""
    base_weight: Annotated[float, Field(ge=0, le=1)] = 0.5
    """Weight of the base model in the mixture (alpha; published: 0.5 and 0.6)."""
    mixture: Literal["probabilities", "logits"] | None = None
    """What is mixed. improved: `probabilities`. faithful: exponentials of raw `logits`, so that the model with the
    larger sum of them counts more."""
    reference: Literal["base", "blank"] | None = None
    """What the latest model's answers are compared with. improved: `base`, the base model's own. faithful: `blank`, as
    in the released files: nothing, so that the first rows in the order of selection are the hard ones."""
    counted: Literal["new", "all"] | None = None
    """Which tokens `refinement_tokens` limits in a mixture. improved: `new` ones. faithful: `all`, prompt and answer
    together (and one), so that long prompts get no label and their rows are dropped."""

    @model_validator(mode="after")
    def _one_is_published(self) -> Self:
        if (self.shown or 1) > 1 and self.prompt_of(self.preset) == "published":
            raise ValueError(
                f"shown ({self.shown}) is above 1, but prompt: published shows one pair: set prompt to pairs"
            )
        return self

    def prompt_of(self, preset: str) -> Literal["published", "pairs"]:
        """The prompt under a preset."""
        return self.prompt or ("pairs" if preset == "improved" else "published")

    def plan(self, settings: Settings, exemplars: int) -> tuple[int, int]:
        """How many pairs are filled, and how many samples each gets."""
        from everlearn.synthesis.masking import SCRIPTS

        script = SCRIPTS[self.script]
        partners = min(exemplars - 1, script.partners or exemplars)
        pairs = exemplars * partners * (self.rounds or script.rounds)
        if not settings.is_improved:
            return pairs, 1
        return min(pairs, math.ceil(share_of(self.oversampling, settings.count))), 1

    def writer(self, task: Task, settings: Settings, *, is_refined: bool) -> Writer:
        """The base model fills in blanks."""
        from everlearn.synthesis.writers.masks import FromMasks

        return FromMasks(task, self, settings)

    def is_refined(self, *, has_latest: bool) -> bool:
        """Always: pseudo-inputs have no answer."""
        return True
