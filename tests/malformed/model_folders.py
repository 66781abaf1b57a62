"""Model and adapter folders with one wrong value, made in code: what a fault is, and how a folder gets it.

`faults_of` goes through every key of every JSON file of a folder (nested ones too) with a list of wrong values, and
through damage to whole files. `spoil` makes a copy with one of them.
"""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

VALUES: tuple[Any, ...] = (
    None, True, "many", "false", "", -1, 0, 7, 1.5, -2.5, 10**9, 10**30, 1e300, float("nan"), float("inf"),
    [], [1], ["a", None], {}, {"a": 1}, [[[["global"], 10**9]]],
)  # fmt: skip
"""Each is wrong for most keys."""
BYTES: dict[str, bytes] = {
    "empty": b"",
    "cut": b'{"a": ',
    "null": b"null",
    "list": b"[]",
    "number": b"7",
    "text": b'"a"',
    "latin": b'{"a": "\xe9"}',
    "zeros": b"\0" * 64,
    "deep": b"[" * 100_000,
    "deep-keys": b'{"a":' * 50_000,
    "long-number": b'{"a": ' + b"9" * 5000 + b"}",
    "pickle": b"\x80\x04\x95\x0c\x00\x00\x00\x00\x00\x00\x00\x8c\x08builtins\x94.",
    "zip": b"PK\x03\x04" + b"\0" * 60,
    "huge-header": b"\xff" * 7 + b"\x7f" + b"{}",
    "long-header": b"\0\0\0\0\1\0\0\0" + b"{}",
    "header-list": b"\x02\0\0\0\0\0\0\0[]",
    "header-offsets": b'\x39\0\0\0\0\0\0\0{"a":{"dtype":"F32","shape":[9],"data_offsets":[0,99999]}}',
}
"""What a whole file may hold instead."""
KINDS = ("absent", "folder", "broken link", "pipe")
"""What may stand in a file's place."""


@dataclass(frozen=True)
class Fault:
    """One wrong thing in a folder.

    Attributes:
        file: Its name within the folder.
        keys: Where in the JSON; empty: the whole file.
        value: What stands there instead; of a whole file its bytes, or one of `KINDS`.
    """

    file: str
    keys: tuple[str | int, ...]
    value: Any

    def __str__(self) -> str:
        return f"{self.file}: {'.'.join(map(str, self.keys))} = {self.value!r:.60}"


def faults_of(folder: Path, values: tuple[Any, ...] = VALUES) -> Iterator[Fault]:
    """All faults of a folder's files, in a fixed order."""
    for file in sorted(folder.iterdir()):
        for kind in KINDS:
            yield Fault(file.name, (), kind)
        for content in BYTES.values():
            yield Fault(file.name, (), content)
        if file.suffix == ".safetensors":
            data = file.read_bytes()
            yield from (Fault(file.name, (), data[:at]) for at in (4, 8, 40, len(data) // 2, len(data) - 1))
            yield Fault(file.name, (), data + b"more")
        if file.suffix == ".json":
            for keys in _keys_of(json.loads(file.read_text())):
                yield from (Fault(file.name, keys, value) for value in values)


def _keys_of(tree: object, depth: int = 4) -> Iterator[tuple[str | int, ...]]:
    """Paths to the values of an object, and to the first of each list and of each large object."""
    if depth == 0 or not isinstance(tree, dict | list):
        return
    inner = list(tree.items()) if isinstance(tree, dict) else list(enumerate(tree))
    for key, value in inner[: 1 if isinstance(tree, list) or len(inner) > 60 else None]:
        yield (key,)
        yield from ((key, *rest) for rest in _keys_of(value, depth - 1))


def spoil(folder: Path, fault: Fault, target: Path) -> Path:
    """A copy of a folder (hard links) with one fault."""
    shutil.rmtree(target, ignore_errors=True)
    shutil.copytree(folder, target, copy_function=os.link)
    file = target / fault.file
    file.unlink(missing_ok=True)
    if fault.keys:
        tree = copy.deepcopy(json.loads((folder / fault.file).read_text()))
        inner = tree
        for key in fault.keys[:-1]:
            inner = inner[key]
        inner[fault.keys[-1]] = fault.value
        file.write_text(json.dumps(tree))
    elif isinstance(fault.value, bytes):
        file.write_bytes(fault.value)
    elif fault.value == "folder":
        file.mkdir()
    elif fault.value == "broken link":
        file.symlink_to(target / "nothing")
    elif fault.value == "pipe":
        os.mkfifo(file)
    return target
