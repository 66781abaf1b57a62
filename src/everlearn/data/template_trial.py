"""Tries a chat template in a process of its own, where it can be stopped.

A template is a program that comes with a model. Jinja's sandbox keeps it from the machine, but not from running for
ever (nested loops), from filling the memory (`'a' * 10**10`) or from drawing at random, and nothing within a process
can stop such a thing for certain. So it renders a few conversations, one of them long, in a child with bounds on
time and memory. Whatever else goes wrong there is left to the first rendering here, which can say it better.

This file is also the child's program; it imports nothing of everlearn, and jinja2 alone, to start in a tenth of a
second.
"""

from __future__ import annotations

import json
import random
import subprocess
import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from typing import Any

PROCESSOR_SECONDS = 3
MEMORY_BYTES = 1 << 30
LONG_TEXT = "0 1 2 3 4 5 6 7 8 9\n" * 1000
_WALL_SECONDS = 60  # where there is no limit on processor time, and on a machine that is very busy
_OUT_OF_TIME = (-24, -9)  # SIGXCPU, SIGKILL
_DRAWS = 8


def characters_allowed(content: int) -> int:
    """Most characters that a template may make of so many: more than any known one, whatever it adds or repeats."""
    return 1_000_000 + 20 * content


def fault_of(source: str, variables: Mapping[str, Any]) -> str | None:
    """What a template does that no template may, as the end of a sentence; None when it ends as it should.

    Args:
        source: The template.
        variables: The tokenizer's special tokens, by name.
    """
    limits = {"seconds": PROCESSOR_SECONDS, "bytes": MEMORY_BYTES}
    task = json.dumps({"path": sys.path, "limits": limits, "source": source, "variables": dict(variables)})
    try:
        child = subprocess.run(
            [sys.executable, "-I", __file__], input=task, capture_output=True, timeout=_WALL_SECONDS, encoding="utf-8"
        )
    except subprocess.TimeoutExpired:
        return f"takes longer than {_WALL_SECONDS} seconds"
    except OSError:
        return None  # no process can be started here
    if child.returncode in _OUT_OF_TIME:
        return f"takes longer than {PROCESSOR_SECONDS} seconds"
    if child.returncode < 0:
        return f"ends the process that renders it (signal {-child.returncode})"
    return child.stdout or None


def _main() -> None:
    task = json.loads(sys.stdin.read())
    limits = task["limits"]
    with suppress(ImportError):  # not on Windows
        import resource

        for kind, limit in (
            (resource.RLIMIT_CPU, limits["seconds"]),
            (resource.RLIMIT_AS, limits["bytes"]),
            (resource.RLIMIT_CORE, 0),
        ):
            with suppress(OSError, ValueError):
                resource.setrlimit(kind, (limit, limit))
    sys.path[:] = task["path"]
    try:
        sys.stdout.write(_tried(task["source"], task["variables"]))
    except MemoryError:
        sys.stdout.write(f"takes more than {limits['bytes'] >> 20} MiB of memory")


def _tried(source: str, variables: Mapping[str, Any]) -> str:
    answer = {"role": "assistant", "content": "a"}
    short = [{"role": "user", "content": "q"}]
    long = [{"role": role, "content": LONG_TEXT} for role in ("user", "assistant", "user")]
    render = _renderer(source, variables)
    for messages in (short, [*short, answer], long):
        allowed = characters_allowed(sum(len(message["content"]) for message in messages))
        for is_prompt in (True, False):
            found = set()
            for seed in range(_DRAWS if messages is short else 1):
                random.seed(seed)
                found.add(render(messages, is_prompt))
            if len(found) > 1:
                return "renders the same conversation differently each time"
            if any(len(text) > allowed for text in found):
                return f"makes more than {allowed:,} characters of a conversation"
    return ""


def _renderer(source: str, variables: Mapping[str, Any]) -> Any:
    """Renders as Transformers does; nothing where that fails."""
    from jinja2.ext import Extension, loopcontrols
    from jinja2.nodes import Node
    from jinja2.parser import Parser
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        tags = {"generation"}  # noqa: RUF012

        def parse(self, parser: Parser) -> list[Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def refuse(message: str) -> None:
        raise ValueError(message)

    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols]
    )
    environment.filters["tojson"] = lambda value, **_: json.dumps(value)
    environment.globals |= {"raise_exception": refuse, "strftime_now": lambda format: str(format)}
    compiled = cache(lambda: environment.from_string(source))

    def render(messages: Sequence[Mapping[str, str]], is_prompt: bool) -> str:
        try:
            return compiled().render(
                messages=messages,
                tools=None,
                documents=None,
                add_generation_prompt=is_prompt,
                enable_thinking=False,
                **variables,
            )
        except MemoryError:
            raise
        except Exception:  # left to the caller, who sees it again and can say it better
            return ""

    return render


if __name__ == "__main__":
    _main()
