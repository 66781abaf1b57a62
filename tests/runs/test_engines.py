"""Runs whose models write elsewhere: the same scores, the same folder, and refusals before anything is trained."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from everlearn import http
from everlearn.errors import RunError, UserError
from everlearn.files import read_jsonl, read_vouched
from everlearn.progress import LineProgress
from everlearn.recipe import Recipe, make_recipe
from everlearn.report.html import write_report
from everlearn.runs import kept_answers
from everlearn.runs.claim import claim
from everlearn.runs.compare import compare
from everlearn.runs.loop import RunResult, execute
from everlearn.runs.models_at_hand import ModelsAtHand
from everlearn.runs.prepare import prepare
from tests.generation.stand_in import StandIn, over_model, serving
from tests.runs.test_loop import tiny_recipe

SOURCE = Path(__file__).parents[2] / "src" / "everlearn"


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_FIRST_WAIT_S", 0.001)


@pytest.fixture(scope="module")
def complete(tiny_model: Path):
    return over_model(tiny_model)


@pytest.fixture
def stand_in(complete, tiny_model: Path) -> Iterator[StandIn]:
    with serving(StandIn(complete, id=str(tiny_model))) as one:
        yield one


def small(folder: Path, base: Path, name: str = "tiny", **sections: object) -> Recipe:
    """A recipe of two stages."""
    recipe = tiny_recipe(folder, base, name=name, **sections)
    stream = recipe.stream.model_copy(update={"tasks": recipe.stream.tasks[:2]})
    return recipe.model_copy(update={"stream": stream})


def elsewhere(folder: Path, base: Path, stand_in: StandIn, name: str = "tiny", **sections: object) -> Recipe:
    generation = {"engine": "server", "server": stand_in.url, "timeout_s": 30.0, **sections.pop("generation", {})}  # type: ignore[dict-item]
    return small(folder, base, name, generation=generation, **sections)


def predictions(run: Path) -> dict[str, list[object]]:
    return {
        path.relative_to(run).as_posix(): [row["prediction"] for row in read_jsonl(path)]
        for path in sorted(run.rglob("predictions.jsonl"))
    }


class Told(LineProgress):
    """Keeps what is said."""

    def __init__(self) -> None:
        super().__init__()
        self.said: list[str] = []

    def say(self, text: str) -> None:
        self.said.append(text)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of runs that share a cache."""
    return tmp_path_factory.mktemp("engines")


@pytest.fixture(scope="module")
def here(place: Path, tiny_model: Path) -> RunResult:
    return execute(small(place, tiny_model, "here"))


@pytest.fixture(scope="module")
def there(place: Path, tiny_model: Path, complete) -> tuple[RunResult, StandIn, Told]:
    """The same with a server."""
    told = Told()
    with serving(StandIn(complete, id=str(tiny_model))) as one:
        return execute(elsewhere(place, tiny_model, one, "there"), progress=told), one, told


def asked_for(stand_in: StandIn) -> int:
    """Completions but trials."""
    return sum(path == "/v1/completions" and body["max_tokens"] > 1 for path, body in stand_in.seen)


def test_a_run_with_a_server_has_the_scores_of_this_process(here: RunResult, there) -> None:
    run, stand_in, _ = there
    assert predictions(run.folder) == predictions(here.folder)
    assert run.matrix == here.matrix
    assert asked_for(stand_in) == sum(map(len, predictions(run.folder).values()))
    trained = [str(path.parent) for path in sorted(run.folder.rglob("training/adapter/adapter_config.json"))]
    assert stand_in.had[1:] == trained, "a trial, and then each stage's adapter by its path"
    assert not stand_in.adapters, "none is left behind"


def test_what_a_server_has_done_is_counted_and_told(here: RunResult, there) -> None:
    run, stand_in, told = there
    assert "engine" not in read_vouched(here.folder / "manifest.json")
    manifest = read_vouched(run.folder / "manifest.json")
    engine = manifest["engine"]
    assert (engine["name"], engine["software"], engine["address"]) == ("server", "vllm 9.9", stand_in.url)
    assert engine["retries"] == 0
    assert engine["requests"] >= asked_for(stand_in)
    counted = sum(step["generated_tokens"] for step in manifest["steps"].values())
    assert 2 * engine["tokens"] == counted > 0, "the stand-in writes in this process as well"
    assert f"vllm 9.9 writes, at {stand_in.url} (generation.engine: server)" in told.said
    assert any(line.startswith(f"vllm 9.9 has written {engine['tokens']:,} tokens in ") for line in told.said)
    page = write_report(run.folder).read_text(encoding="utf-8")
    assert "<dt>engine software</dt><dd><bdi>vllm 9.9</bdi></dd>" in page


def test_what_is_written_has_the_engine_in_its_fingerprint_and_nothing_else_has(here: RunResult, there) -> None:
    steps = [read_vouched(run.folder / "manifest.json")["steps"] for run in (here, there[0])]
    kinds = {"same": set(), "other": set()}
    for step, known in steps[0].items():
        kinds["same" if known["fingerprint"] == steps[1][step]["fingerprint"] else "other"].add(step.split("/")[2])
    assert kinds == {"same": {"training", "general", "data"}, "other": {"predictions"}}


def test_a_run_stays_with_its_engine_and_may_change_its_server(place: Path, tiny_model: Path, there, stand_in) -> None:
    with pytest.raises(RunError, match=r"differs in generation.engine"):
        claim(there[0].folder, small(place, tiny_model, "there"))
    claim(there[0].folder, elsewhere(place, tiny_model, stand_in, "there", generation={"requests_at_once": 3}))


def test_another_version_of_the_server_answers_anew(place: Path, tiny_model: Path, there, stand_in: StandIn) -> None:
    execute(elsewhere(place, tiny_model, stand_in, "again"))
    assert not asked_for(stand_in)
    stand_in.version = "10.0"
    execute(elsewhere(place, tiny_model, stand_in, "newer"))
    assert asked_for(stand_in) == 3 * 2 * 4


def test_a_server_that_dies_loses_nothing_and_another_one_goes_on(
    place: Path, tiny_model: Path, here: RunResult, complete, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept_answers, "AT_ONCE", 2)
    one, another = StandIn(complete, id=str(tiny_model)), StandIn(complete, id=str(tiny_model))
    one.version = another.version = "of the mortal"
    one.fault = lambda *_: 503 if asked_for(one) > 11 else None
    with serving(one), pytest.raises(RunError, match=r"answers 503 \(in trouble\) in 8 attempts"):
        execute(elsewhere(place, tiny_model, one, "mortal", generation={"requests_at_once": 1}))
    folder = place / "runs" / "mortal"
    assert len(list((folder / ".partial").rglob("answered-000.jsonl"))) == 1
    before = read_vouched(folder / "manifest.json")["steps"]
    with serving(another):
        run = execute(elsewhere(place, tiny_model, another, "mortal"))
    assert predictions(run.folder) == predictions(here.folder)
    assert before.items() <= read_vouched(folder / "manifest.json")["steps"].items()
    assert asked_for(another) == 3 * 2 * 4 - 10, "what was kept is not asked for again"
    assert not list(folder.rglob("answered*"))
    assert read_vouched(folder / "manifest.json")["engine"]["retries"] == 7


def test_a_shorter_context_of_the_server_holds_for_the_run(
    tmp_path: Path, tiny_model: Path, stand_in: StandIn
) -> None:
    stand_in.entry["max_model_len"] = 500
    prepared = prepare(elsewhere(tmp_path, tiny_model, stand_in), trains=True)
    assert prepared.engine is not None
    assert prepared.facts.context_length == prepared.engine.context == 500
    assert prepared.stream.notes[0].startswith("vllm 9.9 writes, at http://127.0.0.1:")
    assert "500 of the model's 1,024 tokens at a time" in prepared.stream.notes[0]
    assert prepared.engine.inputs == {"engine": ["server", "vllm 9.9", 500]}
    loaded = ModelsAtHand(prepared.recipe.model, prepared.engine).base()
    assert (loaded.context_length, loaded.reads) == (500, 1024), "what is read here is read as ever"
    stand_in.entry["max_model_len"] = 20
    with pytest.raises(UserError, match="the model's context is 20"):
        prepare(elsewhere(tmp_path, tiny_model, stand_in), trains=True)


REFUSED = {
    "another model": ({}, {"id": "org/other"}, r"serves another model than the run's \(org/other, and not "),
    "whole weights": ({"model": {"tuning": "full"}}, {}, "model.tuning is full, which leaves whole weights"),
    "a soft prompt": ({"method": "progressive_prompts"}, {}, "trains a part of the kind PROMPT_TUNING, and a server"),
    "experts": ({"method": "moelora"}, {}, "method moelora trains a part of the kind "),
    "two models": (
        {"method": {"name": "sers", "ratio": 0.5, "hard_ratio": 0.5}},
        {},
        "lets two models write together",
    ),
}


@pytest.mark.parametrize("why", REFUSED)
def test_what_a_server_cannot_do_is_refused_before_anything_is_made(
    tmp_path: Path, tiny_model: Path, stand_in: StandIn, why: str
) -> None:
    sections, entry, says = REFUSED[why]
    sections = dict(sections)
    if "model" in sections:
        sections["model"] = {"base": str(tiny_model), **sections["model"]}  # type: ignore[dict-item]
    stand_in.entry |= entry
    with pytest.raises(UserError, match=says):
        execute(elsewhere(tmp_path, tiny_model, stand_in, **sections))
    assert not (tmp_path / "runs" / "tiny").exists()


def test_words_of_a_methods_own_are_refused_whatever_is_done(tmp_path: Path, tiny_model: Path, stand_in: StandIn):
    method = {"name": "lamol", "tokens": "special"}
    recipe = elsewhere(
        tmp_path, tiny_model, stand_in, model={"base": str(tiny_model), "tuning": "full"}, method=method
    )
    with pytest.raises(UserError, match="method lamol gives the model words of its own"):
        prepare(recipe)


def test_an_adapter_that_the_server_refuses_is_refused_before_anything_is_made(
    tmp_path: Path, tiny_model: Path, stand_in: StandIn
) -> None:
    ranks = []

    def looks(path: str, body: dict, _: int) -> object:
        if path != "/v1/load_lora_adapter":
            return None
        rank = json.loads((Path(body["lora_path"]) / "adapter_config.json").read_text())["r"]
        ranks.append(rank)
        return (400, {"error": {"message": f"rank {rank} is greater than max_lora_rank 4"}}) if rank > 4 else None

    stand_in.fault = looks
    prepare(elsewhere(tmp_path, tiny_model, stand_in), trains=True)
    with pytest.raises(
        UserError, match=r"does not load the adapter in .* \(it answers 400 \(rank 8 is greater than max"
    ):
        execute(elsewhere(tmp_path, tiny_model, stand_in, method="olora"))  # two stages, whose adapters add up
    assert ranks == [4, 8]
    assert not (tmp_path / "runs" / "tiny").exists()
    assert not list(tmp_path.rglob(".everlearn-trial-*"))


def test_a_comparison_checks_every_method_before_the_first_is_trained(
    tmp_path: Path, tiny_model: Path, stand_in: StandIn
) -> None:
    recipe = elsewhere(tmp_path, tiny_model, stand_in, compare=["sequential", "moelora"])
    with pytest.raises(UserError, match="method moelora trains a part of the kind"):
        compare(recipe)
    assert not (tmp_path / "runs" / "tiny").exists()


@pytest.mark.parametrize(
    ("generation", "says"),
    [
        ({"engine": "server"}, "engine server needs server"),
        ({"engine": "vllm"}, "engine vllm needs python"),
        ({"server": "http://localhost:1"}, "server is for engine server, and engine is here"),
        (
            {"engine": "server", "server": "http://a:1", "python": "p"},
            "python is for engine vllm, and engine is server",
        ),
        ({"engine": "server", "server": "localhost:8000"}, "give a server's address"),
        ({"engine": "server", "server": "http://me:word@host"}, "give no password in an address"),
        ({"engine": "there"}, "engine"),
    ],
)
def test_keys_of_an_engine_go_together(generation: dict[str, object], says: str) -> None:
    with pytest.raises(UserError, match=re.escape(says)):
        make_recipe({"generation": generation})


def test_vllm_runs_while_models_write_and_never_while_they_train(
    tmp_path: Path, tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from everlearn.generation import vllm

    program = tmp_path / "python"
    root = Path(__file__).parents[2]
    program.write_text(
        f"#!{sys.executable}\nimport sys; sys.path.insert(0, {str(root)!r})\n"
        "from tests.generation.stand_in import main\nsys.exit(main())\n"
    )
    program.chmod(0o755)
    monkeypatch.setenv("STAND_IN_NOTES", str(tmp_path / "notes.json"))
    events: list[str] = []
    start, end = vllm.Vllm.start, vllm.Vllm.end

    def started(self, rank: int) -> bool:
        is_new = start(self, rank)
        events.extend(["start"] if is_new else [])
        return is_new

    def ended(self) -> None:
        events.extend(["end"] if self._process else [])
        end(self)

    monkeypatch.setattr(vllm.Vllm, "start", started)
    monkeypatch.setattr(vllm.Vllm, "end", ended)

    class Training(LineProgress):
        def step(self, name: str, total: int | None = None):
            events.extend(["train"] if name.startswith("training") else [])
            return super().step(name, total)

    recipe = small(tmp_path, tiny_model, generation={"engine": "vllm", "python": str(program)})
    run = execute(recipe, progress=Training())
    assert "".join(event[0] for event in events) == "se" + "tse" * 2
    assert read_vouched(run.folder / "manifest.json")["engine"]["software"] == "vLLM 9.9"
    assert {len(answers) for answers in predictions(run.folder).values()} == {4}


def test_whatever_a_model_writes_is_hashed_with_its_engine() -> None:
    """Every file that asks an engine within a step names what belongs to the step's inputs."""
    asking = {}
    for file in SOURCE.rglob("*.py"):
        text = file.read_text(encoding="utf-8")
        if ".generator_for(" in text or "generator_for=" in text:
            asking[file.relative_to(SOURCE).as_posix()] = ".written_by" in text
    for name in ("probe", "plan"):  # which keep nothing that is written
        asking.pop(f"runs/{name}.py")
    evolution = asking.pop("synthesis/evolution.py")  # whose inputs are those of `describe_answers`
    assert not evolution
    assert len(asking) >= 8
    assert all(asking.values()), asking
