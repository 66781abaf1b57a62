"""What `everlearn update` does, and the tables it prints."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.checking import checked
from everlearn.data.text_account import remarks
from everlearn.errors import RecipeError, RunError
from everlearn.recipe_paths import anchor
from everlearn.report.versions.html import NAMES, verdict, write_report
from everlearn.report.versions.last_release import last_releases
from everlearn.updates.compare import compare as run_comparison
from everlearn.updates.config import EmbeddedVersions, UpdateRecipe
from everlearn.updates.executor import execute
from everlearn.updates.folder import comparison_of, recipe_of
from everlearn.updates.outcome import costs_of, text_of
from everlearn.updates.prepare import prepare

if TYPE_CHECKING:
    from everlearn.progress import Progress


def plan(recipe: UpdateRecipe, progress: Progress) -> str:
    """Segments and costs of a recipe, as a table; tokenises what is new, trains nothing."""
    prepared = prepare(recipe, progress=progress)
    lines = [
        f"{NAMES[recipe.paradigm]}, {prepared.parameters:,} parameters, {prepared.tokens_per_step:,} tokens a step"
    ]
    lines += ["", _table(("version", "text", "tokens", "held out", "steps"), _version_rows(prepared))]
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
    lines += ["", _table(("segment", "kind", "from", "data (steps)", "steps", "rate", "releases"), rows)]
    lines += ["", _cost_table(costs_of(prepared))]
    told = [*remarks(text_of(recipe, prepared)), *prepared.plan.remarks()]
    return "\n".join([*lines, *(f"Note: {remark}" for remark in told)])


def update(recipe: UpdateRecipe, progress: Progress) -> str:
    """Runs the recipe; returns its tables."""
    result = execute(recipe, progress=progress)
    return _finished(Path(str(result["folder"])), result)


def resume(folder: Path, progress: Progress) -> str:
    """Goes on with a run or comparison from its folder alone."""
    if (folder / "comparison.json").exists():
        return compare(comparison_of(folder), progress)
    return _finished(folder, execute(recipe_of(folder), folder=folder, progress=progress))


def add_version(folder: Path, data: str, name: str | None, column: str | None, progress: Progress) -> str:
    """Adds a version to a run (see `longer`) and trains only what is new; returns its tables."""
    return _finished(folder, execute(longer(folder, data, name, column), folder=folder, progress=progress))


def longer(folder: Path, data: str, name: str | None = None, column: str | None = None) -> UpdateRecipe:
    """The recipe of a run with one more version.

    Args:
        folder: The run folder.
        data: As a version's `data`; `embedded` for the next version of the generated corpus.
        name: Of the version; nothing: v1, v2, ...
        column: Key of the text in structured data.

    Raises:
        UserError: the run is not of this kind, or the text cannot be used.
    """
    recipe = recipe_of(folder)
    versions: object
    if isinstance(recipe.versions, EmbeddedVersions):
        if data != "embedded":
            raise RecipeError(
                f"{folder} has versions of the generated corpus: add the next one with --add-version embedded, or "
                "start a run with your own text."
            )
        versions = {**recipe.versions.model_dump(), "count": recipe.versions.count + 1}
    else:
        added = f"v{len(recipe.versions) + 1}" if name is None else name
        if any(version.id == added for version in recipe.versions):
            raise RecipeError(f"{folder} has a version {added!r} already: choose another --version-id.")
        source = anchor(Path.cwd(), data)
        versions = [*recipe.versions, {"id": added, "data": source, **({} if column is None else {"column": column})}]
    found = checked(UpdateRecipe, {**recipe.model_dump(), "versions": versions}, where="--add-version")
    if found.path.points:
        raise RunError(
            f"{folder} has scheduled branches: add the version and its branch point to {folder / 'recipe.yaml'}, then "
            f"run 'everlearn update {folder}'."
        )
    return found


def compare(recipe: UpdateRecipe, progress: Progress) -> str:
    """Runs the arms of a comparison; returns its table and verdict."""
    found = run_comparison(recipe, progress)
    if not found:
        return ""  # the first of several processes tells
    folder = Path(recipe.runs_dir) / recipe.name
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
    return f"{_table(heads, rows)}\n(perplexity, lower is better)\n{verdict(found)}\nReport: {report}"


def _finished(folder: Path, result: dict[str, Any]) -> str:
    if "ledger" not in result:
        return ""  # the first of several processes tells
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
            _table(("release", *quality["versions"]), rows),
            "",
            _cost_table(ledger["costs"]),
            f"Executed: {done['steps']:,} steps, {done['tokens']:,} tokens, {100 * done['ratio_to_ptfs']:.1f} % of "
            f"training from scratch, {done['seconds']:.0f} s.",
            f"Releases: {folder / 'releases'}",
            f"Report: {report}",
        ]
    )


def _version_rows(prepared: Any) -> list[tuple[str, ...]]:
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
    return _table(("planned cost", "steps", "tokens", "FLOPs", "of from scratch"), rows)


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns aligned: the first to the left, the others to the right."""
    widths = [max(len(str(row[at])) for row in [heads, *rows]) for at in range(len(heads))]
    lines = []
    for row in [heads, *rows]:
        cells = [
            str(row[0]).ljust(widths[0]),
            *(str(cell).rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True)),
        ]
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)
