"""Labels that evolve: the latest model answers pseudo-inputs, and where it agrees least with the base, both do (SERS).

    y(j) = greedy(theta(t), x(j)),  r(j) = agreement with the reference
    H    = the `int(N * ratio)` rows of least agreement, ties in their order
    y(j) = greedy(mixture of theta(0) and theta(t), x(j)) for j in H

After that labels stay as they are. The reference is the base model's own greedy answer: "blending base-model priors
with fine-tuned outputs" (abstract) has a meaning only there. In the released files it is blank, which makes H the
first rows (`reference: blank`). Agreement is ROUGE-L in per cent, as published.
Source: NeurIPS 2025, "Self-Evolving Pseudo-Rehearsal ..."; the released code (spec section 5).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from everlearn.artifacts import Artifact
from everlearn.files import read_jsonl
from everlearn.generation.protocol import Blend
from everlearn.shares import share_of
from everlearn.synthesis.job import Job
from everlearn.synthesis.mask_options import MaskOptions
from everlearn.synthesis.refinement_step import answered_in_chunks, answering_of, describe_answers, keep_answered
from everlearn.synthesis.steps import Row

Agreement = Callable[[str, str], float]
PUBLISHED_TOKENS = 512
"""Most new tokens of an answer."""
_SCRATCH = ("latest", "mixed")


def hard_rows(agreements: Sequence[float], ratio: float) -> list[int]:
    """Places of the rows of least agreement, the least first; equal ones in their order.

    Args:
        agreements: Of the rows.
        ratio: Share of them, rounded down.
    """
    count = math.floor(share_of(ratio, len(agreements)))
    return sorted(range(len(agreements)), key=lambda at: agreements[at])[:count]


def labelled(
    rows: Sequence[Mapping[str, object]], hard: Sequence[int], mixed: Sequence[str], others: Sequence[str]
) -> list[Row]:
    """The rows in their order with labels in place of what was written there before.

    Args:
        rows: With `outputs`, which goes.
        hard: Places of those that both models have labelled.
        mixed: Their labels, in the order of `hard`.
        others: Labels of the other rows, in theirs.
    """
    by_place = dict(zip(hard, mixed, strict=True))
    rest = iter(others)
    kept = [{key: value for key, value in row.items() if key != "outputs"} for row in rows]
    return [{**row, "targets": by_place[at] if at in by_place else next(rest)} for at, row in enumerate(kept)]


def evolved_step(job: Job, options: MaskOptions, selected: Artifact, place: str, agreement: Agreement) -> Artifact:
    """Writes `refined.jsonl`, `rejected.jsonl` and `counts.json`.

    Without a latest model the base labels all rows.

    Args:
        job: The task.
        options: How labels are made.
        selected: The step with the rows.
        place: Where the step stands.
        agreement: Of two answers, in per cent.
    """
    tools, is_improved = job.tools, job.settings.is_improved
    reference = options.reference or ("base" if is_improved else "blank")
    of = options.mixture or ("probabilities" if is_improved else "logits")
    counted = options.counted or ("new" if is_improved else "all")
    model = tools.latest or tools.base
    is_mixed = tools.latest is not None and options.hard_ratio > 0
    compared = is_mixed and reference == "base"
    referenced = _referenced_step(job, options, selected, place) if compared else None

    def make(folder: Path) -> None:
        if not (folder / "counts.json").exists():  # else it was killed between the last write and the end
            rows = list(read_jsonl(selected.path / "selected.jsonl"))
            loaded = model()
            answering = answering_of(job, loaded, published_tokens=PUBLISHED_TOKENS)
            generator = tools.generator_for(loaded)
            answered = answered_in_chunks(job, folder, _SCRATCH[0], rows, generator, answering)
            base = [""] * len(rows)
            if referenced is not None:
                base = [str(row["targets"]) for row in read_jsonl(referenced.path / "answered.jsonl")]
            agreements = [agreement(str(row["targets"]), text) for row, text in zip(answered, base, strict=True)]
            hard = hard_rows(agreements, options.hard_ratio) if is_mixed else []
            mixing = replace(answering, blend=Blend(options.base_weight, of))
            if counted == "all":
                mixing = replace(mixing, max_length=min(mixing.max_length, 1 + answering.max_new_tokens))
            mixed = answered_in_chunks(job, folder, _SCRATCH[1], [rows[at] for at in hard], generator, mixing)
            by_place = dict(zip(hard, mixed, strict=True))
            others = [row for at, row in enumerate(answered) if at not in by_place]
            labels = ([str(row["targets"]) for row in part] for part in (mixed, others))
            told = [
                {
                    **row,
                    "finish_reason": by_place.get(at, answered[at])["finish_reason"],
                    "latest_answer": answered[at]["targets"],
                    "is_hard": at in by_place,
                    **({"base_answer": base[at], "agreement": agreements[at]} if compared else {}),
                }
                for at, row in enumerate(labelled(rows, hard, *labels))
            ]
            keep_answered(job, folder, told, answering, more=_counts(told))
        for name in _SCRATCH:
            (folder / f"{name}.jsonl").unlink(missing_ok=True)

    inputs = {
        "selected": selected.fingerprint,
        "by": tools.latest_fingerprint if tools.latest else tools.base_fingerprint,
        "base": tools.base_fingerprint,
        "referenced": referenced.fingerprint if referenced else None,
        "mixture": [options.hard_ratio, options.base_weight, of, counted] if is_mixed else None,
        "tokens": options.refinement_tokens,
        **describe_answers(job),
    }
    return tools.step(f"{place}/refined", inputs, make)


def _referenced_step(job: Job, options: MaskOptions, selected: Artifact, place: str) -> Artifact:
    """The base model's own answers: `answered.jsonl`."""
    tools = job.tools

    def make(folder: Path) -> None:
        loaded = tools.base()
        rows = list(read_jsonl(selected.path / "selected.jsonl"))
        generator = tools.generator_for(loaded)
        answered_in_chunks(
            job, folder, "answered", rows, generator, answering_of(job, loaded, published_tokens=PUBLISHED_TOKENS)
        )

    inputs = {
        "selected": selected.fingerprint,
        "base": tools.base_fingerprint,
        "tokens": options.refinement_tokens,
        **describe_answers(job),
    }
    return tools.step(f"{place}/referenced", inputs, make)


def _counts(rows: Collection[Mapping[str, object]]) -> dict[str, int]:
    """How many rows both models have labelled, and to how many of these they gave another label than the latest."""
    hard = [row for row in rows if row["is_hard"]]
    return {"hard": len(hard), "changed": sum(row["targets"] != row["latest_answer"] for row in hard)}
