"""Rehearsal rows of one task, made by models: raw, parsed, filtered, embedded, selected, refined.

The **base** model continues prompts of demonstrations; its continuations are parsed into candidates; some of them are
selected by their embeddings; the **latest** model, which has just learnt the task, answers their inputs. Each of these
is a step of its own with its own fingerprint: a change of a later one never repeats an earlier one, and a kill loses
at most one chunk of generation. Selection comes before refinement, as in the released scripts (the paper draws it the
other way round; clusters are of inputs, so the result is the same and fewer rows need refining).
Source: arXiv 2403.01244, section 3; spec sections 1 to 4.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import partial
from pathlib import Path

from everlearn.artifacts import Artifact
from everlearn.data.instance import Instance, Task
from everlearn.files import read_jsonl, write_jsonl
from everlearn.synthesis.candidate_steps import ALL, found_in, has_several_chunks, raw_step
from everlearn.synthesis.demonstrations import system_turns
from everlearn.synthesis.first_look import look_at_answers, look_first
from everlearn.synthesis.job import Job, Tools, make_job
from everlearn.synthesis.losses import Losses
from everlearn.synthesis.options import SynthesisOptions
from everlearn.synthesis.parsing import Candidate
from everlearn.synthesis.refinement import as_instances
from everlearn.synthesis.refusals import refuse_few_answers, refuse_few_candidates
from everlearn.synthesis.selection_steps import embedded_step, selected_step

__all__ = ["Synthesis", "Tools", "synthesize_task", "try_base"]


@dataclass(frozen=True)
class Synthesis:
    """The result.

    Attributes:
        rows: Synthetic instances, in the order of selection.
        asked: How many were asked for.
        folder: Holds the steps' folders: raw, parsed and so on.
        dropped: Pieces and rows dropped on the way, by reason.
    """

    rows: tuple[Instance, ...]
    asked: int
    folder: Path
    dropped: dict[str, int]


def synthesize_task(task: Task, options: SynthesisOptions, tools: Tools, *, count: int | None = None) -> Synthesis:
    """Makes rehearsal rows of a task.

    Args:
        task: With its demonstrations. Its training rows only give the number of rows, the shares of labels and, for
            supervised selection, the clusters.
        options: What to synthesize.
        tools: Models and storage; without a latest model the base model's answers stay.
        count: Rows asked for; None: `options.ratio` of the training rows.

    Raises:
        UserError: the demonstrations cannot be used, or fewer valid instances came out than the preset goes on with.
    """
    job = make_job(task, options, tools, count)
    settings = job.settings
    if job.is_refined and has_several_chunks(job.writer):
        look_at_answers(job)
    raw, found, losses = _candidates(job)
    write_jsonl(raw.path.parent / "demonstrations.jsonl", (row.to_json() for row in job.pool))
    candidates = [Candidate.from_json(row) for row in read_jsonl(found.path / "kept.jsonl")]
    rows: list[dict[str, object]] = []
    if candidates:
        embedded = embedded_step(job, found, candidates) if settings.is_clustered else None
        selected = selected_step(job, found, candidates, embedded)
        rows = list(read_jsonl(selected.path / "selected.jsonl"))
        if job.is_refined:
            refined = job.options.answered(job, selected, ALL)
            rows = list(read_jsonl(refined.path / "refined.jsonl"))
            losses = Losses((*losses.steps, refined))
    refuse_few_answers(job, len(rows), losses)
    if len(rows) < settings.count:
        tools.progress.say(
            f"task {task.name}: {len(rows)} synthetic instances rather than {settings.count} (dropped: "
            f"{losses.reasons()})"
        )
    instances = as_instances(rows, task.name, system_turns(job.pool))
    return Synthesis(tuple(instances), settings.count, raw.path.parent, dict(losses.counts))


def try_base(task: Task, options: SynthesisOptions, tools: Tools) -> None:
    """Lets the base model write the first continuations of a task, all where they are few; nothing is made twice.

    Raises:
        UserError: the demonstrations cannot be used, or too little of what it writes can be.
    """
    job = make_job(task, options, tools)
    if has_several_chunks(job.writer):
        look_first(job)
    else:
        _candidates(job)


def _candidates(job: Job) -> tuple[Artifact, Artifact, Losses]:
    """The raw step, the candidates in it, and what was dropped on the way."""
    first = partial(look_first, job) if has_several_chunks(job.writer) else None
    raw = raw_step(job.writer, job.tools, first=first)
    found, losses = found_in(job.writer, job.tools, raw)
    refuse_few_candidates(job, len(list(read_jsonl(found.path / "kept.jsonl"))), losses)
    return raw, found, losses
