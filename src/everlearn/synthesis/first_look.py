"""The first look: what the models do with the first chunk, before the other continuations are written."""

from __future__ import annotations

from itertools import islice
from pathlib import Path

from everlearn.artifacts import Artifact
from everlearn.files import read_jsonl, write_jsonl
from everlearn.synthesis.candidate_steps import FIRST, found_in, raw_step
from everlearn.synthesis.job import Job
from everlearn.synthesis.losses import Losses
from everlearn.synthesis.refusals import first_answers, refuse_hopeless_answers, refuse_hopeless_base


def look_first(job: Job) -> Artifact:
    """The first chunk of continuations.

    Raises:
        UserError: next to nothing in it can be used.
    """
    first = raw_step(job.writer, job.tools, FIRST)
    found, losses = found_in(job.writer, job.tools, first, FIRST)
    refuse_hopeless_base(job, first, len(list(read_jsonl(found.path / "kept.jsonl"))), losses)
    return first


def look_at_answers(job: Job) -> None:
    """Lets the latest model answer a few inputs of the first chunk of continuations before the others are written.

    Raises:
        UserError: next to none of the answers can be kept.
    """
    asked = first_answers(job)
    if not asked:
        return
    found, _ = found_in(job.writer, job.tools, look_first(job), FIRST)

    def make(folder: Path) -> None:
        write_jsonl(folder / "selected.jsonl", islice(read_jsonl(found.path / "kept.jsonl"), asked))

    selected = job.tools.step(f"{FIRST}/selected", {"candidates": found.fingerprint, "rows": asked}, make)
    losses = Losses((job.options.answered(job, selected, FIRST),))
    seen = len(list(read_jsonl(selected.path / "selected.jsonl")))
    refuse_hopeless_answers(job, seen, seen - losses.counts.total() + losses.counts["surplus"], losses)
