"""Synthetic rehearsal rows outside a run, for those who only want the data."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.errors import RecipeError, unknown
from everlearn.files import held, read_jsonl, read_mapping, write_jsonl
from everlearn.generation.engines import at_work
from everlearn.methods.stack import parts_of
from everlearn.progress import Progress
from everlearn.recipe import Recipe, cache_folder
from everlearn.run_folder import SYNTHESIS, refuse_other
from everlearn.runs.checkpoint import checkpoint_fingerprint
from everlearn.runs.models_at_hand import ModelsAtHand
from everlearn.runs.prepare import prepare, tell_about
from everlearn.seeds import derive
from everlearn.store import RunStore
from everlearn.synthesis.options import SynthesisOptions

if TYPE_CHECKING:
    from everlearn.data.instance import Task
    from everlearn.runs.prepare import Prepared
    from everlearn.synthesis.chains import Chains
    from everlearn.synthesis.pipeline import Synthesis


def folder_of(recipe: Recipe) -> Path:
    """Where `everlearn synthesize` puts rows and steps."""
    return Path(recipe.synthesize.out or Path(recipe.runs_dir) / f"{recipe.name}-synthesis")


def synthesize_stream(recipe: Recipe, out: Path, progress: Progress) -> Mapping[Path, Synthesis | Chains]:
    """Makes synthetic rows of tasks with the base model, or walks for their own rows.

    Args:
        recipe: Names model, tasks, what to synthesize and, as options of a synthesizing method, how.
        out: Gets `<task>.jsonl` and the folders of the steps.
        progress: Where to show what goes on.

    Returns:
        File to what was made, in task order.

    Raises:
        UserError: an unknown task, demonstrations that cannot be used, too few valid rows.
    """
    from everlearn.synthesis.pipeline import Tools, synthesize_task

    wanted = recipe.synthesize
    checkpoint = Path(wanted.checkpoint) if wanted.checkpoint else None
    refuse_other(out, SYNTHESIS)
    prepared = prepare(recipe, out, asks_method=not wanted.chains)  # which may need the very walks
    tell_about(prepared.stream, progress)
    for name in wanted.tasks:
        if name not in prepared.stream.names:
            raise RecipeError(unknown("task", name, prepared.stream.names))
    if wanted.chains:
        return _chains(recipe, prepared, out, checkpoint, progress)
    known = (part.options for part in parts_of(prepared.method))
    options = next((options for options in known if isinstance(options, SynthesisOptions)), None)
    if options is None:
        raise RecipeError(f"method {recipe.method.name} synthesizes nothing: use --method ssr.")
    store = RunStore(out, cache_folder(recipe.runs_dir, recipe.cache_dir))
    models = ModelsAtHand(prepared.recipe.model, prepared.engine)
    if checkpoint is not None:
        models.point_to(checkpoint)
    made = {}
    with held(store.folder), at_work(prepared.engine, progress):
        store.update_manifest(kind=SYNTHESIS, **prepared.formats.to_json())
        for name in wanted.tasks or prepared.stream.names:
            tools = Tools(
                step=store.steps_below(name),
                base=models.base,
                base_fingerprint=prepared.base_fingerprint,
                generator_for=models.generator_for,
                written_by=models.written_by,
                template=prepared.template,
                training=prepared.recipe.training,
                progress=progress,
                seed=recipe.seed,
                latest=models.latest if checkpoint is not None else None,
                latest_fingerprint=prepared.formats.identify(checkpoint_fingerprint(checkpoint)) if checkpoint else "",
            )
            found = synthesize_task(prepared.stream[name], options, tools, count=wanted.count)
            write_jsonl(out / f"{name}.jsonl", (row.to_json() for row in found.rows))
            made[out / f"{name}.jsonl"] = found
    return made


def _chains(
    recipe: Recipe, prepared: Prepared, out: Path, checkpoint: Path | None, progress: Progress
) -> dict[Path, Chains]:
    """Walks for the training rows of tasks."""
    from everlearn.data.prompts import get_template
    from everlearn.data.walk_patterns import read_patterns
    from everlearn.synthesis.chains import Chains, write_chains

    wanted = recipe.synthesize
    patterns = read_patterns(Path(wanted.patterns) if wanted.patterns else None)
    store = RunStore(out, cache_folder(recipe.runs_dir, recipe.cache_dir))
    models = ModelsAtHand(prepared.recipe.model, prepared.engine)
    models.point_to(checkpoint)
    writer = checkpoint_fingerprint(checkpoint) if checkpoint else prepared.base_fingerprint
    made = {}
    with held(store.folder), at_work(prepared.engine, progress):
        store.update_manifest(kind=SYNTHESIS, **prepared.formats.to_json())
        for name in wanted.tasks or prepared.stream.names:
            task, seed = prepared.stream[name], derive(recipe.seed, "chains", name)

            def make(folder: Path, task: Task = task, seed: int = seed) -> None:
                model = models.latest()
                write_chains(
                    folder,
                    task,
                    patterns,
                    get_template(recipe.model.template_name, model.tokenizer),
                    model.tokenizer,
                    models.generator_for(model),
                    progress,
                    context=model.context_length,
                    seed=seed,
                    count=wanted.count,
                    written_by=str(checkpoint or recipe.model.base),
                )

            inputs = {
                "model": writer,
                "task": task.fingerprint(),
                "template": recipe.model.template_name,
                "patterns": [[one.id, *one.steps] for one in patterns],
                "count": wanted.count,
                "seed": seed,
                **models.written_by,
            }
            place = store.steps_below(name)("chains", inputs, make).path
            counts = read_mapping(place / "counts.json")
            rows = list(read_jsonl(place / "rows.jsonl"))
            write_jsonl(out / f"{name}.jsonl", rows)
            made[out / f"{name}.jsonl"] = Chains(rows, counts["asked"], counts["dropped"])
    return made
