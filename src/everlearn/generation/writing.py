"""What models are going to write, as far as that is known before they do: for the plan of a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from everlearn.data.samples import LOOKED_AT, even_rows
from everlearn.generation.protocol import Sampling

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.data.instance import Instance
    from everlearn.data.prompts import PromptTemplate


@dataclass(frozen=True)
class Writing:
    """Texts that a model is going to write.

    Attributes:
        what: Names the work; one name, one kind of prompts, which take alike.
        prompts: Token ids, or of others like them where those do not exist yet; of many an even choice.
        count: Prompts in all.
        sampling: How they are completed.
        tokens: Expected of a completion; None: nobody knows before the base model was asked.
        by_base: Whether the base model writes, from which alone what is not known can be learnt.
    """

    what: str
    prompts: Sequence[Sequence[int]]
    count: int
    sampling: Sampling
    tokens: float | None = None
    by_base: bool = False

    @property
    def completions(self) -> int:
        """How many are written."""
        return self.count * self.sampling.samples_per_prompt

    def most_tokens(self, context: int) -> int:
        """Tokens that are written at most, by a model that takes in so many."""
        length = min(context, self.sampling.max_length or context)
        rooms = [min(self.sampling.max_new_tokens, length - len(prompt)) for prompt in self.prompts]
        return round(self.completions * sum(rooms) / max(len(rooms), 1))

    def expected_tokens(self, context: int) -> int | None:
        """Tokens that are expected to be written."""
        return None if self.tokens is None else min(round(self.completions * self.tokens), self.most_tokens(context))


def answering(
    task: str,
    rows: Sequence[Instance],
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    *,
    most_tokens: int,
    most_prompt: int | None = None,
    count: int | None = None,
    is_known: bool = True,
) -> Writing:
    """Greedy answers to rows of a task.

    Args:
        task: Its name.
        rows: With answers.
        template: How they are worded.
        tokenizer: Of the model.
        most_tokens: Of an answer.
        most_prompt: Of a prompt, which is cut; None: no limit.
        count: Answers; None: one a row.
        is_known: Whether answers are expected to be as long as those of the rows.
    """
    some = even_rows(rows, min(len(rows), LOOKED_AT))
    lengths = [len(template.target_ids(row, tokenizer)) - 1 for row in some] if is_known else []
    return Writing(
        f"answers to {task}",
        [template.prompt_ids(row, tokenizer, most_prompt) for row in some],
        len(rows) if count is None else count,
        Sampling(max_new_tokens=most_tokens, end_ids=template.end_ids(tokenizer)),
        sum(lengths) / len(lengths) if is_known else None,
    )
