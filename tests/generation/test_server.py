"""A server as an engine: equal answers, retries, refusals, and a real server where there is one."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from everlearn import http, usage
from everlearn.errors import ModelError, UserError
from everlearn.generation.protocol import Blend, Sampling
from everlearn.generation.server import KEY, ServerGenerator, connect, load_adapter
from everlearn.http import Server, ServerError
from tests.generation.stand_in import StandIn, over_model, serving

PROMPTS = [[1, 20, 30, 40], [1, 21, 31], [1, 20, 30, 40], [5, 6, 7, 8, 9, 10]]
FOLDER = Path("/nowhere")


def written(ids: list[int], reason: str = "length") -> dict[str, object]:
    return {"token_ids": ids, "finish_reason": reason}


@pytest.fixture
def stand_in() -> Iterator[StandIn]:
    with serving(StandIn(lambda *_: written([7, 8, 9]))) as one:
        yield one


@pytest.fixture(autouse=True)
def _no_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http, "_FIRST_WAIT_S", 0.01)


def server_of(stand_in: StandIn) -> Server:
    return Server(stand_in.url, KEY, timeout_s=5, attempts=3)


@pytest.fixture(scope="module")
def loaded(tiny_model: Path):
    from everlearn.models.loading import load_model
    from everlearn.recipe import ModelConfig

    return load_model(ModelConfig(base=str(tiny_model), device="cpu"))


def generator_over(stand_in: StandIn, loaded, at_once: int = 8, server: Server | None = None) -> ServerGenerator:
    one = server or server_of(stand_in)
    return ServerGenerator(lambda: (one, "base"), loaded, at_once)


@pytest.mark.parametrize(
    "sampling",
    [
        Sampling(max_new_tokens=12),
        Sampling(max_new_tokens=12, stop=("e", "th")),
        Sampling(max_new_tokens=12, end_ids=(50, 60, 70, 80)),
        Sampling(max_new_tokens=12, repetition_penalty=1.5, samples_per_prompt=2),
        Sampling(max_new_tokens=30, max_length=16),
    ],
)
def test_greedy_completions_are_those_of_this_process(tiny_model: Path, loaded, sampling: Sampling) -> None:
    from everlearn.generation.engine import make_generator

    with serving(StandIn(over_model(tiny_model))) as stand_in:
        found = generator_over(stand_in, loaded).generate(PROMPTS, sampling)
        assert found == make_generator(loaded).generate(PROMPTS, sampling)
        assert len(stand_in.seen) == 3, "equal greedy prompts are asked for once"


def test_a_request_says_all_that_a_server_might_have_another_default_for(stand_in: StandIn, loaded) -> None:
    sampling = Sampling(5, temperature=0.7, top_p=0.9, stop=("\n",), end_ids=(9,), samples_per_prompt=3, seed=4)
    generator_over(stand_in, loaded).generate([[1, 2]], sampling)
    bodies = [body for _, body in stand_in.seen]
    assert bodies[0] == {
        "model": "base",
        "prompt": [1, 2],
        "max_tokens": 5,
        "temperature": 0.7,
        "top_p": 0.9,
        "top_k": -1,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "seed": bodies[0]["seed"],
        "stop": ["\n"],
        "stop_token_ids": [2, 9],
        "return_token_ids": True,
    }
    seeds = {body["seed"] for body in bodies}
    assert len(seeds) == 3
    stand_in.seen.clear()
    generator_over(stand_in, loaded).generate([[1, 2]], sampling)
    assert {body["seed"] for _, body in stand_in.seen} == seeds


def test_what_is_written_beyond_an_end_or_a_stop_is_left_out(loaded) -> None:
    ids = [*loaded.tokenizer("one two")["input_ids"][1:], 2, 30, 31]
    for choice, sampling, text, reason in (
        (written(ids), Sampling(20), "one two", "eos"),
        (written(ids[:-3], "stop"), Sampling(20), "one two", "eos"),
        (written(ids), Sampling(20, stop=(" ",)), "one", "stop"),
        (written(ids[:-3]), Sampling(len(ids) - 3), "one two", "length"),
        (written(ids), Sampling(2), loaded.tokenizer.decode(ids[:2]), "length"),
    ):
        with serving(StandIn(lambda *_, choice=choice: choice)) as stand_in:
            ((one,),) = generator_over(stand_in, loaded).generate([[1, 5]], sampling)
        assert (one.text, one.finish_reason) == (text, reason)
        assert loaded.tokenizer.decode(one.token_ids) == text


def test_many_requests_are_under_way_at_a_time_and_answers_keep_their_order(loaded) -> None:
    together = threading.Barrier(4)

    def complete(_: str | None, body: dict) -> dict[str, object]:
        together.wait(5)  # breaks unless four are here at once
        return written([body["prompt"][1]])

    reports: list[tuple[int, int, int]] = []
    with serving(StandIn(complete)) as stand_in:
        prompts = [[1, 10 + at] for at in range(8)]
        found = generator_over(stand_in, loaded, at_once=4).generate(
            prompts, Sampling(1), lambda *x: reports.append(x)
        )
    assert [one.token_ids for (one,) in found] == [(10 + at,) for at in range(8)]
    assert reports[-1] == (8, 8, 8)
    assert reports == sorted(reports)


def test_trouble_is_met_by_repetition_and_counted(stand_in: StandIn, loaded) -> None:
    stand_in.fault = lambda _, __, number: (503, 429, None)[min(number, 2)]
    server, before = server_of(stand_in), usage.written()
    ((one,),) = generator_over(stand_in, loaded, server=server).generate([[1, 2]], Sampling(3))
    assert one.token_ids == (7, 8, 9)
    assert (server.asked.requests, server.asked.retries, usage.written() - before) == (3, 2, 3)


def test_a_server_that_is_gone_is_told_and_what_stands_is_kept(loaded) -> None:
    with serving(StandIn(lambda *_: written([7]))) as stand_in:
        generator = generator_over(stand_in, loaded)
    with pytest.raises(ServerError, match=r"in 3 attempts: see that the server runs there and give the command again"):
        generator.generate([[1, 2], [1, 3]], Sampling(3))


def test_one_refusal_ends_all_requests_under_way(loaded) -> None:
    def complete(_: str | None, body: dict) -> dict[str, object]:
        time.sleep(0 if body["prompt"][1] == 10 else 30)
        return written([1])

    with serving(StandIn(complete)) as stand_in:
        stand_in.fault = lambda _, body, __: 400 if body["prompt"][1] == 10 else None
        began = time.monotonic()
        with pytest.raises(ModelError, match=r"prompt 0 \(counted from 0\) of 2 tokens by base: it answers 400 \(in"):
            generator_over(stand_in, loaded, at_once=4).generate([[1, 10 + at] for at in range(40)], Sampling(1))
        assert time.monotonic() - began < 5


def test_two_models_at_once_are_refused(stand_in: StandIn, loaded) -> None:
    with pytest.raises(ModelError, match="a mixture of two models"):
        generator_over(stand_in, loaded).generate([[1, 2]], Sampling(blend=Blend(0.5)))


def test_it_is_connected_to_what_serves_the_base(stand_in: StandIn, tmp_path: Path) -> None:
    served = connect(server_of(stand_in), ["base"], tmp_path, [1, 2, 3])
    assert (served.model, served.software, served.version, served.context) == ("base", "vllm", "9.9", 4096)
    stand_in.entry |= {"id": "mine", "root": str(tmp_path)}
    assert connect(server_of(stand_in), ["base"], tmp_path, [1, 2, 3]).model == "mine"
    stand_in.version, stand_in.url = None, f"{stand_in.url}/"
    assert connect(server_of(stand_in), ["base"], tmp_path, [1, 2, 3]).version is None


def test_another_model_is_refused_by_name(stand_in: StandIn) -> None:
    with pytest.raises(ModelError, match=r"serves another model than the run's \(base, and not mine\): start it with"):
        connect(server_of(stand_in), ["mine"], FOLDER, [1, 2])


@pytest.mark.parametrize(
    ("path", "given", "says"),
    [
        ("/v1/completions", (400, {"detail": "prompt must be a string."}), "does not take prompts as token ids"),
        ("/v1/completions", (200, {"choices": [{"text": "a"}]}), "does not give back the token ids"),
        ("/v1/completions", (200, {"choices": []}), "does not give back the token ids"),
        (
            "/v1/completions",
            (200, {"choices": [written([1])], "usage": {"prompt_tokens": 9}}),
            "has read 9 tokens in a prompt of 2 token ids",
        ),
        ("/v1/models", (200, {"data": "none"}), r"serves another model than the run's \(none, and not base\)"),
        ("/v1/models", (401, {"error": "no key"}), r"answers 401 \(no key\): give a key \(api_key_env\)"),
    ],
)
def test_what_cannot_be_used_is_refused_when_it_is_connected_to(
    stand_in: StandIn, path: str, given: object, says: str
) -> None:
    stand_in.fault = lambda asked, *_: given if asked == path else None
    with pytest.raises(UserError, match=says):
        connect(server_of(stand_in), ["base"], FOLDER, [1, 2])


def test_an_adapter_is_loaded_once_by_its_path_and_a_refusal_is_told(stand_in: StandIn, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"does not load the adapter in .* \(it answers 400 \(No adapter found for"):
        load_adapter(server_of(stand_in), "one", tmp_path)
    (tmp_path / "adapter_config.json").write_text("{}")
    load_adapter(server_of(stand_in), "one", tmp_path)
    load_adapter(server_of(stand_in), "one", tmp_path)
    assert stand_in.had == [str(tmp_path)]


def test_transformers_own_server_is_refused_for_what_it_lacks(tiny_model: Path, tmp_path: Path) -> None:
    """The real one, where its packages are: it lists what is in its cache alone, and takes prompts as text alone."""
    for package in ("fastapi", "uvicorn", "openai"):
        pytest.importorskip(package, reason="transformers serve needs the extra transformers[serving]")
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(tiny_model), "--port", str(port)]
    process = subprocess.Popen(
        [*command, "--device", "cpu"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
        env={**os.environ, "HF_HUB_CACHE": str(tmp_path)},
    )
    try:
        server = Server(f"http://127.0.0.1:{port}/v1", KEY, timeout_s=60)
        for _ in range(600):
            with suppress(ServerError):
                replace(server, attempts=1).models()
                break
            assert process.poll() is None
            time.sleep(0.1)
        with pytest.raises(ModelError, match=r"serves another model than the run's \(none, and not"):
            connect(server, [str(tiny_model)], tiny_model, [1, 20, 30])
        with pytest.raises(ServerError, match=r"answers 400 .*prompt must be a string"):
            server.post("completions", {"model": str(tiny_model), "prompt": [1, 20, 30], "max_tokens": 1})
    finally:
        process.send_signal(signal.SIGKILL)
        process.wait()
