"""What a method's models answer beside what probes on their features get right, as means over tasks by stage."""

from __future__ import annotations

from collections.abc import Sequence

from everlearn.report.facts.definitions import PROBES
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.numbers import mean, percent, score, signed

OBSERVED = "observed"
_ANY = 1.0  # points: what is less is called nothing

Course = list[tuple[int, float | None]]


def names_of(method: MethodRuns) -> list[str]:
    """The probes that every seed has; none where there was no probing."""
    found = [set(run.probing.probes) if run.probing else set() for run in method.runs]
    return [name for name in PROBES if all(name in of_run for of_run in found)]


def courses(method: MethodRuns, study: Study, *, seen: bool) -> dict[str, Course]:
    """Mean over tasks by stage, of the answers and of each probe.

    Args:
        method: Whose.
        study: Knows the tasks.
        seen: Over the tasks learnt by then, from the first stage on; else over all, from the base model on.
    """
    found: dict[str, Course] = {name: [] for name in (OBSERVED, *names_of(method))}
    learnt: list[str] = []
    for stage in range(method.finished + 1):
        learnt += method.first.stages[stage - 1].tasks if stage else ()
        tasks = learnt if seen else study.tasks
        if not tasks:
            continue
        observed = [method.score(stage, task).value for task in tasks]
        known = [value for value in observed if value is not None]
        found[OBSERVED].append((stage, mean(known) if len(known) == len(observed) else None))
        for name in found:
            if name != OBSERVED:
                found[name].append((stage, _probed(method, name, stage, tasks)))
    return found


def _probed(method: MethodRuns, probe: str, stage: int, tasks: Sequence[str]) -> float | None:
    """Mean over seeds and tasks."""
    values = []
    for run in method.runs:
        assert run.probing is not None, "every seed has the probe"
        rows = run.probing.probes[probe]
        if stage >= len(rows) or not set(tasks) <= set(run.probing.tasks):
            return None
        values += [rows[stage][run.probing.tasks.index(task)] for task in tasks]
    return mean(values)


def verdict(method: MethodRuns) -> str:
    """What gap and slope say, in words; empty where there is no gap."""
    gap, slope = method.estimate("probe_gap"), method.estimate("probe_slope").value
    at_the_end = method.estimate("AR").value
    if gap.value is None or at_the_end is None:
        return ""
    by = "its heads" if method.first.has_heads else "its answers"
    words = (
        f"After the last stage a fresh head on the features gets {percent(at_the_end + gap.value)} right, the model "
        f"itself {percent(at_the_end)}: "
    )
    is_gap = gap.value > _ANY and (gap.low is None or gap.low > 0)
    if is_gap:
        words += f"the backbone still separates classes that {by} no longer tell apart ({score(gap.value)} points)."
    else:
        words += f"{by} tell apart what the backbone separates."
    if slope is None:
        return words
    change = slope * (method.finished - 1)
    if abs(change) < _ANY:
        return f"{words} The backbone itself loses nothing from stage to stage ({signed(slope)} points)."
    does = ("forgets as well", "loses") if change < 0 else ("forgets nothing", "gains")
    return f"{words} The backbone itself {does[0]}: it {does[1]} {score(abs(slope))} points a stage."
