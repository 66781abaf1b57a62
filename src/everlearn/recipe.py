"""The recipe: one YAML file that names a model, a stream of tasks, a method and how to train and measure.

Every section is a frozen pydantic model; the string under each field is its documentation and the only place
where a default is explained. Unknown keys are refused with the nearest valid one. Paths of what a recipe file reads
are relative to the file, those of what is written and all of the command line to the working directory. A method's own
options are validated by the method (`everlearn.methods`), not here.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, field_validator, model_validator

from everlearn import recipe_file
from everlearn.checking import checked, first_double
from everlearn.errors import RecipeError, RunError, UserError, nearest
from everlearn.http import checked_address
from everlearn.ordinary_files import is_regular, stat_of
from everlearn.recipe_method import JOIN, one_form, renamed
from everlearn.recipe_paths import Folder, Source, Word, anchored

EMBEDDED = "embedded"
NOT_OF_A_RUN = ("compare", "seeds", "synthesize", "evaluate", "runs_dir")
"""Keys on which no run depends: its folder goes on whatever they say."""
NOT_OF_A_STEP = ("report_to", "checkpoint_every", "too_long", "sharding")
"""Keys under `training` on which no trained weight depends but by the rows that it is trained on."""

ENGINE_KEYS = {
    "server": ("server", "served_as", "api_key_env"),
    "vllm": ("python", "context_length", "gpu_memory_utilization", "start_timeout_s"),
}
"""Keys under `generation` of one engine alone."""
MOST_WHOLE = 2**62
MOST_DECIMAL = 1e30
"""Beyond these a number is a slip: the machine's own arithmetic ends not far above."""
_MOST_PARENTS = 8
LONGEST_NAME = 100  # letters: files are called so with something before and behind, and systems take 255 bytes


def _fit_for_a_folder(name: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._+-]*", name):
        raise ValueError("a folder is called so: use letters, digits and any of . _ + -, the first a letter or digit")
    if len(name) > LONGEST_NAME:
        raise ValueError(f"a folder is called so: use at most {LONGEST_NAME} letters, not {len(name):,}")
    return name


Name = Annotated[str, AfterValidator(_fit_for_a_folder)]


def _listed(value: object) -> object:
    """A list, also from one number, or from text with commas as the command line gives it."""
    if not isinstance(value, str):
        return [value] if isinstance(value, int) else list(value) if isinstance(value, tuple) else value
    if not value.strip():
        raise ValueError("it is empty: give values apart by commas, or leave it out")
    return [part.strip() for part in value.split(",")]


def _numbers(value: object) -> object:
    """As `_listed`, with the numbers of a text."""
    is_text, parts = isinstance(value, str), _listed(value)
    if is_text and isinstance(parts, list):
        return [int(part) if re.fullmatch(r"[-+]?[0-9]{1,18}", part) else part for part in parts]
    return parts


def _distinct(values: list[object]) -> list[object]:
    double = first_double(values)
    if double is not None:
        raise ValueError(f"{double!r} stands twice: give each value once")
    return values


def _none_blank(labels: list[str]) -> list[str]:
    if not all(label.strip() for label in labels):
        raise ValueError("a label is empty, which no answer can be: take it out")
    return labels


def _joined_in_input_only(columns: dict[str, str | list[str]]) -> dict[str, str | list[str]]:
    double = next((key for key, names in columns.items() if key != "input" and isinstance(names, list)), None)
    if double is not None:
        raise ValueError(f"{double} is one column: only input may be a list of columns")
    if columns.get("input") == []:
        raise ValueError("input is an empty list: name its columns, or leave it out")
    return columns


Seeds = Annotated[list[int], BeforeValidator(_numbers), AfterValidator(_distinct)]
Names = Annotated[list[str], BeforeValidator(_listed), AfterValidator(_distinct)]


class Section(BaseModel):
    """A part of a recipe, or a method's options: immutable, unknown keys forbidden.

    Values mean what they say: a truth value is no number, nor is text, and numbers are finite. A default is checked
    (and made a decimal number where one is asked for) like a given value.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        use_attribute_docstrings=True,
        strict=True,
        allow_inf_nan=False,
        validate_default=True,
        serialize_by_alias=True,
    )

    added: ClassVar[frozenset[str]] = frozenset()
    """Keys that came when runs had been stored already, with what was done before as default: they are part of a
    fingerprint only where they differ from it, so what is stored is found again."""

    def hashed(self, *, exclude: Collection[str] = ()) -> dict[str, Any]:
        """The keys as JSON, for fingerprints and manifests."""
        fields = type(self).model_fields
        same = {name for name in self.added if getattr(self, name) == fields[name].default}
        return self.model_dump(mode="json", exclude=same | set(exclude))

    @field_validator("*")
    @classmethod
    def _numbers_mean_something(cls, value: object) -> object:
        for number in value if isinstance(value, list | tuple) else (value,):
            is_huge = (isinstance(number, int) and abs(number) > MOST_WHOLE) or (
                isinstance(number, float) and MOST_DECIMAL < abs(number) < float("inf")
            )
            if is_huge:
                raise ValueError(f"it is too large: at most {MOST_WHOLE if isinstance(number, int) else MOST_DECIMAL}")
        return value


class LoraConfig(Section):
    """Low-rank adapters (PEFT). Defaults: SSR's published scripts (arXiv 2403.01244, spec section 5)."""

    rank: Annotated[int, Field(ge=1)] = 8
    """Rank of the update matrices."""
    alpha: Annotated[float, Field(gt=0)] = 32
    """Scale: the update is multiplied by alpha / rank."""
    dropout: Annotated[float, Field(ge=0, lt=1)] = 0.1
    """Dropout on the adapter's input while training."""
    targets: list[str] | Literal["auto", "all-linear"] = "auto"
    """Names of the modules that get an adapter. `auto`: the published ones (`q_proj`, `v_proj`) where the model has
    them, else those that PEFT names for its architecture, else the linear layers of its attention. `all-linear` takes
    every linear layer but the output head. A name that the model does not have is refused with those it does have."""


class ModelConfig(Section):
    """The language model to keep teaching."""

    base: Annotated[Source, Word(EMBEDDED)] = EMBEDDED
    """A Hugging Face model name, a local folder, a GGUF file (or a folder with one), which is written out once as
    safetensors, or `embedded` for the small base that ships with everlearn."""
    revision: Annotated[str, Field(min_length=1)] | None = None
    """Branch, tag or commit on the hub; nothing means the default branch."""
    tuning: Literal["lora", "full"] = "lora"
    """Train low-rank adapters (the published setting) or all weights."""
    lora: LoraConfig = LoraConfig()
    """Adapter settings; unused when tuning is `full`."""
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the loaded weights. `auto`: for the frozen weights under LoRA bfloat16 where the device multiplies it
    natively (newer GPUs and CPUs of servers), float16 on other CUDA GPUs (Turing, Volta); else float32."""
    quantization: Literal["none", "nf4", "int8"] = "none"
    """Of the frozen linear layers under LoRA, by bitsandbytes (the extra `gpu`), when the model is loaded: `nf4`, four
    bits with doubly quantized constants (QLoRA, arXiv 2305.14314); `int8`, LLM.int8() (arXiv 2208.07339), whose
    products are of float16 inputs. Embeddings, norms and output head stay in `dtype`."""
    template: Literal[
        "auto",
        "chat",
        "cue",
        "vanilla",
        "alpaca",
        "llama2",
        "classification",
        "relation_classification_state",
        "relation_classification_qa",
        "short_answer",
        "words",
        "words_last",
    ] = "auto"
    """How an instance becomes a prompt. `auto`: the tokenizer's chat template if it has one, else `cue`: the query, a
    blank line, `Answer:` and a line break (a base whose answers follow the query directly learns to answer nothing).
    `vanilla`: the query alone, as published for base models, and what `auto` is for the embedded base; `alpaca` and
    `llama2`: the published frames. `classification`, `relation_classification_state`, `relation_classification_qa`
    (entities marked `[E11] head [E12]`, `[E21] tail [E22]`) and `short_answer`: the prompts of the study of
    class-incremental learning, whose answers begin with a space. `words` and `words_last` read rows of words with
    tags (for which `auto` is `words`): the sentence alone, and of a word of several tokens the state of the first
    (published), or of the last."""
    device: str = "auto"
    """`auto`: cuda, then mps, then cpu; or a torch device name."""

    added: ClassVar[frozenset[str]] = frozenset({"quantization"})

    @model_validator(mode="after")
    def _frozen_where_few_bits_are(self) -> Self:
        if self.quantization != "none" and self.tuning == "full":
            raise ValueError(
                f"quantization: {self.quantization} leaves weights that cannot be trained or merged into, and tuning: "
                "full trains all: set tuning to lora, or quantization to none"
            )
        if self.dtype == "float16" and self.tuning == "full":
            raise ValueError(
                "dtype: float16 is for frozen weights (small updates vanish in it), and tuning: full trains all: set "
                "dtype to float32 (training.precision: float16 computes in float16 all the same), or tuning to lora"
            )
        return self

    @property
    def template_name(self) -> str:
        """`template`, with what `auto` is for the embedded base: its published figures are of queries alone."""
        return "vanilla" if self.template == "auto" and self.base == EMBEDDED else self.template


class TaskConfig(Section):
    """One task of the stream, read from files or from a Hugging Face dataset."""

    name: Name
    """Unique within the stream; letters, digits, `.`, `_`, `+` and `-`."""
    train: Annotated[Source, Word(EMBEDDED)]
    """File, folder or `hub-name[:config][@split]` with the training rows; `embedded` for the task of that name of the
    embedded stream, whole as it is."""
    evaluation: Source | None = None
    """Held-out rows; without it `evaluation_ratio` of the training rows is set aside."""
    evaluation_ratio: Annotated[float, Field(gt=0, lt=1)] = 0.1
    """Share of the training rows held out when no `evaluation` is given."""
    demonstrations: Source | Annotated[int, Field(ge=0)] = 20
    """A file of in-context demonstrations, or how many training rows to take (SSR: 20, the last rows of the
    training split; for labelled tasks half from the end of each class half, as published). An official SuperNI task
    file gives its positive examples."""
    format: Literal[
        "auto",
        "superni",
        "alpaca",
        "sharegpt",
        "messages",
        "prompt_completion",
        "translation",
        "words",
        "columns",
    ] = "auto"
    """Shape of the rows; `auto` looks at the first rows. `columns` uses the mapping below."""
    columns: Annotated[
        dict[Literal["instruction", "input", "output", "system", "history", "id"], str | list[str]],
        AfterValidator(_joined_in_input_only),
    ] = {}
    """Names of the columns when they are not the format's own. `input` may be a list, such as `[premise, hypothesis]`:
    the texts stand below each other, each behind the name of its column."""
    instruction: str | None = None
    """A definition for the whole task, used where rows have none."""
    metric: str = "auto"
    """Main metric. `auto`: accuracy for tasks with a closed label set, else ROUGE-L: `rouge_l_unicode` (words by
    Unicode's rules) where most letters of the answers are neither Latin nor Chinese, else `rouge_l` (published for all
    tasks: tokens of jieba, to which other letters are tokens of their own)."""
    labels: Annotated[list[str], AfterValidator(_distinct), AfterValidator(_none_blank)] = []
    """The closed set of answers. Nothing means: found from the training rows when their outputs are short and each is
    given three times on average; of more than 20, at most a quarter once. White space, capitals (unless the metric
    minds them) and letters that cannot be seen make no other label."""

    _of_files: ClassVar[tuple[str, ...]] = (
        "evaluation",
        "format",
        "columns",
        "instruction",
        "labels",
        "metric",
        "demonstrations",
    )
    """Keys that say nothing of an embedded data set."""

    @model_validator(mode="after")
    def _no_key_is_passed_over(self) -> Self:
        of_files = (key for key in self._of_files if getattr(self, key) != type(self).model_fields[key].default)
        if self.train == EMBEDDED and (key := next(of_files, None)):
            raise ValueError(f"{key} is for rows of files, and train: {EMBEDDED} is taken as it is: take {key} out")
        return self


class ClassesConfig(TaskConfig):
    """A data set with a class a row, which is cut into tasks by its classes; keys as of a task."""

    train: Annotated[Source, Word(EMBEDDED)]
    """File, folder or `hub-name[:config][@split]` with the training rows; `embedded` for the drawn one."""
    name: Name = "task"
    """The tasks are called so, each with its number behind: `task-1`."""
    label_names: Source | None = None
    """A JSON file with the names of the classes, for rows that have numbers from 0: a list of names (or of objects
    with a `name`), or an object of names and their numbers."""

    _of_files: ClassVar[tuple[str, ...]] = ("evaluation", "format", "columns", "instruction", "labels", "label_names")

    @model_validator(mode="before")
    @classmethod
    def _of_a_file(cls, value: object) -> object:
        return {"train": value} if isinstance(value, str) else value

    @field_validator("demonstrations")
    @classmethod
    def _a_number(cls, value: str | int) -> str | int:
        if isinstance(value, str):
            raise ValueError("they are of one task: give a number, so that each task takes its own training rows")
        return value

    @model_validator(mode="after")
    def _names_once(self) -> Self:
        if self.labels and self.label_names is not None:
            raise ValueError("labels and label_names both name the classes: give one of them")
        return self


class StreamConfig(Section):
    """The stream of tasks, in order of arrival."""

    tasks: Literal["embedded"] | Annotated[list[TaskConfig], Field(strict=False)] = "embedded"
    """The tasks, or `embedded` for the five that ship with everlearn."""
    from_: ClassesConfig | None = Field(default=None, alias="from")
    """In place of tasks: a data set (its training file, or keys as of a task) that is cut into tasks by class;
    `embedded`: the small one that ships with everlearn."""
    classes_per_task: (
        Annotated[int, Field(ge=1)] | Annotated[list[Annotated[int, Field(ge=1)]], Field(min_length=1)] | None
    ) = None
    """With `from`: how many classes each task brings (the last one what is left), or how many each by itself."""
    class_order: Literal["file", "seed"] | Names = "file"
    """With `from`, the order in which the classes arrive: `file`, that of `label_names` or `labels`, else of their
    first appearance in the training rows; `seed`, drawn by the run's seed; or their names."""
    order: list[str] | None = None
    """Task names in the order of arrival; nothing means as listed."""
    scenario: Literal["class_incremental", "task_incremental"] | None = None
    """Each task brings classes of its own, which no other has: its `labels`, or its training answers in the order of
    their first appearance. `class_incremental`: the task of a row that is answered is unknown, so the answer is one of
    all classes seen so far; `task_incremental`: it is known, so the answer is one of its task's classes. Nothing:
    tasks may share answers, and need not have classes."""
    bad_rows: Literal["strict", "tolerant"] = "strict"
    """`strict`: the first bad rows stop the run; `tolerant`: they are set aside in `bad_rows.jsonl`."""
    train_limit: Annotated[int, Field(ge=1)] | None = None
    """Use at most that many training rows of each task."""
    evaluation_limit: Annotated[int, Field(ge=1)] | None = None
    """Use at most that many evaluation rows of each task."""

    @model_validator(mode="after")
    def _tasks_or_classes(self) -> Self:
        if self.from_ is None:
            if self.classes_per_task is not None or self.class_order != "file":
                raise ValueError(
                    "classes_per_task and class_order are of a data set that is cut into tasks: give from"
                )
        elif self.tasks != EMBEDDED:
            raise ValueError("tasks and from are both given: list tasks, or give one data set to be cut into tasks")
        elif self.classes_per_task is None:
            raise ValueError("from needs classes_per_task: say how many classes each task brings")
        return self


class TrainingConfig(Section):
    """How each stage is trained. Defaults: SSR's published scripts (spec section 5)."""

    epochs: Annotated[float, Field(gt=0, le=1_000_000)] = 3
    """Passes over the stage's rows."""
    batch_size: Annotated[int, Field(ge=1)] = 32
    """Rows per optimizer step and process."""
    micro_batch_tokens: Annotated[int, Field(ge=64)] | None = None
    """Most tokens (padding included) computed at once; a batch is split by length and its loss summed, with the
    same result. Nothing means: what the free memory is likely to hold, at most 2,048 on a CPU and 32,768 on a GPU."""
    learning_rate: Annotated[float, Field(gt=0)] = 2e-4
    """Peak learning rate."""
    scheduler: Literal["cosine", "linear", "constant"] = "cosine"
    """Shape of the schedule over the stage; starts afresh each stage."""
    warmup_ratio: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Share of the steps with a linearly rising rate."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """AdamW's decoupled decay."""
    optimizer: Literal["adamw", "adamw_8bit"] = "adamw"
    """`adamw_8bit`: bitsandbytes' (the extra `gpu`; arXiv 2110.02861), whose moments take two bytes a weight instead
    of eight; those of tensors of fewer than 4,096 weights, and of heads that are trained alone, stay whole."""
    max_grad_norm: Annotated[float, Field(gt=0)] = 1.0
    """Gradients are clipped to this norm."""
    max_prompt_tokens: Annotated[int, Field(ge=1)] = 1024
    """Longer prompts are cut at the end (published behaviour)."""
    max_target_tokens: Annotated[int, Field(ge=1)] = 512
    """Longer answers are cut and then have no end token (published behaviour)."""
    too_long: Literal["cut", "leave_out"] = "cut"
    """Rows with a longer prompt or answer: `cut` as published, or `leave_out`, which does not train on them."""
    precision: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    """Of the computation (autocast). `auto`: bfloat16 where the device is built for it, float16 on other CUDA GPUs.
    In float16 the loss is scaled (arXiv 1710.03740); a step whose gradients overflow is computed again at half the
    scale."""
    gradient_checkpointing: Literal["auto"] | bool = "auto"
    """Recompute activations in the backward pass: less memory, slower. `auto`: where the longest row that the recipe
    allows would otherwise be unlikely to fit into the memory that is free when the run begins, which is told."""
    sharding: Literal["none", "fsdp"] = "none"
    """Of several processes: each has the whole model in training, or only a part of its weights (FSDP2): with LoRA of
    the frozen ones; under full tuning of all but the output head, and of their gradients and moments."""
    checkpoint_every: Annotated[int, Field(ge=1)] | None = None
    """Optimizer steps between checkpoints within a stage; nothing: a killed stage starts again."""
    report_to: list[str] = []
    """Trackers for the Trainer: tensorboard, wandb, mlflow, trackio."""

    added: ClassVar[frozenset[str]] = frozenset({"optimizer"})


Probe = Literal["linear", "cosine_linear", "prototype", "cosine_prototype"]


class ProbingConfig(Section):
    """Fresh heads that show what a model's features still tell apart (arXiv 2312.07887); with `stream.scenario`."""

    probes: Annotated[list[Probe], BeforeValidator(_listed), AfterValidator(_distinct)] = [
        "linear",
        "cosine_linear",
        "prototype",
        "cosine_prototype",
    ]
    """Which heads are fitted before the first stage and after each one; an empty list: none."""
    schedule: Literal["converged", "published"] = "converged"
    """Of the trained ones: until the training loss is flat, or the paper's 20 epochs of Adam at 1e-3, which leaves few
    rows near chance."""


def _tasks(value: object) -> object:
    """Tasks by name or in full; also from text with commas, as the command line gives it."""
    parts = _listed(value)
    return [{"task": part} if isinstance(part, str) else part for part in parts] if isinstance(parts, list) else parts


def _asked_once(tasks: list[GeneralTask]) -> list[GeneralTask]:
    double = first_double([f"{task.task}, shots: {task.shots}, limit: {task.limit}" for task in tasks])
    if double is not None:
        raise ValueError(f"'{double}' stands twice: ask it once, or with other shots")
    return tasks


def _stages(value: object) -> object:
    """`last`, `all`, or numbers of stages."""
    if value in ("last", "all"):
        return value
    numbers = _numbers(value)
    if not isinstance(numbers, list) or not all(type(number) is int and number > 0 for number in numbers):
        raise ValueError("give last, all, or numbers of stages such as 1,3 (the base is always asked)")
    return numbers


class GeneralTask(Section):
    """A task or group of lm-evaluation-harness; its name alone stands for it where it is asked as it was made."""

    task: Annotated[str, Field(min_length=1)]
    """Its name there, such as mmlu."""
    shots: Annotated[int, Field(ge=0, le=1000)] | None = None
    """Examples before each question; nothing: as the task has it (mmlu: none; SSR's paper: 5)."""
    limit: Annotated[int, Field(ge=1)] | None = None
    """Only so many questions of each of its parts, from the front."""


class JudgeConfig(Section):
    """A language model that says which of two answers is better; asked by OpenAI's protocol for chats."""

    url: Annotated[str, AfterValidator(checked_address)]
    """Base of its server, such as http://127.0.0.1:8000/v1. Requests and answers of the test rows are sent there."""
    model: Annotated[str, Field(min_length=1)]
    """Its name there."""
    against: Annotated[Source, Word("gold")] = "gold"
    """What the final model's answers are held against: `gold` (the test rows' outputs), or the folder of a run."""
    limit: Annotated[int, Field(ge=1)] | None = 100
    """Rows of each task, from the front; nothing: all."""
    max_tokens: Annotated[int, Field(ge=1)] = 16
    """Of its reply, which is one word; a model that thinks aloud needs hundreds."""
    api_key_env: str = ""
    """Environment variable that holds the key to send; empty: none is sent."""
    timeout_s: Annotated[float, Field(gt=0)] = 120
    """Seconds for one reply."""
    attempts: Annotated[int, Field(ge=1, le=100)] = 5
    """How often a question is sent at most while the server is busy or away."""
    parallel: Annotated[int, Field(ge=1, le=256)] = 4
    """Questions at a time."""


class EvaluationConfig(Section):
    """What is measured after every stage."""

    max_new_tokens: Annotated[int, Field(ge=1)] = 512
    """Longest answer (published: 512)."""
    unseen_tasks: bool = True
    """Score the tasks not yet seen as well, for forward transfer."""
    general: bool = True
    """Measure perplexity on held-out general text and, for the embedded base, the micro-tasks."""
    general_text: Source | None = None
    """A text file (blank lines between passages) for perplexity; nothing: a short text that ships with everlearn."""
    general_tasks: Annotated[list[GeneralTask], BeforeValidator(_tasks), AfterValidator(_asked_once)] = []
    """Benchmarks by lm-evaluation-harness (the extra bench), before the stream and after the stages below."""
    general_stages: Annotated[Literal["last", "all"] | list[int], BeforeValidator(_stages)] = "last"
    """After which stages the benchmarks are asked: `last`, `all`, or numbers, 1 being the first stage."""
    general_include_path: Source | None = None
    """A folder of task files (YAML) of your own for the harness; their `data_files` are named from there."""
    general_chat_template: bool = False
    """Ask the benchmarks as messages in the tokenizer's chat template (the harness's apply_chat_template)."""
    bootstrap_samples: Annotated[int, Field(ge=100, le=100_000)] = 1000
    """Resamples of instances behind each confidence interval."""
    confidence: Annotated[float, Field(gt=0.5, lt=1)] = 0.95
    """Level of the intervals."""
    probing: ProbingConfig = ProbingConfig()
    judge: JudgeConfig | None = None
    """A judge of the final model's answers; nothing: none is asked."""


class GenerationConfig(Section):
    """Who writes: answers that are scored, and what methods let models write."""

    engine: Literal["here", "server", "vllm"] = "here"
    """`here`: this process. `server`: a server of the OpenAI protocol that takes prompts as token ids and gives back
    those that it writes, as vLLM does; adapters are loaded there by their paths. `vllm`: such a server of the run's
    own, started when it is first needed, ended before each training and with the run."""
    server: Annotated[str, AfterValidator(checked_address)] | None = None
    """With `server`: its address, such as `http://127.0.0.1:8000/v1`."""
    served_as: Annotated[str, Field(min_length=1)] | None = None
    """With `server`: what it calls the run's base, where that is neither `model.base` nor the folder of its files; you
    answer for it that both are one model."""
    api_key_env: Annotated[str, Field(min_length=1)] | None = None
    """With `server`: the environment variable with the key that it asks for."""
    python: Source | None = None
    """With `vllm`: the Python of the environment that vLLM is installed in."""
    context_length: Annotated[int, Field(ge=2)] | None = None
    """With `vllm`: most tokens of prompt and answer together (its `--max-model-len`); nothing: the model's context."""
    gpu_memory_utilization: Annotated[float, Field(gt=0, le=1)] = 0.6
    """With `vllm`: the share of a GPU's memory that it takes; the run's own model is there as well."""
    start_timeout_s: Annotated[float, Field(gt=0)] = 900
    """With `vllm`: seconds until it must be ready."""
    requests_at_once: Annotated[int, Field(ge=1, le=4096)] = 64
    """Completions that a server is asked for at a time."""
    timeout_s: Annotated[float, Field(gt=0)] = 600
    """Seconds until a server must have answered a request."""

    @model_validator(mode="after")
    def _of_this_engine(self) -> Self:
        needed = {"server": "server", "vllm": "python"}.get(self.engine)
        if needed and getattr(self, needed) is None:
            raise ValueError(f"engine {self.engine} needs {needed}")
        for engine, keys in ENGINE_KEYS.items():
            key = next((key for key in keys if getattr(self, key) != type(self).model_fields[key].default), None)
            if engine != self.engine and key is not None:
                raise ValueError(f"{key} is for engine {engine}, and engine is {self.engine}: take {key} out")
        return self


class SynthesizeConfig(Section):
    """What `everlearn synthesize` makes; runs do not read it."""

    tasks: Names = []
    """Tasks of the stream; nothing means all."""
    count: Annotated[int, Field(ge=1)] | None = None
    """Rows to make of each task; nothing means `method.ratio` of the task's."""
    checkpoint: Source | None = None
    """A stage's training folder, whose model answers the inputs again; nothing: the base model's answers stay."""
    chains: bool = False
    """Whether walks are written for the tasks' own training rows, in the place of new rows; `checkpoint` is then the
    model that writes, and nothing the base."""
    patterns: Source | None = None
    """With `chains`: a YAML file of patterns (`id`, `pattern`, `steps`) beside those that ship."""
    out: Folder | None = None
    """Where the data goes, relative to the working directory; nothing means `runs_dir/name-synthesis`."""


class EvaluateConfig(Section):
    """What `everlearn evaluate` scores; runs do not read it."""

    checkpoint: Source | None = None
    """A stage's training folder or a run's model folder; nothing means the base."""


class MethodConfig(Section):
    """The method and its own options, which its file validates; of several that are stacked by their names."""

    model_config = ConfigDict(extra="allow")

    name: str = "ssr"

    @property
    def options(self) -> dict[str, Any]:
        """All keys but the name; of a stack the options of each method by its name."""
        return dict(self.model_extra or {})

    @property
    def parts(self) -> dict[str, dict[str, Any]]:
        """The options of each method by its name, in order; of a method that stands alone its own."""
        return self.options if JOIN in self.name else {self.name: self.options}

    @model_validator(mode="before")
    @classmethod
    def _in_one_form(cls, value: object) -> object:
        return one_form(value)


class Recipe(Section):
    """All that a run depends on."""

    name: Name = "run"
    """Name of the run; its folder is `runs_dir/name`."""
    seed: int = 42
    """Root of every random stream."""
    model: ModelConfig = ModelConfig()
    stream: StreamConfig = StreamConfig()
    method: MethodConfig = MethodConfig()
    compare: list[MethodConfig] = []
    """Methods for `everlearn compare`, each with its own options."""
    seeds: Seeds = []
    """Seeds for `everlearn compare`; nothing means the recipe's own seed."""
    training: TrainingConfig = TrainingConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    generation: GenerationConfig = GenerationConfig()
    synthesize: SynthesizeConfig = SynthesizeConfig()
    evaluate: EvaluateConfig = EvaluateConfig()
    runs_dir: Folder = "runs"
    """Where run folders are made; relative to the working directory."""
    cache_dir: Folder | None = None
    """Artifacts shared by runs; nothing: `runs_dir/.cache`."""


def load_recipe(path: str | Path, overrides: dict[str, object] | None = None) -> Recipe:
    """Reads and checks a recipe file.

    Args:
        path: YAML file, or the name of a recipe that ships with everlearn (`named_recipe`).
        overrides: Dotted keys (`training.epochs`) to values, as the command line gives them; paths among them are
            relative to the working directory.

    Raises:
        RecipeError: the file is missing or not YAML, a key is unknown (with the nearest valid one), a value is out
            of range; all faults are named at once.
    """
    named = named_recipe(str(path))
    source = named or Path(path)
    tree = read_tree(source, overrides)
    if "versions" in tree and "stream" not in tree:
        raise RecipeError(f"{path} is a recipe of version updates (it has versions): give it to 'everlearn update'.")
    recipe = make_recipe(tree, where=str(path))
    return anchored(recipe, None if named else source.resolve().parent, overrides or {})


def read_tree(source: Path, overrides: dict[str, object] | None = None) -> dict[str, Any]:
    """The keys and values of a recipe file, not yet checked, with dotted keys overridden.

    Raises:
        RecipeError: the file is missing, not YAML, empty, or not a mapping.
    """
    if stat_of(source, RecipeError) is None:
        guess = nearest(str(source), _named_recipes())
        hint = f"did you mean {guess!r}, which ships with everlearn? Or" if guess else "give a YAML file, or"
        raise RecipeError(f"no recipe at {source}: {hint} make one with 'everlearn init'.")
    tree = recipe_file.read(source)
    if tree is None:
        raise RecipeError(
            f"{source} is empty: write keys into it, or give 'embedded' for the recipe of the quickstart."
        )
    if not isinstance(tree, dict):
        raise RecipeError(f"{source} holds a {type(tree).__name__}: a recipe is a mapping of keys to values.")
    for key, value in (overrides or {}).items():
        set_dotted(tree, key, value)
    return tree


def read_stored(path: Path, remedy: str) -> dict[str, Any]:
    """The keys and values of the recipe in a run folder.

    Raises:
        RunError: it is not as the run wrote it; says the remedy.
    """
    try:
        tree = recipe_file.read(path, RunError, recipe_file.MOST_STORED_BYTES)
        if isinstance(tree, dict):
            return tree
        fault = "it holds no keys"
    except UserError as error:
        fault = str(error).rstrip(".")
    raise RunError(f"{path} is corrupt ({fault}): {remedy}; finished steps are kept.")


def cache_folder(runs_dir: str, cache_dir: str | None) -> Path:
    """Where the artifacts that runs share stand."""
    return Path(cache_dir) if cache_dir else Path(runs_dir) / ".cache"


def make_recipe(tree: dict[str, Any], *, where: str = "recipe") -> Recipe:
    """Checks a recipe given as a dictionary.

    Raises:
        RecipeError: as `load_recipe`.
    """
    return checked(Recipe, tree, where=where)


def quickstart_path() -> Path:
    """The recipe of the embedded default."""
    return Path(__file__).parent / "recipes" / "quickstart.yaml"


def named_recipe(text: str) -> Path | None:
    """The recipe of that name that ships with everlearn (`embedded`: the quickstart's); None for a file's path."""
    known = _named_recipes()
    return known[text] if text in known and not is_regular(text, RecipeError) else None


def _named_recipes() -> dict[str, Path]:
    """Names of the recipes that ship with everlearn, with their files."""
    return {EMBEDDED: quickstart_path(), **{path.stem: path for path in quickstart_path().parent.glob("*.yaml")}}


def set_dotted(tree: dict[str, Any], key: str, value: object) -> None:
    """Sets a dotted key (`training.epochs`) of an unchecked recipe, making sections as needed.

    Another `method.name` drops the options of methods that are no longer there: they are those methods' own.

    Raises:
        RecipeError: a part of the key is no section, or keys of a section would be dropped.
    """
    if key.split(".")[0] == "method":
        there = tree.get("method", {})
        try:
            if key in ("method", "method.name") and isinstance(value, str | list):
                is_named = not isinstance(there, dict) or "name" in there
                tree["method"] = renamed(there if is_named else {"name": MethodConfig().name, **there}, value)
                return
            tree["method"] = one_form(there)
        except ValueError as error:
            raise RecipeError(f"cannot set {key!r}: {error}.") from None
    *parents, last = key.split(".")
    if len(parents) > _MOST_PARENTS:
        raise RecipeError(f"cannot set {key!r}: no section of a recipe is as deep.")
    for name in parents:
        inner = tree.setdefault(name, {})
        if not isinstance(inner, dict):
            raise RecipeError(f"cannot set {key!r}: {name!r} is not a section of the recipe.")
        tree = inner
    there = tree.get(last)
    dropped = (
        [name for name in there if name not in value] if isinstance(there, dict) and isinstance(value, dict) else []
    )
    if dropped:
        raise RecipeError(
            f"cannot set {key!r} as a whole: its {', '.join(dropped)} would be lost: set its keys one by one, such as "
            f"{key}.{next(iter(value), dropped[0])}."  # type: ignore[call-overload]
        )
    tree[last] = value
