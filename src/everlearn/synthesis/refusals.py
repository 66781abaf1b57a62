"""When synthesis is refused: too few instances in the end, or so few at the beginning that no more need be written.

The first look is meant for models that cannot do the task at all (a base that does not go on with demonstrations, a
trained model that answers nothing), and must not stop what would have come out: it refuses only where enough was seen
for `CLEAR` rows to be due, and fewer than a tenth of those that are due were usable.
"""

from __future__ import annotations

import math

from everlearn.artifacts import Artifact
from everlearn.errors import UserError
from everlearn.files import read_json
from everlearn.synthesis.job import Job
from everlearn.synthesis.losses import Losses

CLEAR = 4
"""Rows that must be due before a first look judges. Chosen here: where just as many come as are needed, none of four
that are due comes in one of 50 cases; models that can do the task give many times what is needed."""


def refuse_hopeless_base(job: Job, first: Artifact, found: int, losses: Losses) -> None:
    """Refuses to let the base model go on when its first continuations give next to nothing.

    Args:
        job: The task.
        first: The raw step of the first chunk.
        found: Candidates in it.
        losses: On the way to them.

    Raises:
        UserError: names the counts, what the model wrote instead, and the remedies.
    """
    prompts, samples = job.writer.plan
    counts = read_json(first.path / "counts.json")
    assert isinstance(counts, dict), "counts are a mapping"
    seen, needed = counts["prompts"] * samples, _candidates_needed(job)
    if _is_hopeless(found, needed * seen / (prompts * samples)):
        raise UserError(
            f"task {job.task.name}: the first {seen} of {prompts * samples:,} continuations that the base model "
            f"writes give {found} valid synthetic instances, and {needed} are needed of all (dropped: "
            f"{losses.told()}): {job.writer.remedy(losses)}, or set the method's minimum to 0"
            f"{' and its selection to random' if _clusters(job) else ''} to go on with whatever comes out; a run with "
            "changed options needs another --name."
        )


def first_answers(job: Job) -> int:
    """How many answers of the latest model a first look needs; 0: so many that it would spare nothing."""
    needed, of = _answers_needed(job), job.settings.wanted
    asked = math.ceil(CLEAR * of / needed) if needed else of
    return asked if asked < of else 0


def refuse_hopeless_answers(job: Job, seen: int, kept: int, losses: Losses) -> None:
    """Refuses to let the latest model go on when next to none of its first answers can be kept.

    Args:
        job: The task.
        seen: Inputs answered so far.
        kept: Of them with an answer that can be kept.
        losses: Among the answers.

    Raises:
        UserError: as `refuse_hopeless_base`.
    """
    if _is_hopeless(kept, _answers_needed(job) * seen / job.settings.wanted):
        raise UserError(
            f"task {job.task.name}: {kept} of the first {seen} answers of the trained model to synthetic inputs can "
            f"be kept (dropped: {losses.told()}): {job.writer.remedy_answers}; a run with changed options needs "
            "another --name."
        )


def refuse_few_candidates(job: Job, found: int, losses: Losses) -> None:
    """Refuses to select from fewer candidates than the preset asks for.

    Published K-means cannot make more clusters than there are rows either.

    Raises:
        UserError: names how many there are, what was dropped for which reason, and the remedies.
    """
    settings, needed = job.settings, _candidates_needed(job)
    lower = ["clusters"] if found < _clusters(job) else []
    if found < settings.least:
        lower.append("minimum" if settings.is_improved else "ratio or minimum")
    if lower:
        remedy = (
            f"raise the method's {job.writer.remedy_more}, lower its {', and '.join(lower)}, or "
            + job.writer.remedy(losses)
        )
        raise _too_few(job, found, needed, losses, remedy)


def refuse_few_answers(job: Job, found: int, losses: Losses) -> None:
    """Refuses to go on with fewer refined rows than the preset asks for.

    Raises:
        UserError: as `refuse_few_candidates`.
    """
    if found < _answers_needed(job):
        raise _too_few(job, found, _answers_needed(job), losses, job.writer.remedy_answers)


def _is_hopeless(usable: int, due: float) -> bool:
    return due >= CLEAR and 10 * usable < due


def _answers_needed(job: Job) -> int:
    """As published, rows whose answers are lost are not made up for; but none at all would be no rehearsal."""
    return job.settings.least if job.settings.is_improved else min(1, job.settings.least)


def _clusters(job: Job) -> int:
    """Rows without which there are no clusters."""
    settings = job.settings
    needs_them = settings.selection == "kmeans" and not settings.is_improved
    return settings.clusters if needs_them else 0


def _candidates_needed(job: Job) -> int:
    return max(job.settings.least, _clusters(job))


def _too_few(job: Job, found: int, least: int, losses: Losses, remedy: str) -> UserError:
    return UserError(
        f"task {job.task.name}: only {found} valid synthetic instances, at least {least} are needed for the "
        f"{job.settings.count} asked for (dropped: {losses.told()}): {remedy}; a run with changed options needs "
        "another --name, under which finished steps are found again."
    )
