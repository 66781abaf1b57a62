"""In-context synthesis: the base model goes on with prompts of demonstrations (SSR; arXiv 2403.01244, section 3.2)."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from everlearn.data.instance import Instance, Task
from everlearn.synthesis.continuations import check_room, prompts_for, sampling_for
from everlearn.synthesis.degenerate import Expected
from everlearn.synthesis.demonstrations import Layout, check_demonstrations, layout_of
from everlearn.synthesis.filters import sift, similarity_bound
from everlearn.synthesis.lengths import counters_of
from everlearn.synthesis.options import DemonstrationOptions, Settings
from everlearn.synthesis.parsing import Candidate, Limits, RawText, Sifted, parse_alpaca, parse_superni
from everlearn.synthesis.prompts import SynthesisPrompt
from everlearn.synthesis.writers.writer import Writer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.generation.protocol import Sampling
    from everlearn.models.loading import LoadedModel
    from everlearn.synthesis.losses import Losses


class FromDemonstrations(Writer):
    """Writes what goes on after demonstrations.

    Args:
        task: With its demonstrations.
        options: As the user gave them.
        settings: With the preset's values.
        is_refined: Whether another model answers what is selected, so that the labels here do not matter.

    Raises:
        DataError: the demonstrations cannot be used.
    """

    def __init__(self, task: Task, options: DemonstrationOptions, settings: Settings, *, is_refined: bool) -> None:
        super().__init__(task)
        check_demonstrations(task.name, task.demonstrations, options.demonstrations, options.layout)
        self.options, self.settings = options, settings
        self.layout: Layout = layout_of(task.demonstrations) if options.layout == "auto" else options.layout
        self.takes_one_each = self.layout == "alpaca"
        self.filter_version = 2 if settings.is_improved else None
        self._labels = () if is_refined else task.labels

    @property
    def pool(self) -> tuple[Instance, ...]:
        """The demonstrations."""
        return self.task.demonstrations

    @property
    def plan(self) -> tuple[int, int]:
        """Of all ordered subsets."""
        return self.options.plan(self.settings, math.perm(len(self.pool), self.options.demonstrations))

    def describe(self) -> Mapping[str, object]:
        """Demonstrations, prompts and sampling."""
        sampling = {"temperature", "top_k", "max_length", "max_new_tokens", "stop"}
        return {
            "demonstrations": [row.to_json() for row in self.pool],
            "shown": self.options.demonstrations,
            "layout": self.layout,
            "sampling": self.options.model_dump(mode="json", include=sampling),
            "top_p": self.settings.top_p,
            "repetition_penalty": self.settings.repetition_penalty,
            "is_improved": self.settings.is_improved,
        }

    def prompts(self, tokenizer: PreTrainedTokenizerBase, context: int, seed: int) -> list[SynthesisPrompt]:
        """Those of the plan that the model can take."""
        return prompts_for(
            self.task.name,
            self.pool,
            self.layout,
            self.options,
            self.settings,
            tokenizer,
            context,
            seed=seed,
        )

    def check_room(self, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        """By the shortest demonstrations."""
        check_room(self.task.name, self.pool, self.layout, self.options, self.settings, tokenizer, context)

    def sampling(self, tokenizer: PreTrainedTokenizerBase) -> Sampling:
        """One instance a sample, as published with what follows it."""
        return sampling_for(self.pool, self.layout, self.options, self.settings, tokenizer)

    def describe_parsing(self) -> Mapping[str, object]:
        """Layout and marks."""
        return {
            "layout": self.layout,
            "save_more": self.options.save_more,
            "is_anchored": self.settings.is_improved,
        }

    def parse(self, records: Sequence[RawText], model: LoadedModel) -> Sifted:
        """By the marks of the layout."""
        counters, limits = counters_of(model.tokenizer), self._limits(model)
        is_anchored = self.settings.is_improved
        if self.layout == "alpaca":
            return parse_alpaca(records, counters, limits=limits, is_anchored=is_anchored)
        return parse_superni(
            records,
            counters,
            definition=self.pool[0].instruction,
            limits=limits,
            save_more=self.options.save_more,
            is_anchored=is_anchored,
        )

    def _limits(self, model: LoadedModel) -> Limits:
        """The published limits; improved: twice the longest demonstration, since tasks differ in length."""
        if not self.settings.is_improved:
            return Limits() if self.layout == "superni" else Limits(total=None, input=None, output=None)
        count = counters_of(model.tokenizer).text
        return Limits(
            total=min(2 * max(count(row.query) for row in self.pool), model.context_length),
            input=2 * max(count(row.input) for row in self.pool),
            output=2 * max(count(row.output) for row in self.pool),
            embedded=None,
        )

    def describe_sifting(self) -> Mapping[str, object]:
        """Demonstrations, the bound of likeness and the labels."""
        return {
            "demonstrations": self._known,
            "answers": [row.output for row in self.pool],
            "bound": self._bound,
            "labels": list(self._labels),
        }

    def sift(self, candidates: Sequence[Candidate]) -> tuple[Sifted, Mapping[str, object]]:
        """Without copies, repetitions and rows like no demonstration."""
        sifted = sift(
            candidates,
            self._known,
            [row.output for row in self.pool],
            compared=self.compared,
            bound=self._bound,
            labels=self._labels,
            expected=Expected(self.pool, self._labels),
        )
        return sifted, {"bound": self._bound}

    def compared(self, row: Candidate | Instance) -> str:
        """What tells instances apart: the input alone, or with the instruction where that is invented too."""
        return row.input if self.layout == "superni" else row.query

    @property
    def _known(self) -> list[str]:
        return [self.compared(row) for row in self.pool]

    @property
    def _bound(self) -> float:
        given = self.options.near_duplicates
        return similarity_bound(self._known) if given is None else given

    def embedded_text(self, row: Candidate | Instance) -> str:
        """As `embedded_text` of the options says."""
        return row.query if self.options.embedded_text == "query" or not row.input else self.compared(row)

    @property
    def embeds(self) -> object:
        """The option and the layout."""
        return [self.options.embedded_text, self.layout]

    @property
    def remedy_more(self) -> str:
        """Which options do depends on the preset and on each other."""
        prompts, samples = self.plan
        if self.settings.is_improved and prompts * samples >= self.options.oversampling * self.settings.count:
            return "oversampling"
        return "samples_per_prompt" if self.options.max_prompts is None else "samples_per_prompt or max_prompts"

    remedy_answers = f"{Writer.remedy_answers}, or set its refine to false"

    def remedy(self, losses: Losses) -> str:
        """Demonstrations, or another base."""
        labels = "check the task's labels, " if losses.counts["unknown_label"] else ""
        return f"{labels}give more and shorter demonstrations, or take a base model that goes on with examples"
