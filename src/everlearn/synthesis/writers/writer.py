"""The seam between the ways of writing instances and what is common to them all: keeping, looking first, selecting.

A writer belongs to one task. It says which model writes, gives it prompts and a sampling, and reads candidates from
the continuations; filters beyond that are its own step. What each of these depends on is described as JSON, for the
fingerprints of the steps `raw`, `parsed` and `filtered` (`candidate_steps.py`).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, ClassVar, Literal

from everlearn.data.control_tokens import plain_ids
from everlearn.data.instance import Instance, Task
from everlearn.data.prompts import bos_ids
from everlearn.synthesis.parsing import Candidate, RawText, Sifted
from everlearn.synthesis.prompts import SynthesisPrompt

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from everlearn.generation.protocol import Sampling
    from everlearn.models.loading import LoadedModel
    from everlearn.synthesis.losses import Losses


class Writer(ABC):
    """How new instances of a task are written.

    Attributes:
        by: The model that writes.
        filter_version: Of the code of `sift`; None: it filters nothing.
        task: What is written.
    """

    by: ClassVar[Literal["base", "latest"]] = "base"
    filter_version: int | None = None

    def __init__(self, task: Task) -> None:
        self.task = task

    @property
    @abstractmethod
    def plan(self) -> tuple[int, int]:
        """Prompts to use and samples of each."""

    @abstractmethod
    def describe(self) -> Mapping[str, object]:
        """All that the continuations depend on beyond model, task, plan and seed, as JSON."""

    @abstractmethod
    def prompts(self, tokenizer: PreTrainedTokenizerBase, context: int, seed: int) -> list[SynthesisPrompt]:
        """The prompts, those with equal first numbers together.

        Args:
            tokenizer: Of the model that writes.
            context: Tokens that it takes in.
            seed: Of the run.

        Raises:
            DataError: the model can take none of them.
        """

    @abstractmethod
    def check_room(self, tokenizer: PreTrainedTokenizerBase, context: int) -> None:
        """Refuses a task of which the model can take no prompt, before anything is written.

        Raises:
            DataError: names the lengths and the remedy.
        """

    def prompt_ids(self, prompt: SynthesisPrompt, tokenizer: PreTrainedTokenizerBase) -> list[int]:
        """A prompt as it is handed to the model: its text behind BOS."""
        return [*bos_ids(tokenizer), *plain_ids(prompt.text, tokenizer)]

    @abstractmethod
    def sampling(self, tokenizer: PreTrainedTokenizerBase) -> Sampling:
        """How continuations are drawn; the seed is set for each chunk."""

    @abstractmethod
    def describe_parsing(self) -> Mapping[str, object]:
        """What `parse` depends on beyond the continuations, as JSON."""

    @abstractmethod
    def parse(self, records: Sequence[RawText], model: LoadedModel) -> Sifted:
        """Candidates that are well formed, and the rest with the reason."""

    def describe_sifting(self) -> Mapping[str, object]:
        """What `sift` depends on beyond the candidates, as JSON."""
        return {}

    def sift(self, candidates: Sequence[Candidate]) -> tuple[Sifted, Mapping[str, object]]:
        """Candidates that could be the task's and are new, and further values for `counts.json`."""
        raise NotImplementedError

    def embedded_text(self, row: Candidate | Instance) -> str:
        """What of an instance is embedded for clusters."""
        return row.query

    @property
    def embeds(self) -> object:
        """What `embedded_text` takes, as JSON."""
        return "query"

    takes_one_each: bool = False
    """Whether the published selection takes one row of each cluster where so many are wanted."""

    @property
    @abstractmethod
    def remedy_more(self) -> str:
        """The options that make the model write more."""

    remedy_answers = (
        "the latest model's answers could not be kept, so train longer (training.epochs), raise the method's "
        "refinement_tokens, spare or oversampling, or lower its minimum"
    )
    """What a user can do when too few answers can be kept."""

    @abstractmethod
    def remedy(self, losses: Losses) -> str:
        """What else a user can do when too little comes out."""
