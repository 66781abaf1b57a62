"""GeRe: general texts are replayed in every stage, and the model is held to its base on them.

One small fixed set of ordinary texts, the same for all tasks, stands beside the rows of each. A step of B rows trains

    (1 / B) sum over rows r:   CE_r + [r is a text] * w_r * IMIT_r

with CE_r the mean over the row's own targets and IMIT_r how far the model is from its base on that text: `tm`, the
margin that only asks each hidden unit to stay in the range (low, middle, high) that it had, or `kl`, `l1`, `l2`
(`everlearn.training.imitation`). What the base made of the texts is computed once a run and read by row: two bits an
element for `tm`, hidden states for the others. It protects what the base could do, from the first stage on; no row of
an earlier task is replayed.

Source: arXiv 2508.04676, of which only the abstract could be read, and its released code (read): formulas, thresholds,
insertion. Second-hand: 4 texts in a batch of 64, weight 100 with full tuning. Inferred: `l1`, `l2`, and that they, as
`kl` (in the code, but never called), stand beside the cross-entropy as `tm` does. Chosen here: `balance: rows` is what
the code's demos do with micro-batches of one row, whatever the micro-batches; deviations in float64; evaluation mode
for the pass of the base; a dynamic weight with adapters. `sequential` with `mean: rows` averages alike, without texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from everlearn.artifacts import Artifact
from everlearn.data.instance import Instance
from everlearn.data.mixture import Group, Mixture
from everlearn.errors import DataError, RecipeError
from everlearn.fingerprints import fingerprint_of
from everlearn.generation.protocol import Sampling
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, StageContext, Trait
from everlearn.methods.registry import register
from everlearn.recipe_paths import Source

if TYPE_CHECKING:
    from everlearn.data.general_set import GeneralSet
    from everlearn.training.influence import Influence

WINDOW = 563
"""Published: 512 + 50 tokens of a task's row, and one."""
_PER_BATCH = 16
"""4 of 64 (second-hand)."""
_GIVEN = "gere/given"
"""Where a run keeps the texts that it was given."""


class GeReOptions(MethodOptions):
    """Which texts are replayed, how often, and how the model is held to its base on them."""

    texts: Source | None = None
    """A file (plain text with blank lines between texts, JSON Lines, Parquet), a folder of such files, a saved dataset
    or `hub-name[:config][@split]`; the run keeps what it takes of them. Nothing: the base writes texts itself, from
    its begin token at temperature 1."""
    column: Annotated[str, Field(min_length=1)] = "text"
    """Key or column of the text in structured files."""
    count: Annotated[int, Field(ge=1)] = 1000
    """Texts (published: the first 1,000 of a file)."""
    max_tokens: Annotated[int, Field(ge=2)] | None = None
    """Most tokens of a text; nothing: 563 (published), or the model's context where that is shorter."""
    windows: Literal["first", "packed"] = "first"
    """`first`: the first tokens of each text (published); `packed`: texts joined and cut into windows of full length,
    for texts that are much shorter than the window."""
    add_bos: bool = False
    """Whether a text begins with the begin token, as the rows of tasks do (published: no)."""
    per_batch: Annotated[int, Field(ge=0)] | None = None
    """Texts that take places in every batch; 0: they are shuffled among the task's rows, each once an epoch (the
    code's default). Nothing: one of 16, at least one (4 of 64, second-hand)."""
    balance: Literal["rows", "halves"] = "rows"
    """`rows`: every row weighs the same, whatever its length; `halves`: the task's rows and the texts of a step weigh
    one half each (the code with a micro-batch of the whole batch)."""
    imitation: Literal["none", "kl", "l1", "l2", "tm"] = "tm"
    """What holds the model to its base on the texts, beside their cross-entropy; `none`: nothing does."""
    weight: Annotated[float, Field(ge=0)] | Literal["dynamic"] | None = None
    """Of the imitation. `dynamic`: as large as the cross-entropy of the same rows, taken anew in every step. Nothing:
    100 with full tuning, `dynamic` with adapters (second-hand: the best of each)."""
    max_dynamic_weight: Annotated[float, Field(gt=0)] | None = None
    """Bound of a dynamic weight, which grows without one as the imitation vanishes (published: none)."""
    sigma_multiple: Annotated[float, Field(gt=0)] = 1.0
    """Of `tm`: standard deviations from the mean to the bounds of the middle range (published)."""
    tm_mean: Literal["violations", "elements"] = "violations"
    """Of `tm`: mean over the elements outside of their range (published), or over all, which fades out smoothly."""
    temperature: Annotated[float, Field(ge=0.01, le=100)] = 2.0
    """Of `kl`: divides both logits; the divergence is not multiplied by its square (published)."""
    anchor: Literal["base", "previous"] = "base"
    """Whose states are kept: those of the base, or, anew in each stage, of the model that it starts with (the
    released code with a folder for each task)."""

    @model_validator(mode="after")
    def _keys_have_a_meaning(self) -> Self:
        if self.max_dynamic_weight is not None and self.weight not in ("dynamic", None):
            raise ValueError("max_dynamic_weight bounds a dynamic weight, so it needs weight: dynamic")
        for key in ("weight", "max_dynamic_weight"):
            if self.imitation == "none" and getattr(self, key) is not None:
                raise ValueError(f"{key} is that of an imitation, so it needs imitation: kl, l1, l2 or tm")
        for key, kind in (("sigma_multiple", "tm"), ("tm_mean", "tm"), ("temperature", "kl")):
            if self.imitation != kind and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} is that of {kind}, so it needs imitation: {kind}")
        if self.texts is None and self.windows == "packed":
            raise ValueError("windows: packed joins given texts, so it needs texts")
        return self


@register
class GeRe(Method):
    """Replays general texts, and holds the model to its base on them."""

    Options = GeReOptions
    options: GeReOptions

    def __init__(self, options: GeReOptions) -> None:
        super().__init__(options)
        distils: set[Trait] = {"distils"} if options.anchor == "previous" and options.imitation != "none" else set()
        self.traits = frozenset({"weighs own rows", *distils})
        self._given: GeneralSet | None = None
        self._about: dict[str, object] = {}
        self._rows: tuple[Instance, ...] = ()

    def check(self, facts: Facts) -> None:
        """Refuses texts that cannot be replayed as asked, and a batch without place for the task's rows."""
        from everlearn.data.general_set import kept_general_set, read_general_set
        from everlearn.data.prompts import bos_ids
        from everlearn.data.text import TextSource

        options, context = self.options, facts.context_length
        batch = facts.training.batch_size
        if self._per_batch(batch) >= batch:
            raise RecipeError(
                f"method gere: {self._per_batch(batch)} texts in every batch leave the task's rows no place "
                f"(training.batch_size is {batch}): raise it, or set per_batch: 0."
            )
        if options.max_dynamic_weight is not None and self._weight(facts.model.tuning) != "dynamic":
            raise RecipeError(
                "method gere: max_dynamic_weight bounds a dynamic weight, and under full tuning the weight is 100 "
                "where none is given: set weight to dynamic, or leave max_dynamic_weight out."
            )
        if options.max_tokens is not None and options.max_tokens > context:
            raise RecipeError(
                f"method gere: max_tokens ({options.max_tokens:,}) is more than the model's context of {context:,} "
                "tokens: lower it, or leave it out."
            )
        if options.texts is None:
            return
        self._about = {
            "texts": [options.texts, options.column, options.count, options.windows],
            "tokens": [min(options.max_tokens or WINDOW, context), options.add_bos],
        }
        try:
            self._given = read_general_set(
                TextSource(options.texts, options.column),
                facts.tokenizer,
                count=options.count,
                window=min(options.max_tokens or WINDOW, context),
                windows=options.windows,
                first=tuple(bos_ids(facts.tokenizer)) if options.add_bos else (),
                measured=facts.measured(),
            )
        except DataError as error:
            self._given = kept_general_set(facts.kept(_GIVEN), self._about, error)
            if self._given is None:
                raise DataError(f"method gere: texts: {error}") from None
        longest = max(len(row.tokens) for row in self._given.rows)
        if options.max_tokens is not None and longest < options.max_tokens:
            raise DataError(
                f"method gere: no text of {options.texts} fills the window of {options.max_tokens} tokens (the "
                f"longest has {longest}): lower max_tokens, or set windows: packed, which joins texts."
            )

    def try_base(self, context: StageContext) -> None:
        """Takes the texts, and computes the base's states of them, before the first training."""
        from everlearn.data.general_set import keep_general_set

        if context.stage.index == 1:
            self._texts(context)
            if self._given:
                inputs = {**self._about, "rows": self._texts_fingerprint(context)}
                context.steps_of(1)(_GIVEN, inputs, partial(keep_general_set, self._given, self._about))
            for note in self._given.notes if self._given else ():
                context.progress.say(f"gere: {note}.")
            if self.options.imitation != "none" and self.options.anchor == "base":
                self._states(context)

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """Texts of full length where the base is to write them; its states of them are read once, or in each stage."""
        from everlearn.data.general_set import row_of
        from everlearn.data.prompts import bos_ids
        from everlearn.generation.writing import Writing

        options, is_first = self.options, context.stage.index == 1
        window = min(options.max_tokens or WINDOW, facts.context_length)
        rows = self._given.rows if self._given else (row_of((0,) * window, "", 0),) * options.count
        is_read = options.imitation != "none" and (is_first or options.anchor == "previous")
        writings, unknown = [], []
        if not self._given and is_first:
            prompt = bos_ids(facts.tokenizer) or [int(facts.tokenizer.eos_token_id)]
            sampling = Sampling(max_new_tokens=window, max_length=window, temperature=1.0)
            writings = [Writing("general texts", [prompt], len(rows), sampling, by_base=True)]
            unknown = [f"{self.name}: how long its texts will be (counted as long as they may be)"]
        read = sum(len(row.tokens) for row in rows) if is_read else 0
        return Forecast(self._mixed(rows, context), writings, read, unknown)

    def rehearsal(self, context: StageContext) -> Mixture:
        """The texts, inserted or shuffled in; with them the rows of the task are averaged in another way."""
        return self._mixed(self._texts(context), context)

    def _mixed(self, rows: Sequence[Instance], context: StageContext) -> Mixture:
        mean = "rows" if self.options.balance == "rows" else "groups"
        count = self._per_batch(context.training.batch_size)
        drawn = partial(_inserted, rows=len(rows), per_step=count) if count else None
        group = Group(self.name, rows, per_step=count or None, drawn=drawn, mean=mean)  # type: ignore[arg-type]
        return Mixture((group,), own=(1.0, mean))  # type: ignore[arg-type]

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """The imitation, in every stage."""
        from everlearn.training.imitation import Imitating, Imitation
        from everlearn.training.teacher import Teacher

        options = self.options
        if options.imitation == "none":
            return ()
        how = Imitating(
            options.imitation,
            self._weight(context.model.tuning),
            options.max_dynamic_weight,
            options.balance,
            options.tm_mean,
            options.temperature,
        )
        artifact = self._states(context)
        return [Imitation(self.name, Teacher.at(artifact.path, artifact.fingerprint), how)]

    def _weight(self, tuning: str) -> float | Literal["dynamic"]:
        if self.options.weight is not None:
            return self.options.weight
        return 100.0 if tuning == "full" else "dynamic"

    def _per_batch(self, batch_size: int) -> int:
        asked = self.options.per_batch
        return max(1, round(batch_size / _PER_BATCH)) if asked is None else asked

    def _texts(self, context: StageContext) -> tuple[Instance, ...]:
        """The rows of raw text, the same in every stage."""
        if self._given is not None:
            return self._given.rows
        assert self.options.texts is None, "given texts are read when they are checked"
        if not self._rows:
            from everlearn.files import read_jsonl

            options = self.options
            inputs = {
                "base": context.base_fingerprint,
                "texts": [options.count, options.max_tokens or WINDOW, options.add_bos],
                "seed": context.seed,
                **context.written_by,
            }
            made = context.steps_of(1)("gere/texts", inputs, partial(self._write_texts, context))
            self._rows = tuple(Instance.from_json(row) for row in read_jsonl(made.path / "texts.jsonl"))
        return self._rows

    def _texts_fingerprint(self, context: StageContext) -> str:
        return fingerprint_of([row.tokens for row in self._texts(context)])

    def _write_texts(self, context: StageContext, folder: Path) -> None:
        from everlearn.files import write_jsonl
        from everlearn.generation.general_texts import sampled_texts
        from everlearn.seeds import derive

        options, base = self.options, context.base()
        with context.progress.step("general texts of the base", options.count) as tick:
            rows = sampled_texts(
                context.generator_for(base),
                base.tokenizer,
                count=options.count,
                window=min(options.max_tokens or WINDOW, base.context_length),
                add_bos=options.add_bos,
                seed=derive(context.seed, "gere", "texts"),
                tick=tick,
            )
        write_jsonl(folder / "texts.jsonl", (row.to_json() for row in rows))

    def _states(self, context: StageContext) -> Artifact:
        """What the base, or the model that the stage starts with, makes of the texts."""
        is_base = self.options.anchor == "base"
        inputs = {
            "model": context.base_fingerprint if is_base else context.latest_fingerprint,
            "texts": self._texts_fingerprint(context),
            "kept": self._kept(context),
            "precision": [context.training.precision, context.model.dtype, context.model.device],
        }
        step = context.steps_of(1) if is_base else context.step
        if self.options.imitation == "kl":  # apart from the states, which `l1` and `l2` may have left
            context.steps_of(1)("gere/head", {"model": context.base_fingerprint}, partial(self._check_head, context))
        return step("gere/states", inputs, partial(self._write_states, context))

    def _kept(self, context: StageContext) -> list[object]:
        """What of the model is kept."""
        options = self.options
        if options.imitation == "tm":
            return ["bands", options.sigma_multiple]
        return ["states", "head"] if options.imitation == "kl" and context.model.tuning == "full" else ["states"]

    def _check_head(self, context: StageContext, folder: Path) -> None:
        from everlearn.files import write_json
        from everlearn.training.teacher import check_head

        check_head(context.base(), self._texts(context)[0].tokens)
        write_json(folder / "head.json", {"reads_states": True})

    def _write_states(self, context: StageContext, folder: Path) -> None:
        from everlearn.training.rows import encode_rows
        from everlearn.training.teacher import keep_bands, keep_states

        options = self.options
        loaded = context.base() if options.anchor == "base" else context.latest()
        rows = encode_rows(
            self._texts(context), context.template, loaded.tokenizer, context.training, loaded.context_length
        )
        with context.progress.step("states of general texts", len(rows)) as tick:
            if options.imitation == "tm":
                keep_bands(folder, loaded, rows, context.training, options.sigma_multiple, tick)
            else:
                keeps_head = "head" in self._kept(context)
                keep_states(folder, loaded, rows, context.training, tick, keeps_head=keeps_head)


def _inserted(order: Sequence[Sequence[int]], seed: int, *, rows: int, per_step: int) -> list[list[int]]:
    """The texts of each step."""
    from everlearn.training.row_order import epochs_of, inserted, shuffled

    turns = iter(range(2**62))
    return inserted(epochs_of(order), per_step, lambda: shuffled(rows, seed, "gere", next(turns)))
