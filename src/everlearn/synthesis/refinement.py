"""Output refinement: the latest model answers the synthetic inputs, greedily; the base model's answers go.

As published, the result is stripped and nothing else is done to it; a row with an empty answer is dropped, as the
published data loader does. The prompt is exactly that of training, its cut included (the scripts' own texts for other
templates than vanilla differ from it, spec section 12, P1 and P2; `published_frame` has them as far as they are
known), and an answer ends where training ends one.
Source: arXiv 2403.01244, section 3.3 and the released script (spec section 4).

Chosen here, for the improved preset: answers that do not end within a cap, that are none of the task's labels, or that
are like no demonstration's (`degenerate.py`) are dropped (P3, P7), and of what is left as many rows are taken as were
asked for, labels in the proportion of the real rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

from everlearn.data.control_tokens import framed_ids
from everlearn.data.instance import SYNTHETIC, Instance, Task, Turn
from everlearn.data.prompts import LLAMA2_SYSTEM, bos_ids
from everlearn.errors import RecipeError
from everlearn.generation.protocol import Blend, Sampling
from everlearn.synthesis.degenerate import Expected
from everlearn.synthesis.selection import largest_remainder

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.prompts import PromptTemplate
    from everlearn.generation.protocol import GenerationProgress, Generator
    from everlearn.recipe import TrainingConfig

Row = dict[str, object]


@dataclass(frozen=True, slots=True)
class Answering:
    """How inputs are answered.

    Attributes:
        template: The training template.
        tokenizer: Of the latest model.
        training: Says where training cuts prompts and answers.
        context: The model's context, in tokens.
        max_length: Most tokens of prompt and answer; at most the context.
        max_new_tokens: Most tokens of an answer.
        prompt: `training` or `published`.
        history: What stands before every question (a system message).
        blend: The base model writes along.
    """

    template: PromptTemplate
    tokenizer: PreTrainedTokenizerBase
    training: TrainingConfig
    context: int
    max_length: int
    max_new_tokens: int
    prompt: Literal["training", "published"] = "training"
    history: tuple[Turn, ...] = ()
    blend: Blend | None = None

    def instance(self, row: Mapping[str, object], output: str = "") -> Instance:
        """A selected row as an instance."""
        return Instance(str(row["instruction"]), str(row["input"]), output, "", SYNTHETIC, history=self.history)

    def prompt_ids(self, row: Mapping[str, object]) -> list[int]:
        """The prompt of a selected row."""
        if self.prompt == "training":
            return self.template.prompt_ids(self.instance(row), self.tokenizer, self.training.max_prompt_tokens)
        before, after = published_frame(self.template.name)
        pieces = [(before, False), (str(row["inputs"]), True), (after, False)]
        return [*bos_ids(self.tokenizer), *framed_ids(pieces, self.tokenizer)]

    def has_room(self, row: Mapping[str, object], output: str) -> bool:
        """Whether prompt and answer fit into the model's context when they are trained on."""
        cuts = self.training
        prompt = self.template.prompt_ids(self.instance(row), self.tokenizer, cuts.max_prompt_tokens)
        target = self.template.target_ids(self.instance(row, output), self.tokenizer, cuts.max_target_tokens)
        return len(prompt) + len(target) <= self.context


def published_frame(template: str) -> tuple[str, str]:
    """What the released refinement script writes before and after the input that it hands to generation.

    Raises:
        RecipeError: for a template whose text is not known (that of alpaca carries an unrelated task, P1).
    """
    if template == "vanilla":
        return "", ""
    if template == "llama2":
        return f"<s> [INST] <<SYS>>\n{LLAMA2_SYSTEM}\n<</SYS>>\n\n", " [/INST] "
    raise RecipeError(
        f"refinement_prompt: published is known for the templates vanilla and llama2, not for {template}: use "
        "training."
    )


def answer(
    rows: Sequence[Mapping[str, object]],
    generator: Generator,
    answering: Answering,
    progress: GenerationProgress | None = None,
) -> list[Row]:
    """Lets a model answer selected rows.

    Returns:
        For each row its fields, `targets` (stripped) and `finish_reason`; a prompt that leaves no room for an answer
        gets an empty one, with the reason `no_room`.
    """
    prompts = [answering.prompt_ids(row) for row in rows]
    fitting = [at for at, prompt in enumerate(prompts) if len(prompt) < answering.max_length]
    sampling = Sampling(
        max_new_tokens=answering.max_new_tokens,
        max_length=answering.max_length,
        end_ids=answering.template.end_ids(answering.tokenizer),
        blend=answering.blend,
    )
    completions = generator.generate([prompts[at] for at in fitting], sampling, progress)
    answered: list[Row] = [{**row, "targets": "", "finish_reason": "no_room"} for row in rows]
    for at, (completion,) in zip(fitting, completions, strict=True):
        answered[at] |= {"targets": completion.text.strip(), "finish_reason": completion.finish_reason}
    return answered


def fault_of(
    row: Mapping[str, object],
    answering: Answering,
    *,
    must_end: bool,
    labels: Sequence[str] = (),
    expected: Expected | None = None,
) -> str | None:
    """Why an answered row is dropped, or None.

    Args:
        row: From `answer`.
        answering: As it was answered.
        must_end: Drop answers that the cap has cut.
        labels: The only answers allowed; empty: any.
        expected: What the demonstrations let expect; None: anything.
    """
    target = str(row["targets"])
    if row["finish_reason"] == "no_room":
        return "input_too_long"
    if must_end and row["finish_reason"] == "length":
        return "run_on"
    if not target:
        return "empty_output"
    if labels and target not in labels:
        return "unknown_label"
    if expected and (fault := expected.fault_of_answer(str(row["instruction"]), str(row["input"]), target)):
        return fault
    if not answering.has_room(row, target):
        return "output_too_long"
    return None


def label_shares(task: Task) -> dict[str, int]:
    """How often each label occurs in the task's training rows; equal shares where there are none."""
    found = Counter(row.output for row in task.train)
    known = {label: found[label] for label in task.labels}
    return known if any(known.values()) else dict.fromkeys(task.labels, 1)


def take(answers: Sequence[str], count: int, shares: Mapping[str, int]) -> list[int]:
    """Which rows to keep, in their order, when there are more than asked for.

    Args:
        answers: Of the rows, the best row first.
        count: How many.
        shares: Labels and their shares; a label that has too few rows is made up for by the others, the best first.
            Empty: the first rows are kept.

    Returns:
        Indexes, ascending.
    """
    wanted = dict(zip(shares, largest_remainder(list(shares.values()), count), strict=True)) if shares else {}
    kept, others = [], []
    for at, label in enumerate(answers):
        if wanted.get(label, 0) > 0:
            wanted[label] -= 1
            kept.append(at)
        else:
            others.append(at)
    return sorted([*kept, *others[: max(0, count - len(kept))]])


def as_instances(rows: Sequence[Mapping[str, object]], task: str, history: tuple[Turn, ...]) -> list[Instance]:
    """Rehearsal rows of a task, numbered in order."""
    instances = []
    for number, row in enumerate(rows):
        answer_text = str(row["targets"] if "targets" in row else row["outputs"])
        plain = Instance(str(row["instruction"]), str(row["input"]), answer_text, task, SYNTHETIC)
        instances.append(replace(plain, id=f"{task}-synthetic-{number}", history=history))
    return instances
