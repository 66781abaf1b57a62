"""R1-T1: a stage learns to think before it translates from examples, then by reward, held to where it began.

Phase one is plain training on rows with a walk: the completion is the walk and the answer between tags, and the
prompt ends in the opening tag. Phase two is GRPO (`everlearn.training.policy`), on some completions of each prompt:

    reward = 0.2 where the tags are right + max(0, round(q, 2)) of the answer,  q by a scorer
    objective = E[reward] - beta KL(policy || the model as phase one has left it)

so that the model may leave the given patterns without drifting away from what it could. A stage whose rows have no
walk has phase two alone where an earlier stage had examples: they taught how to think once, as a cold start does.
`zero: true` leaves phase one out everywhere (R1-T1-Zero), `epochs: 0` phase two. Answers are cut out of their tags
before they are measured.

Source: R1-T1 (arXiv 2502.19735; of the paper only the abstract could be read) and its code (superboom/R1-T1, spec
sections 2 to 6), whose values of phase two are the defaults. The response alone is scored: the code splits prompt and
response at the first header, which text of the data can move. Its scorer is COMET as a service; here chrF unless
another is asked for. The supervised phase's rates are not published: it trains as the recipe says.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, Self

from pydantic import Field, model_validator

from everlearn.data.mixture import Mixture
from everlearn.data.walk_patterns import Pattern, read_patterns
from everlearn.data.walk_prompts import WalkTemplate
from everlearn.errors import RecipeError
from everlearn.files import read_jsonl, read_mapping
from everlearn.findings import Findings, Table
from everlearn.http import checked_address
from everlearn.methods.base import Facts, Method, MethodOptions, StageContext
from everlearn.methods.registry import register
from everlearn.rewards.scorers import ScorerName, ScorerSettings, make_scorer
from everlearn.training.phase import Phase, PolicyTraining

if TYPE_CHECKING:
    from everlearn.data.instance import Instance
    from everlearn.data.prompts import PromptTemplate

_CHAINS = "chains"
_SHOWN = ("reward", "reward: format", "reward: quality", "KL to the start", "tokens of a completion", "entropy")


class R1T1Options(MethodOptions):
    """How rows are asked, and how the phase by reward goes (the code's values, where it has them)."""

    zero: bool = False
    """Whether the supervised phase is left out (R1-T1-Zero); rows then need no walk."""
    wording: Literal["published", "plain"] = "published"
    """`published`: the system message and the quiz of the paper's code; `plain`: each row's own query."""
    scorer: ScorerName = "chrf"
    """Who judges an answer: `chrf`, `bleu`, `exact`, a `table` of scores, a `comet` model, a `service` over HTTP."""
    scorer_source: str | None = None
    """The table's file, the COMET model's folder, or the service's address."""
    scorer_timeout_s: Annotated[float, Field(gt=0)] = 60.0
    """That a service may take to answer a request."""
    scorer_retries: Annotated[int, Field(ge=0, le=20)] = 4
    """Of a request to a service that has failed, each after twice the pause (published: for ever, without pause)."""
    format_weight: Annotated[float, Field(ge=0)] = 0.2
    """What right tags are worth."""
    round_quality: bool = True
    """Whether quality is rounded to two digits, as published."""
    beta: Annotated[float, Field(ge=0)] = 0.001
    """Strength of the KL to the model that the phase by reward begins with; 0: none."""
    epochs: Annotated[int, Field(ge=0)] = 2
    """Passes of the phase by reward over a stage's rows; 0: the supervised phase alone."""
    prompts: Annotated[int, Field(ge=1)] = 8
    """Rows of a step."""
    rollouts: Annotated[int, Field(ge=2)] = 8
    """Completions of each row in a step."""
    max_new_tokens: Annotated[int, Field(ge=1)] = 8000
    """Longest completion."""
    temperature: Annotated[float, Field(gt=0)] = 0.8
    """At which completions are drawn."""
    learning_rate: Annotated[float, Field(gt=0)] = 4e-7
    """Of the phase by reward; constant."""
    clip: Annotated[float, Field(gt=0, lt=1)] = 0.2
    """Of the ratio of probabilities, on both sides of 1."""
    loss: Literal["bnpo", "dapo"] = "bnpo"
    """Mean over the tokens of what is computed at once (verl's token mean), or over those of the whole step."""
    pass_rows: Annotated[int, Field(ge=1)] | None = None
    """Completions that are computed at once; nothing: all of a step. It must divide `prompts` times `rollouts`."""
    rollouts_by: Literal["engine", "transformers", "vllm"] = "engine"
    """Who writes completions: everlearn's engine, Transformers' `generate`, or vLLM on the same GPU (through TRL)."""
    patterns: str | None = None
    """A YAML file of patterns beside those that ship, or in their place (same id), with which walks are compared."""

    @model_validator(mode="after")
    def _fit_together(self) -> Self:
        if (self.scorer in ("table", "comet", "service")) != (self.scorer_source is not None):
            needs = {"table": "its file", "comet": "a folder", "service": "an address"}.get(self.scorer)
            raise ValueError(
                f"scorer {self.scorer} needs scorer_source, {needs}: give it"
                if needs
                else f"scorer {self.scorer} reads nothing: leave scorer_source out"
            )
        if self.pass_rows is not None and (self.prompts * self.rollouts) % self.pass_rows:
            raise ValueError(
                f"pass_rows {self.pass_rows} does not divide the {self.prompts * self.rollouts} completions of a step "
                "(prompts times rollouts): take a divisor"
            )
        if self.scorer == "service":
            checked_address(self.scorer_source or "")
        if self.zero and not self.epochs:
            raise ValueError("zero leaves the supervised phase out and epochs: 0 the one by reward: keep one of them")
        if self.patterns and not self.epochs:
            raise ValueError("patterns are for walks in the phase by reward, and epochs: 0 leaves it out: drop one")
        return self


@register
class R1T1(Method):
    """Teaches to think before translating, by examples and then by reward."""

    Options = R1T1Options
    options: R1T1Options
    title = "R1-T1"

    def __init__(self, options: R1T1Options) -> None:
        super().__init__(options)
        if options.epochs:
            self.traits = frozenset({"trains by reward"})

    @property
    def _scorer(self) -> ScorerSettings:
        options = self.options
        return ScorerSettings(options.scorer, options.scorer_source, options.scorer_timeout_s, options.scorer_retries)

    def _patterns(self) -> tuple[Pattern, ...]:
        """With which walks are compared: published wordings ask for such walks, the recipe's own where it says so."""
        own = self.options.patterns
        return read_patterns(Path(own) if own else None) if own or self.options.wording == "published" else ()

    def template(self, template: PromptTemplate) -> PromptTemplate:
        """The recipe's, with the opening tag behind the prompt and the answer between tags."""
        return WalkTemplate(template, published=self.options.wording == "published")

    def check(self, facts: Facts) -> None:
        """Refuses rows without walks, too few rows or too long ones, unreadable patterns, a missing scorer or trainer.

        Raises:
            UserError: says what to give or to set.
        """
        from everlearn.crew import crew

        options = self.options
        for stage in self.stages(facts.stream):
            needs_walks = not options.zero and not (stage.seen and options.epochs)  # the first stage has had some
            if needs_walks and not _walks(stage.rows):
                instead = "let method.epochs be above 0" if stage.seen else "set method.zero to true"
                raise RecipeError(
                    f"method {self.name}: no row of {stage.name} has a walk to learn from (tags in its output): write "
                    f"walks with 'everlearn synthesize --chains', or {instead} to learn it by reward alone."
                )
            if options.epochs and len(stage.rows) < options.prompts:
                raise RecipeError(
                    f"method {self.name}: a step by reward asks {options.prompts} rows and {stage.name} has "
                    f"{len(stage.rows)}: lower method.prompts."
                )
        if not options.epochs:
            return
        if crew().count > 1 or facts.training.sharding != "none":
            raise RecipeError(
                f"method {self.name}: training by reward is the work of one process: start the run without accelerate "
                "launch and with training.sharding: none, or set method.epochs to 0."
            )
        if "float16" in (facts.training.precision, facts.model.dtype):
            raise RecipeError(
                f"method {self.name}: training by reward scales no loss, which float16 needs: set training.precision "
                "and model.dtype to float32, or method.epochs to 0."
            )
        from everlearn.data.prompts import get_template
        from everlearn.training.policy import check_trl

        check_trl()
        make_scorer(self._scorer)
        self._patterns()
        template = self.template(get_template(facts.model.template_name, facts.tokenizer))
        most = facts.training.max_prompt_tokens
        for row in (row for task in facts.stream for row in task.train):
            if len(template.text(row).encode()) <= most:
                continue  # a text has no more tokens than bytes
            length = len(template.prompt_ids(row, facts.tokenizer))
            if length > most:
                raise RecipeError(
                    f"method {self.name}: task {row.task}, training row {row.id} has a prompt of {length} tokens, and "
                    f"training.max_prompt_tokens ({most}) would cut its source: raise it, or set training.too_long to "
                    "leave_out."
                )

    def rehearsal(self, context: StageContext) -> Mixture:
        """Leaves rows without a walk out of the supervised phase, and says how many."""
        rows = context.stage.rows
        walks = _walks(rows)
        if self.options.zero or len(walks) == len(rows):
            return Mixture()
        if not walks:
            context.progress.say(
                f"stage {context.stage.name}: no row has a walk, and earlier ones had: it is learnt by reward alone"
            )
            return Mixture()
        context.progress.say(
            f"stage {context.stage.name}: {len(rows) - len(walks)} of {len(rows)} rows have no walk: they are "
            "asked in the phase by reward alone"
        )
        return Mixture(rewritten=walks)

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """The chains, where there are any, then the reward."""
        options = self.options
        if not options.epochs:
            return [Phase()]
        policy = PolicyTraining(
            context.stage.rows,
            self._scorer,
            epochs=options.epochs,
            prompts=options.prompts,
            rollouts=options.rollouts,
            max_new_tokens=options.max_new_tokens,
            temperature=options.temperature,
            beta=options.beta,
            clip=options.clip,
            format_weight=options.format_weight,
            rounds_quality=options.round_quality,
            loss=options.loss,
            pass_rows=options.pass_rows,
            rollouts_by=options.rollouts_by,
            patterns=self._patterns(),
        )
        changes = {"learning_rate": options.learning_rate, "scheduler": "constant", "warmup_ratio": 0.0}
        if options.zero or not _walks(context.stage.rows):
            return [Phase(policy=policy, changes=changes)]
        return [Phase(_CHAINS, is_released=False), Phase(parent=_CHAINS, policy=policy, changes=changes)]

    def findings(self, context: StageContext) -> Findings | None:
        """Who has judged, and where rewards and KL began and ended."""
        if not self.options.epochs:
            return None
        folder = context.phase_of(context.stage.index, None).folder
        assert folder is not None, "the stage was trained"
        history, summary = list(read_jsonl(folder / "history.jsonl")), read_mapping(folder / "summary.json")
        part = max(1, len(history) // 10)
        means = [
            [name, *(_mean([row[name] for row in some if name in row]) for some in (history[:part], history[-part:]))]
            for name in _SHOWN
        ]
        equal = summary["equal_steps"]
        return Findings(
            {"steps in which all completions of each prompt had equal rewards": float(str(equal))},
            tables={
                f"by reward (scorer: {summary['scorer']})": Table(("mean of", "first steps", "last steps"), means)
            },
        )


def _walks(rows: Sequence[Instance]) -> list[Instance]:
    """Those with a walk."""
    return [row for row in rows if row.walk]


def _mean(values: Sequence[object]) -> float | None:
    return sum(float(str(value)) for value in values) / len(values) if values else None
