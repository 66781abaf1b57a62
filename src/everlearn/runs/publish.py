"""The model that a run hands back: a folder that Transformers or PEFT load and that behaves as it was measured.

Weights are linked from the artifact of the last stage, which other runs may share and which stays as it is. Around
them stand a tokenizer that renders the run's prompts, a generation configuration with the tokens that end an answer
(for an adapter too, although PEFT does not read it by itself), the base under a name that is found from anywhere,
and a card. Where several models answer, each that may be chosen stands in a folder of its own beside the last one, in
the same form (`runs/routing.py`).
"""

from __future__ import annotations

import copy
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from everlearn.data.instance import TaskStream
from everlearn.environment import versions
from everlearn.files import disk_error, make_folder, read_mapping, write_json, write_text
from everlearn.models.state import HEADS, ModelState
from everlearn.recipe import EMBEDDED, Recipe
from everlearn.runs.model_card import Handed, model_card
from everlearn.runs.routing import ROUTING, described

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedTokenizerBase

    from everlearn.data.prompts import PromptTemplate
    from everlearn.evaluation.answering import Answerer
    from everlearn.models.sources import BaseSource

CARD = "README.md"
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json")
_COMPARED_ROWS = 50
"""Rows of a task whose prompts are compared before a chat template stands for a frame of text."""


def publish(
    released: ModelState,
    target: Path,
    made: Path,
    recipe: Recipe,
    stream: TaskStream,
    template: PromptTemplate,
    tokenizer: PreTrainedTokenizerBase,
    label: str,
    matrix: Mapping[str, Any],
    answerer: tuple[str, Answerer] | None = None,
) -> None:
    """Makes the folder, or what belongs to it anew.

    Args:
        released: What the last stage has left: an adapter or whole weights, or heads over the base, or both.
        target: The folder to be.
        made: Folder on the same file system for what is not yet whole; deleted.
        recipe: Of the run.
        stream: Its tasks.
        template: How they were asked.
        tokenizer: Of the base.
        label: What the run is called.
        matrix: Its scores.
        answerer: What chooses among several models, and the method that it belongs to.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    from everlearn.data.handed_template import handed_template
    from everlearn.models import loading
    from everlearn.models.heads import SETTINGS
    from everlearn.models.sources import find_base

    is_base = released.folder is None
    is_adapter = recipe.model.tuning == "lora" and not is_base
    inner = None if released.folder is None else released.folder / ("adapter" if is_adapter else "model")
    source = find_base(recipe.model, weights=False)
    rows = [row for task in stream for row in task.evaluation[:_COMPARED_ROWS]]
    shutil.rmtree(made, ignore_errors=True)  # of a run that was killed
    make_folder(made)
    own = copy.copy(tokenizer)
    own.chat_template = handed_template(template, tokenizer, rows)
    loading.save_tokenizer(own, made)
    try:
        _generation(source, template, tokenizer, recipe).save_pretrained(str(made))
        if (is_adapter or is_base) and recipe.model.base == EMBEDDED:
            shutil.copytree(source.folder, made / "base")
        handed = Handed(
            base="base" if recipe.model.base == EMBEDDED else _base(source, target),
            revision=source.commit,
            dtype=loading.dtype_of(recipe.model),
            quantization=recipe.model.quantization,
            has_template=own.chat_template is not None,
            label=label,
            kind=read_mapping(inner / "adapter_config.json")["peft_type"] if is_adapter and inner else None,
            is_base=is_base,
            heads=read_mapping(released.heads.folder / HEADS / SETTINGS) if released.heads else None,
            knows_task=stream.scenario == "task_incremental",
            versions=versions(),
            note=source.note,
            answerer=answerer[1] if answerer else None,
        )
        write_text(made / CARD, model_card(recipe, stream, template, tokenizer, handed, matrix))
        base = _base(source, target) if is_adapter else None
        if inner is not None:
            _link(inner, made, base)
        if released.heads is not None:
            make_folder(made / HEADS)
            shutil.copy2(released.heads.folder / HEADS / SETTINGS, made / HEADS)
            _link(released.heads.folder / HEADS, made / HEADS, None)
        if answerer and inner is not None:
            routing = described(answerer[1], answerer[0])
            write_json(made / ROUTING, routing.model_dump(mode="json"))
            for name, place in routing.models.items():
                folder = answerer[1].models[name].folder
                assert folder is not None, "what answers is the base with one part"
                make_folder(made / place)
                _link(folder / inner.name, made / place, base)
                if not is_adapter:
                    loading.save_tokenizer(own, made / place)
                    shutil.copy2(made / "generation_config.json", made / place)
        _move(made, target)
    except OSError as error:
        raise disk_error(target, error) from None


def _base(source: BaseSource, target: Path) -> str:
    """The base's name on the hub, or an absolute path: of the copy beside the adapter for the embedded base."""
    if source.commit:
        return source.name
    return str((target / "base" if source.name == EMBEDDED else source.folder).resolve())


def _generation(
    source: BaseSource, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, recipe: Recipe
) -> GenerationConfig:
    """Greedy answers that end where they ended in the run."""
    from transformers import GenerationConfig

    from everlearn.models.descriptions import read_config

    if (source.folder / "generation_config.json").is_file():
        base = GenerationConfig.from_pretrained(source.folder)
    else:
        base = GenerationConfig.from_model_config(read_config(source))
    ends = base.eos_token_id if isinstance(base.eos_token_id, list) else [base.eos_token_id]
    return GenerationConfig(
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=list(dict.fromkeys(at for at in (*template.end_ids(tokenizer), *ends) if at is not None)),
        pad_token_id=tokenizer.pad_token_id,
        do_sample=False,
        max_new_tokens=recipe.evaluation.max_new_tokens,
    )


def _link(source: Path, target: Path, base: str | None) -> None:
    """Links the weights and the model's configuration (copies across file systems); an adapter names its base."""
    if base is not None:
        settings = read_mapping(source / "adapter_config.json")
        write_json(target / "adapter_config.json", {**settings, "base_model_name_or_path": base})
    for path in (path for pattern in _WEIGHTS for path in sorted(source.glob(pattern))):
        try:
            os.link(path, target / path.name)
        except OSError:
            shutil.copy2(path, target / path.name)


def _move(made: Path, target: Path) -> None:
    """Moves files one by one, the card last, so that none is there in part; what somebody else has put there stays."""
    names = [path.relative_to(made) for path in made.rglob("*") if path.is_file()]
    for name in sorted(names, key=lambda name: (name == Path(CARD), name)):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(made / name, target / name)
    shutil.rmtree(made)
