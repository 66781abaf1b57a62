"""From the raw continuations of a base model to candidate instances, every dropped piece with its reason.

As published, `parse_superni` splits a continuation on the literals `Input:` and `Output:` wherever they stand and
keeps pieces with exactly one `Output:`; `parse_alpaca` takes at most one instance from a continuation. Then both
apply the published length limits, counted as there: the model's tokens with BOS, and the tokens of the embedding
model with its two special tokens.
Source: the released parser (spec sections 2 and 9).

`is_anchored` (chosen here, for the improved preset) reads the words as marks only at the start of a line, so that
texts which quote them survive, and gives `parse_alpaca` all blocks of a continuation. A kept piece that the length
limit of generation has cut is marked `is_cut`. Filters that go beyond the published ones are in `filters.py`.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

from everlearn.data.instance import Instance
from everlearn.synthesis.prompts import NO_INPUT

TokenCounter = Callable[[str], int]
_MARKS = {word: re.compile(rf"^[ \t]*{word}:", re.MULTILINE) for word in ("Instruction", "Input", "Output")}


@dataclass(frozen=True, slots=True)
class Limits:
    """Longest texts, in tokens; None: no limit. The defaults are the published ones.

    Attributes:
        total: Definition and input together.
        input: The input alone.
        output: The answer.
        embedded: What the embedding model reads.
    """

    total: int | None = 500
    input: int | None = 800
    output: int | None = 128
    embedded: int | None = 510


@dataclass(frozen=True, slots=True)
class Counters:
    """How tokens are counted.

    Attributes:
        text: By the language model's tokenizer, BOS included (so an empty text has length 1).
        embedded: By the embedding model's tokenizer, its two special tokens included.
    """

    text: TokenCounter
    embedded: TokenCounter


@dataclass(frozen=True, slots=True)
class RawText:
    """One continuation; the fields are those of a row of `raw.jsonl`."""

    inputs: str
    outputs: str
    perm_idx: tuple[int, ...] = ()
    sample: int = 0
    finish_reason: str = "eos"

    @classmethod
    def from_json(cls, row: Mapping[str, object]) -> RawText:
        """Reads a row of `raw.jsonl`."""
        subset = row.get("perm_idx", ())
        assert isinstance(subset, list | tuple), "perm_idx is a list of pool indexes"
        return cls(
            inputs=str(row["inputs"]),
            outputs=str(row["outputs"]),
            perm_idx=tuple(subset),
            sample=int(str(row.get("sample", 0))),
            finish_reason=str(row.get("finish_reason", "eos")),
        )


@dataclass(frozen=True, slots=True)
class Candidate:
    """A parsed instance.

    Attributes:
        instruction: The task's definition, or the instruction that the model invented.
        input: x, what the model invented.
        output: The base model's own answer to it.
        raw_index: Row of the continuation it comes from.
        perm_idx: Demonstrations that the model saw.
        is_cut: Whether generation was cut while the answer was being written.
    """

    instruction: str
    input: str
    output: str
    raw_index: int = 0
    perm_idx: tuple[int, ...] = ()
    is_cut: bool = False

    @property
    def query(self) -> str:
        """Instruction and input as a training row has them."""
        return Instance(self.instruction, self.input, "", "").query

    def to_json(self) -> dict[str, object]:
        """A row of `kept.jsonl`."""
        return {
            "inputs": self.query,
            "outputs": self.output,
            "instruction": self.instruction,
            "input": self.input,
            "raw_index": self.raw_index,
            "perm_idx": list(self.perm_idx),
            "is_cut": self.is_cut,
        }

    @classmethod
    def from_json(cls, row: Mapping[str, object]) -> Candidate:
        """Reads a row that `to_json` made (further keys are ignored)."""
        subset = row["perm_idx"]
        assert isinstance(subset, list | tuple), "perm_idx is a list of pool indexes"
        return cls(
            instruction=str(row["instruction"]),
            input=str(row["input"]),
            output=str(row["outputs"]),
            raw_index=int(str(row["raw_index"])),
            perm_idx=tuple(subset),
            is_cut=bool(row["is_cut"]),
        )


@dataclass
class Sifted:
    """What a step kept and what it dropped.

    Attributes:
        kept: In order.
        rejected: Rows with `text`, `reason` and `raw_index`.
        seen: Pieces looked at, kept or dropped.
    """

    kept: list[Candidate] = field(default_factory=list)
    rejected: list[dict[str, object]] = field(default_factory=list)
    seen: int = 0

    def drop(self, text: str, reason: str, raw_index: int, **more: object) -> None:
        """Notes a dropped piece."""
        self.rejected.append({"text": text, "reason": reason, "raw_index": raw_index, **more})

    @property
    def dropped(self) -> dict[str, int]:
        """How many were dropped for each reason."""
        return dict(Counter(str(row["reason"]) for row in self.rejected))


def definition_in(prompt: str) -> str:
    """The definition of a `superni` prompt: what stands before the first pair."""
    return prompt.split("\n\nInput:")[0]


def parse_superni(
    records: Sequence[RawText],
    counters: Counters,
    *,
    definition: str | None = None,
    limits: Limits = Limits(),
    save_more: bool = False,
    is_anchored: bool = False,
) -> Sifted:
    """Instances of continuations that follow the cue `Input:`.

    Args:
        records: The continuations.
        counters: Token counts for the limits.
        definition: Of the task; None: read from each record's prompt, as published.
        limits: Longest texts.
        save_more: Keep a piece without `Output:` as an input with an empty answer (published, for generators that
            give too few valid instances).
        is_anchored: Marks count at the start of a line only.
    """
    result = Sifted()
    for index, record in enumerate(records):
        task = definition_in(record.inputs) if definition is None else definition
        pieces = _split(record.outputs, "Input", is_anchored)
        for number, piece in enumerate(pieces):
            result.seen += 1
            parts = _split(piece, "Output", is_anchored)
            x = parts[0].strip()
            y = parts[1].strip() if len(parts) > 1 else ""
            reason = _fault(parts, x, y, task, counters, limits, save_more)
            if reason:
                result.drop(piece.strip(), reason, index)
            else:
                is_cut = record.finish_reason == "length" and number == len(pieces) - 1
                result.kept.append(Candidate(task, x, y, index, record.perm_idx, is_cut))
    return result


def _fault(
    parts: Sequence[str], x: str, y: str, definition: str, counters: Counters, limits: Limits, save_more: bool
) -> str | None:
    """The first reason, in the published order, to drop a piece."""
    if len(parts) > 2:
        return "several_outputs"
    if len(parts) == 1 and not save_more:
        return "no_output"
    input_length, output_length = counters.text(x), counters.text(y)
    if input_length == 1:
        return "empty_input"
    if output_length == 1 and not save_more:
        return "empty_output"
    if _exceeds(input_length + counters.text(definition), limits.total) or _exceeds(input_length, limits.input):
        return "input_too_long"
    if _exceeds(output_length, limits.output):
        return "output_too_long"
    if limits.embedded is not None and counters.embedded(x) > limits.embedded:
        return "embedding_too_long"
    return None


def parse_alpaca(
    records: Sequence[RawText],
    counters: Counters,
    *,
    limits: Limits = Limits(total=None, input=None, output=None),
    is_anchored: bool = False,
) -> Sifted:
    """Instances of continuations that follow the cue `Instruction:`.

    A text that was seen before is dropped; it counts as seen even when its first occurrence was too long.

    Args:
        records: The continuations.
        counters: Token counts for the limits.
        limits: Longest texts (published: only `embedded`, on instruction and input together).
        is_anchored: Marks count at the start of a line only, and each `Instruction:` begins an instance; as
            published, a continuation holds one, and the rest of it is part of the answer.
    """
    result = Sifted()
    seen: set[str] = set()
    for index, record in enumerate(records):
        blocks = _split(record.outputs, "Instruction", True) if is_anchored else [record.outputs]
        for number, block in enumerate(blocks):
            result.seen += 1
            reason, candidate = _read_block(block, is_anchored)
            if candidate and candidate.query in seen:
                reason = "duplicate"
            elif candidate:
                seen.add(candidate.query)
                reason = _too_long(candidate, counters, limits)
            if candidate is None or reason:
                result.drop(block.strip(), reason or "", index)
            else:
                is_cut = record.finish_reason == "length" and number == len(blocks) - 1
                result.kept.append(
                    Candidate(candidate.instruction, candidate.input, candidate.output, index, record.perm_idx, is_cut)
                )
    return result


def _read_block(block: str, is_anchored: bool) -> tuple[str | None, Candidate | None]:
    """An instruction block as a candidate, or the reason why it is none."""
    parts = _split(block, "Output", is_anchored)
    if len(parts) != 2:
        return ("no_output" if len(parts) == 1 else "several_outputs"), None
    if not parts[1].strip():
        return "empty_output", None
    before = _split(parts[0], "Input", is_anchored)
    if len(before) != 2:
        return ("no_input" if len(before) == 1 else "several_inputs"), None
    instruction = before[0].strip()
    if not instruction:
        return "empty_instruction", None
    return None, Candidate(instruction, before[1].replace(NO_INPUT, "").strip(), parts[1].strip())


def _too_long(candidate: Candidate, counters: Counters, limits: Limits) -> str | None:
    """The limit that a candidate exceeds."""
    if _exceeds(counters.text(candidate.query), limits.total) or _exceeds(
        counters.text(candidate.input), limits.input
    ):
        return "input_too_long"
    if _exceeds(counters.text(candidate.output), limits.output):
        return "output_too_long"
    if limits.embedded is not None and counters.embedded(candidate.query) > limits.embedded:
        return "embedding_too_long"
    return None


def _exceeds(length: int, limit: int | None) -> bool:
    return limit is not None and length > limit


def _split(text: str, word: str, is_anchored: bool) -> list[str]:
    return _MARKS[word].split(text) if is_anchored else text.split(f"{word}:")


def counts(raw: int, sifted: Sifted) -> dict[str, object]:
    """The content of a parser's `counts.json`."""
    return {"raw": raw, "pieces": sifted.seen, "kept": len(sifted.kept), "dropped": sifted.dropped}
