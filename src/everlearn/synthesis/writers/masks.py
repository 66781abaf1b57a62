"""Pseudo-inputs: the base model fills the blanks in masked exemplars (SERS; `everlearn.synthesis.masking`).

As published, all pairs are gone through and the last `Output:` of the whole text is taken; rejected is what the rules
of `mask_filter` reject. Improved (chosen here): as many pairs as `oversampling` asks for, drawn among those in which
something is masked; one text a continuation; no rules of single tasks, but nothing with a blank left in it, nothing
twice as long as the longest exemplar, no copies.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING

from everlearn.data.control_tokens import plain_ids
from everlearn.data.instance import Instance, Task
from everlearn.data.prompts import bos_ids
from everlearn.errors import DataError
from everlearn.generation.protocol import Sampling
from everlearn.seeds import derive
from everlearn.synthesis.degenerate import Expected
from everlearn.synthesis.demonstrations import check_demonstrations
from everlearn.synthesis.filters import sift
from everlearn.synthesis.lengths import counters_of
from everlearn.synthesis.mask_filter import filtered
from everlearn.synthesis.mask_options import MaskOptions
from everlearn.synthesis.masking import (
    BLANK,
    SCRIPTS,
    can_be_masked,
    check_exemplars,
    filled_text,
    instruction_of,
    mask,
    mask_prompt,
    pairs,
    pairs_prompt,
)
from everlearn.synthesis.options import Settings
from everlearn.synthesis.parsing import Candidate, Counters, RawText, Sifted
from everlearn.synthesis.prompts import SynthesisPrompt
from everlearn.synthesis.writers.writer import Writer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.models.loading import LoadedModel
    from everlearn.synthesis.losses import Losses


class FromMasks(Writer):
    """Fills in blanks.

    Args:
        task: With its exemplars, whose answers are not used.
        options: As the user gave them.
        settings: With the preset's values.

    Raises:
        DataError: the exemplars cannot be used.
    """

    def __init__(self, task: Task, options: MaskOptions, settings: Settings) -> None:
        super().__init__(task)
        self.options, self.settings, self.script = options, settings, SCRIPTS[options.script]
        check_demonstrations(task.name, self.pool, 1, "auto")
        check_exemplars(task.name, [row.input or row.instruction for row in self.pool])
        self.filter_version = 1 if settings.is_improved else None
        self._category = options.categories.get(task.name, task.name)

    @property
    def pool(self) -> tuple[Instance, ...]:
        """The exemplars."""
        return self.task.demonstrations

    @property
    def plan(self) -> tuple[int, int]:
        """Pairs of the exemplars that can be filled."""
        return self.options.plan(self.settings, len(self._fillable) if self.settings.is_improved else len(self.pool))

    @property
    def _fillable(self) -> list[int]:
        """Exemplars in which something can be masked."""
        return [at for at, row in enumerate(self.pool) if can_be_masked(_text(row))]

    def describe(self) -> Mapping[str, object]:
        """Exemplars, script and sampling."""
        told = {"script", "rounds", "prompt", "shown", "temperature", "top_k", "max_length", "max_new_tokens", "stop"}
        given = {} if self._category == self.task.name else {"category": self._category}  # the masks depend on it
        return {
            **given,
            "exemplars": [row.to_json() for row in self.pool],
            "options": self.options.model_dump(mode="json", include=told),
            "top_p": self.settings.top_p,
            "repetition_penalty": self.settings.repetition_penalty,
            "is_improved": self.settings.is_improved,
        }

    def prompts(self, tokenizer: PreTrainedTokenizerBase, context: int, seed: int) -> list[SynthesisPrompt]:
        """Those that the model can take with room for what is to be filled."""
        most = self._room(tokenizer, context)
        found = self._all_prompts(seed, lambda text: len(plain_ids(text, tokenizer)) < most)
        return self._fitting(found, tokenizer, context)

    def check_room(self, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        """By the shortest exemplars, whole, since a blank is a few tokens for one word or more."""
        shortest = sorted(map(_text, self.pool), key=lambda text: len(plain_ids(text, tokenizer)))
        shown = [(text, text) for text in shortest[1 : 1 + (self.options.shown or 1)]]
        self._fitting([SynthesisPrompt(self._prompt(shortest[0], shown), (0, 1))], tokenizer, context)

    def _fitting(
        self, found: Sequence[SynthesisPrompt], tokenizer: PreTrainedTokenizerBase, context: int
    ) -> list[SynthesisPrompt]:
        """The prompts that leave room.

        Raises:
            DataError: there are none.
        """
        most = self._room(tokenizer, context)
        lengths = [len(plain_ids(prompt.text, tokenizer)) for prompt in found]
        fitting = [prompt for prompt, length in zip(found, lengths, strict=True) if length < most]
        if not fitting:
            raise DataError(
                f"task {self.task.name}: even the shortest masked prompt has {min(lengths)} tokens, and at most "
                f"{most - 1} fit into the model's context of {context} (and the method's max_length, "
                f"{self.options.max_length}): give shorter demonstrations, or use a model with a longer context."
            )
        return fitting

    def _room(self, tokenizer: PreTrainedTokenizerBase, context: int) -> int:
        """The first length of a prompt that is too long: for a token, or improved for the longest exemplar."""
        most = min(self.options.max_length, context) - len(bos_ids(tokenizer))
        return most - (self._longest(tokenizer) - 1 if self.settings.is_improved else 0)

    def _all_prompts(self, seed: int, fits: Callable[[str], bool]) -> list[SynthesisPrompt]:
        """Of all pairs as published, or of those that are drawn; masked anew for each."""
        draw = random.Random(derive(seed, "synthesis", self.task.name, "masks"))
        places = self._fillable if self.settings.is_improved else list(range(len(self.pool)))
        chosen = list(pairs(len(places), self.script, draw, rounds=self.options.rounds or self.script.rounds))
        if self.settings.is_improved:
            chosen = sorted(draw.sample(chosen, self.plan[0]))
        found = []
        for one, other in ((places[one], places[other]) for one, other in chosen):
            others = [at for at in places if at not in (one, other)]
            subset = (one, other, *draw.sample(others, min(self._shown - 1, len(others))))
            masked = [self._masked(_text(self.pool[at]), draw) for at in subset]
            shown = [(masked[at], _text(self.pool[place])) for at, place in enumerate(subset) if at]
            while self.options.shown is None and len(shown) > 1 and not fits(self._prompt(masked[0], shown)):
                shown.pop()
            found.append(SynthesisPrompt(self._prompt(masked[0], shown), subset[: 1 + len(shown)]))
        return found

    @property
    def _shown(self) -> int:
        """Worked pairs in a prompt."""
        return self.options.shown or (4 if self._goes_on_with_pairs else 1)

    @property
    def _goes_on_with_pairs(self) -> bool:
        return self.options.prompt_of(self.options.preset) == "pairs"

    def _prompt(self, masked: str, shown: Sequence[tuple[str, str]]) -> str:
        if self._goes_on_with_pairs:
            return pairs_prompt(masked, shown)
        return mask_prompt(masked, *shown[0], script=self.options.script)

    def _masked(self, text: str, draw: random.Random) -> str:
        """With a blank, improved, where the draw has dropped only words that stay by their form."""
        masked = mask(text, self.script, draw, task=self._category)
        while self.settings.is_improved and BLANK not in masked:
            masked = mask(text, self.script, draw, task=self._category)
        return masked

    def sampling(self, tokenizer: PreTrainedTokenizerBase) -> Sampling:
        """As published to the end of the context; improved: twice the longest exemplar, one text."""
        options = self.options
        cap, stop = options.max_length, options.stop
        if self.settings.is_improved:
            cap = 2 * self._longest(tokenizer)
            several = any("\n" in _text(row) for row in self.pool)
            stop = (["\nInput:", "\nNow, process"] if several else ["\n"]) if stop is None else stop
        return Sampling(
            max_new_tokens=options.max_new_tokens or cap,
            max_length=options.max_length,
            temperature=options.temperature,
            top_p=self.settings.top_p,
            top_k=options.top_k,
            repetition_penalty=self.settings.repetition_penalty,
            stop=tuple(stop or ()),
        )

    def _longest(self, tokenizer: PreTrainedTokenizerBase) -> int:
        count = counters_of(tokenizer).text
        return max(count(_text(row)) for row in self.pool)

    def describe_parsing(self) -> Mapping[str, object]:
        """Script and category."""
        is_improved = self.settings.is_improved
        return {"script": self.options.script, "category": None if is_improved else self._category}

    def parse(self, records: Sequence[RawText], model: LoadedModel) -> Sifted:
        """What was filled in, but for what the rules reject."""
        counters = counters_of(model.tokenizer)
        read = self._read_published
        if self.settings.is_improved:
            read = partial(self._read_improved, most=2 * self._longest(model.tokenizer))
        result = Sifted(seen=len(records))
        for index, record in enumerate(records):
            found = read(record, counters)
            if isinstance(found, str):
                result.drop(record.outputs.strip(), found, index)
            else:
                result.kept.append(replace(found, raw_index=index, perm_idx=record.perm_idx))
        return result

    def _read_published(self, record: RawText, counters: Counters) -> Candidate | str:
        """A candidate, or the reason why there is none."""
        is_reply = self.options.script == "chatglm"
        text = record.outputs if is_reply else filled_text(record.inputs, record.outputs)
        inputs = instruction_of(self.pool[record.perm_idx[0]].query) + text
        kept, reason = filtered(inputs, self._category, self.options.script, counters)
        if kept is None:
            return reason
        definition, _, text = kept.partition("\n\n")
        return Candidate(definition, text, "")

    def _read_improved(self, record: RawText, counters: Counters, *, most: int) -> Candidate | str:
        """A candidate, or the reason why there is none."""
        text, exemplar = record.outputs.strip(), self.pool[record.perm_idx[0]]
        if not text:
            return "empty_input"
        if record.finish_reason == "length":
            return "run_on"
        if BLANK in text and not any(BLANK in _text(row) for row in self.pool):
            return "blank_left"
        if counters.text(text) > most:
            return "input_too_long"
        if not exemplar.input:
            return Candidate(text, "", "")
        return Candidate(exemplar.instruction, text, "")

    def describe_sifting(self) -> Mapping[str, object]:
        """Exemplars and the bound of likeness."""
        return {"exemplars": [[_text(row), row.output] for row in self.pool], "bound": self._bound}

    def sift(self, candidates: Sequence[Candidate]) -> tuple[Sifted, Mapping[str, object]]:
        """Without copies and repetitions."""
        sifted = sift(
            candidates,
            [_text(row) for row in self.pool],
            [row.output for row in self.pool],
            compared=_text,
            bound=self._bound,
            expected=Expected(self.pool),
        )
        return sifted, {"bound": self._bound}

    @property
    def _bound(self) -> float:
        given = self.options.near_duplicates
        return 1.0 if given is None else given

    def embedded_text(self, row: Candidate | Instance) -> str:
        """As `embedded_text` of the options says."""
        return row.query if self.options.embedded_text == "query" else _text(row)

    @property
    def embeds(self) -> object:
        """The option."""
        return self.options.embedded_text

    @property
    def remedy_more(self) -> str:
        """Which options do depends on whether all pairs are used."""
        if self.settings.is_improved and self.plan[0] >= self.options.oversampling * self.settings.count:
            return "oversampling"
        return "rounds"

    def remedy(self, losses: Losses) -> str:
        """Exemplars, or another base."""
        rules = "" if self.settings.is_improved else "use preset: improved, whose rules are of no single task, "
        return f"{rules}give more and longer demonstrations, or take a base model that fills in blanks as it is shown"


def _text(row: Candidate | Instance) -> str:
    """What is masked: the input, or the instruction where there is none."""
    return row.input or row.instruction
