"""Scores of a model on tasks of lm-evaluation-harness, by the harness itself.

Its `HFLM` asks the model at hand, adapters in place and nothing merged; log-softmax is in float32, where the harness
would take the model's own format and many answers of a bfloat16 model would tie. Everything else is as it does it:
prompts, examples, filters, metrics, standard errors, the weighting of groups. How many rows go together is chosen here
by length, and halved when memory runs out. A task that is done is kept in the step's folder, so that a run which was
killed within a group goes on with the next one. (Several processes: the first one computes.)
"""

from __future__ import annotations

import math
from copy import deepcopy
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.evaluation.benchmark_tasks import FEWSHOT_SEED, KEY, Benchmark, as_seeded, restrained, version
from everlearn.evaluation.likelihood import BATCH_TOKENS
from everlearn.files import read_mapping, write_json
from everlearn.generation.memory import cached_tokens
from everlearn.models.batching import ran_out_of_memory, release_device_memory, tokens_at_once
from everlearn.models.sides import Sides

if TYPE_CHECKING:
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Tick

_MOST_ROWS = 64  # that write at once


def measure_benchmark(
    benchmark: Benchmark, loaded: LoadedModel, folder: Path, tick: Tick, *, chat_template: bool = False
) -> None:
    """Writes `scores.json` into a step's folder, and each part of a group beside it.

    Args:
        benchmark: What to ask.
        loaded: The model.
        folder: Of the step; what an earlier attempt has finished is found there.
        tick: Called with (questions answered, of how many).
        chat_template: Whether prompts are messages in the tokenizer's chat template.

    Raises:
        RecipeError: an answer does not fit the model's context.
    """
    from lm_eval.evaluator import evaluate

    limit, done = benchmark.given.limit, 0
    parts: dict[str, dict[str, Any]] = {}
    model = None
    with as_seeded(), restrained():
        for at, (name, task) in enumerate(benchmark.tasks.items()):
            path = folder / f"part-{at:03d}.json"
            count = min(len(task.eval_docs), limit or len(task.eval_docs))
            if path.exists():
                parts[name] = read_mapping(path)
            else:
                model = model or _at_hand(loaded)
                model.begin(name, done, count, benchmark.questions, tick)
                task.set_fewshot_seed(seed=FEWSHOT_SEED)
                found = evaluate(
                    lm=model,
                    task_dict={"tasks": {name: task}, "groups": {}},
                    limit=limit,
                    log_samples=False,
                    apply_chat_template=chat_template,
                    fewshot_as_multiturn=chat_template,
                )
                parts[name] = {
                    "result": found["results"][name],
                    "version": found["versions"][name],
                    "shots": found["n-shot"][name],
                    "rises": found["higher_is_better"][name],
                    "of": found["n-samples"][name]["original"],
                    "prompts": model.prompts,
                    "cut": model.cut,
                }
                write_json(path, parts[name])
            done += count
            tick(done, benchmark.questions)
    write_json(folder / "scores.json", _scores(benchmark, parts))


def _scores(benchmark: Benchmark, parts: dict[str, dict[str, Any]]) -> dict[str, object]:
    """Of groups (the outermost first) and tasks: the harness's names, metrics, standard errors and versions."""
    shots = sorted({part["shots"] for part in parts.values()})
    results = {name: part["result"] for name, part in parts.items()}
    rises = {metric: up for part in parts.values() for metric, up in part["rises"].items()}
    entries = []
    for name, group in benchmark.groups.items():
        if group.has_aggregation:
            of = sum(parts[task.task_name]["of"] for task in group.get_all_tasks())
            entries.append(_entry(name, group.aggregate(results), group.version, rises, of, is_group=True))
    for name, part in parts.items():
        entries.append(_entry(name, part["result"], part["version"], rises, part["of"], is_group=False))
    return {
        "task": benchmark.given.task,
        "lm_eval": version(),
        "shots": shots,
        "limit": benchmark.given.limit,
        "prompts": sum(part["prompts"] for part in parts.values()),
        "cut": sum(part["cut"] for part in parts.values()),
        "results": entries,
    }


def _entry(
    name: str, result: dict[str, Any], of_version: object, rises: dict[str, bool], of: int, *, is_group: bool
) -> dict[str, object]:
    metrics = []
    for key, value in result.items():
        metric, _, filtered = key.partition(",")
        if not filtered or metric.endswith("_stderr") or not isinstance(value, int | float):
            continue
        error = result.get(f"{metric}_stderr,{filtered}")
        metrics.append(
            {
                "metric": metric,
                "filter": filtered,
                "value": _finite(value),
                "stderr": _finite(error),
                "rises": rises.get(metric, True) is not False,
            }
        )
    return {
        "name": name,
        "alias": str(result.get("alias", name)).strip(" -"),
        "is_group": is_group,
        "version": str(of_version),
        "questions": result.get("sample_len"),
        "of": of,
        "metrics": metrics,
    }


def _finite(value: object) -> float | None:
    """The number; None for what is none (the harness writes N/A)."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None


def _at_hand(loaded: LoadedModel) -> Any:
    """The harness's own model class over one that is loaded."""
    from lm_eval.models.huggingface import HFLM

    from everlearn.errors import RecipeError

    class AtHand(HFLM):
        def begin(self, name: str, done: int, count: int, total: int, tick: Tick) -> None:
            """What is asked next: a task of `count` questions."""
            self.asked, self.prompts, self.cut = name, 0, 0
            self.cache_hook = _Shown(self, done, count, total, tick)

        def loglikelihood(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            return super().loglikelihood(requests, disable_tqdm=True)

        def loglikelihood_rolling(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            return super().loglikelihood_rolling(requests, disable_tqdm=True)

        def _loglikelihood_tokens(self, requests: list[Any], *_: object, **__: object) -> Any:
            lengths = [len(before) + len(answer) for _, before, answer in requests]
            longest = max((len(answer) for *_, answer in requests), default=0)
            if longest > self.max_length:
                raise RecipeError(
                    f"{KEY}: {self.asked} has an answer of {longest:,} tokens, and the model takes in "
                    f"{self.max_length:,}: leave it out, or take a model with more context."
                )
            self.prompts += len(requests)
            self.cut += sum(length > self.max_length + 1 for length in lengths)
            most = tokens_at_once(loaded.device.type, BATCH_TOKENS, vocabulary=self.vocabulary)
            rows = most // max(1, min(max(lengths, default=1), self.max_length))
            return self._in_parts(rows, lambda: HFLM._loglikelihood_tokens(self, requests, disable_tqdm=True))

        def generate_until(self, requests: list[Any], disable_tqdm: bool = True) -> Any:
            for request in requests:
                context, kwargs = request.args
                room = self.max_length - int(kwargs.get("max_gen_toks", self.max_gen_toks))
                self.cut += len(self.tok_encode(context)) > room
            self.prompts += len(requests)
            rows = min(_MOST_ROWS, cached_tokens(loaded.model) // self.max_length)
            return self._in_parts(rows, lambda: HFLM.generate_until(self, requests, disable_tqdm=True))

        def _in_parts(self, rows: int, compute: Any) -> Any:
            """Computes with so many rows at once, or fewer when memory runs out; the answers are the same."""
            rows = max(1, rows if self.mixes else 1)
            while True:
                self.batch_size_per_gpu = rows
                try:
                    return compute()
                except Exception as error:
                    if rows == 1 or not ran_out_of_memory(error):
                        raise
                rows //= 2
                release_device_memory()

    model = AtHand(
        pretrained=loaded.model,
        backend="causal",
        tokenizer=deepcopy(loaded.tokenizer),  # it sets a pad token where there is none
        max_length=loaded.reads,
        softmax_dtype="float32",
    )
    sides = Sides(loaded.model)
    model.mixes = sides.of(1) == sides.of(loaded.reads)  # else a row depends on those beside it
    model.vocabulary = loaded.model.get_output_embeddings().weight.shape[0]
    return model


class _Shown:
    """What the harness tells of every answer, for the progress shown."""

    def __init__(self, model: Any, done: int, count: int, total: int, tick: Tick) -> None:
        self._model, self._done, self._count, self._total, self._tick = model, done, count, total, tick
        self._answers = 0

    def add_partial(self, kind: str, request: object, answer: object) -> None:
        """Called once an answer."""
        self._answers += 1
        part = min(1.0, self._answers / max(1, self._model.prompts))
        self._tick(self._done + int(part * self._count), self._total)
