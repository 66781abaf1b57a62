"""The recipe of `everlearn update`: versions of raw text, a model, a paradigm, its rates, training and measuring.

The sections are frozen, unknown keys are refused with the nearest valid one, and the text under each field is its
documentation, as in `everlearn.recipe`. Paths of what a recipe file reads are relative to the file.
"""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, model_validator

from everlearn.checking import checked, first_double
from everlearn.errors import RecipeError, unknown
from everlearn.recipe import EMBEDDED, Name, Section, Seeds, read_tree, set_dotted
from everlearn.recipe_paths import Folder, Source, Word, anchored
from everlearn.training.text_config import TextTrainingConfig
from everlearn.updates.plan import PARADIGMS, Paradigm, Placement, Rewarm, State, VersionPlan
from everlearn.updates.rates import Rates


class VersionConfig(Section):
    """One version: the raw text that is new in it."""

    id: Name
    """Unique name of the version; its release is the folder `releases/<id>`."""
    data: Source
    """File (plain text, JSON Lines or Parquet, or gzip of the first two), folder of such files, saved dataset, or
    `hub-name[:config][@split]`. In plain text a blank line ends a document."""
    column: str = "text"
    """Key or column of the text in JSON Lines, Parquet and datasets."""
    heldout: Source | None = None
    """Held-out text of the same kinds; nothing: `quality.heldout_ratio` of the documents is set aside."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps of this version; nothing: as many as its text fills, each block read once."""


class EmbeddedVersions(Section):
    """The generated corpus whose content drifts from version to version (new words, names and facts)."""

    count: Annotated[int, Field(ge=1, le=12)] = 4
    """Number of versions."""
    documents: Annotated[int, Field(ge=200, le=1_000_000)] = 9000
    """Documents of each version."""
    steps: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps of each version, as in `versions` of your own."""
    seed: int = 0
    """Of the corpus; apart from the run's seed, so that several runs read the same text."""


class ModelStart(Section):
    """The model at step 0 and its tokenizer."""

    config: dict[str, Any] | None = None
    """A Transformers configuration (`model_type` and its fields) of a causal language model, trained from random
    weights. `vocab_size`, the special tokens and, where missing, the context follow from tokenizer and blocks."""
    start_from: Annotated[Source, Word(EMBEDDED)] | None = None
    """A model to start from in place of random weights: folder, Hugging Face name or `embedded`. Path switching
    is meant for models whose rate has not been decayed; a released model usually has been."""
    rewarm: bool = True
    """With `start_from`: rise to the maximal rate over `schedule.warm_up_steps`. false: start at the maximal rate."""
    tokenizer: Annotated[Source, Word("train")] = "train"
    """Folder or Hugging Face name of a tokenizer, or `train`: a byte-level BPE of `vocabulary_size` tokens, made from
    the first version's text. With `start_from` it is always the model's own."""
    vocabulary_size: Annotated[int, Field(ge=300, le=1_000_000)] = 2048
    """Of a tokenizer that is trained."""

    @model_validator(mode="after")
    def _has_one_start(self) -> ModelStart:
        if (self.config is None) == (self.start_from is None):
            raise ValueError(
                "give either model.config (random weights) or model.start_from (a model to start from), one of the two"
            )
        return self


class ScheduleConfig(Section):
    """The learning rate. The paper's numbers could not be read; the constants are common ones, chosen here."""

    name: Literal["cosine", "knee", "multistep", "constant"] = "cosine"
    """Decay of a whole run; a branch takes the fast form of the same kind unless `path.branch_schedule` differs."""
    maximal_rate: Annotated[float, Field(gt=0)] = 3e-4
    """The rate after the warm-up, and of the main path for ever."""
    minimal_ratio: Annotated[float, Field(ge=0, lt=1)] | None = None
    """Minimal rate as a share of the maximal. Nothing: 0.1 for cosine, 0 for knee; multistep has its own
    plateaus (0.316, 0.1), constant never decays."""
    warm_up_steps: Annotated[int, Field(ge=0)] = 0
    """Linear rise at the beginning of a run; the first update runs at rate 0 if there is one."""
    cycle_ratio: Annotated[float, Field(ge=1, allow_inf_nan=True)] = 1.0
    """Cosine cycle as a multiple of the run: above 1 the decay of full runs stays incomplete; `.inf` is constant."""
    explore_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.5
    """Share of a run that knee stays at the maximal rate."""

    @model_validator(mode="after")
    def _fits(self) -> ScheduleConfig:
        if self.minimal_ratio is not None and self.name in ("multistep", "constant"):
            raise ValueError(
                f"minimal_ratio has no meaning for schedule {self.name}: leave it out, or choose cosine or knee"
            )
        return self


class BranchPoint(Section):
    """Where the branch of one version leaves the main path, for `placement: scheduled`."""

    at: Annotated[int, Field(ge=0)]
    """Main-path step, counted over all versions."""
    steps: Annotated[int, Field(ge=1)]
    """Length of the branch."""


class PathConfig(Section):
    """Path switching and continual pre-training."""

    branch_fraction: Annotated[float, Field(gt=0, le=1)] = 0.6
    """Length of a branch as a share of its version's steps; 0.6 is what costs 58 % of from-scratch training at four
    versions."""
    placement: Placement = "overlap"
    """`overlap`: the branch trains on the end of its version's data instead of the main path. `append`: it follows
    the version's data, on its last part again or on `annealing`. `scheduled`: at `points`."""
    points: Annotated[tuple[BranchPoint, ...], Field(strict=False)] = ()
    """For `scheduled`: one entry a version."""
    annealing: Source | None = None
    """For `append`: data source (as a version's `data`) that every branch reads."""
    lazy: bool = True
    """Bring the main path to the end of a version only when another version follows."""
    branch_schedule: Literal["cosine", "knee", "multistep", "constant"] | None = None
    """Fast decay of the branches; nothing: that of `schedule.name`."""
    branch_cycle_ratio: Annotated[float, Field(ge=1, allow_inf_nan=True)] = 1.0
    """Cosine cycle of a branch as a multiple of its length: above 1 the decay is incomplete (a control)."""
    branch_optimizer: State = "inherit"
    """Whether a branch goes on with the main path's optimizer moments or starts with none."""
    branch_replay_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of each batch of a branch that is drawn from all earlier versions instead (0: the published method, which
    needs no old data). The main path still reads all of the new data."""
    cpt_rewarm: Rewarm = "warm_up"
    """How continual pre-training begins a version: `warm_up` steps to the maximal rate, `jump` to it at once, or
    stay at the `minimum` rate throughout."""
    cpt_optimizer: State = "reset"
    """Whether continual pre-training keeps the optimizer of the version before (a release has none)."""
    cpt_cycle_ratio: Annotated[float, Field(ge=1, allow_inf_nan=True)] | None = None
    """Cosine cycle of the continued versions as a multiple of their length; nothing: `schedule.cycle_ratio`. The
    two together make the paper's studies: how far the rate has fallen before an update, and how far it falls in it."""
    ptfs_order: Literal["mixed", "arrival"] = "mixed"
    """Order of the data when training from scratch: all versions shuffled together, or one after the other."""

    @model_validator(mode="after")
    def _fits_the_placement(self) -> PathConfig:
        if bool(self.points) != (self.placement == "scheduled"):
            raise ValueError("path.points and path.placement: scheduled belong together: give both or neither")
        if self.annealing is not None and self.placement != "append":
            raise ValueError("path.annealing is read by appended branches: set path.placement to append")
        return self


class QualityConfig(Section):
    """What is measured on each release."""

    heldout_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.02
    """Share of each version's documents that is never trained on; chosen by their content, so that copies of a
    document are all on one side."""
    heldout_blocks: Annotated[int, Field(ge=2)] = 128
    """Most held-out blocks measured for each version."""
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Resamples of blocks behind each confidence interval."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of the intervals."""
    microtasks: bool = False
    """Few-shot micro-task accuracy, which has a meaning for descendants of the embedded base."""


class Arm(Section):
    """One line of a comparison: the recipe with some keys set otherwise."""

    label: Name
    """Unique name; the arm's run folders are `<label>-s<seed>`."""
    set: dict[str, Any] = Field(default_factory=dict)
    """Dotted keys to values, such as `path.branch_fraction: 0.3`."""
    against: str | None = None
    """Label of the arm that it is measured against. Nothing: the arm called `ptfs`, if there is one."""


class UpdateRecipe(Section):
    """All that a run of version updates depends on."""

    name: Name = "update"
    """Name of the run; its folder is `runs_dir/name`."""
    seed: int = 42
    """Of initial weights, order of the data and intervals."""
    paradigm: Paradigm = "path_switching"
    """How versions are made: from scratch, continued, or by path switching."""
    versions: list[VersionConfig] | EmbeddedVersions = EmbeddedVersions()
    """The versions in order of arrival, or the generated corpus."""
    model: ModelStart = ModelStart(config={"model_type": "llama"})
    schedule: ScheduleConfig = ScheduleConfig()
    path: PathConfig = PathConfig()
    training: TextTrainingConfig = TextTrainingConfig()
    quality: QualityConfig = QualityConfig()
    compare: Annotated[tuple[Arm, ...], Field(strict=False)] = ()
    """Arms of `everlearn update --compare`; nothing: the three paradigms."""
    seeds: Seeds = Field(default_factory=list)
    """Seeds for `everlearn update --compare`; nothing means the recipe's own seed."""
    runs_dir: Folder = "runs"
    """Where run folders are made; relative to the working directory."""
    cache_dir: Folder | None = None
    """Tokenised blocks shared by runs; nothing: `runs_dir/.cache`."""

    @model_validator(mode="after")
    def _names_are_unique(self) -> UpdateRecipe:
        if isinstance(self.versions, list):
            ids = [version.id for version in self.versions]
            double = first_double(ids)
            if double:
                raise ValueError(f"versions: the id {double!r} stands twice: give each version its own")
            if not ids:
                raise ValueError("versions: the list is empty: name at least one version with its data")
        labels = [arm.label for arm in self.compare]
        double = first_double(labels)
        if double:
            raise ValueError(f"compare: the label {double!r} stands twice: give each arm its own")
        stray = next((arm for arm in self.compare if arm.against is not None and arm.against not in labels), None)
        if stray:
            raise ValueError(f"compare: arm {stray.label!r} is measured against {stray.against!r}, which is no arm")
        return self

    def arms(self) -> tuple[Arm, ...]:
        """What a comparison runs."""
        return self.compare or tuple(Arm(label=name, set={"paradigm": name}) for name in PARADIGMS)

    def with_arm(self, arm: Arm, seed: int) -> UpdateRecipe:
        """The recipe of one arm and seed.

        Raises:
            RecipeError: the arm sets an unknown key, or a wrong value.
        """
        tree = self.model_dump(mode="json", exclude={"compare", "seeds"})
        for key, value in {**arm.set, "seed": seed}.items():
            set_dotted(tree, key, value)
        return checked(UpdateRecipe, tree, where=f"compare, arm {arm.label!r}")

    def version_plan(self, steps: tuple[int, ...]) -> VersionPlan:
        """The plan for versions of so many steps."""
        schedule, path = self.schedule, self.path
        floors = {"cosine": 0.1, "knee": 0.0}
        branch = path.branch_schedule or schedule.name
        rates = Rates(
            schedule.name,
            warm_up=schedule.warm_up_steps,
            initial_warm_up=0 if self.model.start_from and not self.model.rewarm else None,
            floor=floors.get(schedule.name, 0.1) if schedule.minimal_ratio is None else schedule.minimal_ratio,
            cycle=schedule.cycle_ratio,
            continue_cycle=path.cpt_cycle_ratio,
            explore=schedule.explore_ratio,
            branch=branch,
            branch_floor=floors.get(branch, 0.1) if schedule.minimal_ratio is None else schedule.minimal_ratio,
            branch_cycle=path.branch_cycle_ratio,
        )
        return VersionPlan(
            self.paradigm,
            steps,
            rates,
            fraction=Fraction(str(path.branch_fraction)),
            placement=path.placement,
            points=tuple((point.at, point.steps) for point in path.points),
            lazy=path.lazy,
            rewarm=path.cpt_rewarm,
            branch_optimizer=path.branch_optimizer,
            continue_optimizer=path.cpt_optimizer,
            annealing=path.annealing is not None,
        )


def load_update_recipe(path: str | Path, overrides: dict[str, object] | None = None) -> UpdateRecipe:
    """Reads and checks an update recipe.

    Args:
        path: YAML file, `embedded` for the quickstart of version updates, or `embedded:NAME` for a sweep.
        overrides: Dotted keys (`schedule.maximal_rate`) to values, as the command line gives them.

    Raises:
        RecipeError: the file is missing or not YAML, a key is unknown (with the nearest valid one), a value is out
            of range; all faults are named at once.
    """
    embedded = str(path).partition(":")[0] == EMBEDDED
    source = shipped_recipe(str(path)) if embedded else Path(path)
    tree = read_tree(source, overrides)
    if "stream" in tree and "versions" not in tree:
        raise RecipeError(f"{path} is a recipe of tasks (it has a stream): give it to 'everlearn run'.")
    recipe = checked(UpdateRecipe, tree, where=str(path))
    return anchored(recipe, None if embedded else source.resolve().parent, overrides or {})


def shipped_recipe(name: str) -> Path:
    """The file of `embedded` (the quickstart) or of a sweep, `embedded:branch_fraction`.

    Raises:
        RecipeError: there is no such sweep.
    """
    folder = Path(__file__).parents[1] / "recipes"
    sweep = name.partition(":")[2]
    if not sweep:
        return folder / "update_quickstart.yaml"
    known = sorted(path.stem for path in (folder / "sweeps").glob("*.yaml"))
    if sweep not in known:
        raise RecipeError(unknown("sweep", sweep, known))
    return folder / "sweeps" / f"{sweep}.yaml"
