"""What became of every synthetic instance: the funnel from raw generations to rehearsed rows.

Reads the `synthesis` folder of one stage. Every piece that the parser cut out is followed to its end: dropped (at
which step, for which reason), kept but not selected, or refined by the latest model and rehearsed.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from everlearn.report.facts.parsing import Row, form_of, number, optional, rows_of

REASONS = {
    "empty_input": "the input is empty",
    "empty_output": "the answer is empty",
    "no_output": "there is no “Output:” in it",
    "several_outputs": "“Output:” stands in it more than once",
    "input_too_long": "the input is too long",
    "output_too_long": "the answer is too long",
    "embedding_too_long": "the input is too long for the embedding model",
    "duplicate": "too like an earlier instance",
    "copy_of_demonstration": "too like a demonstration",
    "run_on": "the answer runs on without an end",
    "no_input": "there is no “Input:” in it",
    "several_inputs": "“Input:” stands in it more than once",
    "empty_instruction": "the instruction is empty",
    "surplus": "more than were asked for",
    "unknown_label": "the answer is none of the task's labels",
    "copy_of_input": "the answer is the input again",
    "no_letter": "the answer has no letter and no digit",
    "blank_left": "a blank is left in it",
    "cjk": "it has Chinese characters",
    "equals_sign": "an equals sign stands in it",
    "input_too_short": "the input is too short",
    "no_definition": "there is no blank line behind the instruction",
    "no_number_first": "it does not begin with a number",
    "no_question": "there is no question in it",
    "not_for_template": "the template cannot ask it (it names entities that the text does not mark, say)",
    "answers_language": "the input is in the language of the answers",
}


@dataclass(frozen=True, slots=True)
class Fate:
    """One instance and what became of it.

    Attributes:
        kind: `rehearsed`, `selected` (where no model answers it again), `spare` (good but not needed) or `dropped`.
        text: The input, or the whole piece where it could not be parsed.
        answer: The base model's own answer; None where there is none.
        refined: The latest model's answer.
        reason: Why it was dropped, in words.
    """

    kind: str
    text: str
    answer: str | None = None
    refined: str | None = None
    reason: str = ""


@dataclass(frozen=True, slots=True)
class Level:
    """One level of the funnel: what is left, and what was dropped on the way to it."""

    title: str
    count: int
    dropped: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Synthesis:
    """The synthesis of one stage.

    Attributes:
        levels: The funnel.
        fates: Every instance.
        demonstrations: Rows that the base model was shown.
        instruction: The one instruction of all demonstrations; empty where each has its own.
        asked: How many rows were asked for, where known.
        kept_answers: The base model's answers to what the parser kept.
        refined_answers: The answers that are rehearsed.
    """

    levels: Sequence[Level]
    fates: Sequence[Fate]
    demonstrations: Sequence[Row]
    instruction: str
    asked: int | None
    kept_answers: Sequence[str]
    refined_answers: Sequence[str]


def read_synthesis(folder: Path) -> Synthesis | None:
    """Reads `stages/<stage>/synthesis`; None where nothing was synthesized.

    Raises:
        RunError: a file in it is corrupt.
    """
    if not folder.is_dir():
        return None
    parsed, filtered = _step(folder / "parsed"), _step(folder / "filtered")
    selected, refined = _step(folder / "selected", "selected"), _step(folder / "refined", "refined")
    with form_of(folder):
        return _follow(folder, parsed, filtered, selected, refined)


@dataclass(frozen=True, slots=True)
class _Step:
    """Rows of one step's folder."""

    exists: bool
    kept: list[Row]
    rejected: list[Row]
    counts: Mapping[str, object]

    @property
    def dropped(self) -> dict[str, int]:
        given = self.counts.get("dropped")
        if isinstance(given, Mapping):
            return {str(reason): int(number(value) or 0) for reason, value in given.items() if number(value)}
        return dict(Counter(str(row.get("reason", "")) for row in self.rejected))

    def count(self, key: str) -> int | None:
        value = self.counts.get(key)
        return int(value) if isinstance(value, int | float) else None


def _step(folder: Path, rows: str = "kept") -> _Step:
    return _Step(
        folder.is_dir(),
        rows_of(folder / f"{rows}.jsonl"),
        rows_of(folder / "rejected.jsonl"),
        optional(folder / "counts.json", dict) or {},
    )


def _follow(folder: Path, parsed: _Step, filtered: _Step, selected: _Step, refined: _Step) -> Synthesis:
    levels = []
    raw, pieces = parsed.count("raw"), parsed.count("pieces")
    if raw is None:
        raw = len(rows_of(folder / "raw" / "raw.jsonl"))
    levels.append(Level("texts written by the base model", raw, {}))
    if parsed.exists:
        levels.append(Level("instances found in them", pieces or len(parsed.kept) + len(parsed.rejected), {}))
        levels.append(Level("well formed", len(parsed.kept), parsed.dropped))
    if filtered.exists:
        levels.append(Level("after the filters", len(filtered.kept), filtered.dropped))
    pool = filtered.kept if filtered.exists else parsed.kept
    if selected.exists:
        levels.append(Level("selected", len(selected.kept), {"not selected": max(0, len(pool) - len(selected.kept))}))
    if refined.exists:
        levels.append(Level("answered again by the latest model, and rehearsed", len(refined.kept), refined.dropped))
    demonstrations = rows_of(folder / "demonstrations.jsonl")
    instructions = {str(row.get("instruction", "")) for row in demonstrations}
    asked = refined.count("asked") if refined.exists else selected.count("asked")
    return Synthesis(
        levels=levels,
        fates=_fates(parsed, filtered, selected, refined, pool, has_instructions=len(instructions) > 1),
        demonstrations=demonstrations,
        instruction=instructions.pop() if len(instructions) == 1 else "",
        asked=asked,
        kept_answers=[str(row.get("outputs", "")) for row in parsed.kept],
        refined_answers=[str(row.get("targets", "")) for row in refined.kept],
    )


def _fates(
    parsed: _Step, filtered: _Step, selected: _Step, refined: _Step, pool: Sequence[Row], *, has_instructions: bool
) -> list[Fate]:
    """What became of every piece; with its instruction where the model invented that too."""

    def text(row: Row) -> str:
        whole = str(row.get("inputs", row.get("text", "")))
        return whole if has_instructions else str(row.get("input", row.get("text", whole)))

    def dropped(row: Row, where: str) -> Fate:
        code = str(row.get("reason", ""))
        kind = "spare" if code == "surplus" else "dropped"
        reason = reason_in_words(code) if kind == "spare" else f"{reason_in_words(code)} ({where})"
        return Fate(kind, text(row), _text(row, "outputs"), _text(row, "targets"), reason)

    fates = [Fate("rehearsed", text(row), _text(row, "outputs"), _text(row, "targets")) for row in refined.kept]
    fates += [dropped(row, "when answered again") for row in refined.rejected]
    if not refined.exists:
        fates += [Fate("selected", text(row), _text(row, "outputs")) for row in selected.kept]
    if selected.exists:
        used = (*refined.kept, *refined.rejected) if refined.exists else selected.kept
        fates += [
            Fate("spare", text(row), _text(row, "outputs"), reason="not selected") for row in _without(pool, used)
        ]
    fates += [dropped(row, "by a filter") for row in filtered.rejected]
    return fates + [dropped(row, "by the parser") for row in parsed.rejected]


def reason_in_words(code: str) -> str:
    """A reason for reading."""
    return REASONS.get(code, code.replace("_", " ") or "no reason given")


def sample(fates: Sequence[Fate], most: int) -> list[Fate]:
    """At most `most` of them: of every kind and, among the dropped, of every reason, evenly spread."""
    groups: dict[tuple[str, str], list[Fate]] = {}
    for fate in fates:
        groups.setdefault((fate.kind, fate.reason), []).append(fate)
    shares = dict.fromkeys(groups, 0)
    while sum(shares.values()) < min(most, len(fates)):
        for key, members in groups.items():
            weight = {"rehearsed": 3, "selected": 3, "spare": 2}.get(key[0], 1)
            room = min(weight, len(members) - shares[key], most - sum(shares.values()))
            shares[key] += max(0, room)
    return [fate for key, members in groups.items() for fate in spread(members, shares[key])]


def spread(items: Sequence[Fate], most: int) -> list[Fate]:
    """At most `most` items, evenly spread over the list."""
    if len(items) <= most:
        return list(items)
    return [items[place * len(items) // most] for place in range(most)]


def _without(rows: Sequence[Row], used: Sequence[Row]) -> list[Row]:
    """The rows that were not used; of equal inputs as many as were used are left out."""
    remaining = Counter(str(row.get("input", row.get("text", row.get("inputs", "")))) for row in used)
    spare = []
    for row in rows:
        if remaining[_input(row)] > 0:
            remaining[_input(row)] -= 1
        else:
            spare.append(row)
    return spare


def _input(row: Row) -> str:
    return str(row.get("input", row.get("inputs", "")))


def _text(row: Row, key: str) -> str | None:
    value = row.get(key)
    return None if value is None else str(value)
