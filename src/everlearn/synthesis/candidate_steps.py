"""The steps from demonstrations to candidates: `raw`, `parsed` and, in the improved preset, `filtered`.

Of a task with more than one chunk of continuations the first is a step of its own, `first/raw`, with the other two
steps upon it: it tells what the base model can do before the rest is written, and `raw` begins with it.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.artifacts import Artifact
from everlearn.files import read_jsonl
from everlearn.synthesis import continuations
from everlearn.synthesis.continuations import prompts_for, sampling_for, write_raw
from everlearn.synthesis.degenerate import Expected
from everlearn.synthesis.filters import sift, similarity_bound
from everlearn.synthesis.job import Job, counters_of, write_sifted
from everlearn.synthesis.losses import Losses
from everlearn.synthesis.parsing import Candidate, Limits, RawText, counts, parse_alpaca, parse_superni
from everlearn.synthesis.refusals import refuse_hopeless_base

if TYPE_CHECKING:
    from everlearn.models.loading import LoadedModel


ALL, FIRST = "synthesis", "synthesis/first"
"""Where the steps stand that all continuations go through, and those of the first chunk."""


def raw_step(job: Job, place: str = ALL) -> Artifact:
    """The base model's continuations, or only the first chunk of them: `raw.jsonl`."""
    tools, options, settings = job.tools, job.options, job.settings
    prompts, samples = job.plan

    def make(folder: Path) -> None:
        base = tools.base()
        tokenizer, context = base.tokenizer, base.context_length
        first = None
        if place == ALL and has_several_chunks(job):
            first = list(read_jsonl(look_first(job).path / "raw.jsonl"))
        write_raw(
            folder,
            job.task.name,
            prompts_for(job.task.name, job.pool, job.layout, settings, tokenizer, context, seed=tools.seed),
            sampling_for(job.pool, job.layout, settings, tokenizer),
            tokenizer,
            tools.generator_for(base),
            seed=tools.seed,
            progress=tools.progress,
            first=first,
            only_first=place == FIRST,
        )

    sampling = ("temperature", "top_k", "max_length", "max_new_tokens", "stop")
    inputs = {
        "base": tools.base_fingerprint,
        "task": job.task.name,
        "demonstrations": [row.to_json() for row in job.pool],
        "shown": options.demonstrations,
        "layout": job.layout,
        "prompts": prompts,
        "samples": samples,
        "sampling": options.model_dump(mode="json", include=set(sampling)),
        "top_p": settings.top_p,
        "repetition_penalty": settings.repetition_penalty,
        "is_improved": settings.is_improved,
        "seed": tools.seed,
    }
    return tools.step(f"{place}/raw", inputs, make)


def look_first(job: Job) -> Artifact:
    """The first chunk of continuations.

    Raises:
        UserError: next to nothing in it can be used.
    """
    first = raw_step(job, FIRST)
    found, losses = found_in(job, first, FIRST)
    refuse_hopeless_base(job, first, len(list(read_jsonl(found.path / "kept.jsonl"))), losses)
    return first


def has_several_chunks(job: Job) -> bool:
    """Whether so much is written that the first chunk is looked at before the others."""
    return math.prod(job.plan) > continuations.CHUNK_SEQUENCES


def parsed_step(job: Job, raw: Artifact, place: str = ALL) -> Artifact:
    """Candidates that are well formed: `kept.jsonl`, and the others with their reason."""
    save_more, is_anchored = job.options.save_more, job.settings.is_improved

    def make(folder: Path) -> None:
        base = job.tools.base()
        records = [RawText.from_json(row) for row in read_jsonl(raw.path / "raw.jsonl")]
        counters, limits = counters_of(base.tokenizer), limits_of(job, base)
        if job.layout == "alpaca":
            sifted = parse_alpaca(records, counters, limits=limits, is_anchored=is_anchored)
        else:
            sifted = parse_superni(
                records,
                counters,
                definition=job.pool[0].instruction,
                limits=limits,
                save_more=save_more,
                is_anchored=is_anchored,
            )
        write_sifted(folder, sifted, counts(len(records), sifted))

    inputs = {"raw": raw.fingerprint, "layout": job.layout, "save_more": save_more, "is_anchored": is_anchored}
    return job.tools.step(f"{place}/parsed", inputs, make)


def limits_of(job: Job, base: LoadedModel) -> Limits:
    """The published limits; improved: twice the longest demonstration, since tasks differ in length."""
    if not job.settings.is_improved:
        return Limits() if job.layout == "superni" else Limits(total=None, input=None, output=None)
    count = counters_of(base.tokenizer).text
    return Limits(
        total=min(2 * max(count(row.query) for row in job.pool), base.context_length),
        input=2 * max(count(row.input) for row in job.pool),
        output=2 * max(count(row.output) for row in job.pool),
        embedded=None,
    )


def found_in(job: Job, raw: Artifact, place: str = ALL) -> tuple[Artifact, Losses]:
    """The candidates among continuations, in `kept.jsonl`, and what was dropped on the way to them."""
    parsed = parsed_step(job, raw, place)
    if not job.settings.is_improved:
        return parsed, Losses((parsed,))
    filtered = filtered_step(job, parsed, place)
    return filtered, Losses((parsed, filtered))


def filtered_step(job: Job, parsed: Artifact, place: str = ALL) -> Artifact:
    """Candidates that could be the task's and are new: `kept.jsonl`, and the others with their reason."""
    labels = () if job.is_refined else job.task.labels
    given = job.options.near_duplicates
    known = [job.compared(row) for row in job.pool]
    bound = similarity_bound(known) if given is None else given
    answers = [row.output for row in job.pool]

    def make(folder: Path) -> None:
        candidates = [Candidate.from_json(row) for row in read_jsonl(parsed.path / "kept.jsonl")]
        expected = Expected(job.pool, labels)
        sifted = sift(candidates, known, answers, compared=job.compared, bound=bound, labels=labels, expected=expected)
        write_sifted(
            folder,
            sifted,
            {
                "candidates": len(candidates),
                "bound": bound,
                "kept": len(sifted.kept),
                "dropped": sifted.dropped,
            },
        )

    inputs = {
        "parsed": parsed.fingerprint,
        "demonstrations": known,
        "answers": answers,
        "bound": bound,
        "labels": list(labels),
    }
    return job.tools.step(f"{place}/filtered", inputs, make, version=2)
