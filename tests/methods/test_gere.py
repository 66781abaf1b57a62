"""GeRe: what is replayed beside the task's rows, what holds the model to its base, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everlearn.data.mixture import Mixture
from everlearn.errors import DataError, ModelError, RecipeError, UserError
from everlearn.files import read_jsonl, write_jsonl, write_text
from everlearn.methods.gere import GeRe
from everlearn.methods.registry import make_method
from everlearn.methods.stack import assemble
from everlearn.models import loading
from everlearn.progress import LineProgress
from everlearn.recipe import LoraConfig, MethodConfig, ModelConfig, TrainingConfig
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.influence import Influence
from everlearn.training.rows import EncodedRow
from everlearn.training.teacher import keep_bands
from tests.methods.contexts import Bench, facts_of, number_stream
from tests.tiny_models import save_tiny_model
from tests.training.test_stage import CONFIG as STAGE
from tests.training.test_stage import ROWS, train

WORDS = "the a cat dog bird red green blue big small runs sleeps says yes no".split()
CONFIG = STAGE.model_copy(update={"precision": "float32"})


def text_of(at: int) -> str:
    return " ".join(WORDS[(at * 7 + step * (at + 2)) % len(WORDS)] for step in range(6 + 3 * at))


TEXTS = [text_of(at) for at in range(6)]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("models")
    write_jsonl(root / "texts.jsonl", ({"text": text} for text in TEXTS))
    return {"texts": root} | {name: save_tiny_model(root / name, name) for name in ("llama", "gpt2")}


def config_of(folder: Path, tuning: str, targets: list[str] | None = None) -> ModelConfig:
    lora = LoraConfig(targets=targets or "all-linear", dropout=0.0)
    return ModelConfig(base=str(folder), tuning=tuning, dtype="float32", lora=lora, device="cpu")  # type: ignore[arg-type]


def prepared(
    config: ModelConfig,
    folder: Path,
    texts: Path,
    training: TrainingConfig = CONFIG,
    stage: int = 0,
    **options: object,
) -> tuple[GeRe, Mixture, list[Influence]]:
    """The method as it stands before a stage, over the texts."""
    given = texts if texts.suffix else texts / "texts.jsonl"
    method = make_method("gere", {"texts": str(given), "count": len(TEXTS), **options})
    tokenizer = loading.load_tokenizer(config)
    method.check(replace(facts_of(number_stream(), context_length=256), tokenizer=tokenizer, training=training))
    bench = Bench(folder / "bench", Path(config.base), config.tuning)
    bench.config, bench.base = config, loading.load_model(config)
    context = replace(bench.context(method.stages(number_stream())[stage]), training=training, progress=LineProgress())
    assert isinstance(method, GeRe)
    return method, method.rehearsal(context), list(method.influences(context))


class Terms(Influence):
    """Keeps what another influence has added, and lets the model be changed before."""

    reads = True

    def __init__(self, inner: Influence, before: Callable[[torch.nn.Module], None] = lambda model: None) -> None:
        self.inner, self.before = inner, before
        self.found: list[float] = []
        self.term_now, self.needs_whole = 0.0, inner.needs_whole

    def begin(self, training) -> None:
        self.before(training.model)
        self.inner.begin(training)

    def units(self, rows) -> int:
        return self.inner.units(rows)

    def term(self, seen):
        term = self.inner.term(seen)
        self.term_now += 0.0 if term is None else float(term.detach())
        return term

    def after_step(self, step) -> None:
        self.found.append(self.term_now / self.inner.units(step.rows))
        self.term_now = 0.0


def moved(model: torch.nn.Module) -> None:
    with torch.no_grad():
        for value in model.parameters():
            value.mul_(1.2)


@pytest.mark.parametrize(
    ("kind", "architecture", "tuning", "is_packed"),
    [
        ("tm", "llama", "lora", True),
        ("tm", "gpt2", "full", True),
        ("tm", "gpt2", "lora", False),
        ("l1", "llama", "full", True),
        ("l2", "gpt2", "lora", True),
        ("kl", "llama", "full", True),
        ("kl", "gpt2", "lora", True),
        ("kl", "llama", "full", False),
    ],
)
def test_nothing_is_added_while_the_model_is_its_base_and_something_once_it_is_not(
    folders, tmp_path: Path, monkeypatch, architecture: str, tuning: str, kind: str, is_packed: bool
) -> None:
    if not is_packed:
        monkeypatch.setattr(AnswerLoss, "_agrees", lambda *_: False)
    config = config_of(folders[architecture], tuning)
    _, mixture, (influence,) = prepared(config, tmp_path, folders["texts"], imitation=kind, weight=1.0)
    loaded = loading.load_model(config, trainable=True, seed=5)
    terms = Terms(influence)
    hard = CONFIG.model_copy(update={"learning_rate": 3e-2})
    train(loaded, tmp_path / "stage", config=hard, rows=ROWS, mixture=mixture, influences=[terms])
    assert terms.found[0] == pytest.approx(0.0, abs=1e-6)
    assert terms.found[-1] > 1e-5
    history = list(read_jsonl(tmp_path / "stage" / "history.jsonl"))
    assert [row["term"] for row in history[1:]] == pytest.approx(terms.found[1:], rel=1e-3)


@pytest.mark.parametrize(
    ("kind", "balance"), [("tm", "rows"), ("tm", "halves"), ("kl", "rows"), ("kl", "halves"), ("l1", "halves")]
)
def test_the_loss_of_a_step_depends_on_no_split_of_it(folders, tmp_path: Path, kind: str, balance: str) -> None:
    config = config_of(folders["llama"], "full")
    found = []
    for tokens in (2048, 64):
        training = CONFIG.model_copy(update={"micro_batch_tokens": tokens, "learning_rate": 1e-2})
        _, mixture, (influence,) = prepared(
            config, tmp_path, folders["texts"], imitation=kind, weight=3.0, balance=balance, per_batch=2
        )
        loaded = loading.load_model(config, trainable=True, seed=5)
        terms = Terms(influence, moved)  # the sign of a rounding error would be the gradient of l1
        train(loaded, tmp_path / f"{tokens}", config=training, rows=ROWS, mixture=mixture, influences=[terms])
        found.append([row["loss"] + row["term"] for row in read_jsonl(tmp_path / f"{tokens}" / "history.jsonl")])
    assert found[0] == pytest.approx(found[1], rel=2e-3)


@pytest.mark.parametrize("weight", [5.0, "dynamic"])
@pytest.mark.parametrize("balance", ["rows", "halves"])
def test_a_dynamic_weight_makes_both_parts_of_the_loss_equal(folders, tmp_path: Path, balance: str, weight) -> None:
    config = config_of(folders["llama"], "full")
    _, mixture, (influence,) = prepared(
        config, tmp_path, folders["texts"], imitation="l2", weight=weight, balance=balance, per_batch=3
    )

    loaded = loading.load_model(config, trainable=True, seed=5)
    once = CONFIG.model_copy(update={"epochs": 1})
    train(loaded, tmp_path / "s", config=once, rows=ROWS[:1], mixture=mixture, influences=[Terms(influence, moved)])
    row = next(read_jsonl(tmp_path / "s" / "history.jsonl"))
    if weight == "dynamic" and balance == "halves":
        assert row["term"] == pytest.approx(row["loss"], rel=1e-4)
    elif weight == "dynamic":
        assert 0 < row["term"] < row["loss"]
    else:
        assert row["term"] != pytest.approx(row["loss"], rel=1e-3)


def test_texts_take_their_places_in_every_batch_or_are_shuffled_in(folders, tmp_path: Path) -> None:
    config = config_of(folders["llama"], "lora")
    for options, expected in (({}, [1] * 4), ({"per_batch": 2}, [2] * 5), ({"per_batch": 0}, None)):
        _, mixture, _ = prepared(config, tmp_path, folders["texts"], imitation="none", **options)
        sizes: list[tuple[int, int]] = []

        class Count(Influence):
            def penalty(self, rows, sizes=sizes):
                sizes.append((sum(row.group == "gere" for row in rows), len(rows)))

        once = CONFIG.model_copy(update={"epochs": 1})
        loaded = loading.load_model(config, trainable=True, seed=5)
        train(loaded, tmp_path / f"{options}", config=once, rows=ROWS, mixture=mixture, influences=[Count()])
        if expected:
            assert [texts for texts, _ in sizes] == expected
            assert all(size == CONFIG.batch_size for _, size in sizes[:-1])
        else:
            assert sum(texts for texts, _ in sizes) == len(TEXTS)


def test_what_the_base_made_of_the_texts_is_computed_once_for_all_stages(folders, tmp_path: Path) -> None:
    config = config_of(folders["llama"], "lora")
    method = make_method("gere", {"texts": str(folders["texts"] / "texts.jsonl"), "count": 6})
    stream = number_stream()
    method.check(replace(facts_of(stream, context_length=256), tokenizer=loading.load_tokenizer(config)))
    bench = Bench(tmp_path, folders["llama"])
    contexts = [bench.context(stage) for stage in method.stages(stream)]
    for context in contexts:
        method.try_base(context)
        method.influences(context)
    assert bench.steps[1].made == ["gere/given", "gere/states"]
    assert all(not steps.made for index, steps in bench.steps.items() if index != 1)
    width, tokens = 32, sum(len(row.tokens) for row in method.rehearsal(contexts[0]).rows)
    (kept,) = (tmp_path / "1" / "gere" / "states").glob("rows-*")
    assert kept.stat().st_size < tokens * width // 4 + 1000, "two bits an element"
    again = make_method("gere", {"texts": str(folders["texts"] / "texts.jsonl"), "count": 5})
    again.check(replace(facts_of(stream, context_length=256), tokenizer=loading.load_tokenizer(config)))
    again.try_base(contexts[0])
    other = replace(contexts[0], base_fingerprint="another")
    method.influences(other)
    made = ["gere/given", "gere/states"] * 2 + ["gere/states"]
    assert bench.steps[1].made == made, "other texts and another base do not find them"


def test_given_texts_are_kept_for_a_run_that_goes_on_without_their_file(folders, tmp_path: Path) -> None:
    given = tmp_path / "texts.jsonl"
    write_jsonl(given, ({"text": text} for text in TEXTS))
    stream = number_stream()
    facts = replace(
        facts_of(stream, context_length=256), tokenizer=loading.load_tokenizer(ModelConfig(base="embedded"))
    )
    options = {"texts": str(given), "count": 6, "imitation": "none"}
    bench = Bench(tmp_path, folders["llama"])
    context = bench.context(make_method("gere", options).stages(stream)[0])
    method = make_method("gere", options)
    method.check(facts)
    method.try_base(context)
    given.unlink()
    asked: list[str] = []

    def kept(name: str) -> list[Path]:
        asked.append(name)
        return [tmp_path / "1" / name]

    again = make_method("gere", options)
    again.check(replace(facts, kept=kept))
    assert asked == ["gere/given"]
    assert again.rehearsal(context).rows == method.rehearsal(context).rows
    said: list[str] = []
    again.try_base(replace(context, progress=LineProgress(said.append)))
    assert said == [
        next(line for line in said if "texts.jsonl" in line and "those that the run has kept are used" in line)
    ]
    for changed in ({"count": 5}, {"max_tokens": 9}, {"add_bos": True}, {"windows": "packed"}):
        with pytest.raises(DataError, match=r"method gere: texts: no file or folder .*texts.jsonl"):
            make_method("gere", {**options, **changed}).check(replace(facts, kept=kept))


def test_the_anchor_of_the_released_code_is_the_model_of_each_stage(folders, tmp_path: Path) -> None:
    method = make_method("gere", {"texts": str(folders["texts"] / "texts.jsonl"), "count": 6, "anchor": "previous"})
    stream = number_stream()
    tokenizer = loading.load_tokenizer(config_of(folders["llama"], "lora"))
    method.check(replace(facts_of(stream, context_length=256), tokenizer=tokenizer))
    bench = Bench(tmp_path, folders["llama"])
    for stage in method.stages(stream):
        method.influences(bench.context(stage))
    assert [bench.steps[index].made for index in (1, 2, 3)] == [["gere/states"]] * 3


def test_the_base_writes_texts_where_none_are_given(folders, tmp_path: Path) -> None:
    method = make_method("gere", {"count": 5, "max_tokens": 12, "add_bos": True})
    stream = number_stream()
    bench = Bench(tmp_path, folders["llama"])
    context = bench.context(method.stages(stream)[0])
    method.try_base(context)
    rows = method.rehearsal(context).rows
    assert len(rows) == 5
    assert all(row.tokens[0] == 1 and 2 <= len(row.tokens) <= 12 for row in rows)
    assert bench.steps[1].made == ["gere/texts", "gere/states"]
    _, sampling = bench.writer.calls[0]
    assert (sampling.temperature, sampling.top_p, sampling.top_k) == (1.0, 1.0, 0)
    bench.writer.write = lambda prompt, stream: ""
    with pytest.raises(ModelError, match="0 of the 7 general texts have anything in them: name texts in a file"):
        make_method("gere", {"count": 7}).try_base(context)


def test_weights_are_those_of_the_published_best_rows_where_none_is_given(folders, tmp_path: Path) -> None:
    found = {}
    for tuning in ("full", "lora"):
        config = config_of(folders["llama"], tuning)
        _, _, (influence,) = prepared(config, tmp_path / tuning, folders["texts"])
        found[tuning] = influence._how.weight  # type: ignore[attr-defined]
    assert found == {"full": 100.0, "lora": "dynamic"}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"count": 0}, "count: input should be greater than or equal to 1"),
        ({"max_tokens": 1}, "max_tokens: input should be greater than or equal to 2"),
        ({"weight": -1}, "weight"),
        ({"weight": "dy"}, "weight"),
        ({"sigma_multiple": 0}, "sigma_multiple: input should be greater than 0"),
        (
            {"weight": 5, "max_dynamic_weight": 10},
            "max_dynamic_weight bounds a dynamic weight, so it needs weight: dyn",
        ),
        (
            {"weight": 5, "imitation": "none"},
            "weight is that of an imitation, so it needs imitation: kl, l1, l2 or tm",
        ),
        (
            {"max_dynamic_weight": 5, "imitation": "none"},
            "max_dynamic_weight is that of an imitation, so it needs imitation: kl, l1, l2 or tm",
        ),
        ({"imitation": "kl", "tm_mean": "elements"}, "tm_mean is that of tm, so it needs imitation: tm"),
        ({"temperature": 1.0}, "temperature is that of kl, so it needs imitation: kl"),
        ({"windows": "packed"}, "windows: packed joins given texts, so it needs texts"),
    ],
)
def test_nonsense_is_refused_by_key(options: dict[str, object], words: str) -> None:
    with pytest.raises(RecipeError, match=f"method gere: .*{words}"):
        make_method("gere", options)


@pytest.mark.parametrize(
    ("options", "training", "words"),
    [
        (
            {"count": 9},
            {},
            "method gere: texts: .*it has 6 texts of two tokens and more, 9 were asked for.*set count to 6",
        ),
        (
            {"max_tokens": 90},
            {},
            r"no text of .* fills the window of 90 tokens \(the longest has 21\): lower max_tokens",
        ),
        ({"max_tokens": 999}, {}, r"max_tokens \(999\) is more than the model's context of 256 tokens"),
        ({"column": "body"}, {}, "there is no 'body'"),
        ({}, {"batch_size": 1}, r"1 texts in every batch leave the task's rows no place \(training.batch_size is 1\)"),
        ({"per_batch": 4}, {"batch_size": 4}, "4 texts in every batch leave"),
    ],
)
def test_texts_and_batches_that_do_not_fit_are_refused_before_training(
    folders, tmp_path: Path, options: dict[str, object], training: dict[str, object], words: str
) -> None:
    with pytest.raises(UserError, match=words):
        prepared(
            config_of(folders["llama"], "lora"),
            tmp_path,
            folders["texts"],
            CONFIG.model_copy(update=training),
            **options,
        )


def test_a_bound_of_a_dynamic_weight_is_refused_where_the_weight_is_a_number(folders, tmp_path: Path) -> None:
    bound = {"max_dynamic_weight": 1000}
    full = config_of(folders["llama"], "full")
    facts = replace(facts_of(number_stream(), context_length=256, tuning="full"), training=CONFIG)
    with pytest.raises(RecipeError, match="under full tuning the weight is 100 where none is given: set weight"):
        make_method("gere", bound).check(facts)
    for config, options in ((full, {**bound, "weight": "dynamic"}), (config_of(folders["llama"], "lora"), bound)):
        _, _, (influence,) = prepared(config, tmp_path / config.tuning, folders["texts"], **options)
        assert influence._how.most_weight == 1000  # type: ignore[attr-defined]


def test_the_base_reads_the_texts_twice_and_what_is_shown_of_it_never_falls(folders, tmp_path: Path) -> None:
    loaded = loading.load_model(config_of(folders["llama"], "lora"))
    rows = [EncodedRow(tuple(range(4, 9 + at)), 0, "gere", at, is_text=True) for at in range(6)]
    ticks: list[tuple[int, int]] = []
    keep_bands(tmp_path, loaded, rows, CONFIG, 1.0, lambda *at: ticks.append(at))
    assert ticks == [(6, 12), (12, 12)]


def test_a_file_that_is_absent_or_empty_is_refused(folders, tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"method gere: texts: .*texts.jsonl"):
        prepared(config_of(folders["llama"], "lora"), tmp_path, tmp_path)
    write_text(tmp_path / "texts.jsonl", "")
    with pytest.raises(DataError, match="holds no text: name a file, a folder or a dataset with texts"):
        prepared(config_of(folders["llama"], "lora"), tmp_path, tmp_path)


def test_predictions_are_refused_where_the_head_does_not_make_them(folders, tmp_path: Path, monkeypatch) -> None:
    config = config_of(folders["llama"], "full")
    monkeypatch.setattr("everlearn.training.teacher._head_reads_states", lambda *_: False)
    prepared(config, tmp_path / "tm", folders["texts"], imitation="tm")
    with pytest.raises(ModelError, match=r"this model treats its logits further: .*imitation: tm, l1 or l2"):
        prepared(config, tmp_path / "kl", folders["texts"], imitation="kl")


def test_states_that_were_kept_to_be_compared_themselves_make_no_predictions_where_the_head_does_not(
    folders, tmp_path: Path, monkeypatch
) -> None:
    config = config_of(folders["llama"], "lora")
    monkeypatch.setattr("everlearn.training.teacher._head_reads_states", lambda *_: False)
    prepared(config, tmp_path, folders["texts"], imitation="l2")
    with pytest.raises(ModelError, match="this model treats its logits further"):
        prepared(config, tmp_path, folders["texts"], imitation="kl")


def test_it_is_stacked_with_what_rehearses_tasks_and_not_with_another_weighing_of_own_rows() -> None:
    assert assemble(MethodConfig.model_validate(["ssr", "gere"])).name == "ssr+gere"
    with pytest.raises(RecipeError, match="each sets the weight of a stage's own rows"):
        assemble(MethodConfig.model_validate([{"name": "sequential", "mean": "rows"}, "gere"]))
    with pytest.raises(RecipeError, match="sequential adds nothing to others"):
        assemble(MethodConfig.model_validate(["sequential", "gere"]))


def test_the_control_without_replay_averages_row_by_row() -> None:
    context = None
    plain, control = (make_method("sequential", options) for options in ({}, {"mean": "rows"}))
    assert plain.rehearsal(context) == Mixture()  # type: ignore[arg-type]
    assert control.rehearsal(context).own == (1.0, "rows")  # type: ignore[arg-type]
