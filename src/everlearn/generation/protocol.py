"""What a generation engine is: prompts as token ids in, completions out.

The rooms above (synthesis, evaluation, methods) know only this protocol, so that an engine can be exchanged.
Prompts are token ids because the caller's template decides about special tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

GenerationProgress = Callable[[int, int, int], None]
"""Called with (prompts finished, prompts in all, tokens written) as the work goes on; none of them ever falls."""


@dataclass(frozen=True, slots=True)
class Blend:
    """Another model that writes along: the base of the one that an engine is bound to.

    Attributes:
        weight: Of the base, in [0, 1].
        of: What is mixed: the two models' `probabilities`, or the exponentials of their raw `logits`.
    """

    weight: float
    of: Literal["probabilities", "logits"] = "probabilities"


@dataclass(frozen=True, slots=True)
class Sampling:
    """How to decode.

    Attributes:
        max_new_tokens: Most tokens to add to one prompt.
        max_length: Most tokens of prompt and completion together; the model's context bounds it anyway.
        temperature: 0 means greedy; above 0, sampling.
        top_p: Nucleus mass kept, in (0, 1].
        top_k: Most likely tokens kept; 0 keeps all. (Transformers' own default is 50.)
        repetition_penalty: As in Transformers: above 1 it lowers tokens seen in prompt or completion.
        stop: Strings that end a completion; the completion is cut before the first of them.
        end_ids: Token ids that end a completion beside the model's and the tokenizer's own end tokens.
        samples_per_prompt: Independent completions of each prompt.
        seed: Of the random stream; each (prompt index, sample index) has a stream of its own.
        blend: The base model writes along; engines that know none refuse.
    """

    max_new_tokens: int = 512
    max_length: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    repetition_penalty: float = 1.0
    stop: tuple[str, ...] = ()
    end_ids: tuple[int, ...] = ()
    samples_per_prompt: int = 1
    seed: int = 0
    blend: Blend | None = None


@dataclass(frozen=True, slots=True)
class Completion:
    """One continuation: its text without special tokens, its token ids (end token excluded), and why it ended.

    `finish_reason` is `eos`, `stop` (a stop string), or `length`.
    """

    text: str
    token_ids: tuple[int, ...]
    finish_reason: str


class Generator(Protocol):
    """An engine bound to one model in one state."""

    def generate(
        self,
        prompts: Sequence[Sequence[int]],
        sampling: Sampling,
        progress: GenerationProgress | None = None,
    ) -> list[list[Completion]]:
        """Completes every prompt.

        Returns:
            For each prompt, in the given order, `sampling.samples_per_prompt` completions.

        Raises:
            UserError: when a prompt leaves no room in the model's context (names the prompt's index and length), or
                the two models of a blend cannot be mixed.
        """
        ...
