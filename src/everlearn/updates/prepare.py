"""All that is known and checked before any training: tokenizer, tokenised versions, model size, plan.

A run that exists is not asked for text that it has read already: its versions' token files are found by the
fingerprint in its manifest. Only when they are gone from the cache is the text read again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.data.blocks import RECORD, TokenFiles, read_token_files, tokenise
from everlearn.data.text import TextSource
from everlearn.errors import DataError, ModelError, RecipeError, RunError
from everlearn.progress import Progress
from everlearn.recipe import cache_folder
from everlearn.updates.config import EmbeddedVersions, UpdateRecipe, VersionConfig
from everlearn.updates.cost import flops_per_token
from everlearn.updates.folder import UpdateFolder
from everlearn.updates.plan import VersionPlan
from everlearn.updates.start import get_tokenizer, model_config, read_tokenizer, size_of, tokenizer_fingerprint

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedTokenizerBase


@dataclass(frozen=True)
class Prepared:
    """A run that can begin.

    Attributes:
        tokenizer: Of all versions.
        tokenizer_fingerprint: Identifies it.
        settings: Configuration of the model.
        versions: In order of arrival.
        files: Their token files.
        annealing: Token files of the annealing mix, if there is one.
        steps: Optimizer steps of each version.
        plan: Of the recipe's paradigm.
        tokens_per_step: Over all processes.
        parameters: Of the model.
        flops_per_token: Forward and backward.
    """

    tokenizer: PreTrainedTokenizerBase
    tokenizer_fingerprint: str
    settings: PretrainedConfig
    versions: tuple[VersionConfig, ...]
    files: tuple[TokenFiles, ...]
    annealing: TokenFiles | None
    steps: tuple[int, ...]
    plan: VersionPlan
    tokens_per_step: int
    parameters: int
    flops_per_token: int

    @property
    def ids(self) -> list[str]:
        """Names of the versions."""
        return [version.id for version in self.versions]


def prepare(recipe: UpdateRecipe, folder: UpdateFolder | None = None, progress: Progress | None = None) -> Prepared:
    """Reads and tokenises what is new, makes the plan, and checks that it can be run.

    Args:
        recipe: What to run.
        folder: The run folder, where the run exists.
        progress: Where to show it.

    Raises:
        UserError: text, tokenizer, model or plan cannot be used as asked.
    """
    cache = cache_of(recipe)
    versions = versions_of(recipe, cache)
    tokenizer, fingerprint = _tokenizer(recipe, versions[0], cache, folder)
    settings = model_config(recipe.model, tokenizer, recipe.training.block_tokens)
    if recipe.quality.microtasks:
        _check_microtasks(tokenizer, settings)
    known = {entry["id"]: entry for entry in folder.manifest.get("updates", [])} if folder else {}
    files = tuple(
        _files(recipe, version, tokenizer, fingerprint, cache, known.get(version.id), progress) for version in versions
    )
    annealing = None
    if recipe.path.annealing:
        annealing = tokenise(
            TextSource(recipe.path.annealing),
            tokenizer,
            cache,
            what="path.annealing",
            tokenizer_fingerprint=fingerprint,
            heldout_ratio=0.0,
            progress=progress,
        )
    steps = tuple(_steps(recipe, version, found) for version, found in zip(versions, files, strict=True))
    plan = recipe.version_plan(steps)
    problems = plan.problems() or _annealing_problems(recipe, plan, annealing)
    if problems:
        raise RecipeError(" ".join(problems[:1]))
    parameters, multiplying = size_of(settings)
    text = settings.get_text_config()
    heads, width = getattr(text, "num_attention_heads", 0), getattr(text, "head_dim", None)
    return Prepared(
        tokenizer,
        fingerprint,
        settings,
        versions,
        files,
        annealing,
        steps,
        plan,
        recipe.training.batch_blocks * recipe.training.block_tokens,
        parameters,
        flops_per_token(
            parameters=multiplying,
            layers=text.num_hidden_layers,
            width=heads * width if width else text.hidden_size,
            block_tokens=recipe.training.block_tokens,
        ),
    )


def least_bytes(prepared: Prepared) -> int:
    """Bytes that a run takes at least: its releases, in float32; states between segments come on top."""
    return 4 * prepared.parameters * len(prepared.versions)


def _check_microtasks(tokenizer: PreTrainedTokenizerBase, settings: PretrainedConfig) -> None:
    from everlearn.data.embedded.corpus import held_out_microtasks
    from everlearn.evaluation.general import longest_microtask
    from everlearn.models.descriptions import context_of

    needed = longest_microtask(tokenizer, held_out_microtasks())
    context = context_of(settings)
    if needed > context:
        raise RecipeError(
            f"quality.microtasks: the longest micro-task takes {needed} tokens with this tokenizer, more than the "
            f"model's context of {context}: give model.config a max_position_embeddings of {needed} or more, or set "
            "quality.microtasks to false."
        )


def cache_of(recipe: UpdateRecipe) -> Path:
    """Where token files, tokenizers and generated text stand."""
    return cache_folder(recipe.runs_dir, recipe.cache_dir)


def versions_of(recipe: UpdateRecipe, cache: Path) -> tuple[VersionConfig, ...]:
    """The versions; those of the generated corpus are written into the cache first."""
    if isinstance(recipe.versions, EmbeddedVersions):
        from everlearn.data.embedded.drifting_corpus import write_version

        wanted = recipe.versions
        return tuple(
            VersionConfig(
                id=f"v{number}",
                data=str(write_version(cache / "drifting", number, documents=wanted.documents, seed=wanted.seed)),
                steps=wanted.steps,
            )
            for number in range(1, wanted.count + 1)
        )
    return tuple(recipe.versions)


def _tokenizer(
    recipe: UpdateRecipe, first: VersionConfig, cache: Path, folder: UpdateFolder | None
) -> tuple[PreTrainedTokenizerBase, str]:
    """The run's own tokenizer where there is one, checked against what it was trained with."""
    own = folder.path / "tokenizer" if folder else None
    known = folder.manifest.get("tokenizer") if folder else None
    if folder is None or own is None or known is None:
        return get_tokenizer(recipe.model, TextSource(first.data, first.column), cache)
    if own.exists():
        try:
            tokenizer = read_tokenizer(str(own))
        except ModelError:
            raise RunError(
                f"{own} is damaged: delete this folder and run 'everlearn resume', which makes it again."
            ) from None
        found = tokenizer_fingerprint(tokenizer)
    else:
        tokenizer, found = get_tokenizer(recipe.model, TextSource(first.data, first.column), cache)
    if recipe.model.tokenizer != "train" and recipe.model.start_from is None:
        found = tokenizer_fingerprint(read_tokenizer(recipe.model.tokenizer))
    if found != known:
        raise ModelError(
            f"the main path in {folder.path} was trained with another tokenizer than the one that is there now "
            f"({recipe.model.tokenizer if recipe.model.tokenizer != 'train' else own}): bring back the first one, "
            f"delete {own} so that it is made again, or start a run with another --name."
        )
    return tokenizer, found


def _files(
    recipe: UpdateRecipe,
    version: VersionConfig,
    tokenizer: PreTrainedTokenizerBase,
    fingerprint: str,
    cache: Path,
    known: Mapping[str, object] | None,
    progress: Progress | None,
) -> TokenFiles:
    if known:
        stored = cache / "blocks" / str(known["fingerprint"])
        if (stored / RECORD).exists():
            return read_token_files(stored)
    found = tokenise(
        TextSource(version.data, version.column),
        tokenizer,
        cache,
        what=f"version {version.id}",
        tokenizer_fingerprint=fingerprint,
        heldout_ratio=recipe.quality.heldout_ratio,
        heldout=TextSource(version.heldout, version.column) if version.heldout else None,
        progress=progress,
    )
    if known and found.fingerprint != known["fingerprint"]:
        raise DataError(
            f"version {version.id}: {version.data} is not the text that this run was trained on, and its token files "
            f"are gone from {cache}: bring back the text, or start a run with another --name."
        )
    return found


def _steps(recipe: UpdateRecipe, version: VersionConfig, files: TokenFiles) -> int:
    """Optimizer steps that a version's text fills, or the number that the recipe asks for."""
    width, batch = recipe.training.block_tokens, recipe.training.batch_blocks
    blocks = files.train_tokens // width
    if not blocks:
        raise DataError(
            f"version {version.id} is shorter than one block: {files.train_tokens} tokens to train on, and "
            f"training.block_tokens is {width}; give more text or shorter blocks."
        )
    if files.heldout_tokens < width:
        raise DataError(
            f"version {version.id}: its held-out text has {files.heldout_tokens} tokens, less than one block of "
            f"{width}: raise quality.heldout_ratio, give the version a 'heldout' text, or shorten "
            "training.block_tokens."
        )
    steps = blocks // batch
    if not steps:
        raise DataError(
            f"version {version.id} has {blocks} blocks, less than one step of training.batch_blocks ({batch}): give "
            "more text or a smaller batch."
        )
    if version.steps is not None and version.steps > steps:
        raise RecipeError(
            f"version {version.id}: steps ({version.steps}) is more than the {steps} that its text fills: lower it, "
            "or give more text."
        )
    return version.steps or steps


def _annealing_problems(recipe: UpdateRecipe, plan: VersionPlan, files: TokenFiles | None) -> Sequence[str]:
    if files is None or plan.paradigm != "path_switching":
        return ()
    steps = files.train_tokens // recipe.training.block_tokens // recipe.training.batch_blocks
    longest = max(segment.steps for segment in plan.segments() if segment.data == "annealing")
    if steps < longest:
        return [f"path.annealing fills {steps} steps, but the longest branch has {longest}: give more text."]
    return ()
