"""What `--plan` prints of a run or a comparison."""

from __future__ import annotations

from everlearn.cli.tables import disk_line, table
from everlearn.report.page.numbers import NONE, duration
from everlearn.report.sections.provenance import size
from everlearn.runs.outlook import Outlook
from everlearn.runs.plan import Part, totals

BUSY = 0.1
"""Share of a trial's time without a processor from which its times are called too long. Chosen here."""
_HEADS = ("steps", "trained tokens", "generated", "at most", "time")


def plan_tables(found: Outlook) -> str:
    """Steps, tokens and time by stage (of a comparison by method), memory, disk, and what nobody knows."""
    if found.is_comparison:
        rows = [(plan.label, *_cells(totals(plan.parts))) for plan in found.plans]
        of = f"{len(found.plans)} methods, {found.seeds} seed{'s' if found.seeds > 1 else ''}"
        text = [f"{of}; a run of each, alone:", "", table(("method", *_HEADS), rows)]
        text += ["", table(("all runs", *_HEADS), [("what they share once", *_cells(found.total))])]
    else:
        (plan,) = found.plans
        rows = [(part.stage, part.kind, *_cells(part)) for part in plan.parts]
        rows.append(("all", "", *_cells(found.total)))
        text = [table(("stage", "what", *_HEADS), rows, words=2)]
    text.append("")
    if found.trial:
        memory = found.trial.memory
        text.append(
            f"Memory: training {size(memory.training)}, generation {size(memory.generation)}; "
            f"{size(memory.free)} are free."
        )
    text.append(disk_line(found.folder, found.disk_needed, "weights and states of all stages"))
    notes = [
        f"not in these times: {told}." for told in dict.fromkeys(told for plan in found.plans for told in plan.unknown)
    ]
    if found.trial is None:
        notes.append("time and memory are tried in one process alone: give the command without a launcher.")
    elif (found.trial.waited or 0) > BUSY:
        notes.append(
            f"for {found.trial.waited:.0%} of the trial other work had the processor: alone on this machine the run "
            "is faster than these times, by more than that where torch computes with several threads."
        )
    return "\n".join([*text, *(f"Note: {note}" for note in notes)])


def _cells(part: Part) -> tuple[str, ...]:
    return (
        _count(part.steps),
        _count(part.trained_tokens),
        NONE if part.written is None else _count(part.written),
        _count(part.most_written),
        duration(part.seconds),
    )


def _count(value: int) -> str:
    return f"{value:,}" if value else NONE
