"""Which engine writes: this process, a server, or vLLM started for the run. The one place where that is decided.

`None` stands for this process. What is elsewhere has the base, and adapters by their paths; it is connected to when a
run is prepared, so that what it cannot do is refused before anything is trained, and what it is belongs to the
fingerprints of what it writes.
"""

from __future__ import annotations

import secrets
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from everlearn.errors import ModelError
from everlearn.files import disk_error, read_mapping
from everlearn.generation.server import (
    ATTEMPTS,
    KEY,
    Served,
    ServerGenerator,
    connect,
    load_adapter,
    unload_adapter,
)
from everlearn.generation.vllm import Launch, Vllm, highest_rank, version_of
from everlearn.http import Asked, Server
from everlearn.layout import VLLM_LOG
from everlearn.models.folders import content_hash
from everlearn.models.loading import context_length, load_tokenizer, write_blank_adapter
from everlearn.models.sources import find_base
from everlearn.ordinary_files import shown
from everlearn.usage import wrote

_TRIALS = 2
"""Requests to a server of which it is not known whether it is there."""

if TYPE_CHECKING:
    from everlearn.generation.protocol import Generator
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Progress
    from everlearn.recipe import GenerationConfig, ModelConfig


def engine_of(config: GenerationConfig, model: ModelConfig, *, seed: int, folder: Path | None) -> Elsewhere | None:
    """The engine of a run; None: this process.

    Args:
        config: Which.
        model: The run's, its number format decided.
        seed: Of the run.
        folder: Of the run, for vLLM's log.

    Raises:
        UserError: it cannot be used as asked.
    """
    return None if config.engine == "here" else Elsewhere(config, model, seed=seed, folder=folder)


@contextmanager
def at_work(engine: Elsewhere | None, progress: Progress) -> Iterator[None]:
    """Within it models write; afterwards what was started for that has ended, and what it did is said."""
    if engine is None:
        yield
        return
    with engine:
        yield
    progress.say(engine.line())


class Elsewhere:
    """An engine in another process, perhaps on another machine; leaving its context ends what was started for it.

    Attributes:
        inputs: What the fingerprint of all that it writes depends on through it.
        context: Most tokens of prompt and completion.
        note: What the user should know of it.
    """

    def __init__(self, config: GenerationConfig, model: ModelConfig, *, seed: int, folder: Path | None) -> None:
        self._config, self._model = config, model
        self._base = find_base(model).folder
        self._asked, self._tokens = Asked(), 0
        self._server = Server(
            config.server or "", KEY, config.api_key_env or "", config.timeout_s, ATTEMPTS, asked=self._asked
        )
        self._served: Served | None = None
        self._vllm: Vllm | None = None
        self._loaded, self._own = "", secrets.token_hex(4)
        own = context_length(model)
        if config.engine == "vllm":
            assert config.python is not None, "the recipe has been checked"
            self.context = min(own, config.context_length or own)
            version = version_of(config.python)
            launch = Launch(
                config.python,
                self._base,
                model.base,
                model.dtype,
                seed,
                self.context,
                config.gpu_memory_utilization,
                config.start_timeout_s,
                folder and folder / VLLM_LOG,
            )
            self._vllm = Vllm(launch)
            self.software, where = f"vLLM {version}", "started for the run"
        else:
            assert config.server is not None, "the recipe has been checked"
            served = self._connect()
            self.context = min(own, served.context or own)
            self.software, where = f"{served.software} {served.version or ''}".strip(), f"at {shown(config.server)}"
        self.inputs: Mapping[str, object] = {
            "engine": [config.engine, self.software, *([self.context] if self.context < own else [])]
        }
        less = f", {self.context:,} of the model's {own:,} tokens at a time" if self.context < own else ""
        self.note = f"{self.software} writes, {where}{less} (generation.engine: {config.engine})"

    def __enter__(self) -> Elsewhere:
        return self

    def __exit__(self, *_: object) -> None:
        if self._loaded and self._vllm is None:
            unload_adapter(self._server, self._loaded)
        self.rest()

    def try_adapter(self, rank: int, beside: Path) -> None:
        """Refuses what takes no adapters of this rank, by one that changes nothing.

        Args:
            rank: The highest that the run comes to.
            beside: Folder in which the server will be shown adapters.

        Raises:
            ModelError: it does not.
        """
        if self._vllm is not None:
            highest_rank(rank)
            return
        there = next(place for place in (beside.absolute(), *beside.absolute().parents) if place.is_dir())
        try:
            with tempfile.TemporaryDirectory(prefix=".everlearn-trial-", dir=there) as place:
                write_blank_adapter(self._model, rank, Path(place))
                load_adapter(self._server, self._named("trial"), Path(place))
                unload_adapter(self._server, self._named("trial"))
        except OSError as error:
            raise disk_error(there, error) from None

    def generator(self, loaded: LoadedModel, adapter: Path | None) -> Generator:
        """The engine over a model.

        Args:
            loaded: The model here.
            adapter: Folder of what makes it of the base; None: it is the base.
        """
        return ServerGenerator(lambda: self._with(adapter), loaded, self._config.requests_at_once, self._count)

    def rest(self) -> None:
        """Gives back the memory that was taken for the run, until it is asked for more."""
        self._loaded = ""
        if self._vllm is not None:
            self._vllm.end()

    def told(self, before: object = None) -> dict[str, object]:
        """What it is and what it did, for the manifest.

        Args:
            before: The same of an earlier part of the run.
        """
        asked = self._asked
        counts = {"requests": asked.requests, "retries": asked.retries, "tokens": self._tokens}
        known = before if isinstance(before, Mapping) else {}
        total = {name: number + int(known.get(name, 0)) for name, number in counts.items()}
        return {"name": self._config.engine, "software": self.software, "address": self._config.server, **total}

    def line(self) -> str:
        """What it did, in one line."""
        told = self.told()
        return (
            f"{self.software} has written {told['tokens']:,} tokens in {told['requests']:,} requests; "
            f"{told['retries']:,} were repeated"
        )

    def _count(self, tokens: int) -> None:
        self._tokens += tokens
        wrote(tokens)

    def _with(self, adapter: Path | None) -> tuple[Server, str]:
        """The server, and what it calls the base with an adapter, which it then has."""
        rank = 0 if adapter is None else int(read_mapping(adapter / "adapter_config.json")["r"])
        if self._vllm is not None and self._vllm.start(max(rank, self._model.lora.rank)):
            one = self._vllm.server
            self._server = replace(self._server, url=one.url, secret=one.secret)
            self._loaded, self._served = "", self._connect()
        assert self._served is not None, "it is connected to where it does not rest"
        if adapter is None:
            return self._server, self._served.model
        name = self._named(content_hash(adapter)[:16])
        if name != self._loaded:
            if self._loaded:
                unload_adapter(self._server, self._loaded)
            load_adapter(self._server, name, adapter)
            self._loaded = name
        return self._server, name

    def _named(self, what: str) -> str:
        """Of an adapter on the server, which others may ask as well, perhaps for the same adapter."""
        return f"everlearn-{self._own}-{what}"

    def _connect(self) -> Served:
        config = self._config
        names = [config.served_as] if config.served_as else [self._model.base]
        prompt = load_tokenizer(self._model)("One, two, three: four.")["input_ids"]
        self._served = connect(replace(self._server, attempts=_TRIALS), names, self._base, prompt)
        return self._served


def refuse_unserved(model: ModelConfig) -> None:
    """Refuses a fully tuned model, and adapters over quantized weights.

    Raises:
        ModelError: the server does not hold it.
    """
    if model.quantization != "none":
        raise ModelError(
            f"a server holds the base as it is, and adapters trained over model.quantization: {model.quantization} "
            "answer otherwise on it: set model.quantization to none, or generation.engine to here."
        )
    if model.tuning == "full":
        raise ModelError(
            "a server holds the base and loads adapters, and model.tuning is full, which leaves whole weights: set "
            "model.tuning to lora, or generation.engine to here."
        )
