"""What is known and checked of a run before anything is trained."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.crew import crew
from everlearn.data.account import data_line
from everlearn.data.instance import Task, TaskStream
from everlearn.data.kept import kept_places, kept_task
from everlearn.data.words import is_of_words
from everlearn.devices import choose_device
from everlearn.errors import RecipeError
from everlearn.files import read_vouched
from everlearn.methods.base import Facts, Method
from everlearn.methods.stack import assemble, parts_of
from everlearn.progress import Progress
from everlearn.recipe import Recipe, cache_folder
from everlearn.runs.formats import Formats, formats_of
from everlearn.runs.judge import check_judge
from everlearn.runs.lengths import within_limits
from everlearn.runs.measure import check_measurement, measured_text

if TYPE_CHECKING:
    from everlearn.data.prompts import PromptTemplate
    from everlearn.generation.engines import Elsewhere


@dataclass(frozen=True)
class Prepared:
    """What is known and checked before any training.

    Attributes:
        recipe: With what `auto` means for targets and number formats.
        formats: The number formats.
        stream: The tasks as they are trained on.
        read: The tasks before any row was left out for its length.
        engine: What writes; None: this process.
    """

    recipe: Recipe
    formats: Formats
    method: Method
    stream: TaskStream
    read: tuple[Task, ...]
    template: PromptTemplate
    base_fingerprint: str
    facts: Facts
    engine: Elsewhere | None = None


def prepare(recipe: Recipe, folder: Path | None = None, *, trains: bool = False, asks_method: bool = True) -> Prepared:
    """Checks all that can be checked before training.

    Args:
        recipe: To be used.
        folder: Gets the bad rows of a tolerant stream, and gives the rows of tasks, and what methods were given, whose
            data is there no more.
        trains: Whether the training rows are to be trained on, so that they must fit into the context.
        asks_method: Whether the method's own check is made.

    Raises:
        UserError: recipe, data, model or method cannot be used as asked.
    """
    from everlearn.data.prompts import get_template
    from everlearn.data.stream import load_stream
    from everlearn.data.word_prompts import template_name
    from everlearn.generation.engines import engine_of, refuse_unserved
    from everlearn.models import loading
    from everlearn.models.added_tokens import with_tokens
    from everlearn.models.checking import check_model
    from everlearn.models.sources import find_base
    from everlearn.training.optimizers import check_optimizer

    crew()  # refuses processes of which each would do all this
    method = assemble(recipe.method)
    if trains:
        refuse_unfit_sharding(recipe, method)
    sharers = crew().count if recipe.training.sharding == "fsdp" else 1
    model = check_model(recipe.model, trains=trains, sharers=sharers, optimizer=recipe.training.optimizer)
    if trains:
        check_optimizer(recipe.training.optimizer, choose_device(recipe.model.device))
    tokenizer = loading.load_tokenizer(recipe.model)
    bad_rows = folder / "bad_rows.jsonl" if folder else None
    kept = partial(kept_task, folder) if folder else None
    stream = load_stream(recipe.stream, seed=recipe.seed, tokenizer=tokenizer, bad_rows_file=bad_rows, kept=kept)
    name = template_name(recipe.model.template, recipe.model.template_name, stream, tokenizer)
    template = method.template(get_template(name, tokenizer))
    read = stream.tasks
    own = loading.context_length(recipe.model)
    formats = formats_of(recipe.model_copy(update={"model": model}), _manifest_in(folder), own if trains else None)
    if trains and recipe.training.sharding == "fsdp" and recipe.model.tuning == "full":
        refuse_unfit_scale(formats)
    if trains and recipe.generation.engine != "here":
        refuse_unserved(recipe.model)
    engine = engine_of(recipe.generation, formats.resolved(recipe).model, seed=recipe.seed, folder=folder)
    notes = [find_base(recipe.model, weights=False).note, engine.note if engine else None]
    stream = replace(stream, notes=(*(note for note in notes if note), *stream.notes, *template.notes))
    if tokens := method.tokens(stream):
        model = with_tokens(model, tokens)
        tokenizer = loading.load_tokenizer(model)
    context = engine.context if engine else own
    stream = within_limits(recipe, stream, template, tokenizer, trains=trains)
    check_measurement(recipe, stream, template, tokenizer, context)
    if recipe.training.report_to:
        from everlearn.training.trackers import check_trackers

        check_trackers(recipe.training.report_to)
    if trains:
        from everlearn.training.rows import check_rows

        for task in stream:
            template.check(task.train)
            check_rows(task.train, template, tokenizer, recipe.training, own)
    whole = formats.resolved(recipe.model_copy(update={"model": model}))
    facts = Facts(stream, tokenizer, context, whole.model, whole.training, partial(measured_text, recipe))
    if folder:
        facts = replace(facts, kept=partial(kept_places, folder))
    refuse_unfit_scenario(method, stream)
    _refuse_unknown_stages(recipe, len(method.stages(stream)))
    check_judge(recipe, stream, folder)
    if asks_method:
        method.check(facts)
    base = loading.base_fingerprint(whole.model if formats.are_recorded else recipe.model)
    prepared = Prepared(whole, formats, method, stream, read, template, base, facts, engine)
    if engine is not None:
        refuse_unfit_engine(prepared, engine, method, trains=trains)
    return prepared


def _manifest_in(folder: Path | None) -> dict[str, object]:
    """The manifest of a run that has begun."""
    path = folder and folder / "manifest.json"
    return read_vouched(path) if path and path.exists() else {}


def _refuse_unknown_stages(recipe: Recipe, count: int) -> None:
    asked = recipe.evaluation.general_stages
    if isinstance(asked, list) and max(asked, default=0) > count:
        raise RecipeError(
            f"evaluation.general_stages: there is no stage {max(asked)}, the run has {count}: give numbers up to "
            f"{count}, last or all."
        )


def refuse_unfit_scenario(method: Method, stream: TaskStream) -> None:
    """Refuses a method that must be told a row's task where it is unknown, and one that cannot answer rows of words.

    Raises:
        RecipeError: names the method.
    """
    if is_of_words(stream) and "trains heads" not in method.traits:
        raise RecipeError(
            f"method {method.name} answers in words of its own, and rows of words with tags are answered by heads: "
            "take the method seq, alone or stacked with a rehearsal."
        )
    told = next((part.name for part in parts_of(method) if "is told tasks" in part.traits), None)
    if told is not None and stream.scenario == "class_incremental":
        raise RecipeError(
            f"method {told} must be told which task a row belongs to, and in stream.scenario class_incremental the "
            "task is unknown when rows are answered: set stream.scenario to task_incremental, or take another method."
        )


def refuse_unfit_engine(prepared: Prepared, engine: Elsewhere, method: Method, *, trains: bool) -> None:
    """Refuses what an engine elsewhere cannot do for a method: by its words, its phases, its forecast and a trial.

    Args:
        prepared: The run; all that goes for any method has been checked.
        engine: What writes.
        method: Its method, or another one that is compared with it.
        trains: Whether it is to be trained.

    Raises:
        UserError: says what, and the remedy.
    """
    from everlearn.runs.plan import adapters_of, unmade

    remedy = "set generation.engine to here, or take another method"
    if tokens := method.tokens(prepared.stream):
        raise RecipeError(
            f"method {method.name} gives the model words of its own ({', '.join(tokens[:3])}), which the model of a "
            f"server has not: {remedy}."
        )
    rank = 0
    for stage in method.stages(prepared.stream) if trains else ():
        kinds, adapters = adapters_of(prepared, method, stage)
        if kinds:
            raise RecipeError(
                f"method {method.name} trains a part of the kind {kinds[0]}, and a server loads low-rank adapters "
                f"alone: {remedy}."
            )
        rank = max(rank, adapters * prepared.recipe.model.lora.rank)
        writings = method.forecast(unmade(prepared, stage), prepared.facts).writings
        if any(writing.sampling.blend is not None for writing in writings):
            raise RecipeError(
                f"method {method.name} lets two models write together, token by token, which is nothing that a server "
                f"does: {remedy}."
            )
    if rank:
        recipe = prepared.recipe
        engine.try_adapter(rank, cache_folder(recipe.runs_dir, recipe.cache_dir))


def refuse_unfit_sharding(recipe: Recipe, method: Method) -> None:
    """Refuses what cannot be computed where each process has a part of the weights.

    Raises:
        RecipeError: one process alone, or a method that needs whole weights where those in training are parts.
    """
    if recipe.training.sharding != "fsdp":
        return
    others = "a run with another key needs another --name; finished stages are found in the cache"
    if crew().count == 1:
        raise RecipeError(
            "training.sharding: fsdp leaves each of several processes a part of the weights, and this is one: start "
            "more ('accelerate launch --multi_gpu --num_processes 2 -m everlearn run RECIPE'), or set it to none "
            f"({others})."
        )
    if recipe.model.quantization != "none":
        raise RecipeError(
            f"training.sharding: fsdp cannot take quantized layers apart (model.quantization: "
            f"{recipe.model.quantization}): set one of them to none ({others})."
        )
    if recipe.model.tuning == "full" and recipe.training.optimizer == "adamw_8bit":
        raise RecipeError(
            "training.optimizer: adamw_8bit needs whole weights, and with model.tuning: full, training.sharding: fsdp "
            f"leaves each process a part of them: set training.optimizer to adamw, or training.sharding to none "
            f"({others})."
        )
    needing = [part.name for part in parts_of(method) if part.overrides("influences") and not part.bears_sharding]
    if recipe.model.tuning == "full" and needing:
        raise RecipeError(
            f"method {needing[0]} needs whole weights in training, and with model.tuning: full, training.sharding: "
            "fsdp leaves each process a part of them: set model.tuning to lora (adapters stay whole), or "
            f"training.sharding to none ({others})."
        )


def refuse_unfit_scale(formats: Formats) -> None:
    """Refuses float16 where each process has a part of the weights in training, and so of gradients that overflow.

    Raises:
        RecipeError: says what to set.
    """
    if formats.precision == "float16":
        raise RecipeError(
            "training.precision: float16 scales the loss by whole gradients, and with model.tuning: full, "
            "training.sharding: fsdp leaves each process a part of them: set training.precision to float32, or "
            "training.sharding to none."
        )


def with_targets(recipe: Recipe, prepared: Prepared) -> Recipe:
    """The recipe with the layers that get adapters by their names, as its run folder keeps it."""
    model = recipe.model.model_copy(update={"lora": prepared.recipe.model.lora})
    return recipe.model_copy(update={"model": model})


def tell_targets(recipe: Recipe, prepared: Prepared, progress: Progress) -> None:
    """Says which layers get an adapter, where the recipe leaves that to everlearn."""
    if recipe.model.tuning == "lora" and recipe.model.lora.targets == "auto":
        progress.say(f"adapters on {', '.join(prepared.recipe.model.lora.targets)} (model.lora.targets: auto)")


def tell_about(stream: TaskStream, progress: Progress) -> None:
    """Says what the user should know of the data: the notes, and in one line what is not used as it stands."""
    for note in stream.notes:
        progress.say(note)
    if line := data_line(stream.accounts):
        progress.say(line)
