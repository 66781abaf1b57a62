"""LCIA: groups of tasks whose instructions are alike, in each of which averages of the weights take a stage's place.

Training itself is plain. A task whose instructions are like those of an earlier group goes on from that group's last
stage, and beside its weights runs an average, each tensor's at a rate of its own that is computed anew at every step
(`everlearn.training.averaging` has the formulas); when the stage ends, the average is what is saved, measured and
trained on. Any other task opens a group, from the latest stage, and is trained plainly. A row is answered by the
weights of the group that its instruction is nearest to (`everlearn.evaluation.instruction_groups`). Nothing of earlier
tasks is kept, and no term is added.

Source: Qiao et al., "Large Continual Instruction Assistant", ICML 2025 (arXiv 2410.10868), and its published code
(JingyangQiao/CoIN). The paper's body could not be read. The code puts the paper's expression on the *new* weights,
while the paper, as a third party tells it, has it on the *old* average; as its discrete form is inferred, and so used
all but keeps the trained weights, the code's is the default here, an exception to the rule that the paper comes first.
`next` has the constants of the group's later library (ecnu-sii/Continual-NExT), `fixed` is an ordinary moving average.
Gradients are those of the whole batch after clipping; the published run took one process's own.

In the code groups, starts, the switch of the average and the weights that answer were set by hand in scripts, after
what a program had printed; here they follow from the rows. It routes whole test files (`routing: task`), the paper's
abstract says each instance. Whether the paper's new groups begin afresh is not known (`expand_init`). Its threshold
of 0.9 asks for one wording of instructions a task; streams with several need about 0.3, as in the code. The later
library has one group (`groups: false`).

The rates depend on the size of tensors: on small models `scale` near 0.01 averages, and with 2 hardly any rate is
valid. What a stage was decided to be, the mean rate and the share of fallbacks are among its findings.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from everlearn.data.instance import Task
from everlearn.errors import RecipeError
from everlearn.evaluation.by_instruction import ByInstruction, Groups, Routing
from everlearn.evaluation.instruction_groups import (
    Decision,
    InstructionText,
    PlannedStage,
    grouped,
    instruction_of,
    instructions_of,
    last_stages,
    planned,
    stop_words,
)
from everlearn.files import read_mapping
from everlearn.findings import Findings, Table
from everlearn.methods.base import Facts, Method, MethodOptions, Stage, StageContext, Trait
from everlearn.methods.registry import register
from everlearn.models.state import ModelState, Tuning
from everlearn.training.averaging import Form, StartsAs
from everlearn.training.phase import Phase

if TYPE_CHECKING:
    from everlearn.training.influence import Influence

MOSTLY = 0.9
"""Share of fallbacks beyond which a stage's average is said to be a plain one (chosen here)."""
LOOKED_AT = 500
"""Instructions of a group that are tried before training (all of a group with 10,000 would take minutes)."""


class LCIAOptions(MethodOptions):
    """How the rates of the average are found, and how tasks are put into groups."""

    coefficient: Form = "code"
    """`code`: as the published code; `next`: the same with the later library's constants; `published`: the paper's,
    inferred; `fixed`: `fallback_rate` at every step."""
    scale: Annotated[float, Field(gt=0)] | None = None
    """Factor of the rates of `code` and `next`. Nothing means 2 and 0.01, as in their code."""
    fallback_rate: Annotated[float, Field(ge=0, le=1)] | None = None
    """Rate where the formula gives none between 0 and 1. Nothing means 0.01 (the paper's, on the other side, and the
    code's), with `next` 0.001."""
    average_starts_as: StartsAs | None = None
    """`first_step`: the weights after the stage's first step, as in the code (with a warm-up its rate is 0); `start`:
    those that the stage begins with. Nothing means `first_step`, with `published` `start` (chosen here)."""

    groups: bool = True
    """Whether tasks are put into groups by their instructions; else all are one group."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.9
    """Least similarity of a task to its group, and of an instruction to the group that answers it (as in the code,
    which has 0.3 where the tasks have several wordings)."""
    instruction: InstructionText = "field"
    """Which text of a row is its instruction: `field` (chosen here for text), or out of all that is asked, as the code
    does by data set: `last_line`, `last_line_to_colon`, `second_line`, `whole`."""
    expand_init: Literal["latest", "fresh"] = "latest"
    """What a new group starts from: the `latest` stage (the code), or the base."""
    routing: Routing = "instance"
    """Whether each row's group is found by itself (the paper's abstract), or that of all rows of a task together (the
    code), which must be told what belongs to one task."""
    exact_first: bool = False
    """Whether an instruction that stands in a group goes there whatever the similarity (not published); not with
    `routing: task`, which looks at those of a task together."""

    @model_validator(mode="after")
    def _needs_groups(self) -> LCIAOptions:
        for key in ("threshold", "instruction", "expand_init", "routing", "exact_first"):
            if not self.groups and getattr(self, key) != type(self).model_fields[key].default:
                raise ValueError(f"{key} has a meaning with groups only, not with groups: false: leave it out")
        return self

    @model_validator(mode="after")
    def _looks_at_one_or_at_all(self) -> LCIAOptions:
        if self.exact_first and self.routing == "task":
            raise ValueError("exact_first looks at one instruction, and routing: task at all of a task: leave one out")
        return self

    @model_validator(mode="after")
    def _scale_is_of_a_formula(self) -> LCIAOptions:
        if self.scale is not None and self.coefficient not in ("code", "next"):
            raise ValueError(
                f"scale has a meaning for coefficient: code or next only, not for {self.coefficient}: leave it out"
            )
        return self


@register
class LCIA(Method):
    """Averages the weights of tasks whose instructions are alike, and answers each row by its instruction's group."""

    Options = LCIAOptions
    title = "LCIA"
    Answerer = ByInstruction
    options: LCIAOptions
    traits: frozenset[Trait] = frozenset({"averages weights"})
    frees: ClassVar[Mapping[Trait, str]] = {"starts elsewhere": "groups to false"}
    bears_sharding = True

    def __init__(self, options: LCIAOptions) -> None:
        super().__init__(options)
        self._notes: list[str] = []
        self._read: dict[str, tuple[Task, list[str]]] = {}
        self._known: tuple[list[list[str]], list[Decision], list[list[str]]] | None = None
        if options.groups:
            self.traits |= {"starts elsewhere"}
        if options.groups and options.routing == "task":
            self.traits |= {"is told tasks"}

    def check(self, facts: Facts) -> None:
        """Looks at the groups that the stream will have; what is to be known of them is told with the first stage.

        Raises:
            RecipeError: none of a group's own instructions would be answered by it.
        """
        tasks = facts.stream.tasks
        if len(tasks) == 1:
            self._notes = ["there is but one task, so nothing is averaged: the stage is trained plainly"]
        if not self.options.groups or len(tasks) == 1:
            return
        decisions, groups = self._grouped(tasks)
        threshold, exact = f"threshold {self.options.threshold:g}", self.options.routing == "instance"
        if len(groups) == len(tasks):
            nearest, at, other = max(
                (like, at, other) for at, one in enumerate(decisions) for other, like in enumerate(one.similarities)
            )
            self._notes = [
                f"no two tasks have instructions that are alike ({threshold}; the most alike, {nearest:.2f}, are "
                f"those of {tasks[other].name} and {tasks[at].name}), so each opens a group and nothing is averaged: "
                "a lower threshold puts tasks together"
            ]
        answerer = self._answerer(groups, {})
        for number, texts in enumerate(groups if len(groups) > 1 else (), 1):
            members = ", ".join(task.name for task, one in zip(tasks, decisions, strict=True) if one.group == number)
            tried = texts[:LOOKED_AT]
            missed = sum(group != number for group, _ in answerer.routes(tried).values())
            if missed == len(tried):
                raise RecipeError(
                    f"method {self.name}: none of the {len(tried)} instructions of group {number} ({members}) is like "
                    f"the group as a whole ({threshold}), so it would answer nothing: set a lower threshold (0.3 is "
                    f"the published one for several wordings), {'exact_first: true, ' if exact else ''}or "
                    "groups: false."
                )
            if missed:
                self._notes.append(
                    f"{missed} of {len(tried)} instructions of group {number} ({members}) will be answered by another "
                    f"group: a lower threshold{' or exact_first: true' if exact else ''} keeps more of them"
                )

    def phases(self, context: StageContext) -> Sequence[Phase]:
        """One, from the last stage of the task's group; of a new group from the latest stage or the base."""
        index = context.stage.index
        for note in self._notes if index == 1 else ():
            context.progress.say(f"{self.name}: {note}.")
        if not self.options.groups or index == 1:
            return [Phase()]
        decision, plan = self._decisions(context.stage)[-1], self._plan(context.stage)[-1]
        best = max(decision.similarities)
        context.progress.say(
            f"stage {context.stage.name}: "
            + (
                f"opens group {plan.group} (similarity {best:.2f}"
                if plan.is_new
                else f"group {plan.group} ({best:.2f}"
            )
            + f", threshold {self.options.threshold:g}), from "
            + (f"stage {plan.start}" if plan.start else "the base")
        )
        if plan.start == index - 1:
            return [Phase()]
        start = context.phase_of(plan.start, None) if plan.start else ModelState(context.base_fingerprint)
        return [Phase(tuning=Tuning(start))]

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """From a group's second stage on the average; one over a fresh adapter would pull it back to nothing."""
        from everlearn.training.averaging import OptimalAverage

        options, is_next = self.options, self.options.coefficient == "next"
        if not self._plan(context.stage)[-1].averages:
            return ()
        return [
            OptimalAverage(
                options.coefficient,
                scale=options.scale or (0.01 if is_next else 2.0),
                fallback=self._fallback,
                starts_as=options.average_starts_as
                or ("start" if options.coefficient == "published" else "first_step"),
            )
        ]

    @property
    def _fallback(self) -> float:
        default = 0.001 if self.options.coefficient == "next" else 0.01
        return default if self.options.fallback_rate is None else self.options.fallback_rate

    def answerer(self, context: StageContext) -> ByInstruction | None:
        """By instruction, once there are several groups; each with its last stage's weights."""
        stage = context.stage
        stages = last_stages([one.group for one in self._plan(stage)])
        if len(stages) == 1:
            return None
        models = {f"group_{group}": context.phase_of(at, None) for group, at in sorted(stages.items())}
        return self._answerer(self._grouped((*stage.seen, *stage.tasks))[1], models)

    def findings(self, context: StageContext) -> Findings:
        """The groups so far, which rows they answer, and the rates of the stage's average."""
        stage, options = context.stage, self.options
        plan, tables = self._plan(stage), {}
        numbers: dict[str, float | None] = {}
        if options.groups:
            tables = self._tables(stage)
            numbers["group"] = plan[-1].group
            numbers["similarity to the nearest group"] = max(self._decisions(stage)[-1].similarities, default=None)
        notes: Mapping[str, float] = {}
        if plan[-1].averages and options.coefficient != "fixed" and context.state.folder is not None:
            notes = read_mapping(context.state.folder / "summary.json").get("notes", {})
        if notes:
            numbers |= {"mean rate": notes["average_rate"], "share of fallbacks": notes["fallbacks"]}
        if notes and notes["fallbacks"] > MOSTLY:
            context.progress.say(
                f"stage {stage.name}: {100 * notes['fallbacks']:.1f} % of the rates are the fallback "
                f"{self._fallback:g}, so the average is nearly a plain one: a smaller scale makes more of them valid."
            )
        return Findings(numbers, tables=tables)

    def _tables(self, stage: Stage) -> dict[str, Table]:
        """What each group holds, and how many held-out rows of each task it answers."""
        tasks = (*stage.seen, *stage.tasks)
        decisions, groups = self._grouped(tasks)
        stages = last_stages([one.group for one in decisions])
        answerer = self._answerer(groups, {})
        held, answered = [], []
        for number, texts in enumerate(groups, 1):
            names = [task.name for task, one in zip(tasks, decisions, strict=True) if one.group == number]
            held.append((number, ", ".join(names), len(texts), stages[number]))
        for task, one in zip(tasks, decisions, strict=True):
            asked = [instruction_of(row, self.options.instruction) for row in task.evaluation]
            routes = answerer.routes(dict.fromkeys(asked))
            own = sum(routes[text][0] == one.group for text in asked)
            answered.append((task.name, one.group, len(asked), own, sum(routes[text][1] for text in asked)))
        return {
            "groups of instructions": Table(("Group", "Tasks", "Instructions", "Weights of stage"), held),
            "held-out rows by group": Table(
                ("Task", "Group", "Rows", "Answered by their group", "Like no group"), answered
            ),
        }

    def _answerer(self, groups: list[list[str]], models: Mapping[str, ModelState]) -> ByInstruction:
        options = self.options
        rule = Groups(
            threshold=options.threshold,
            routing=options.routing,
            exact_first=options.exact_first,
            instruction=options.instruction,
            stop_words=stop_words(),
            groups=groups,
        )
        return ByInstruction(rule, models)

    def _plan(self, stage: Stage) -> list[PlannedStage]:
        """This stage and those before it; of one group without groups."""
        groups = [one.group for one in self._decisions(stage)] if self.options.groups else [1] * stage.index
        return planned(groups, self.options.expand_init)

    def _decisions(self, stage: Stage) -> list[Decision]:
        return self._grouped((*stage.seen, *stage.tasks))[0]

    def _grouped(self, tasks: Sequence[Task]) -> tuple[list[Decision], list[list[str]]]:
        """From the tasks' instructions alone, so that there is nothing to keep; the last result is remembered."""
        for task in tasks:
            if task.name not in self._read or self._read[task.name][0] is not task:  # a look at each row takes time
                self._read[task.name] = (task, instructions_of(task.train, self.options.instruction))
        texts = [self._read[task.name][1] for task in tasks]
        if self._known is None or self._known[0] != texts:
            self._known = (texts, *grouped(texts, self.options.threshold, stop_words()))
        return self._known[1], self._known[2]
