"""The step `refined`: the latest model answers the selected inputs; rows are kept, or dropped with a reason."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING

from everlearn.artifacts import Artifact
from everlearn.files import read_jsonl, write_json, write_jsonl
from everlearn.generation.counting import Counted
from everlearn.synthesis.coverage import coverage_order
from everlearn.synthesis.degenerate import Expected
from everlearn.synthesis.demonstrations import system_turns
from everlearn.synthesis.job import Job
from everlearn.synthesis.lengths import counters_of
from everlearn.synthesis.options import DemonstrationOptions
from everlearn.synthesis.parsing import Candidate
from everlearn.synthesis.refinement import Answering, answer, fault_of, label_shares, take
from everlearn.synthesis.steps import Row, evenly, in_chunks

if TYPE_CHECKING:
    from everlearn.generation.protocol import Generator
    from everlearn.models.loading import LoadedModel

AT_ONCE = 256
"""Answers between two writes."""


def refined_step(job: Job, options: DemonstrationOptions, selected: Artifact, place: str) -> Artifact:
    """Writes `refined.jsonl`, `rejected.jsonl` and `counts.json`."""
    tools, settings = job.tools, job.settings
    assert tools.latest is not None, "refinement needs the latest model"
    latest = tools.latest

    def make(folder: Path) -> None:
        if (folder / "counts.json").exists():  # killed between the last write and the end
            (folder / "answered.jsonl").unlink(missing_ok=True)
            return
        loaded = latest()
        answering = replace(
            answering_of(job, loaded, published_tokens=options.max_length),
            max_length=min(options.max_length, loaded.context_length),
            prompt=options.refinement_prompt,
        )
        rows = list(read_jsonl(selected.path / "selected.jsonl"))
        generator = tools.generator_for(loaded)
        answered = answered_in_chunks(job, folder, "answered", rows, generator, answering)
        keep_answered(job, folder, answered, answering)
        (folder / "answered.jsonl").unlink()

    inputs = {
        "selected": selected.fingerprint,
        "latest": tools.latest_fingerprint,
        "prompt": options.refinement_prompt,
        "max_length": options.max_length,
        "tokens": options.refinement_tokens,
        **describe_answers(job),
    }
    version = 4 if settings.selection == "coverage" else 3 if settings.is_improved else 1
    return tools.step(f"{place}/refined", inputs, make, version=version)


def describe_answers(job: Job) -> dict[str, object]:
    """What answers, and those that are kept, depend on in every way of answering, as JSON."""
    tools, settings = job.tools, job.settings
    labels = job.task.labels if settings.is_improved else ()
    return {
        "template": tools.template.name,
        "cuts": [tools.training.max_prompt_tokens, tools.training.max_target_tokens],
        "answers": [row.output for row in job.pool] if settings.is_improved else None,
        "history": [[turn.role, turn.content] for turn in system_turns(job.pool)],
        "is_improved": settings.is_improved,
        "count": settings.count if settings.is_improved else None,
        **tools.written_by,
        "labels": [list(labels), label_shares(job.task) if settings.is_improved else {}],
    }


def keep_answered(
    job: Job,
    folder: Path,
    answered: Sequence[Row],
    answering: Answering,
    more: Mapping[str, object] = MappingProxyType({}),
) -> None:
    """Writes the answered rows that are kept, the others with their reason, and the counts.

    Args:
        job: The task.
        folder: Of the step.
        answered: From `answer`, best row first.
        answering: As they were answered.
        more: Further counts.
    """
    settings = job.settings
    labels = job.task.labels if settings.is_improved else ()
    shares = label_shares(job.task) if settings.is_improved else {}
    expected = Expected(job.pool, labels) if settings.is_improved else None
    faults = [
        fault_of(row, answering, must_end=settings.is_improved, labels=labels, expected=expected) for row in answered
    ]
    kept = [at for at, fault in enumerate(faults) if fault is None]
    if settings.selection == "coverage" and len(kept) > settings.count:  # anew: rows are missing
        texts = [job.writer.embedded_text(Candidate.from_json({"outputs": "", **answered[at]})) for at in kept]
        kept = [kept[place] for place in coverage_order(texts, len(kept))]
    if settings.is_improved:
        taken = {kept[at] for at in take([str(answered[at]["targets"]) for at in kept], settings.count, shares)}
        for at in kept:
            faults[at] = None if at in taken else "surplus"
    rejected = [_rejected(row, fault) for row, fault in zip(answered, faults, strict=True) if fault]
    refined = [_refined(row) for row, fault in zip(answered, faults, strict=True) if not fault]
    write_jsonl(folder / "refined.jsonl", refined)
    write_jsonl(folder / "rejected.jsonl", rejected)
    dropped = Counter(str(row["reason"]) for row in rejected)
    write_json(
        folder / "counts.json",
        {"selected": len(answered), "asked": settings.count, "kept": len(refined), "dropped": dict(dropped), **more},
    )


def answering_of(job: Job, loaded: LoadedModel, *, published_tokens: int) -> Answering:
    """How a model answers: by the training template, improved with at most twice the longest demonstration's answer.

    Args:
        job: The task.
        loaded: The model.
        published_tokens: Most new tokens of the preset `faithful`.
    """
    cap = published_tokens
    if job.settings.is_improved:
        count = counters_of(loaded.tokenizer).text
        cap = 2 * max(count(row.output) for row in job.pool)
    return Answering(
        template=job.tools.template,
        tokenizer=loaded.tokenizer,
        training=job.tools.training,
        context=loaded.context_length,
        max_length=loaded.context_length,
        max_new_tokens=job.options.refinement_tokens or cap,
        history=system_turns(job.pool),
    )


def answered_in_chunks(
    job: Job, folder: Path, name: str, rows: Sequence[Row], generator: Generator, answering: Answering
) -> list[Row]:
    """Every row with its answer, kept in `NAME.jsonl`."""
    with job.tools.progress.step(f"refining {job.task.name}", len(rows)) as tick:
        shown = Counted(tick)

        def produce(number: int, chunk: Sequence[Row]) -> list[Row]:
            return answer(chunk, generator, answering, shown.call(number * AT_ONCE))

        return in_chunks(folder, name, evenly(rows, AT_ONCE), produce)


def _refined(row: Row) -> Row:
    return {key: value for key, value in row.items() if key not in ("is_cut", "distance")}


def _rejected(row: Row, reason: str) -> Row:
    return {
        "text": row["inputs"],
        "reason": reason,
        "raw_index": row["raw_index"],
        "input": row["input"],
        "outputs": row.get("outputs", ""),
        "targets": row["targets"],
    }
