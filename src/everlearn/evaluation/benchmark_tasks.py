"""Tasks of lm-evaluation-harness, found and tried before a run: by its own names, or from a folder of YAML files.

All that such a task needs is there when it has been found: its data is read (from the cache of `datasets`, from the
network where there is one, or from files beside the YAML), and its first prompt is made, so that a wrong template or
too few examples are refused before anything is trained. What a task's score depends on is hashed: its configuration,
the content of its data, and the version of the harness.

The harness can run Python code of a folder (`!function`, `class`), code in templates, and metrics of the hub. Of tasks
in a folder of the user's none of it is done; its own tasks are part of an installed package, like any other.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import json
import logging
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import chdir, contextmanager
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.errors import MissingExtraError, RecipeError, nearest
from everlearn.fingerprints import fingerprint_of
from everlearn.recipe import EvaluationConfig, GeneralTask
from everlearn.visible import visible

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

KEY = "evaluation.general_tasks"
FEWSHOT_SEED = 1234
"""The harness's own, as are the seeds of `as_seeded`."""
_ON_DISK = ("json", "csv", "parquet", "text", "arrow")
_SPLITS = ("test_split", "validation_split", "training_split", "fewshot_split")
_WORDS = 300  # letters of the harness's own message


@dataclass(frozen=True)
class Benchmark:
    """One entry of `evaluation.general_tasks`, ready to be measured.

    Attributes:
        given: As in the recipe.
        tasks: The harness's tasks by name, in its order; one, or those of a group.
        groups: Its groups by name; empty for a task that stands alone.
        inputs: All that a score depends on beside the model.
        questions: How many documents are asked.
    """

    given: GeneralTask
    tasks: Mapping[str, Any]
    groups: Mapping[str, Any]
    inputs: Mapping[str, object]
    questions: int

    @property
    def place(self) -> str:
        """Name of its folder."""
        shots = "" if self.given.shots is None else f"-{self.given.shots}-shot"
        limit = "" if self.given.limit is None else f"-first-{self.given.limit}"
        return re.sub(r"[^A-Za-z0-9._+-]", "_", self.given.task) + shots + limit


def find_benchmarks(
    evaluation: EvaluationConfig, tokenizer: PreTrainedTokenizerBase, context: int
) -> tuple[Benchmark, ...]:
    """The benchmarks of a recipe, read and tried; none where it names none.

    Args:
        evaluation: Names them.
        tokenizer: The model's; asked for its chat template where that is to be used.
        context: Most tokens that the model takes in.

    Raises:
        MissingExtraError: the harness is not installed.
        RecipeError: a task is unknown, cannot be read, runs code, or cannot be asked as it is given.
    """
    if not evaluation.general_tasks:
        return ()
    if importlib.util.find_spec("lm_eval") is None:
        raise MissingExtraError(
            f"{KEY} needs lm-evaluation-harness: run \"pip install 'everlearn[bench]'\", or take the key out."
        )
    if evaluation.general_chat_template and not tokenizer.chat_template:
        raise RecipeError(
            "evaluation.general_chat_template: the model's tokenizer has no chat template: set the key to false."
        )
    include = evaluation.general_include_path
    found = _find(tuple(evaluation.general_tasks), include, evaluation.general_chat_template, _stamps(include))
    for benchmark in found:
        for name, task in benchmark.tasks.items():
            room = _most_written(task)
            if room >= context:
                raise RecipeError(
                    f"{KEY}: {name} lets a model write {room:,} tokens (max_gen_toks), and this one takes in "
                    f"{context:,} with its question: take another task."
                )
    return found


def _stamps(include: str | None) -> tuple[tuple[str, int, int], ...]:
    """What tells whether files in a folder are still those that were read."""
    paths = sorted(path for path in Path(include).rglob("*") if path.is_file()) if include else []
    return tuple((str(path), (found := path.stat()).st_mtime_ns, found.st_size) for path in paths)


@cache
def _find(given: tuple[GeneralTask, ...], include: str | None, chat: bool, _stamps: object) -> tuple[Benchmark, ...]:
    """Read once a process: a comparison asks for each of its runs."""
    with as_seeded(), restrained():
        manager = _manager([item.task for item in given], include)
        return tuple(_read(item, manager, include, chat) for item in given)


def _manager(names: Sequence[str], include: str | None) -> Any:
    """The harness's index of tasks; its own fourteen thousand take seconds, and are left out where none is asked."""
    from lm_eval.tasks import TaskManager

    if include is not None:
        if not Path(include).is_dir():
            raise RecipeError(
                f"evaluation.general_include_path: there is no folder {include}: name one of task files."
            )
        own = TaskManager(include_path=include, include_defaults=False)
        if all(member in own.task_index for name in names for member in _members(name, own)):
            return own
    manager = TaskManager(include_path=include) if include else _own_tasks()
    for name in names:
        if name not in manager.task_index:
            guess = nearest(name, manager.all_tasks)
            hint = f"did you mean {guess!r}? " if guess else ""
            where = f" nor does {include}" if include else ""
            raise RecipeError(
                f"{KEY}: lm-evaluation-harness {version()} knows no task {name!r}{where}: {hint}'lm-eval ls tasks' "
                "lists its own, and evaluation.general_include_path names a folder of yours."
            )
    return manager


@cache
def _own_tasks() -> Any:
    """The index of the harness's own tasks alone, which takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _read(item: GeneralTask, manager: Any, include: str | None, chat: bool) -> Benchmark:
    _refuse_code(item.task, manager, Path(include).resolve() if include else None)
    try:
        with chdir(include or "."):  # `data_files` of one's own are named from the folder of the tasks
            loaded = manager.load([item.task])
        tasks, groups = loaded["tasks"], loaded.get("groups", {})
    except Exception as error:  # of the harness, datasets, the hub, or a network: any kind
        raise RecipeError(_unread(item.task, manager, error)) from None
    data = {}
    for name, task in tasks.items():
        if getattr(task, "UNSAFE_CODE", False):
            raise RecipeError(
                f"{KEY}: {name} runs code that the model writes, which everlearn does not: leave it out."
            )
        if getattr(task, "MULTIMODAL", False):
            raise RecipeError(f"{KEY}: {name} asks about images or sound: leave it out.")
        _set_shots(name, task, item.shots)
        task.set_fewshot_seed(seed=FEWSHOT_SEED)
        try:
            task.build_all_requests(limit=1)  # with the template that chats have, only the wrapping differs
            data[name] = _data_hash(task)
        except Exception as error:
            raise RecipeError(
                f"{KEY}: {name} cannot be asked ({_said(error)}): mend its file, or leave it out."
            ) from None
    questions = sum(min(len(task.eval_docs), item.limit or len(task.eval_docs)) for task in tasks.values())
    inputs = {
        "lm_eval": version(),
        "task": item.task,
        "limit": item.limit,
        "chat_template": chat,
        "tasks": {name: [_described(task), data[name]] for name, task in tasks.items()},
        "groups": {name: group.to_dict() for name, group in groups.items()},
    }
    return Benchmark(item, tasks, groups, {"benchmark": fingerprint_of(json.loads(_plain(inputs)))}, questions)


def _set_shots(name: str, task: Any, shots: int | None) -> None:
    """As the harness does; what it would leave as it is with a line in its log is refused."""
    own = task.get_config("num_fewshot")
    if shots is None:
        task.set_config(key="num_fewshot", value=own or 0)
    elif own == 0 and shots:
        raise RecipeError(f"{KEY}: {name} is made to be asked without examples (num_fewshot: 0): leave its shots out.")
    else:
        task.set_config(key="num_fewshot", value=shots)


def _refuse_code(name: str, manager: Any, include: Path | None) -> None:
    """Refuses tasks of the user's folder whose files would run code; the harness has looked at no function so far."""
    if include is None:
        return
    for called in _members(name, manager):
        entry = manager.task_index.get(called)
        if entry is None or entry.yaml_path is None or not Path(entry.yaml_path).resolve().is_relative_to(include):
            continue
        for path in _files(Path(entry.yaml_path), set()):
            text = path.read_text(encoding="utf-8", errors="replace")
            fault = next((tag for tag in ("!function", "!!python", "hf_evaluate") if tag in text), None)
            if fault or _unknown_metric(entry.cfg or {}):
                what = f"{fault} in it" if fault else f"its metric {_unknown_metric(entry.cfg or {})!r}"
                raise RecipeError(
                    f"{KEY}: {path} would run code ({what}), which everlearn does for no data: write the task with "
                    "templates and the harness's own metrics alone."
                )


def _members(name: str, manager: Any) -> Iterator[str]:
    """Names of a task, group or tag and of all that it is made of; what stands only in a group's file is left out."""
    yield name
    entry = manager.task_index.get(name)
    kind = entry.kind.name if entry else ""
    inner = [*entry.tags] if kind == "TAG" else (entry.cfg or {}).get("task", []) if kind == "GROUP" else []
    for member in inner:
        if isinstance(member, str) and member != name:
            yield from _members(member, manager)


def _files(path: Path, seen: set[Path]) -> Iterator[Path]:
    """A task's file and those that it includes."""
    import lm_eval as harness
    from lm_eval.tasks._yaml_loader import load_yaml

    path = path.resolve()
    if path in seen or path.is_relative_to(Path(harness.__file__).parent):  # its own are code like any package's
        return
    seen.add(path)
    yield path
    included = load_yaml(path, resolve_func=False, recursive=False).get("include", [])
    for other in included if isinstance(included, list) else [included]:
        yield from _files(path.parent / other, seen)


def _unknown_metric(config: Mapping[str, Any]) -> str | None:
    """A metric that the harness would look for on the hub."""
    from lm_eval.api.metrics import mean  # noqa: F401  (registers the metrics)
    from lm_eval.api.registry import metric_registry

    listed = config.get("metric_list") or []
    names = [str(entry.get("metric")) for entry in listed if isinstance(entry, dict)]
    return next((name for name in names if name not in metric_registry), None)


def _unread(name: str, manager: Any, error: Exception) -> str:
    """Why a task could not be read, and what to do."""
    entries = [manager.task_index.get(called) for called in _members(name, manager)]
    configs = [entry.cfg or {} for entry in entries if entry]
    paths = [str(config["dataset_path"]) for config in configs if config.get("dataset_path")]
    if paths and all(path in _ON_DISK for path in paths):
        return f"{KEY}: {name} cannot be read ({_said(error)}): see to its file and its data_files."
    source = f" (its data is {paths[0]} on the hub)" if paths else ""
    return (
        f"{KEY}: {name} cannot be read{source}: {_said(error)}. Where there is no network, run it once on a machine "
        "with one and bring the cache of datasets (HF_HOME), or give tasks over files of your own in "
        "evaluation.general_include_path."
    )


def _said(error: BaseException) -> str:
    text = " ".join(str(error).split()) or type(error).__name__
    return visible(text[:_WORDS]).rstrip(".")


def _described(task: Any) -> dict[str, Any]:
    """A task's configuration without the places of files."""
    config = dict(task.dump_config())
    config.pop("dataset_kwargs", None)
    config["metadata"] = {
        key: value for key, value in (config.get("metadata") or {}).items() if key != "config_source"
    }
    return config


def _plain(value: object) -> str:
    return json.dumps(value, default=lambda other: getattr(other, "__name__", type(other).__name__), sort_keys=True)


def _data_hash(task: Any) -> str:
    """Hash of the content of all splits that a task may read, wherever it lies."""
    digest = hashlib.sha256()
    named = {str(getattr(task.config, key, None)) for key in _SPLITS}
    splits = task.dataset or {}
    for name in sorted(set(splits) & named or splits):
        digest.update(name.encode())
        rows = splits[name]
        if not hasattr(rows, "with_format"):
            digest.update(_plain(list(rows)).encode())
            continue
        for table in rows.with_format("arrow").iter(1000):
            for column in table.column_names:
                digest.update(column.encode())
                digest.update(json.dumps(table[column].to_pylist(), default=str).encode())
    return digest.hexdigest()


def _most_written(task: Any) -> int:
    """Tokens that a task lets a model write for one question; 0 where it only compares."""
    if task.OUTPUT_TYPE != "generate_until":
        return 0
    return int((task.config.generation_kwargs or {}).get("max_gen_toks", 256))


def version() -> str:
    """Of the harness."""
    return importlib.metadata.version("lm_eval")


@contextmanager
def as_seeded() -> Iterator[None]:
    """Seeds the generators that the harness draws from as it does itself, and gives them back as they were."""
    import numpy as np
    import torch

    python, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng():
        random.seed(0)
        np.random.seed(1234)
        torch.manual_seed(1234)
        try:
            yield
        finally:
            random.setstate(python)
            np.random.set_state(arrays)


@contextmanager
def restrained() -> Iterator[None]:
    """Keeps bars and remarks of the harness off the terminal (errors are raised), and its templates from running code.

    It has a switch for neither, so what it looks up while it works is exchanged.
    """
    import datasets
    from jinja2.sandbox import SandboxedEnvironment
    from lm_eval import utils
    from lm_eval.api import task as harness

    plain = utils.env
    sandbox = SandboxedEnvironment(
        loader=plain.loader, undefined=plain.undefined, keep_trailing_newline=plain.keep_trailing_newline
    )
    sandbox.filters.update(plain.filters)

    loggers = [logging.getLogger(name) for name in ("lm_eval", "datasets", "huggingface_hub")]
    levels, bar, bars = [logger.level for logger in loggers], harness.tqdm, datasets.are_progress_bars_disabled()
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    harness.tqdm, utils.env = partial(bar, disable=True), sandbox
    datasets.disable_progress_bars()
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        harness.tqdm, utils.env = bar, plain
        if not bars:
            datasets.enable_progress_bars()
