"""The steps from a writer's prompts to candidates: `raw`, `parsed` and, where the writer filters, `filtered`.

Of a task with more than one chunk of continuations the first is a step of its own, `first/raw`, with the other two
steps upon it: it tells what the writing model can do before the rest is written, and `raw` begins with it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.artifacts import Artifact
from everlearn.data.instance import Instance
from everlearn.errors import DataError
from everlearn.files import read_jsonl
from everlearn.synthesis import continuations
from everlearn.synthesis.continuations import write_raw
from everlearn.synthesis.job import Tools, write_sifted
from everlearn.synthesis.losses import Losses
from everlearn.synthesis.parsing import Candidate, RawText, Sifted, counts
from everlearn.synthesis.writers.writer import Writer

if TYPE_CHECKING:
    from everlearn.data.prompts import PromptTemplate
    from everlearn.models.loading import LoadedModel

ALL, FIRST = "synthesis", "synthesis/first"
"""Where the steps stand that all continuations go through, and those of the first chunk."""


def raw_step(writer: Writer, tools: Tools, place: str = ALL, first: Callable[[], Artifact] | None = None) -> Artifact:
    """A model's continuations, or only the first chunk of them: `raw.jsonl`.

    Args:
        writer: Gives prompts and sampling.
        tools: Models and storage.
        place: `FIRST` for the first chunk alone.
        first: Gives the raw step of the first chunk, which these continuations begin with.
    """
    prompts, samples = writer.plan

    def make(folder: Path) -> None:
        model = _model_of(writer, tools)
        begun = None if first is None else list(read_jsonl(first().path / "raw.jsonl"))
        write_raw(
            folder,
            writer,
            writer.prompts(model.tokenizer, model.context_length, tools.seed),
            writer.sampling(model.tokenizer),
            model.tokenizer,
            tools.generator_for(model),
            seed=tools.seed,
            progress=tools.progress,
            first=begun,
            only_first=place == FIRST,
        )

    inputs = {
        writer.by: tools.base_fingerprint if writer.by == "base" else tools.latest_fingerprint,
        "task": writer.task.name,
        "prompts": prompts,
        "samples": samples,
        "seed": tools.seed,
        **writer.describe(),
        **tools.written_by,
    }
    return tools.step(f"{place}/raw", inputs, make)


def has_several_chunks(writer: Writer) -> bool:
    """Whether so much is written that the first chunk is looked at before the others."""
    return math.prod(writer.plan) > continuations.CHUNK_SEQUENCES


def found_in(writer: Writer, tools: Tools, raw: Artifact, place: str = ALL) -> tuple[Artifact, Losses]:
    """The candidates among continuations, in `kept.jsonl`, and what was dropped on the way to them."""
    parsed = _parsed_step(writer, tools, raw, place)
    if writer.filter_version is None:
        return parsed, Losses((parsed,))
    filtered = _filtered_step(writer, tools, parsed, place)
    return filtered, Losses((parsed, filtered))


def _parsed_step(writer: Writer, tools: Tools, raw: Artifact, place: str) -> Artifact:
    """Candidates that are well formed: `kept.jsonl`, and the others with their reason."""

    def make(folder: Path) -> None:
        records = [RawText.from_json(row) for row in read_jsonl(raw.path / "raw.jsonl")]
        sifted = without_prompt(writer.parse(records, _model_of(writer, tools)), tools.template)
        write_sifted(folder, sifted, counts(len(records), sifted))

    inputs = {"raw": raw.fingerprint, **writer.describe_parsing()}
    if not _can_ask(tools.template, Candidate("", "", "")):  # one that is particular about texts
        inputs["template"] = tools.template.name
    return tools.step(f"{place}/parsed", inputs, make)


def without_prompt(sifted: Sifted, template: PromptTemplate) -> Sifted:
    """Drops what the training's template cannot ask: texts without the marks that it names, say."""
    kept, sifted.kept = sifted.kept, []
    for row in kept:
        if _can_ask(template, row):
            sifted.kept.append(row)
        else:
            sifted.drop(row.query, "not_for_template", row.raw_index, input=row.input, outputs=row.output)
    return sifted


def _can_ask(template: PromptTemplate, row: Candidate) -> bool:
    try:
        template.check([Instance(row.instruction, row.input, row.output, "")])
    except DataError:
        return False
    return True


def _filtered_step(writer: Writer, tools: Tools, parsed: Artifact, place: str) -> Artifact:
    """Candidates that could be the task's and are new: `kept.jsonl`, and the others with their reason."""

    def make(folder: Path) -> None:
        candidates = [Candidate.from_json(row) for row in read_jsonl(parsed.path / "kept.jsonl")]
        sifted, more = writer.sift(candidates)
        counted = {"candidates": len(candidates), **more, "kept": len(sifted.kept), "dropped": sifted.dropped}
        write_sifted(folder, sifted, counted)

    inputs = {"parsed": parsed.fingerprint, **writer.describe_sifting()}
    assert writer.filter_version is not None, "there are filters"
    return tools.step(f"{place}/filtered", inputs, make, version=writer.filter_version)


def _model_of(writer: Writer, tools: Tools) -> LoadedModel:
    """The model that writes."""
    if writer.by == "base":
        return tools.base()
    assert tools.latest is not None, "the latest model writes"
    return tools.latest()
