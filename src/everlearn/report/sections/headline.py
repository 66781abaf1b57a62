"""The answer first: one plain sentence, computed from the matrix, and a second one for what it leaves out."""

from __future__ import annotations

from dataclasses import dataclass

from everlearn.report.facts.definitions import (
    MICROTASKS,
    PERPLEXITY,
    RIGHT_OR_WRONG,
    Meaning,
    metric_title,
    written,
)
from everlearn.report.facts.study import MethodRuns, Study
from everlearn.report.page.markup import Child, Html, el, join, name_of
from everlearn.report.page.numbers import in_words, mean, percent, plural, score


@dataclass(frozen=True, slots=True)
class Kept:
    """How the tasks learnt before the latest stage fare: right after their own stage, and now."""

    tasks: tuple[str, ...]
    then: float
    now: float


def kept(method: MethodRuns, study: Study) -> Kept | None:
    """What a method has kept of the earlier tasks; None before a second stage is measured.

    For a reference (all tasks at once, each task alone), the same tasks, with one score for both moments.
    """
    stage = method.finished
    learnt_at = {name: item.index for item in method.first.stages for name in item.tasks}
    if method.is_reference:
        tasks = [task for task in study.tasks if (study.learnt_at(task) or 0) < study.stage_count]
    else:
        tasks = [task for task, index in learnt_at.items() if index < stage]
    pairs = [
        (method.own_score(task), method.own_score(task) if method.is_reference else method.score(stage, task).value)
        for task in tasks
    ]
    then = mean([pair[0] for pair in pairs if pair[0] is not None])
    now = mean([pair[1] for pair in pairs if pair[1] is not None])
    if then is None or now is None or any(None in pair for pair in pairs):
        return None
    return Kept(tuple(tasks), then, now)


def ranking(study: Study) -> list[MethodRuns]:
    """Continual methods that have come as far as the furthest, best average at the end first."""
    furthest = max((method.finished for method in study.continual), default=0)
    able = [
        method
        for method in study.continual
        if method.finished == furthest > 0 and method.estimate("AR").value is not None
    ]
    return sorted(able, key=lambda method: -(method.estimate("AR").value or 0.0))


def best_of(study: Study, meaning: Meaning) -> list[MethodRuns]:
    """The best continual methods, several where they show the same value; none where all do."""
    values = [(method, method.estimate(meaning.key).value) for method in ranking(study)]
    known = [(method, round(value, 1)) for method, value in values if value is not None]
    if len({value for _, value in known}) < 2:
        return []
    best = (max if meaning.rises else min)(value for _, value in known)
    return [method for method, value in known if value == best]


def headline(study: Study) -> tuple[Html, Html]:
    """The main sentence, and what else must be known; the second may be empty."""
    words = _Words(study)
    ranked = ranking(study)
    joint = [method for method in study.methods if method.is_joint and method.finished]
    if not ranked:
        alone = [method for method in study.methods if method.is_reference and method.finished]
        return (words.reference(alone[0]) if alone else words.nothing_yet()), join(())
    best, worst = ranked[0], ranked[-1]
    if best is worst:
        return join((words.main(best), ".")), words.second(best, joint)
    found = kept(best, study)
    value = found.now if found else best.estimate("AR").value
    main = join(
        (words.main(worst), "; ", el("strong", name_of(best.title)), f" {words.verb} ", words.amount(value), ".")
    )
    return main, words.second(best, joint)


def unfinished(study: Study) -> str | None:
    """How far an unfinished run or comparison is; None for a finished one."""
    if study.complete:
        return None
    if not study.is_comparison:
        run = study.methods[0].first
        return f"{run.finished} of {plural(len(run.stages), 'stage')} measured"
    what = f"{study.finished_runs} of {study.planned} runs are finished"
    if study.left_out:
        what += f"; {plural(study.left_out, 'unfinished run')} of methods that have finished ones left out"
    return what


def metrics_line(study: Study) -> Html | None:
    """Which score is meant, by task where tasks differ."""
    names = {task: metric_title(study.metric_of(task)) for task in study.tasks if study.metric_of(task)}
    if not names:
        return None
    if len(set(names.values())) == 1:
        return el("p", f"Scores: {next(iter(names.values()))} on held-out rows, in per cent.", class_="soft")
    parts: list[Child] = []
    for place, (task, metric) in enumerate(names.items()):
        parts += [", " if place else "", name_of(task), f" {metric}"]
    return el("p", "Scores, on held-out rows, in per cent: ", *parts, ".", class_="soft")


class _Words:
    """The sentences, in the words that fit the study's scores: answers right or wrong, or graded ones."""

    def __init__(self, study: Study) -> None:
        self.study = study
        self.right_or_wrong = all(study.metric_of(task) in RIGHT_OR_WRONG for task in study.tasks)
        self.verb = "answers" if self.right_or_wrong else "scores"
        self.of = "of" if self.right_or_wrong else "on"

    def amount(self, value: float | None) -> Html:
        return el("strong", percent(value) if self.right_or_wrong else score(value))

    def main(self, method: MethodRuns) -> Html:
        """How the earlier tasks fare under a method; without the full stop."""
        done, total = method.finished, self.study.stage_count
        far = f"After {in_words(done)} task{'s' if done > 1 else ''}, "
        if not method.first.complete and done < total:
            far = f"So far, after {in_words(done)} of {in_words(total)} tasks, "
        start = join((far, el("strong", name_of(method.title)), f" {self.verb} "))
        found = kept(method, self.study)
        if found is None:
            newest = method.first.stages[done - 1].tasks[0]
            return join((start, self.amount(method.score(done, newest).value), f" {self.of} ", name_of(newest)))
        if method.first.matrix and method.first.matrix.types:  # of words a stage has one score, of all types so far
            then = method.score(1, method.first.stages[0].tasks[0]).value
            of_first = (", ", self.amount(then), " on those of the first when it had just been learnt")
            return join((start, self.amount(found.now), " on the entity types of all of them", *of_first))
        several = len(found.tasks) > 1
        tasks = f"the first {in_words(len(found.tasks))} tasks" if several else "the first task"
        if self.amount(found.now) == self.amount(found.then):
            change = join((f"as {'they were' if several else 'it was'} when just learnt",))
        else:
            direction = "down from" if found.now < found.then else "up from"
            moment = f" when {'each' if several else 'it'} had just been learnt"
            change = join((f"{direction} ", self.amount(found.then), moment))
        return join((start, self.amount(found.now), f" {self.of} {tasks}, ", change))

    def second(self, best: MethodRuns, joint: list[MethodRuns]) -> Html:
        """The upper bound and the general ability."""
        parts: list[Child] = []
        for method in joint:
            bound = kept(method, self.study)
            if bound is not None:
                parts += ["Training on all tasks at once (", name_of(method.title), "), the upper bound, reaches "]
                parts += [self.amount(bound.now), ". "]
        for meaning in (MICROTASKS, PERPLEXITY):
            before, now = best.general(0, meaning.key).value, best.general(best.finished, meaning.key).value
            if before is None or now is None:
                continue
            what = "general ability" if meaning is MICROTASKS else "perplexity on ordinary text (lower is better)"
            shown = written(meaning, now)
            same = shown == written(meaning, before)
            change = "stays at" if same else "rises" if now > before else "falls"
            whose: list[Child] = (
                ["With ", name_of(best.title), f", {what}"] if self.study.is_comparison else [what.capitalize()]
            )
            parts += [
                *whose,
                f" {change} ",
                None if same else f"from {written(meaning, before)} to ",
                el("strong", shown),
                ".",
            ]
            break
        return join(parts)

    def reference(self, method: MethodRuns) -> Html:
        """When no method learns task after task."""
        tasks = f" {self.of} the {in_words(len(self.study.tasks))} tasks."
        value = self.amount(method.estimate("AR").value)
        return join(
            (
                f"Trained on {'all tasks at once' if method.is_joint else 'each task alone'}, ",
                el("strong", name_of(method.title)),
                f" {self.verb} ",
                value,
                tasks,
            )
        )

    def nothing_yet(self) -> Html:
        """Before the first stage is measured."""
        values = [method.score(0, task).value for method in self.study.methods[:1] for task in self.study.tasks]
        known = [value for value in values if value is not None]
        if not known:
            return join(("Nothing has been measured yet.",))
        what = "of all tasks" if self.right_or_wrong else "over all tasks"
        return join(
            (f"So far, before any training, the base model {self.verb} ", self.amount(mean(known)), f" {what}.")
        )
