"""The prompts from which a base model continues with new instances.

`superni`: the definition once, K pairs, the cue `Input:`. `alpaca`: a first line, K triples of instruction, input
and output, the cue `Instruction:`; its typo is part of the published prompt. Both are plain text for the base model,
whatever template the training uses. A prompt that is too long is skipped (published: 2,048 tokens without BOS).
Source: arXiv 2403.01244, section 3.2, appendix, and the released scripts (spec sections 1 and 9).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from everlearn.data.instance import Instance
from everlearn.synthesis.demonstrations import Layout

ALPACA_FIRST_LINE = "Create task instructions following exmaples below."
NO_INPUT = "<noinput>"
PUBLISHED_LIMIT = 2048


@dataclass(frozen=True, slots=True)
class SynthesisPrompt:
    """A prompt and the pool indexes of the demonstrations in it."""

    text: str
    subset: tuple[int, ...]


def superni_prompt(definition: str, rows: Sequence[Instance]) -> str:
    """Definition, blank line, `Input:`/`Output:` pairs verbatim, and the bare cue; no definition, no blank line."""
    head = f"{definition}\n\n" if definition else ""
    return head + "".join(superni_block(row) for row in rows) + "Input:"


def superni_block(row: Instance) -> str:
    """One demonstration as it stands in a prompt."""
    return f"Input: {row.input}\nOutput: {row.output}\n\n"


def alpaca_prompt(rows: Sequence[Instance]) -> str:
    """The first line, blank line, `Instruction:`/`Input:`/`Output:` triples, and the bare cue."""
    return f"{ALPACA_FIRST_LINE}\n\n" + "".join(alpaca_block(row) for row in rows) + "Instruction:"


def alpaca_block(row: Instance) -> str:
    """One demonstration as it stands in a prompt."""
    return f"Instruction: {row.instruction}\nInput: {row.input or NO_INPUT}\nOutput: {row.output}\n\n"


def synthesis_prompts(
    demonstrations: Sequence[Instance],
    subsets: Sequence[tuple[int, ...]],
    layout: Layout,
    *,
    count_tokens: Callable[[str], int],
    limit: int = PUBLISHED_LIMIT,
) -> list[SynthesisPrompt]:
    """The prompts of the given subsets, without those of `limit` tokens or more.

    Args:
        demonstrations: The pool.
        subsets: Pool indexes of each prompt, in order.
        layout: Which of the two forms.
        count_tokens: Tokens of a text, BOS not counted.
        limit: The first length that is too long.
    """
    prompts = []
    for subset in subsets:
        rows = [demonstrations[at] for at in subset]
        text = superni_prompt(rows[0].instruction, rows) if layout == "superni" else alpaca_prompt(rows)
        if count_tokens(text) < limit:
            prompts.append(SynthesisPrompt(text, subset))
    return prompts
