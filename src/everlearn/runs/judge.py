"""The judge of a run: the final model's answers beside the test rows' own, or beside another run's.

Whether the server is there, and whether the other run has answered the same rows, is seen before anything is trained.
The judge is asked when everything else of the run is done and handed back; when it dies, only its own replies are
missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.data.instance import Instance, Task, TaskStream
from everlearn.errors import RecipeError
from everlearn.files import read_jsonl, read_vouched, write_json, write_jsonl
from everlearn.fingerprints import fingerprint_of
from everlearn.http import Server
from everlearn.progress import Progress
from everlearn.recipe import Recipe, cache_folder
from everlearn.run_folder import RUN, kind_of
from everlearn.seeds import derive

if TYPE_CHECKING:
    from everlearn.artifacts import StepRunner
    from everlearn.evaluation.judging import Judge, Pair

GOLD = "gold"


def check_judge(recipe: Recipe, stream: TaskStream, folder: Path | None) -> None:
    """Refuses a judge that cannot be asked, and a reference that is none of these rows.

    Args:
        recipe: Says which.
        stream: The tasks.
        folder: Of the run; where a judge's scores stand in it, the server is not asked for.

    Raises:
        ServerError: the server cannot be reached, or does not serve the model.
        RecipeError: the other run cannot be compared with.
    """
    if recipe.evaluation.judge is None:
        return
    _references(recipe, stream.tasks)
    if folder is None or not any(folder.glob("stages/*/judge/scores.json")):
        judge_of(recipe).check()


def judge_of(recipe: Recipe) -> Judge:
    """The judge that a recipe names."""
    from everlearn.evaluation.judging import Judge

    given = recipe.evaluation.judge
    assert given is not None, "a judge is asked for"
    server = Server(given.url, "evaluation.judge.url", given.api_key_env, given.timeout_s, given.attempts)
    kept = cache_folder(recipe.runs_dir, recipe.cache_dir) / "judge" / f"{fingerprint_of(given.model)}.jsonl"
    return Judge(server, given.model, given.max_tokens, given.parallel, kept)


def judge_answers(
    recipe: Recipe,
    tasks: Sequence[Task],
    answers: Mapping[str, Sequence[Mapping[str, Any]]],
    step: StepRunner,
    progress: Progress,
) -> None:
    """Asks the judge about a model's answers, where the recipe names one; scores stand in the step `judge`.

    Args:
        recipe: Names judge and reference.
        tasks: Whose rows were answered.
        answers: Rows of `predictions.jsonl` by task.
        step: Of the stage that the model is of.
        progress: Where to show how far it is.

    Raises:
        ServerError: the judge does not answer; what it has answered is kept.
    """
    from everlearn.evaluation.judging import QUESTION, SYSTEM, score_pairs

    given, evaluation = recipe.evaluation.judge, recipe.evaluation
    if given is None:
        return
    pairs = _pairs(recipe, tasks, answers)
    score = partial(score_pairs, samples=evaluation.bootstrap_samples, confidence=evaluation.confidence)

    def make(folder: Path) -> None:
        with progress.step(f"asking {given.model} about {len(pairs):,} answers") as tick:
            replies = judge_of(recipe).verdicts(pairs, tick)
        seed = derive(recipe.seed, "bootstrap")
        by_task = {}
        for task in tasks:
            of_task = [at for at, pair in enumerate(pairs) if pair.task == task.name]
            own = [pairs[at] for at in of_task], [replies[at] for at in of_task]
            by_task[task.name] = score(*own, seed=derive(seed, task.name))
        rows = zip(pairs, replies, strict=True)
        write_jsonl(
            folder / "verdicts.jsonl",
            (
                {
                    "task": pair.task,
                    "id": pair.id,
                    "answer": pair.answer,
                    "reference": pair.reference,
                    "replies": list(both) if both else None,
                }
                for pair, both in rows
            ),
        )
        scores = {
            "judge": given.model,
            "against": given.against if given.against == GOLD else Path(given.against).name,
            "all": score(pairs, replies, seed=seed),
            "tasks": by_task,
        }
        write_json(folder / "scores.json", scores)

    inputs = {
        "judge": [given.model, given.max_tokens, SYSTEM, QUESTION],
        "against": given.against if given.against == GOLD else Path(given.against).name,
        "pairs": fingerprint_of([[pair.task, pair.id, pair.request, pair.answer, pair.reference] for pair in pairs]),
        "bootstrap": [evaluation.bootstrap_samples, evaluation.confidence, recipe.seed],
    }
    step("judge", inputs, make)


def _pairs(recipe: Recipe, tasks: Sequence[Task], answers: Mapping[str, Sequence[Mapping[str, Any]]]) -> list[Pair]:
    from everlearn.evaluation.judging import Pair

    given, references = recipe.evaluation.judge, _references(recipe, tasks)
    assert given is not None, "a judge is asked for"
    pairs = []
    for task in tasks:
        rows = zip(task.evaluation, answers[task.name], references[task.name], strict=True)
        for row, answered, reference in list(rows)[: given.limit]:
            pairs.append(Pair(task.name, row.id, _request(row), str(answered["prediction"]), reference))
    return pairs


def _request(row: Instance) -> str:
    """What was asked, earlier turns included."""
    turns = [f"{turn.role}: {turn.content}" for turn in row.history]
    return "\n\n".join(part for part in (*turns, row.instruction, row.input) if part)


def _references(recipe: Recipe, tasks: Sequence[Task]) -> dict[str, list[str]]:
    """What each row's answer is held against, by task.

    Raises:
        RecipeError: the other run has not answered these rows.
    """
    given = recipe.evaluation.judge
    assert given is not None, "a judge is asked for"
    if given.against == GOLD:
        return {task.name: [row.output for row in task.evaluation] for task in tasks}
    folder, key = Path(given.against), "evaluation.judge.against"
    manifest = read_vouched(folder / "manifest.json") if (folder / "manifest.json").exists() else {}
    stages = manifest.get("stages")
    if kind_of(folder) != RUN or manifest.get("status") != "complete" or not isinstance(stages, list):
        raise RecipeError(
            f"{key}: {given.against} is no finished run: give its folder, or gold for the rows' outputs."
        )
    found = {}
    for task in tasks:
        path = folder / "stages" / str(stages[-1]["name"]) / "predictions" / task.name / "predictions.jsonl"
        known = {str(row["id"]): row for row in read_jsonl(path)} if path.exists() else {}
        found[task.name] = [str(known.get(row.id, {}).get("prediction", "")) for row in task.evaluation]
        other = next((row for row in task.evaluation if not _is_same(known.get(row.id), row)), None)
        if other is not None:
            raise RecipeError(
                f"{key}: {given.against} has not answered row {other.id!r} of task {task.name!r}: give a run over the "
                "same test rows."
            )
    return found


def _is_same(answered: Mapping[str, Any] | None, row: Instance) -> bool:
    return answered is not None and (answered["instruction"], answered["input"]) == (row.instruction, row.input)
