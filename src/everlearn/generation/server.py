"""Generation by a server of OpenAI's protocol with vLLM's additions: prompts and completions travel as token ids.

One request a completion, many at a time: the server makes batches of those that it has. What a completion is (where it
ends, its text, which tokens belong to it) is decided here from the ids, by the same rules as in this process; stop
strings and end tokens are sent along so that the server ends early. Each request has a seed of its own; that the same
seed gives the same tokens in another batch is more than servers promise.
"""

from __future__ import annotations

import queue
import threading
from collections import Counter
from collections.abc import Callable, Generator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from everlearn.errors import ModelError
from everlearn.generation.prompts import first_of_equals, room_of
from everlearn.generation.protocol import Completion, GenerationProgress, Sampling
from everlearn.generation.stopping import Stopper, end_tokens
from everlearn.http import Server, ServerError
from everlearn.ordinary_files import shown
from everlearn.seeds import derive
from everlearn.usage import wrote

if TYPE_CHECKING:
    from everlearn.models.loading import LoadedModel

Job = TypeVar("Job")
Made = TypeVar("Made")

KEY = "generation.server"
ATTEMPTS = 8
"""For each request; chosen here: a server that restarts is waited for a minute."""
_REFUSALS = (400, 404, 405, 413, 415, 422)
REMEDY = (
    "use a server of vLLM (0.10.2 or newer) that was started with the run's base, --enable-lora and the environment "
    "variable VLLM_ALLOW_RUNTIME_LORA_UPDATING=True, or set generation.engine to here"
)


@dataclass(frozen=True)
class Served:
    """What a server is.

    Attributes:
        model: Its name for the run's base.
        software: What owns the model, by its own word.
        version: Of it; None: it does not say.
        context: Most tokens that it takes, prompt and completion together; None: it does not say.
    """

    model: str
    software: str
    version: str | None
    context: int | None


def connect(server: Server, names: Sequence[str], folder: Path, prompt: Sequence[int]) -> Served:
    """Asks a server what it is, and refuses one that does not serve the run's base by token ids.

    Args:
        server: To be asked.
        names: Under which it may serve the base.
        folder: Of the base's files, which is a name as well.
        prompt: Some token ids, as a trial.

    Raises:
        ModelError: it serves another model, or not in a way that can be used here.
        ServerError: it does not answer.
    """
    label = f"{KEY} {shown(server.url)}"
    listed = server.get("models").get("data")
    models = [one for one in listed if isinstance(one, dict)] if isinstance(listed, list) else []
    found = next((one for one in models if not one.get("parent") and _is_base(one, names, folder)), None)
    if found is None:
        others = ", ".join(shown(str(one.get("id"))) for one in models[:5]) or "none"
        raise ModelError(
            f"{label} serves another model than the run's ({others}, and not {shown(names[0])}): start it with the "
            f"run's base ({folder}), or name it by generation.served_as if it is the same under another name."
        )
    model, context = str(found.get("id")), found.get("max_model_len")
    asked = {"model": model, "prompt": list(prompt), "max_tokens": 1, "temperature": 0, "return_token_ids": True}
    try:
        answer = server.post("completions", asked)
        _ids_in(answer)
        read = answer["usage"]["prompt_tokens"]
    except ServerError as error:
        if error.status not in _REFUSALS:
            raise
        raise ModelError(f"{label} does not take prompts as token ids (it {error.fault}): {REMEDY}.") from None
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ModelError(f"{label} does not give back the token ids that it writes: {REMEDY}.") from None
    if read != len(prompt):
        raise ModelError(f"{label} has read {read} tokens in a prompt of {len(prompt)} token ids: {REMEDY}.")
    version = None
    with suppress(ServerError):
        root = server.url.rstrip("/").removesuffix("/v1")
        version = replace(server, url=root, attempts=1).get("version").get("version")
    software = str(found.get("owned_by") or "a server")
    return Served(model, software, version and str(version), context if isinstance(context, int) else None)


def load_adapter(server: Server, name: str, folder: Path) -> None:
    """Has the server load an adapter under a name, unless it has it.

    Args:
        server: Which.
        name: Of the adapter there.
        folder: With the adapter as PEFT writes it, which the server reads by itself.

    Raises:
        ModelError: it refuses.
        ServerError: it does not answer.
    """
    if name in server.models():
        return
    try:
        server.tell("load_lora_adapter", {"lora_name": name, "lora_path": str(folder.absolute())})
    except ServerError as error:
        if error.status not in (*_REFUSALS, 500):
            raise
        raise ModelError(
            f"{KEY} {shown(server.url)} does not load the adapter in {folder} (it {error.fault}): it must see this "
            f"folder, and take such adapters; {REMEDY}."
        ) from None


def unload_adapter(server: Server, name: str) -> None:
    """Has the server forget an adapter; where it does not, it has one more than it needs."""
    with suppress(ServerError):
        replace(server, attempts=1).tell("unload_lora_adapter", {"lora_name": name})


class ServerGenerator:
    """A generation engine bound to a model of a server.

    Args:
        at: Gives the server and what it calls the model, and sees to it that it has it.
        loaded: The same model here: its tokenizer, its end tokens and how much it takes.
        at_once: Requests under way at a time.
        count: Called with the tokens that were written.
    """

    def __init__(
        self,
        at: Callable[[], tuple[Server, str]],
        loaded: LoadedModel,
        at_once: int,
        count: Callable[[int], None] = wrote,
    ) -> None:
        self._at, self._at_once, self._count = at, at_once, count
        self._tokenizer, self._context = loaded.tokenizer, loaded.context_length
        self._ends = end_tokens(loaded.model, loaded.tokenizer)

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: GenerationProgress | None = None
    ) -> list[list[Completion]]:
        """Completes every prompt; see `Generator.generate`.

        Raises:
            ServerError: the server does not answer any more.
            ModelError: it refuses a prompt.
        """
        if not prompts:
            return []
        if sampling.blend is not None:
            raise ModelError(
                "a mixture of two models, token by token, is nothing that a server writes: set generation.engine to "
                "here."
            )
        limits = [room_of(at, len(ids), sampling, self._context) for at, ids in enumerate(prompts)]
        is_greedy = sampling.temperature == 0.0
        copies = 1 if is_greedy else sampling.samples_per_prompt
        first = first_of_equals(prompts) if is_greedy else list(range(len(prompts)))
        ends = self._ends | set(sampling.end_ids)
        stopper = Stopper(self._tokenizer, sampling.stop, ends)
        left, equals = dict.fromkeys(first, copies), Counter(first)
        found: dict[tuple[int, int], Completion] = {}
        server, model = self._at()
        tokens = done = 0

        def complete(job: tuple[int, int]) -> Completion:
            at, sample = job
            how = _request(sampling, ends, limits[at], derive(sampling.seed, at, sample))
            try:
                answer = server.post("completions", {"model": model, "prompt": list(prompts[at]), **how})
            except ServerError as error:
                if error.status not in _REFUSALS:
                    raise
                raise ModelError(
                    f"{KEY} {shown(server.url)} does not complete prompt {at} (counted from 0) of "
                    f"{len(prompts[at])} tokens by {shown(model)}: it {error.fault}; what stands is kept."
                ) from None
            return _completion(answer, limits[at], stopper, ends, server)

        jobs = [(at, sample) for at in left for sample in range(copies)]
        with closing(_as_they_come(complete, jobs, self._at_once)) as completions:
            for (at, sample), completion in completions:
                found[at, sample] = completion
                tokens += len(completion.token_ids)
                left[at] -= 1
                done += 0 if left[at] else equals[at]
                if progress is not None:
                    progress(done, len(prompts), tokens)
        self._count(tokens)
        repeats = sampling.samples_per_prompt // copies
        return [[found[at, sample] for sample in range(copies)] * repeats for at in first]


def _as_they_come(work: Callable[[Job], Made], jobs: Sequence[Job], at_once: int) -> Generator[tuple[Job, Made]]:
    """Each job with what it has made, in the order of their ends; the first that fails ends all.

    What is under way then is left to itself, by threads that hold up neither the error nor the end of the program.
    """
    waiting: queue.SimpleQueue[Job] = queue.SimpleQueue()
    ended: queue.SimpleQueue[tuple[Job, Made | None, BaseException | None]] = queue.SimpleQueue()
    is_over = threading.Event()
    for job in jobs:
        waiting.put(job)

    def take() -> None:
        with suppress(queue.Empty):
            while not is_over.is_set():
                job = waiting.get_nowait()
                try:
                    ended.put((job, work(job), None))
                except BaseException as error:
                    ended.put((job, None, error))

    for _ in range(min(at_once, len(jobs))):
        threading.Thread(target=take, name="request", daemon=True).start()
    try:
        for _ in jobs:
            job, made, error = ended.get()
            if error is not None:
                raise error
            yield job, made  # type: ignore[misc]
    finally:
        is_over.set()


def _request(sampling: Sampling, ends: frozenset[int], limit: int, seed: int) -> dict[str, object]:
    """How a completion is asked for; all that a server might have another default for is in it."""
    return {
        "max_tokens": limit,
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k or -1,
        "min_p": 0.0,
        "repetition_penalty": sampling.repetition_penalty,
        "seed": seed,
        "stop": [text for text in sampling.stop if text],
        "stop_token_ids": sorted(ends),
        "return_token_ids": True,
    }


def _completion(answer: Any, limit: int, stopper: Stopper, ends: frozenset[int], server: Server) -> Completion:
    """What the server has written, ended where this process would have ended it."""
    try:
        ids, reason = _ids_in(answer)
    except (TypeError, KeyError, IndexError, AttributeError):
        raise ServerError(f"{KEY} {shown(server.url)} has answered without token ids: {REMEDY}.") from None
    ids = ids[:limit]
    end = next((at for at, token in enumerate(ids) if token in ends), None)
    if end is not None:
        return Completion(*stopper.finish(ids[: end + 1], "eos"))
    completion = Completion(*stopper.finish(ids, "length"))
    if completion.finish_reason == "length" and len(ids) < limit and reason == "stop":
        return replace(completion, finish_reason="eos")  # an end token that is not given back
    return completion


def _is_base(entry: dict[str, Any], names: Sequence[str], folder: Path) -> bool:
    """Whether what a server lists is the run's base: by its name, or by the folder that it was started with."""

    def is_folder(text: object) -> bool:
        with suppress(OSError, ValueError):
            return Path(str(text)).resolve() == folder.resolve()
        return False

    return any(one in names or is_folder(one) for one in (entry.get("id"), entry.get("root")) if one)


def _ids_in(answer: Any) -> tuple[list[int], str | None]:
    """The ids that were written, and why they end.

    Raises:
        TypeError: they are not there, as `KeyError`, `IndexError` and `AttributeError` say as well.
    """
    choice = answer["choices"][0]
    ids = choice["token_ids"]
    if not isinstance(ids, list) or not all(type(token) is int for token in ids):
        raise TypeError("no token ids")
    return ids, choice.get("finish_reason")
