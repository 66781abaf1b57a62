"""The account of a task's data: what was read, and what became of all that is not used as it stands.

Nothing of a source vanishes without being counted here. The readers fill the account, the manifest keeps it
(`to_json`), the report and `everlearn inspect` show it, and the terminal says in a line what was left out
(`sentences`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any

_NAMED = 6  # keys or spellings named in one sentence; the rest is counted


@dataclass
class PartAccount:
    """What one part of a task (`train`, `evaluation` or `demonstrations`) was read from.

    Attributes:
        source: As the recipe names it.
        format: Name of the shape of the rows.
        rows: Rows in all, those that cannot be used included.
        set_aside: Rows that cannot be used (`bad_rows.jsonl`).
        reasons: Where the first of them stand and why, such as `line 3: no output`.
        instances: Made of the others; a conversation gives one an answer.
        limited: Instances left out by `stream.train_limit` or `stream.evaluation_limit`.
        unread: Key that no reader of this format knows, to the number of rows that hold something under it.
        notes: Sentences on what was decided while reading, such as how quotation marks were taken.
    """

    source: str
    format: str = ""
    rows: int = 0
    set_aside: int = 0
    reasons: list[str] = field(default_factory=list)
    instances: int = 0
    limited: int = 0
    unread: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


@dataclass
class TaskAccount:
    """What became of a task's data.

    Attributes:
        task: Name of the task.
        parts: Part to what it was read from.
        held_out: Instances of the training rows set aside for evaluation, where no evaluation rows are given.
        joined: Label to its other spellings, each with the number of rows that had it.
        metric: The main metric.
        metric_reason: Why that one, as a clause (`3 distinct short answers`).
        trained: Training instances before any is left out for its length.
        prompt_limit: `training.max_prompt_tokens`.
        answer_limit: `training.max_target_tokens`.
        cut_prompts: Training prompts longer than that, which lose their end.
        cut_answers: Training answers longer than that, which lose their end and end token.
        too_long: Training instances left out for their length, where the recipe asks for it.
        evaluated: Evaluation instances.
        long_evaluation_prompts: Of them, those whose prompts are longer than any that is trained on.
        written_limit: `evaluation.max_new_tokens`.
        long_evaluation_answers: Evaluation instances whose answer is longer than that.
        notes: Further sentences for the user.
    """

    task: str
    parts: dict[str, PartAccount] = field(default_factory=dict)
    held_out: int = 0
    joined: dict[str, dict[str, int]] = field(default_factory=dict)
    metric: str = ""
    metric_reason: str = ""
    trained: int = 0
    prompt_limit: int = 0
    answer_limit: int = 0
    cut_prompts: int = 0
    cut_answers: int = 0
    too_long: int = 0
    evaluated: int = 0
    long_evaluation_prompts: int = 0
    written_limit: int = 0
    long_evaluation_answers: int = 0
    notes: list[str] = field(default_factory=list)

    def to_json(self) -> dict[str, object]:
        """As the manifest holds it."""
        return asdict(self)

    @classmethod
    def from_json(cls, stored: Mapping[str, Any]) -> TaskAccount:
        """The inverse of `to_json`; keys of other releases are looked past."""
        parts = {name: PartAccount(**_known(PartAccount, part)) for name, part in stored.get("parts", {}).items()}
        return cls(**{**_known(cls, stored), "parts": parts})

    def sentences(self) -> list[str]:
        """What was left out, joined or cut, one sentence each; empty when every row is used as it stands."""
        return [f"task {self.task}: {sentence}" for sentence in self.remarks()]

    def remarks(self) -> list[str]:
        """As `sentences`, where the task stands above them."""
        said = []
        for name, part in self.parts.items():
            if part.set_aside:
                first = f" ({'; '.join(part.reasons)})" if part.reasons else ""
                said.append(f"{part.set_aside} of {part.rows} rows of {name} cannot be used and are set aside{first}.")
            if part.limited:
                said.append(f"{part.limited} of {part.instances} instances of {name} are left out by the limit.")
            if part.unread:
                keys = listed(f"{key!r} ({_rows(rows)})" for key, rows in part.unread.items())
                said.append(f"keys of {name} that are not read: {keys}.")
            said += part.notes
        for label, spellings in self.joined.items():
            variants = listed(f"{spelling!r} ({_rows(rows)})" for spelling, rows in spellings.items())
            said.append(f"label {label!r} is also written {variants}: read as {label!r}.")
        limits = f"training.max_prompt_tokens ({self.prompt_limit:,})"
        if self.cut_prompts:
            said.append(f"{self.cut_prompts} of {self.trained} prompts are longer than {limits} and lose their end.")
        if self.cut_answers:
            said.append(
                f"{self.cut_answers} of {self.trained} answers are longer than training.max_target_tokens "
                f"({self.answer_limit:,}) and lose their end and their end token."
            )
        if self.too_long:
            said.append(
                f"{self.too_long} of {self.trained} training instances are left out because their prompt has more "
                f"than {self.prompt_limit:,} tokens or their answer more than {self.answer_limit:,}."
            )
        if self.long_evaluation_prompts:
            said.append(
                f"{self.long_evaluation_prompts} of {self.evaluated} evaluation prompts are longer than {limits}: "
                "they are asked whole, although no prompt of that length is trained on."
            )
        if self.long_evaluation_answers:
            said.append(
                f"{self.long_evaluation_answers} of {self.evaluated} evaluation answers are longer than "
                f"evaluation.max_new_tokens ({self.written_limit:,}), so no model can give them whole."
            )
        return [*said, *self.notes]


def data_line(accounts: Iterable[TaskAccount]) -> str | None:
    """What was left out of all tasks' data in one line for the terminal; None where all is used as it stands."""
    accounts = list(accounts)
    parts = [part for account in accounts for part in account.parts.values()]
    unread = dict.fromkeys(key for part in parts for key in part.unread)
    set_aside = sum(part.set_aside for part in parts)
    told = [f"{set_aside} of {sum(part.rows for part in parts)} rows set aside"] if set_aside else []
    for count, noun, fate in (
        (sum(part.limited for part in parts), "row", "left out by a limit"),
        (sum(len(account.joined) for account in accounts), "label", "written in several ways"),
        (sum(account.cut_prompts for account in accounts), "prompt", "cut"),
        (sum(account.cut_answers for account in accounts), "answer", "cut"),
        (sum(account.too_long for account in accounts), "row", "left out as too long"),
        (sum(a.long_evaluation_prompts for a in accounts), "evaluation prompt", "longer than any trained on"),
        (sum(a.long_evaluation_answers for a in accounts), "evaluation answer", "longer than a model may write"),
    ):
        told += [f"{count} {noun}{'s' * (count > 1)} {fate}"] if count else []
    if unread:
        told.append(f"keys {listed(map(repr, unread))} not read")
    notes = sum(len(part.notes) for part in parts) + sum(len(account.notes) for account in accounts)
    if notes:
        told.append(f"{notes} note{'s' * (notes > 1)} on how it was read")
    return f"data: {', '.join(told)}; 'everlearn inspect RECIPE' shows it" if told else None


def _known(kind: type[PartAccount | TaskAccount], stored: Mapping[str, Any]) -> dict[str, Any]:
    return {item.name: stored[item.name] for item in fields(kind) if item.name in stored}


def _rows(count: int) -> str:
    return "1 row" if count == 1 else f"{count} rows"


def listed(items: Iterable[str]) -> str:
    """The first few of some names, and how many more there are."""
    names = list(items)
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return ", ".join(names[:_NAMED]) + more
