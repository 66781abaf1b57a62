"""The tables that `everlearn update` prints."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.cli.tables import disk_line, table
from everlearn.data.text_account import remarks
from everlearn.report.versions.html import NAMES, verdict, write_report
from everlearn.report.versions.last_release import last_releases
from everlearn.updates.outcome import costs_of, text_of
from everlearn.updates.prepare import least_bytes

if TYPE_CHECKING:
    from everlearn.updates.config import UpdateRecipe
    from everlearn.updates.prepare import Prepared


def plan_tables(recipe: UpdateRecipe, prepared: Prepared) -> str:
    """Versions, segments and costs of a recipe, and what is worth knowing of them."""
    lines = [
        f"{NAMES[recipe.paradigm]}, {prepared.parameters:,} parameters, {prepared.tokens_per_step:,} tokens a step"
    ]
    lines += ["", table(("version", "text", "tokens", "held out", "steps"), _version_rows(prepared))]
    rows = [
        (
            segment.id,
            segment.kind,
            segment.parent or "-",
            f"{segment.start:,} to {segment.end:,}",
            f"{segment.steps:,}",
            segment.lr,
            prepared.ids[segment.releases - 1] if segment.releases else "-",
        )
        for segment in prepared.plan.segments()
    ]
    lines += ["", table(("segment", "kind", "from", "data (steps)", "steps", "rate", "releases"), rows)]
    lines += ["", _cost_table(costs_of(prepared))]
    folder = Path(recipe.runs_dir) / recipe.name
    lines += ["", disk_line(folder, least_bytes(prepared), "the weights of all releases")]
    told = [*remarks(text_of(recipe, prepared)), *prepared.plan.remarks()]
    return "\n".join([*lines, *(f"Note: {remark}" for remark in told)])


def run_tables(folder: Path, result: Mapping[str, Any]) -> str:
    """Quality and cost of a finished run; its report is written."""
    quality, ledger = result["quality"], result["ledger"]
    rows = [
        (name, *(f"{value:.2f}" for value in values))
        for name, values in zip(quality["releases"], quality["perplexity"], strict=True)
    ]
    done = ledger["executed"]
    report = write_report(folder)
    return "\n".join(
        [
            "Perplexity of each release (rows) on each version's held-out text (columns), lower is better:",
            table(("release", *quality["versions"]), rows),
            "",
            _cost_table(ledger["costs"]),
            f"Executed: {done['steps']:,} steps, {done['tokens']:,} tokens, {100 * done['ratio_to_ptfs']:.1f} % of "
            f"training from scratch, {done['seconds']:.0f} s.",
            f"Releases: {folder / 'releases'}",
            f"Report: {report}",
        ]
    )


def comparison_tables(folder: Path, found: Mapping[str, Any]) -> str:
    """The arms of a finished comparison, and what they say together; its report is written."""
    rows = [
        (
            last.label,
            f"{last.seen.value:.3f}",
            f"{last.own.value:.3f}",
            f"{last.difference.value:+.1f} %" if last.difference else "-",
            f"{last.steps:,}",
            f"{100 * last.ratio_to_ptfs:.0f} %",
            f"{last.seconds:.0f} s",
        )
        for last in last_releases(found["arms"])
    ]
    heads = ("last release", "all versions", "own version", "difference", "steps", "of ptfs", "time")
    report = write_report(folder)
    return f"{table(heads, rows)}\n(perplexity, lower is better)\n{verdict(found)}\nReport: {report}"


def _version_rows(prepared: Prepared) -> list[tuple[str, ...]]:
    return [
        (version.id, version.data, f"{files.train_tokens:,}", f"{files.heldout_tokens:,}", f"{steps:,}")
        for version, files, steps in zip(prepared.versions, prepared.files, prepared.steps, strict=True)
    ]


def _cost_table(costs: Sequence[dict[str, Any]]) -> str:
    rows = [
        (
            NAMES[cost["paradigm"]],
            f"{cost['steps']:,}",
            f"{cost['tokens']:,}",
            f"{cost['flops']:.3g}",
            f"{100 * cost['ratio_to_ptfs']:.1f} %",
        )
        for cost in costs
    ]
    return table(("planned cost", "steps", "tokens", "FLOPs", "of from scratch"), rows)
