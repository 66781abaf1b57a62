"""JSON over HTTP, for servers that speak OpenAI's protocol: time-outs, bounded retries, and a sentence for each fault.

What a busy or restarting server gives (no connection, time-outs, 408, 409, 425, 429, 5xx) is tried again after waits
that double, or that the server names; everything else is refused at once, in the server's own words. A redirect is
refused: it would carry the key elsewhere. The key is read from the environment when it is needed and written nowhere.
"""

from __future__ import annotations

import http.client
import json
import os
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NoReturn
from urllib.parse import urlsplit

from everlearn.errors import RunError
from everlearn.visible import visible

_AGAIN = (408, 409, 425, 429, 500, 502, 503, 504, 529)
_FIRST_WAIT_S, _LONGEST_WAIT_S = 0.5, 30.0
_MOST_BYTES = 1 << 28  # chosen here: no answer to a question is longer, and memory is bounded
_MOST_WORDS = 300  # letters of a server's own message


class ServerError(RunError):
    """A server cannot be asked, or does not answer as it should.

    Attributes:
        status: Of its answer; None where there was none.
        fault: What is wrong, without where and the remedy.
    """

    def __init__(self, message: str, status: int | None = None, fault: str = "") -> None:
        super().__init__(message)
        self.status, self.fault = status, fault


class Asked:
    """How often servers were asked, by all threads.

    Attributes:
        requests: Sent, repetitions included.
        retries: The repetitions.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self.requests = self.retries = 0

    def note(self, *, is_retry: bool) -> None:
        """One more."""
        with self._lock:
            self.requests += 1
            self.retries += is_retry


@dataclass(frozen=True)
class Server:
    """An OpenAI-compatible endpoint.

    Attributes:
        url: Its base, such as `http://127.0.0.1:8000/v1`.
        key: Recipe key of the address; begins the sentences.
        api_key_env: Environment variable with the key to send; empty or unset: none is sent.
        timeout_s: Seconds for one answer, the whole of it.
        attempts: How often a question is sent at most.
        secret: The key to send, where it stands in no variable.
        asked: Counts.
    """

    url: str
    key: str
    api_key_env: str = ""
    timeout_s: float = 120.0
    attempts: int = 5
    secret: str = field(default="", repr=False)
    asked: Asked = field(default_factory=Asked, repr=False, compare=False)

    def get(self, path: str) -> dict[str, Any]:
        """The answer to a GET below the base.

        Raises:
            ServerError: says what is wrong and what to do.
        """
        return self._ask(path, None)

    def post(self, path: str, body: Mapping[str, object] | Sequence[object]) -> dict[str, Any]:
        """The answer to a POST of JSON.

        Raises:
            ServerError: says what is wrong and what to do.
        """
        return self._ask(path, json.dumps(body).encode())

    def tell(self, path: str, body: Mapping[str, object]) -> None:
        """A POST of JSON of which nothing matters but that it was done.

        Raises:
            ServerError: it was not.
        """
        self._ask(path, json.dumps(body).encode(), is_object=False)

    def models(self) -> list[str]:
        """Names of the models that are served.

        Raises:
            ServerError: says what is wrong and what to do.
        """
        listed = self.get("models").get("data")
        if not isinstance(listed, list):
            raise ServerError(f"{self._where}/models lists no models: is it the base of an OpenAI-compatible server?")
        return [str(model["id"]) for model in listed if isinstance(model, dict) and "id" in model]

    @property
    def _where(self) -> str:
        return f"{self.key}: {self.url.rstrip('/')}"

    def _ask(self, path: str, body: bytes | None, *, is_object: bool = True) -> dict[str, Any]:
        wait, fault, status = _FIRST_WAIT_S, "", None
        for attempt in range(1, self.attempts + 1):
            self.asked.note(is_retry=attempt > 1)
            try:
                given = self._once(path, body)
                return self._object_in(given, path) if is_object else {}
            except urllib.error.HTTPError as error:
                status, asked_to_wait = error.code, error.headers.get("Retry-After", "")
                fault = f"answers {error.code} ({_words(error)})"
                if error.code not in _AGAIN:
                    self._refuse(path, fault, status)
                if asked_to_wait.isdigit():
                    wait = max(wait, float(asked_to_wait))
            except (OSError, http.client.HTTPException) as error:
                status, fault = None, _reason(error, self.timeout_s)
            if attempt < self.attempts:
                time.sleep(min(wait, _LONGEST_WAIT_S))
                wait *= 2
        times = f" in {self.attempts} attempts" if self.attempts > 1 else ""
        raise ServerError(
            f"{self._where}/{path} {fault}{times}: see that the server runs there and give the command again, which "
            "goes on from what has been answered.",
            status,
            fault,
        )

    def _once(self, path: str, body: bytes | None) -> bytes:
        headers = {"Content-Type": "application/json", "Accept": "application/json", "User-Agent": "everlearn"}
        if secret := self.secret or (os.environ.get(self.api_key_env, "").strip() if self.api_key_env else ""):
            headers["Authorization"] = f"Bearer {secret}"
        request = urllib.request.Request(f"{self.url.rstrip('/')}/{path}", data=body, headers=headers)
        until = time.monotonic() + self.timeout_s
        with _opener(self.url).open(request, timeout=self.timeout_s) as response:
            pieces, size = [], 0
            while piece := response.read1(1 << 16):
                pieces.append(piece)
                size += len(piece)
                if time.monotonic() > until:  # the system's own limit begins again with every byte
                    raise TimeoutError
                if size > _MOST_BYTES:
                    self._refuse(path, f"answers with more than {_MOST_BYTES:,} bytes", None)
            if response.length:  # `read1` does not tell that more was announced
                raise http.client.IncompleteRead(b"", response.length)
        return b"".join(pieces)

    def _object_in(self, given: bytes, path: str) -> dict[str, Any]:
        try:
            answer = json.loads(given)
        except (ValueError, RecursionError):
            answer = None
        if not isinstance(answer, dict):
            self._refuse(path, "answers with something that is no JSON object", None)
        return answer

    def _refuse(self, path: str, fault: str, status: int | None) -> NoReturn:
        if status in (401, 403):
            named = f"the environment variable {self.api_key_env}" if self.api_key_env else "a key (api_key_env)"
            raise ServerError(f"{self._where}/{path} {fault}: give {named} the key that it asks for.", status, fault)
        raise ServerError(
            f"{self._where}/{path} {fault}: give the base address of an OpenAI-compatible server, which ends in /v1 "
            "as a rule, and the name of a model that it serves.",
            status,
            fault,
        )


def checked_address(text: str) -> str:
    """The address of a server, for a recipe's key.

    Raises:
        ValueError: it is none of http or https, or holds a name and password.
    """
    parts = urlsplit(text)
    if parts.scheme not in ("http", "https") or not parts.hostname or not text.isprintable() or " " in text:
        raise ValueError("give a server's address, such as http://127.0.0.1:8000/v1")
    if "@" in parts.netloc:
        raise ValueError("give no password in an address: name an environment variable in api_key_env")
    return text


def _opener(url: str) -> urllib.request.OpenerDirector:
    """What opens the address: a proxy of the environment is not asked for this machine's own servers."""
    handlers: list[urllib.request.BaseHandler] = [_NoRedirects()]
    if urlsplit(url).hostname in ("localhost", "127.0.0.1", "::1"):
        handlers.append(urllib.request.ProxyHandler({}))
    return urllib.request.build_opener(*handlers)


class _NoRedirects(urllib.request.HTTPRedirectHandler):
    """Leaves a redirect an error."""

    def redirect_request(self, *_: object, **__: object) -> None:
        """Answers None: nothing is followed."""


def _words(error: urllib.error.HTTPError) -> str:
    """What the server says of its error, as far as it is short text."""
    try:
        raw = error.read(1 << 16)
    except (OSError, http.client.HTTPException):
        raw = b""
    text = raw.decode("utf-8", "replace")
    try:
        told = json.loads(raw)
        told = told.get("error", told) if isinstance(told, dict) else told
        text = str(told.get("message", told) if isinstance(told, dict) else told)
    except ValueError:
        pass
    return visible(" ".join(text.split())[:_MOST_WORDS]) or str(error.reason)


def _reason(error: BaseException, timeout_s: float) -> str:
    inner = getattr(error, "reason", error)
    if isinstance(inner, TimeoutError):
        return f"does not answer within {timeout_s:g} seconds"
    if isinstance(error, http.client.HTTPException):
        return "breaks off its answer"
    return f"cannot be reached ({getattr(inner, 'strerror', None) or inner})"
