"""Recipes that are not what they seem, made in code: texts that are refused, and wrong values for every key."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, get_args

from pydantic import BaseModel

TASK = "stream: {tasks: [{name: t, train: t.jsonl}]}\n"
INFINITE = {"schedule.cycle_ratio", "path.branch_cycle_ratio", "path.cpt_cycle_ratio"}
"""Keys for which an infinite number has a meaning."""


def _bomb(levels: int, link: str) -> str:
    lines = [f"a0: &a0 {link.format('x', 'x', 'x')}"]
    lines += [f"a{n}: &a{n} {link.format(*[f'*a{n - 1}'] * 3)}" for n in range(1, levels)]
    return "\n".join(lines) + "\n"


TEXTS: dict[str, tuple[str | bytes, str]] = {
    "key twice": ("seed: 1\nname: a\nseed: 2\n", "line 3: the key 'seed' stands twice, first in line 1"),
    "section twice": (f"{TASK}training: {{epochs: 1}}\nevaluation: {{}}\ntraining: {{}}\n", "'training' stands twice"),
    "key twice in flow style": ("training: {epochs: 1, epochs: 2}\n", "the key 'epochs' stands twice"),
    "key twice in a list": ("stream: {tasks: [{name: t, name: u, train: x}]}\n", "the key 'name' stands twice"),
    "key twice, once quoted": ('seed: 1\n"seed": 2\n', "line 2: the key 'seed' stands twice"),
    "key twice in JSON": ('{"seed": 1, "seed": 1}', "the key 'seed' stands twice"),
    "merged twice": ("a: &a {epochs: 1}\ntraining:\n  <<: *a\n  <<: *a\n", "line 4: the key '<<' stands twice"),
    "merge of no mapping": ("training:\n  <<: 3\n", "not valid YAML"),
    "bomb": (_bomb(14, "[{}, {}, {}]"), "holds more than 200,000 keys and values"),
    "bomb of mappings": (_bomb(14, "{{x: {}, y: {}, z: {}}}"), "holds more than 200,000 keys and values"),
    "bomb of merges": (_bomb(14, "{{<<: [{}, {}, {}]}}"), "holds more than 200,000 keys"),
    "alias within itself": ("seeds: &a [*a]\n", "an alias stands within what it names"),
    "alias of nothing": ("seeds: *a\n", "undefined alias"),
    "nested in flow style": ("seeds: " + "[" * 5000 + "]" * 5000, "nested deeper than 32 levels"),
    "nested in block style": ("".join(f"{' ' * n}a:\n" for n in range(200)), "nested deeper than 32 levels"),
    "digits": ("seed: " + "9" * 5000, "a number of 5,000 digits"),
    "digits in base 16": ("seed: 0x" + "f" * 5000, "a number of 5,002 digits"),
    "twenty digits": ("seed: 99999999999999999999", "seed: it is too large"),
    "number as key": ("1: 2\n", "the key '1' is no text"),
    "nothing as key": ("? \n: 2\n", "the key '' is no text"),
    "list as key": ("? [a]\n: 2\n", "is no text"),
    "python object": ("seed: !!python/object/apply:os.system [ls]\n", "the tag '!!python/object/apply:os.system'"),
    "tag of its own": ("seed: !mine 3\n", "the tag '!mine'"),
    "set": ("seeds: !!set {1, 2}\n", "the tag '!!set'"),
    "binary": ("name: !!binary aGk=\n", "the tag '!!binary'"),
    "date": ("name: !!timestamp 2026-01-01\n", "the tag '!!timestamp'"),
    "number that is none": ("seed: !!int abc\n", "not valid YAML"),
    "truth that is none": ("evaluation: {general: !!bool abc}\n", "not valid YAML"),
    "two documents": ("seed: 1\n---\nseed: 2\n", "but found another document"),
    "tab": ("training:\n\tepochs: 1\n", "line 2: "),
    "open bracket": ("seeds: [1, 2\n", "is not valid YAML"),
    "zero byte": ('runs_dir: "a\\0b"\n', "a zero byte"),
    "raw zero byte": (b"runs_dir: a\0b\n", "not valid YAML"),
    "half a letter": ('runs_dir: "a\\ud800b"\n', "half a letter"),
    "UTF-16": ("seed: 1\n".encode("utf-16"), "is not UTF-8 text"),
    "Latin-1": ("name: é\n".encode("latin-1"), "is not UTF-8 text"),
    "empty": (b"", "is empty: write keys into it"),
    "nothing but a remark": ("# later\n", "is empty"),
    "text": ("just words\n", "holds a str"),
    "list": ("- seed: 1\n", "holds a list"),
    "large": ("# " + "x" * (1 << 20), "is larger than 1 MiB"),
    "truth as number": ("seed: true\n", "seed: input should be a valid integer (given: True)"),
    "truth as epochs": ("training: {epochs: false}\n", "training.epochs: input should be a valid number"),
    "yes as number": ("seed: yes\n", "seed: input should be a valid integer (given: 'yes')"),
    "text as number": ('seed: "3"\n', "seed: input should be a valid integer (given: '3')"),
    "number as name": ("name: 1\n", "name: input should be a valid string (given: 1)"),
    "number as base": ("model: {base: 123}\n", "model.base: input should be a valid string"),
    "number as truth": ("evaluation: {unseen_tasks: 1}\n", "evaluation.unseen_tasks: it is true or false"),
    "yes as truth": ("evaluation: {unseen_tasks: yes}\n", "it is true or false, nothing else (given: 'yes')"),
    "decimal as count": ("training: {batch_size: 2.5}\n", "training.batch_size: input should be a valid integer"),
    "sexagesimal": ("seed: 1:30\n", "seed: input should be a valid integer (given: '1:30')"),
    "underscores": ("seed: 1_000\n", "seed: input should be a valid integer (given: '1_000')"),
    "infinite": ("training: {epochs: .inf}\n", "training.epochs: input should be"),
    "overflow": ("training: {learning_rate: 1e999}\n", "training.learning_rate: input should be a finite number"),
    "no number": ("training: {learning_rate: .nan}\n", "training.learning_rate: input should be"),
    "empty data": ("stream: {tasks: [{name: t, train: ''}]}\n", "stream.tasks.0.train: it is empty"),
    "blank data": ("stream: {tasks: [{name: t, train: '  '}]}\n", "stream.tasks.0.train: it is empty"),
    "list as data": (
        "stream: {tasks: [{name: t, train: []}]}\n",
        "tasks.0.train: input should be a valid string",
    ),
    "own folder as data": ("stream: {tasks: [{name: t, train: .}]}\n", "'.' is the folder of the recipe itself"),
    "own folder by its name": ("stream: {tasks: [{name: t, train: ../own/}]}\n", "is the folder of the recipe itself"),
    "own folder to hold out": (
        "stream: {tasks: [{name: t, train: t.jsonl, evaluation: ./}]}\n",
        "tasks.0.eval",
    ),
    "empty label": ("stream: {tasks: [{name: t, train: x, labels: [a, ' ']}]}\n", "labels: a label is empty"),
    "label twice": ("stream: {tasks: [{name: t, train: x, labels: [a, a]}]}\n", "labels: 'a' stands twice"),
    "empty folder": ("runs_dir: ''\n", "runs_dir: it is empty"),
    "long name": ("name: " + "n" * 300, "use at most 100 letters, not 300"),
    "name above": ("name: ..\n", "name: a folder is called so"),
    "long value": ("seed: " + "x" * 50_000, "seed: input should be a valid integer (given: 'xxx"),
    "long key": ("x" * 1000 + ": 1\n", "letters)..."),
    "key like a form": ("a[b]: 1\n", "unknown key 'a[b]'"),
    "key called str": ("str: 1\n", "unknown key 'str'"),
    "many faults": ("".join(f"k{n}: 1\n" for n in range(5000)), "; and 92 more"),
    "many tasks": ("stream: {tasks: [" + "{}, " * 20_000 + "]}", "more."),
}


def wrong_numbers(kind: type[BaseModel], at: str = "") -> Iterator[tuple[str, object]]:
    """Dotted keys of every number in a recipe or a method's options, each with a value that is no such number."""
    for name, field in kind.model_fields.items():
        key = f"{at}.{name}" if at else name
        types = _types(field.annotation)
        for inner in types:
            if isinstance(inner, type) and issubclass(inner, BaseModel) and list not in types:
                yield from wrong_numbers(inner, key)
        if list in types or tuple in types or dict in types or not {int, float} & set(types):
            continue
        yield from ((key, value) for value in (True, float("nan"), 10**31, [1], {"a": 1}, -(10**31)))
        if key not in INFINITE:
            yield from ((key, value) for value in (float("inf"), 1e300))
        if str not in types:
            yield from ((key, value) for value in ("3", "", "1e-4"))
        if float not in types:
            yield key, 2.5


def nested(key: str, value: object) -> dict[str, Any]:
    """A tree that sets one dotted key."""
    *sections, last = key.split(".")
    tree: dict[str, Any] = {last: value}
    for section in reversed(sections):
        tree = {section: tree}
    return tree


def _types(annotation: object) -> list[object]:
    """All types in an annotation."""
    parts = get_args(annotation)
    own = [getattr(annotation, "__origin__", annotation)]
    return own + [found for part in parts if not isinstance(part, str | int | float) for found in _types(part)]
