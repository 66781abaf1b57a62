"""A stage of 100,000 rows: how long until its first step once its rows are read, and what a row holds meanwhile.

    python benchmarks/growth.py              # writes benchmarks/results/growth.json, a minute or two on one core

One task of made-up rows in one JSON Lines file, the embedded base, LoRA. Time is the processor's, on one thread, from
the moment at which all rows are read (`load_stream` has returned) to the first step: all that an ordinary run checks,
hashes, keeps and tokenizes is counted. Memory is the resident set at the first step (free memory given back) less that
before the rows were read, which holds model and optimizer too, so a stage of a tenth of the rows is measured as well
and the difference counts; tokens at 8 bytes each are taken off.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import platform
import random
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).parent / "results" / "growth.json"
GOAL = {"seconds_to_start": 5.0, "bytes_per_row_beside_tokens": 1024}
WORDS = "the parcel went to a small red house near old harbour before noon and nobody saw who had left it".split()


class _StartedError(Exception):
    """The first step has begun."""


def write_rows(path: Path, count: int) -> None:
    """Rows of some twenty words and an answer of three."""
    draw = random.Random(0)
    with path.open("w", encoding="utf-8") as file:
        for at in range(count):
            row = {
                "instruction": "Say where the parcel of the report has gone.",
                "input": f"Report {at}: {' '.join(draw.choices(WORDS, k=16))}",
                "output": " ".join(draw.choices(WORDS, k=3)),
            }
            file.write(json.dumps(row) + "\n")


def measure(count: int) -> dict[str, float]:
    """Starts a run of so many rows and stops it at its first step."""
    import psutil
    import torch

    from everlearn.data import stream
    from everlearn.recipe import load_recipe
    from everlearn.runs import loop
    from everlearn.training.engine import Engine

    torch.set_num_threads(1)
    found: dict[str, float] = {}
    process = psutil.Process()
    read = stream.load_stream

    def noted_reading(*args: Any, **settings: Any) -> Any:
        found["before_bytes"] = process.memory_info().rss
        began = time.process_time()
        rows = read(*args, **settings)
        found["read_s"] = time.process_time() - began
        found["read_at"] = time.process_time()
        return rows

    def noted_start(engine: Engine, number: int, batch: Any, parts: Any) -> Any:
        found["start_s"] = time.process_time() - found["read_at"]
        gc.collect()
        if platform.libc_ver()[0] == "glibc":  # what is free but kept for the next allocation is not held
            ctypes.CDLL(None).malloc_trim(0)
        found["held_bytes"] = process.memory_info().rss - found["before_bytes"]
        rows = engine.objective._shuffled  # type: ignore[attr-defined]
        found["tokens"] = sum(len(row.ids) for row in rows)
        raise _StartedError

    stream.load_stream, Engine._backward = noted_reading, noted_start  # type: ignore[assignment, method-assign]
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        for name, rows in (("train", count), ("evaluation", 1)):
            write_rows(folder / f"{name}.jsonl", rows)
        parts = ("train", "evaluation")
        task = {"name": "parcels", **{part: str(folder / f"{part}.jsonl") for part in parts}}
        recipe = load_recipe(
            "embedded",
            {
                "name": "growth",
                "runs_dir": str(folder / "runs"),
                "model.tuning": "lora",
                "model.device": "cpu",
                "method.name": "sequential",
                "stream.tasks": [task],
                "stream.train_limit": None,
                "evaluation.general": False,
                "evaluation.max_new_tokens": 1,
            },
        )
        with suppress(_StartedError):
            loop.execute(recipe)
    return found


def main() -> None:
    """Measures two stages, each in a process of its own, and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        print(json.dumps(measure(args.child)))
        return
    from everlearn.environment import machine, versions
    from everlearn.files import write_json

    sizes = (args.rows // 10, args.rows)
    small, large = (_in_a_process(count) for count in sizes)
    more = sizes[1] - sizes[0]
    tokens = (large["tokens"] - small["tokens"]) / more
    held = (large["held_bytes"] - small["held_bytes"]) / more
    result = {
        "goal": GOAL,
        "machine": machine(),
        "versions": versions(),
        "rows": args.rows,
        "tokens_per_row": round(tokens, 1),
        "seconds_to_read": round(large["read_s"], 2),
        "seconds_to_start": round(large["start_s"], 2),
        "bytes_per_row": round(held),
        "bytes_per_row_beside_tokens": round(held - 8 * tokens),
    }
    print({key: result[key] for key in list(result)[3:]})
    write_json(args.out, result)


def _in_a_process(count: int) -> dict[str, float]:
    command = [sys.executable, __file__, "--child", str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


if __name__ == "__main__":
    main()
