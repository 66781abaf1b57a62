"""The steps that choose among the candidates: `embedded` (unless selection is random) and `selected`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.artifacts import Artifact
from everlearn.data.instance import Instance
from everlearn.files import write_json, write_jsonl
from everlearn.fingerprints import fingerprint_of
from everlearn.synthesis.coverage import coverage_order
from everlearn.synthesis.job import Job
from everlearn.synthesis.parsing import Candidate
from everlearn.synthesis.refinement import label_shares, take
from everlearn.synthesis.selection import Chosen, select_clustered, select_drawn, select_random
from everlearn.synthesis.steps import Row

if TYPE_CHECKING:
    import numpy as np


def embedded_step(job: Job, found: Artifact, candidates: Sequence[Candidate]) -> Artifact:
    """Vectors of the candidates (and of real rows for supervised selection): `embeddings.safetensors`."""
    options, tools = job.options, job.tools
    reference = job.task.train if job.settings.selection == "supervised" else ()

    def vectors(rows: Sequence[Candidate] | Sequence[Instance], what: str) -> np.ndarray:
        from everlearn.models.embeddings import embed_sentences, embed_texts

        texts = [job.writer.embedded_text(row) for row in rows]
        with tools.progress.step(f"embedding {what} of {job.task.name}", len(texts)) as tick:
            if options.embedding == "model":
                return embed_texts(tools.base(), texts, tick=tick)
            return embed_sentences(options.embedding, texts)

    def make(folder: Path) -> None:
        from safetensors.numpy import save_file

        arrays = {"candidates": vectors(candidates, "candidates")}
        if reference:
            arrays["reference"] = vectors(reference, "training rows")
        save_file(arrays, folder / "embeddings.safetensors")

    from everlearn.models.embeddings import sentence_fingerprint

    own = tools.base_fingerprint if options.embedding == "model" else None
    inputs = {
        "candidates": found.fingerprint,
        "text": job.writer.embeds,
        "embedding": [options.embedding, own or sentence_fingerprint(options.embedding)],
        "reference": fingerprint_of([row.to_json() for row in reference]) if reference else "",
    }
    return tools.step("synthesis/embedded", inputs, make)


def selected_step(job: Job, found: Artifact, candidates: Sequence[Candidate], embedded: Artifact | None) -> Artifact:
    """The rows to refine, or to rehearse as they are: `selected.jsonl`."""
    settings = job.settings
    wanted = min(settings.wanted, len(candidates))
    shares = label_shares(job.task) if settings.is_improved and not job.is_refined else None

    def make(folder: Path) -> None:
        chosen = _choose(job, wanted, candidates, embedded)
        rows: list[Row] = [
            {**candidates[one.index].to_json(), "cluster": one.cluster, "distance": one.distance} for one in chosen
        ]
        if shares is not None:
            rows = [rows[at] for at in take([str(row["outputs"]) for row in rows], settings.count, shares)]
        write_jsonl(folder / "selected.jsonl", rows)
        clusters = Counter(one.cluster for one in chosen if one.cluster is not None)
        write_json(
            folder / "counts.json",
            {
                "candidates": len(candidates),
                "asked": settings.count,
                "selected": len(rows),
                "clusters": {str(cluster): clusters[cluster] for cluster in sorted(clusters)},
            },
        )

    inputs = {
        "candidates": found.fingerprint,
        "embedded": embedded.fingerprint if embedded else "",
        "wanted": wanted,
        "clusters": settings.clusters if embedded else None,
        "one_each": job.writer.takes_one_each,
        "is_improved": settings.is_improved,
        "kept": [settings.count, shares] if shares is not None else None,
    }
    if settings.selection == "coverage":
        inputs["coverage"] = job.writer.embeds
    if settings.selection == "drawn":
        inputs["drawn"] = True
    return job.tools.step("synthesis/selected", inputs, make, version=2 if settings.is_improved else 1)


def _choose(job: Job, wanted: int, candidates: Sequence[Candidate], embedded: Artifact | None) -> list[Chosen]:
    if job.settings.selection == "coverage":
        texts = [job.writer.embedded_text(row) for row in candidates]
        with job.tools.progress.step(f"choosing rows of {job.task.name}", wanted) as tick:
            return [Chosen(index) for index in coverage_order(texts, wanted, tick)]
    if embedded is None:
        return select_random(len(candidates), wanted)
    from safetensors.numpy import load_file

    arrays = load_file(embedded.path / "embeddings.safetensors")
    if job.settings.selection == "drawn":
        clusters = min(job.settings.clusters, len(candidates))
        return select_drawn(arrays["candidates"], wanted, clusters=clusters, distinct=job.settings.is_improved)
    reference = arrays.get("reference")
    fitted = len(candidates) if reference is None else len(reference)
    return select_clustered(
        arrays["candidates"],
        wanted,
        clusters=min(job.settings.clusters, fitted),
        adds_up=job.settings.is_improved,
        one_each=job.writer.takes_one_each,
        reference=reference,
    )
