"""Stand-ins for models, engines and storage: synthesis runs on them in milliseconds, and every call is seen."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace

from everlearn.data.instance import Instance, Task
from everlearn.data.prompts import VanillaTemplate
from everlearn.fingerprints import fingerprint_of
from everlearn.generation.protocol import Completion, GenerationProgress, Sampling
from everlearn.progress import LineProgress
from everlearn.recipe import TrainingConfig
from everlearn.synthesis.job import Tools
from tests.data.byte_tokenizer import make_byte_tokenizer, read

DEFINITION = "Say whether the number is even or odd."


def number_task(*, rows: int = 40, demonstrations: int = 6, labels: bool = False) -> Task:
    """A task whose inputs are numbers; every third answer is `odd` where there are labels."""
    train = tuple(
        Instance(DEFINITION, f"number {1000 + 37 * at}", "odd" if at % 3 == 0 else "even", "numbers", id=f"n{at}")
        for at in range(rows)
    )
    return Task(
        "numbers",
        train,
        (),
        train[-demonstrations:] if demonstrations else (),
        labels=("even", "odd") if labels else (),
    )


def write_instances(text: str, stream: random.Random) -> str:
    """What a base model might write after a prompt: two instances and the beginning of a third."""
    numbers = [stream.randrange(10_000, 99_999) for _ in range(3)]
    body = "\n\nInput:".join(f" number {number}\nOutput: {stream.choice(('even', 'odd'))}" for number in numbers[:2])
    return f"{body}\n\nInput: number {numbers[2]}"


@dataclass
class FakeGenerator:
    """Completes prompts by a function of the prompt and a random stream.

    Attributes:
        tokenizer: Decodes prompts.
        write: Makes a completion's text.
        stop_after: Raises KeyboardInterrupt at that call, as a kill would; None: never.
    """

    tokenizer: object
    write: Callable[[str, random.Random], str] = write_instances
    stop_after: int | None = None
    calls: list[tuple[list[str], Sampling]] = field(default_factory=list)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: GenerationProgress | None = None
    ) -> list[list[Completion]]:
        """The engine's call."""
        texts = [read(self.tokenizer, ids) for ids in prompts]
        self.calls.append((texts, sampling))
        if self.stop_after is not None and len(self.calls) > self.stop_after:
            raise KeyboardInterrupt
        if progress:
            progress(len(prompts), len(prompts), 0)
        return [
            [self._complete(text, sampling, at, sample) for sample in range(sampling.samples_per_prompt)]
            for at, text in enumerate(texts)
        ]

    def _complete(self, text: str, sampling: Sampling, at: int, sample: int) -> Completion:
        written = self.write(text, random.Random(f"{sampling.seed}-{at}-{sample}"))
        cuts = [written.index(stop) for stop in sampling.stop if stop in written]
        reason = "eos"
        if cuts:
            written, reason = written[: min(cuts)], "stop"
        if len(written) > sampling.max_new_tokens:
            written, reason = written[: sampling.max_new_tokens], "length"
        ids = self.tokenizer.encode(written, add_special_tokens=False)  # type: ignore[attr-defined]
        return Completion(written, tuple(ids), reason)


def answer_parity(text: str, stream: random.Random) -> str:
    """What a model that has learnt the task answers."""
    last = text.strip().split()[-1]
    return (" even" if int(last) % 2 == 0 else " odd") if last.isdigit() else " none"


@dataclass
class FolderSteps:
    """Keeps steps in folders; counts what was made."""

    folder: Path
    made: list[str] = field(default_factory=list)

    def __call__(
        self, name: str, inputs: Mapping[str, object], make: Callable[[Path], None], *, version: int = 1
    ) -> SimpleNamespace:
        """Makes or finds a step."""
        fingerprint = fingerprint_of(name, version, dict(inputs))
        path = self.folder / "cache" / fingerprint
        path.mkdir(parents=True, exist_ok=True)
        if not (path / "done").exists():
            make(path)
            self.made.append(name)
            (path / "done").touch()
        target = self.folder / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.unlink(missing_ok=True)
        target.symlink_to(path)
        return SimpleNamespace(path=target, fingerprint=fingerprint)


@dataclass
class Workshop:
    """Tools for synthesis over fakes; `base` and `latest` are their engines."""

    folder: Path
    base: FakeGenerator
    latest: FakeGenerator
    steps: FolderSteps
    lines: list[str]
    tools: Tools


def make_workshop(folder: Path, *, context: int = 4096, refined: bool = True, **base: object) -> Workshop:
    """A workshop whose results are below `folder`."""
    tokenizer = make_byte_tokenizer()
    writer = FakeGenerator(tokenizer, **base)  # type: ignore[arg-type]
    answerer = FakeGenerator(tokenizer, answer_parity)
    models = {
        name: SimpleNamespace(tokenizer=tokenizer, context_length=context, name=name) for name in ("base", "latest")
    }
    steps, lines = FolderSteps(folder), []
    tools = Tools(
        step=steps,
        base=lambda: models["base"],  # type: ignore[arg-type, return-value]
        base_fingerprint="base",
        generator_for=lambda loaded: writer if loaded is models["base"] else answerer,  # type: ignore[comparison-overlap]
        template=VanillaTemplate(),
        training=TrainingConfig(),
        progress=LineProgress(lines.append),
        seed=0,
        latest=(lambda: models["latest"]) if refined else None,  # type: ignore[arg-type, return-value]
        latest_fingerprint="latest",
    )
    return Workshop(folder, writer, answerer, steps, lines, tools)
