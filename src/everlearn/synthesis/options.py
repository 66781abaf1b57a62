"""The options of synthesis and the two presets behind them.

An option left out (None) takes the preset's value. `faithful` is what the released scripts do; `improved` mends the
pitfalls that the specification lists (spec section 12). `resolve` makes concrete `Settings` of both.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal, Self

from pydantic import Field, model_validator

from everlearn.recipe import Section
from everlearn.shares import share_of
from everlearn.synthesis.prompts import PUBLISHED_LIMIT

if TYPE_CHECKING:
    from everlearn.artifacts import Artifact
    from everlearn.data.instance import Task
    from everlearn.synthesis.job import Job
    from everlearn.synthesis.writers.writer import Writer

Preset = Literal["faithful", "improved"]
Selection = Literal["coverage", "kmeans", "drawn", "random", "supervised"]


class SynthesisOptions(Section, ABC):
    """What all that synthesize can be told, and which parts of the synthesis depend on what they are."""

    preset: Preset = "improved"
    """`faithful`: the published behaviour; `improved`: without duplicates, copies of demonstrations, run-on answers,
    rows like no demonstration (answers that repeat their input) and label skew, with counts that add up. Every
    option below that is left out follows the preset."""

    temperature: Annotated[float, Field(ge=0.01, le=100)] = 0.9
    """Of the sampling (published)."""
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    """Nucleus. faithful: 0.6 (published). improved: 0.95, because 0.6 mostly repeats the demonstrations (P6)."""
    top_k: Annotated[int, Field(ge=0)] = 50
    """Most likely tokens kept; 0: all (50: Transformers' default, which the published scripts leave)."""
    repetition_penalty: Annotated[float, Field(ge=0.01, le=100)] | None = None
    """faithful: 1.2 (published). improved: 1.0, because it also punishes labels and format words that demonstrations
    and answers must share (P6)."""
    max_length: Annotated[int, Field(ge=8)] = PUBLISHED_LIMIT
    """Most tokens of prompt and continuation (published: 2048); the model's context bounds it. Longer prompts are
    skipped."""
    max_new_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of a continuation. faithful: up to `max_length`. improved: twice the longest demonstration, since
    one instance is asked for."""
    stop: list[str] | None = None
    """Strings that end a continuation. faithful: none. improved: the mark of the next instance at a line's start, so
    that a continuation is one instance, which is the one nearest to the demonstrations."""

    near_duplicates: Annotated[float, Field(gt=0, le=1)] | None = None
    """Only improved: inputs more alike than this (character 4-grams, Jaccard) are the same. Left out: at least 0.7,
    and more where the demonstrations resemble each other more."""

    improved_selection: ClassVar[Selection] = "kmeans"
    """`selection` of the preset `improved`."""

    ratio: Annotated[float, Field(gt=0, le=1)] = 0.1
    """Rows to keep, as a share of the task's training rows (published: 10 %)."""
    selection: Selection | None = None
    """`coverage`: rows that together hold what all candidates hold; `kmeans` (published); `drawn`: as many rows drawn
    of each cluster (published for SERS with ChatGLM); `random` (on a par in SSR's paper); or `supervised`: clusters
    fitted on the real training rows. faithful: kmeans. improved: coverage where models write from demonstrations,
    since typical rows leave words out (`everlearn.synthesis.coverage`), unless clusters or an embedding are named;
    otherwise kmeans."""
    clusters: Annotated[int, Field(ge=1)] | None = None
    """Clusters of K-means. faithful: 20 (published). improved: 20, or the number of rows if that is smaller."""
    embedding: str = "model"
    """`model`: mean of the base model's last hidden states, nothing to download; or the name of a
    sentence-transformers model. Published: the pooled output of princeton-nlp/sup-simcse-roberta-base, which neither
    gives (of a model without a pooling of its own, sentence-transformers averages the hidden states)."""
    embedded_text: Literal["input", "query"] = "input"
    """What of a row is embedded, or covered: the input alone, or the instruction as well (not settled in the paper;
    see the spec). Layout alpaca always takes both."""
    minimum: Annotated[float, Field(ge=0, le=1)] | None = None
    """Share of the rows asked for below which synthesis is refused. faithful: 1. improved: 0.25, fewer rows than asked
    for are reported."""

    refinement_tokens: Annotated[int, Field(ge=1)] | None = None
    """Most tokens of a refined answer. faithful: up to `max_length`. improved: twice the longest demonstration's
    answer; answers that do not end by then are dropped (P3)."""
    spare: Annotated[float, Field(ge=0, le=100)] | None = None
    """Only improved: rows refined beyond those asked for, as a share of them, to replace dropped answers and to
    balance labels. Left out: 1, since refining is much cheaper than synthesis."""

    @abstractmethod
    def writer(self, task: Task, settings: Settings, *, is_refined: bool) -> Writer:
        """How candidates are written.

        Args:
            task: What is written.
            settings: These options with the preset's values.
            is_refined: Whether a model answers what is selected.

        Raises:
            DataError: the task's demonstrations cannot be used.
        """

    @abstractmethod
    def is_refined(self, *, has_latest: bool) -> bool:
        """Whether a model answers the selected inputs; `has_latest`: whether there is one beside the base."""

    @abstractmethod
    def answered(self, job: Job, selected: Artifact, place: str) -> Artifact:
        """The step in which the selected inputs are answered: `refined.jsonl`, `rejected.jsonl`, `counts.json`."""


class DemonstrationOptions(SynthesisOptions):
    """What is synthesized from demonstrations and how. Sources: arXiv 2403.01244 and its scripts (spec sections 1 to
    4)."""

    improved_selection: ClassVar[Selection] = "coverage"

    demonstrations: Annotated[int, Field(ge=1, le=100)] = 2
    """Demonstrations in a prompt (K; published: 2). All ordered subsets of the task's pool are used."""
    layout: Literal["auto", "superni", "alpaca"] = "auto"
    """Prompt and parser. `superni`: one definition, the model invents inputs; `alpaca`: it invents instructions too.
    `auto`: superni where all demonstrations share their instruction and have an input."""
    samples_per_prompt: Annotated[int, Field(ge=1, le=10_000)] | None = None
    """Samples of each prompt, exact repetitions among them dropped. faithful: 3 (published). improved: as many as it
    takes for `oversampling`."""
    max_prompts: Annotated[int, Field(ge=1)] | None = None
    """At most that many prompts, drawn by the run's seed. faithful: all. improved: as many as `oversampling` takes."""
    oversampling: Annotated[float, Field(ge=1, le=1000)] = 5
    """Only improved: samples for each row asked for, spread over as many prompts as possible. 5, chosen here: the
    embedded base writes a usable instance in about two of three samples, filters and label balance need a choice."""

    save_more: bool = False
    """Keep an input without answer (published, for a generator that gives too few valid instances); needs `refine`."""

    refine: bool = True
    """Let the latest model answer the selected inputs again (published); otherwise the base model's answers stay."""
    refinement_prompt: Literal["training", "published"] = "training"
    """`training`: exactly the training template. `published`: the text of the scripts, which for template llama2 has
    two BOS and a space more (P2); only for vanilla and llama2."""

    @model_validator(mode="after")
    def _answers_are_needed(self) -> Self:
        if self.save_more and not self.refine:
            raise ValueError("save_more keeps inputs without an answer, so it needs refine: true")
        return self

    def writer(self, task: Task, settings: Settings, *, is_refined: bool) -> Writer:
        """The base model goes on with demonstrations."""
        from everlearn.synthesis.writers.demonstrations import FromDemonstrations

        return FromDemonstrations(task, self, settings, is_refined=is_refined)

    def is_refined(self, *, has_latest: bool) -> bool:
        """Where there is a latest model and refinement is wanted."""
        return self.refine and has_latest

    def answered(self, job: Job, selected: Artifact, place: str) -> Artifact:
        """By the latest model."""
        from everlearn.synthesis.refinement_step import refined_step

        return refined_step(job, self, selected, place)

    def plan(self, settings: Settings, prompts: int) -> tuple[int, int]:
        """How many of the possible prompts to use, and how many samples to draw of each."""
        most = min(prompts, self.max_prompts or prompts)
        if not settings.is_improved:
            return most, self.samples_per_prompt or 3
        samples = math.ceil(share_of(self.oversampling, settings.count))
        if self.samples_per_prompt:
            return min(most, math.ceil(samples / self.samples_per_prompt)), self.samples_per_prompt
        most = min(most, samples)
        return most, math.ceil(samples / most)


@dataclass(frozen=True, slots=True)
class Settings:
    """Options with the preset's values filled in; the fields are those of `SynthesisOptions` but for these.

    Attributes:
        is_improved: Whether the filters, anchored marks, counts that add up and label balance are on.
        count: Rows asked for (M).
        clusters: At most `count` when improved.
    """

    options: SynthesisOptions
    is_improved: bool
    count: int
    top_p: float
    repetition_penalty: float
    selection: Selection
    clusters: int
    minimum: float
    spare: float

    @property
    def least(self) -> int:
        """Fewest rows to go on with."""
        return math.ceil(share_of(self.minimum, self.count))

    @property
    def wanted(self) -> int:
        """Rows to select, spare ones included."""
        return self.count + math.ceil(share_of(self.spare, self.count))

    @property
    def is_clustered(self) -> bool:
        """Whether selection needs embeddings."""
        return self.selection in ("kmeans", "drawn", "supervised")


def resolve(options: SynthesisOptions, count: int) -> Settings:
    """Fills in the preset's values.

    Args:
        options: As the user gave them.
        count: Rows asked for.
    """
    is_improved = options.preset == "improved"

    def value(given: float | None, faithful: float, improved: float) -> float:
        return given if given is not None else improved if is_improved else faithful

    clusters = options.clusters or 20
    return Settings(
        options=options,
        is_improved=is_improved,
        count=count,
        top_p=value(options.top_p, 0.6, 0.95),
        repetition_penalty=value(options.repetition_penalty, 1.2, 1.0),
        selection=selection_of(options),
        clusters=min(clusters, count) if is_improved else clusters,
        minimum=value(options.minimum, 1.0, 0.25),
        spare=value(options.spare, 0.0, 1.0) if is_improved else 0.0,
    )


def selection_of(options: SynthesisOptions) -> Selection:
    """How rows are chosen; clusters or an embedding that are asked for are not passed over."""
    is_clustered = options.preset == "faithful" or options.clusters is not None or options.embedding != "model"
    return options.selection or ("kmeans" if is_clustered else options.improved_selection)


def rows_asked_for(ratio: float, training_rows: int) -> int:
    """M: the share of the task's training rows, at least one."""
    return max(1, round(share_of(ratio, training_rows)))
