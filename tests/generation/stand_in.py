"""A stand-in for a server of vLLM on the loopback: its protocol over a function, or over a real model in this process.

As a program it stands in for the Python of an environment with vLLM:

    stand_in.py -c ...                          prints the version
    stand_in.py -m vllm... serve FOLDER FLAGS   serves, or does what the environment variable STAND_IN says
"""

from __future__ import annotations

import json
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from tests.stand_in_server import stand_in

Complete = Callable[[str | None, dict[str, Any]], dict[str, Any]]
"""Adapter folder (None: the base) and request to `token_ids` and `finish_reason`."""


class StandIn:
    """What the server is and has seen.

    Attributes:
        complete: Writes.
        entry: Of the base in the list of models.
        version: What it calls its version; None: it has no such endpoint.
        fault: Called with path, body and the number of the request before it is answered; what it returns (a status,
            or status and content) is answered in place of what is asked for.
        adapters: Name to folder of those that are loaded.
        had: Folders of all that were loaded.
        seen: Path and body of each request.
        url: Base address.
    """

    def __init__(self, complete: Complete, **entry: object) -> None:
        self.complete = complete
        self.entry: dict[str, object] = {"id": "base", "owned_by": "vllm", "max_model_len": 4096, **entry}
        self.version: str | None = "9.9"
        self.fault: Callable[[str, dict[str, Any], int], Any] = lambda *_: None
        self.adapters: dict[str, str] = {}
        self.had: list[str] = []
        self.seen: list[tuple[str, dict[str, Any]]] = []
        self.url = ""
        self._lock = threading.Lock()

    def answer(self, path: str, body: dict[str, Any] | None) -> tuple[int, Any, dict[str, str]]:
        """Status, content and headers."""
        with self._lock:
            number = len(self.seen)
            self.seen.append((path, body or {}))
        found = self.fault(path, body or {}, number)
        found = (found, {"error": {"message": "in trouble"}}) if isinstance(found, int) else found
        return (*(found or self._answer(path, body or {})), {})

    def _answer(self, path: str, body: dict[str, Any]) -> tuple[int, Any]:
        if path == "/version" and self.version:
            return 200, {"version": self.version}
        if path == "/v1/models":
            loaded = [{"id": name, "parent": self.entry["id"], "root": at} for name, at in self.adapters.items()]
            return 200, {"object": "list", "data": [self.entry, *loaded]}
        if path == "/v1/load_lora_adapter":
            folder = Path(body["lora_path"])
            if not (folder / "adapter_config.json").exists():
                return 400, {"error": {"message": f"No adapter found for {folder}", "code": 400}}
            self.adapters[body["lora_name"]] = str(folder)
            self.had.append(str(folder))
            return 200, b"Success: LoRA adapter added."
        if path == "/v1/unload_lora_adapter":
            found = self.adapters.pop(body["lora_name"], None)
            return (200, b"Success: removed.") if found else (404, {"error": {"message": "no such adapter"}})
        if path == "/v1/completions":
            name = body["model"]
            if name != self.entry["id"] and name not in self.adapters:
                return 404, {"error": {"message": f"The model `{name}` does not exist."}}
            choice = self.complete(self.adapters.get(name), body)
            usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": len(choice.get("token_ids", []))}
            return 200, {"choices": [{"index": 0, "text": "", **choice}], "usage": usage}
        return 404, {"detail": "Not Found"}


@contextmanager
def serving(one: StandIn, port: int = 0) -> Iterator[StandIn]:
    """Serves until the block ends."""
    with stand_in(one.answer, port) as served:
        one.url = served.url
        yield one


def over_model(base: Path) -> Complete:
    """Writes with the model of a folder by the engine of this process, adapters as PEFT loads them."""
    from everlearn.generation.engine import make_generator
    from everlearn.generation.protocol import Sampling
    from everlearn.models.loading import load_model
    from everlearn.recipe import ModelConfig

    config, lock, models = ModelConfig(base=str(base), device="cpu"), threading.Lock(), {}

    def complete(adapter: str | None, body: dict[str, Any]) -> dict[str, Any]:
        with lock:
            key = (adapter, adapter and (Path(adapter) / "adapter_model.safetensors").stat().st_mtime_ns)
            if key not in models:
                loaded = load_model(config, checkpoint=Path(adapter) if adapter else None)
                models[key] = make_generator(loaded), loaded.tokenizer
            generator, tokenizer = models[key]
            sampling = Sampling(
                max_new_tokens=body["max_tokens"],
                temperature=body["temperature"],
                top_p=body.get("top_p", 1.0),
                top_k=max(0, body.get("top_k", 0)),
                repetition_penalty=body.get("repetition_penalty", 1.0),
                stop=tuple(body.get("stop", ())),
                end_ids=tuple(body.get("stop_token_ids", ())),
                seed=body.get("seed", 0),
            )
            ((one,),) = generator.generate([body["prompt"]], sampling)
        ended = one.finish_reason == "eos"  # like vLLM, which gives the end token back
        ids = [*one.token_ids, tokenizer.eos_token_id] if ended else list(one.token_ids)
        return {"token_ids": ids, "finish_reason": "length" if one.finish_reason == "length" else "stop"}

    return complete


def main() -> int:
    """The program."""
    if sys.argv[1] == "-c":
        print("vllm 9.9")
        return 0
    what = os.environ.get("STAND_IN", "")
    Path(os.environ["STAND_IN_NOTES"]).write_text(json.dumps([os.getpid(), sys.argv, dict(os.environ)]))
    if what == "fails":
        print("ValueError: No available memory for the cache blocks.", file=sys.stderr)
        return 3
    if what == "hangs":
        time.sleep(600)
    flags = dict(zip(sys.argv[5:-1:2], sys.argv[6::2], strict=False))
    one = StandIn(lambda *_: {"token_ids": [7, 8, 9], "finish_reason": "length"})
    one.entry |= {"id": flags["--served-model-name"], "max_model_len": int(flags["--max-model-len"])}
    with serving(one, int(flags["--port"])):
        time.sleep(600)
    return 0


if __name__ == "__main__":
    sys.exit(main())
