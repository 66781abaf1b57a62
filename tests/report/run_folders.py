"""Makes run folders as `everlearn run` and `everlearn compare` leave them, without any model.

Answers are drawn at random with a chance per stage and task; scores, matrix and metrics are computed from the
answers, so that a test can hold the report's numbers against the files.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import Counter
from pathlib import Path

HOSTILE = (
    "<script>window.__hacked=1;alert(1)</script>",
    '"><img src=x onerror="window.__hacked=1">',
    "\x00\x07\x1b[31mred\x1b[0m \x85 \ud800 end",
    "\u202eright to left\u202c \u05e9\u05dc\u05d5\u05dd \u0645\u0631\u062d\u0628\u0627 shalom",
    "Donaudampfschifffahrt" * 40,
    "</style></pre><h1>out</h1>&lt;b&gt;&amp; {{7*7}} javascript:window.__hacked=1",
    "<svg onload=window.__hacked=1><a href='https://example.com/x'>x</a>",
    "line one\nline two\r\nline three\ttab",
)

COLOURS = "amber azure black brown coral green indigo ochre olive pearl scarlet silver violet white".split()
ANIMALS = "badger camel falcon heron lynx marten otter raven salmon stork tapir walrus weasel zebra".split()
THINGS = "kettle ladder lantern jacket camera shovel pillow basket mirror hammer curtain teapot".split()
GOOD = "lovely sturdy brilliant charming reliable splendid".split()
BAD = "wobbly dreadful clumsy noisy flimsy dull".split()
CITIES = "Porto Lyon Turin Graz Bergen Leiden Ghent Malmo".split()
NAMES = "Ada Bruno Clara Dario Elena Felix Greta Hugo".split()

DEFINITIONS = {
    "sentiment": "Mark the remark about a product with the word our clerks use.",
    "ruvian": "Translate the little scene into the Ruvian language.",
    "routing": "Say to which counter of the shop the customer belongs.",
    "delivery": "Write the label of the parcel from the report.",
    "booking": "Turn the booking into the code of the hotel.",
}
TASKS = tuple(DEFINITIONS)

BASE = (3.0, 0.0, 9.0, 0.0, 0.0)
CHANCES = {  # chance (percent) of a right answer after each stage; below the diagonal: kept or forgotten
    "sequential": (
        (98, 0, 4, 0, 0),
        (12, 96, 2, 0, 0),
        (8, 31, 99, 0, 0),
        (2, 6, 40, 93, 0),
        (0, 1, 11, 24, 97),
    ),
    "random_rehearsal": (
        (98, 0, 4, 0, 0),
        (86, 96, 2, 0, 0),
        (88, 80, 98, 0, 0),
        (79, 71, 92, 94, 0),
        (81, 69, 90, 78, 96),
    ),
    "ssr": (
        (98, 0, 4, 0, 0),
        (95, 96, 3, 0, 0),
        (96, 90, 99, 0, 0),
        (93, 88, 97, 92, 0),
        (94, 84, 97, 86, 97),
    ),
    "single_task": tuple(tuple(95 if i == j else 0 for j in range(5)) for i in range(5)),
    "multitask": ((97, 95, 99, 94, 97),),
}
CHANCES["ssr-improved"] = tuple(tuple(min(99, c + 2) if c > 50 else c for c in row) for row in CHANCES["ssr"])
METRIC_NAMES = ("rouge_l", "rouge_l_word", "exact_match", "accuracy", "token_f1")


def make_run(
    folder: Path,
    *,
    label: str = "ssr",
    seed: int = 42,
    tasks: tuple[str, ...] = TASKS,
    finished: int | None = None,
    rows: int = 40,
    hostile: bool = False,
    metric: str = "exact_match",
) -> Path:
    """Writes one run folder; `finished` stops after that many stages."""
    return _Maker(folder, label, seed, tasks, finished, rows, hostile, metric).make()


def make_comparison(
    folder: Path,
    *,
    labels: tuple[str, ...] = ("sequential", "random_rehearsal", "ssr", "multitask"),
    seeds: tuple[int, ...] = (42, 43, 44),
    rows: int = 40,
    hostile: bool = False,
) -> Path:
    """Writes a comparison folder with one run folder per label and seed."""
    runs, summary = [], {}
    for label in labels:
        found: list[dict[str, dict[str, float | None]]] = []
        for seed in seeds:
            place = f"{label}-s{seed}"
            maker = _Maker(folder / place, label, seed, TASKS, None, rows, hostile, "exact_match")
            maker.make()
            found.append(maker.metrics)
            runs.append(
                {"label": label, "method": maker.method, "options": maker.options, "seed": seed, "folder": place}
            )
        summary[label] = {"seeds": len(seeds)} | {
            name: _over_seeds([metrics[name]["value"] for metrics in found])
            for name in found[0]
            if name != "definitions"
        }
    write_json(folder / "comparison.json", {"name": folder.name, "runs": runs, "summary": summary})
    return folder


def _over_seeds(values: list[float | None]) -> dict[str, object]:
    known = [value for value in values if value is not None]
    if not known:
        return {"mean": None, "low": None, "high": None, "values": values}
    mean = sum(known) / len(known)
    half = 4.303 * (sum((v - mean) ** 2 for v in known) / max(1, len(known) - 1)) ** 0.5 / len(known) ** 0.5
    return {"mean": mean, "low": mean - half, "high": mean + half, "values": values}


def question(task: str, rng: random.Random) -> tuple[str, str, str]:
    """An input of a task, its right answer and a wrong one."""
    thing, city, name = rng.choice(THINGS), rng.choice(CITIES), rng.choice(NAMES)
    if task == "sentiment":
        kind = rng.random() < 0.5
        words = rng.choices(GOOD if kind else BAD, k=2)
        answers = ("praise", "grumble") if kind else ("grumble", "praise")
        return f"the {thing} is {words[0]} and it feels {words[1]}", *answers
    if task == "ruvian":
        colour, animal = rng.choice(COLOURS), rng.choice(ANIMALS)
        return f"{colour} {animal} sleeps", f"zam {animal[:3]}u {colour[:2]}or", f"neva {colour[:2]}or"
    if task == "routing":
        desks = rng.sample(("harbor", "cedar", "opal", "raven"), 2)
        return f"{name} asks our shop about the {thing} for mother", *desks
    if task == "delivery":
        number = rng.randint(2, 19)
        return f"{name} sent {number} boxes to Hugo in {city}", f"Hugo + boxes {number} + {city}", f"{name} {city}"
    number = rng.randint(1, 9)
    return f"book the attic on monday for {number} guests", f"skab / {number} / brel", f"{number} guests"


class _Maker:
    """Writes one run folder, stage by stage."""

    def __init__(
        self,
        folder: Path,
        label: str,
        seed: int,
        tasks: tuple[str, ...],
        finished: int | None,
        rows: int,
        hostile: bool,
        metric: str,
    ) -> None:
        self.folder, self.label, self.seed, self.tasks = folder, label, seed, tasks
        self.rows, self.hostile, self.metric = rows, hostile, metric
        self.rng = random.Random(f"{label}-{seed}")
        self.chances = CHANCES.get(label, CHANCES["ssr"])
        self.joint = len(self.chances) == 1
        self.start = "base" if label == "single_task" else "previous"
        self.synthesizes = label.startswith("ssr")
        self.method = label.split("-")[0]
        self.options = {"preset": "improved" if "improved" in label else "faithful"} if self.synthesizes else {}
        names = (
            [("01-all", list(tasks))]
            if self.joint
            else [(f"{i:02d}-{task}", [task]) for i, task in enumerate(tasks, 1)]
        )
        self.stages = [
            {"index": i, "name": name, "tasks": group, "start": self.start} for i, (name, group) in enumerate(names, 1)
        ]
        self.finished = len(self.stages) if finished is None else finished
        self.steps: dict[str, object] = {}
        self.values: list[list[float | None]] = []
        self.metrics: dict[str, dict[str, float | None]] = {}
        question_rng = random.Random("evaluation")
        self.questions = {task: [question(task, question_rng) for _ in range(rows)] for task in tasks}

    def make(self) -> Path:
        write_text(self.folder / "recipe.yaml", self._recipe())
        self._measure("00-base", 0, BASE[: len(self.tasks)])
        for stage in self.stages[: self.finished]:
            self._train(stage)
            self._measure(stage["name"], stage["index"], self.chances[stage["index"] - 1][: len(self.tasks)])
            if self.synthesizes and stage["index"] < len(self.stages):
                self._synthesize(stage["name"], stage["tasks"][0])
        self._summaries()
        return self.folder

    def text(self, plain: str) -> str:
        """The text, or now and then a hostile one."""
        return self.rng.choice(HOSTILE) + " " + plain if self.hostile and self.rng.random() < 0.3 else plain

    def _recipe(self) -> str:
        nasty = f"notes: |\n  {HOSTILE[0]}\n  {HOSTILE[1]}\n" if self.hostile else ""
        return (
            f"name: {self.folder.name}\nseed: {self.seed}\nmodel:\n  base: embedded\n  tuning: lora\n  lora:\n"
            "    rank: 8\n    alpha: 32.0\n    dropout: 0.1\n    targets:\n    - q_proj\n    - v_proj\n"
            f"stream:\n  tasks: embedded\nmethod:\n  name: {self.method}\n  demonstrations_per_prompt: 2\n"
            "  temperature: 0.9\n  top_p: 0.6\n  clusters: 20\n  selected: 30\n"
            "training:\n  epochs: 12.0\n  batch_size: 16\n  learning_rate: 0.001\n  scheduler: cosine\n"
            "evaluation:\n  max_new_tokens: 48\n  bootstrap_samples: 1000\n  confidence: 0.95\n" + nasty
        )

    def _step(
        self,
        place: str,
        seconds: float,
        *,
        reused: bool = False,
        files: tuple[str, ...] = ("data.jsonl",),
        tokens: int = 0,
    ) -> None:
        self.steps[place] = {
            "fingerprint": f"{self.rng.getrandbits(128):032x}",
            "seconds": round(seconds, 3),
            "reused": reused,
            "finished": "2026-05-04T10:12:13Z",
            "files": dict.fromkeys(files, 12345),
            "generated_tokens": tokens,
            "peak_memory_bytes": 1_300_000_000,
        }

    def _measure(self, name: str, index: int, chances: tuple[float, ...]) -> None:
        stage, scores = self.folder / "stages" / name, {}
        values: list[float | None] = []
        for task, chance in zip(self.tasks, chances, strict=False):
            rows = []
            for i, (text, right, wrong) in enumerate(self.questions[task]):
                is_right = self.rng.random() * 100 < chance
                score = 100.0 if is_right else 0.0
                rows.append(
                    {
                        "id": f"{task}-{i}",
                        "instruction": DEFINITIONS.get(task, task),
                        "input": HOSTILE[i % len(HOSTILE)] + " " + text if self.hostile and i % 3 == 0 else text,
                        "gold": right,
                        "references": [],
                        "prediction": right if is_right else self.text(wrong),
                        "finish_reason": "eos" if is_right or i % 7 else "length",
                        "scores": dict.fromkeys(METRIC_NAMES, score),
                    }
                )
            place = stage / "predictions" / task
            mean = sum(row["scores"][self.metric] for row in rows) / len(rows)
            half = 1.96 * (mean * (100 - mean) / len(rows)) ** 0.5
            interval = [max(0.0, mean - half), min(100.0, mean + half)]
            scores[task] = {
                "task": task,
                "metric": self.metric,
                "rows": len(rows),
                "values": dict.fromkeys(METRIC_NAMES, mean),
                "interval": interval,
            }
            write_jsonl(place / "predictions.jsonl", rows)
            write_json(place / "scores.json", scores[task])
            self._step(f"stages/{name}/predictions/{task}", self.rng.uniform(0.4, 1.4), reused=index == 0)
            values.append(mean)
        fade = max(0.08, 1 - 0.22 * index) if self.label == "sequential" else max(0.3, 1 - 0.12 * index)
        general = {
            "perplexity": {"value": 8.9 / fade**0.7, "tokens": 20480, "interval": [8.4 / fade**0.7, 9.5 / fade**0.7]},
            "microtasks": {
                "value": 41.5 * fade,
                "rows": 200,
                "interval": [41.5 * fade - 4.1, 41.5 * fade + 4.4],
                "families": {"copy": 60 * fade, "label": 30 * fade},
            },
        }
        write_json(stage / "general" / "scores.json", general)
        self._step(f"stages/{name}/general", self.rng.uniform(1, 2), reused=index == 0)
        write_json(stage / "scores.json", {"stage": index, "name": name, "tasks": scores, "general": general})
        if index == 0:
            self.base = values
        else:
            self.values.append(values)

    def _train(self, stage: dict) -> None:
        place = self.folder / "stages" / stage["name"]
        rehearsed = []
        if self.label != "sequential":
            origin = "synthetic" if self.synthesizes else "real"
            for task in self.tasks[: stage["index"] - 1]:
                for _ in range(30):
                    text, right, _ = question(task, self.rng)
                    row = {"instruction": DEFINITIONS.get(task, task), "input": self.text(text), "output": right}
                    rehearsed.append(row | {"task": task, "origin": origin})
        write_jsonl(place / "rehearsal.jsonl", rehearsed)
        steps = (300 * len(stage["tasks"]) + len(rehearsed)) * 12 // 16
        history = [
            {
                "step": step,
                "loss": 0.03 + 2.4 * 2.718 ** (-step / 40) * self.rng.uniform(0.8, 1.2),
                "learning_rate": 1e-3,
                "seconds": step * 0.05,
            }
            for step in range(1, steps + 1)
        ]
        write_jsonl(place / "training" / "history.jsonl", history)
        acting = {"influence_seconds": {self.method: 0.25}} if stage["index"] > 1 else {}
        write_json(
            place / "training" / "summary.json", {"steps": steps, "tokens": steps * 600, "seconds": 14.0, **acting}
        )
        files = ("history.jsonl", "summary.json")
        took = self.rng.uniform(11, 17)
        self._step(f"stages/{stage['name']}/training", took, reused=stage["index"] == 1, files=files)

    def _synthesize(self, stage: str, task: str) -> None:
        place = self.folder / "stages" / stage / "synthesis"
        rng, definition = self.rng, DEFINITIONS.get(task, task)
        demonstrations = []
        for i in range(20):
            text, right, _ = question(task, rng)
            demonstrations.append(
                {"instruction": definition, "input": self.text(text), "output": right, "task": task, "id": f"d{i}"}
            )
        raw, kept, rejected = [], [], []
        for a in range(20):
            for b in range(20):
                if a == b:
                    continue
                text, right, wrong = question(task, rng)
                raw.append(
                    {
                        "inputs": f"{definition}\n\nInput: ...\nOutput: ...\n\nInput:",
                        "outputs": f" {text}\nOutput: {wrong}\n\nInput: more",
                        "perm_idx": [a, b],
                        "sample": 0,
                        "finish_reason": "stop",
                    }
                )
                at = len(raw) - 1
                rejected.append({"text": self.text("more"), "reason": "no_output", "raw_index": at})
                reason = rng.choices(("", "empty_input", "several_outputs", "input_too_long"), (80, 4, 9, 2))[0]
                if reason:
                    rejected.append({"text": self.text(f"{text}\nOutput:"), "reason": reason, "raw_index": at})
                else:
                    answer = rng.choice((right, wrong))
                    text = self.text(text)
                    kept.append(
                        {
                            "inputs": f"{definition}\n\n{text}",
                            "outputs": self.text(answer),
                            "instruction": definition,
                            "input": text,
                            "is_cut": False,
                            "raw_index": at,
                            "perm_idx": [a, b],
                        }
                    )
        dropped = Counter(row["reason"] for row in rejected)
        counts = {"raw": len(raw), "pieces": len(kept) + len(rejected), "kept": len(kept), "dropped": dict(dropped)}
        write_jsonl(place / "demonstrations.jsonl", demonstrations)
        write_jsonl(place / "raw" / "raw.jsonl", raw)
        write_jsonl(place / "parsed" / "kept.jsonl", kept)
        write_jsonl(place / "parsed" / "rejected.jsonl", rejected)
        write_json(place / "parsed" / "counts.json", counts)
        pool = kept
        if "improved" in self.label:
            pool, seen, removed = [], set(), []
            for row in kept:
                if row["input"] in seen:
                    removed.append({"text": row["input"], "reason": "duplicate", "raw_index": row["raw_index"]})
                else:
                    seen.add(row["input"])
                    pool.append(row)
            write_jsonl(place / "filtered" / "kept.jsonl", pool)
            write_jsonl(place / "filtered" / "rejected.jsonl", removed)
            write_json(
                place / "filtered" / "counts.json",
                {"candidates": len(kept), "bound": 0.7, "kept": len(pool), "dropped": {"duplicate": len(removed)}},
            )
        chosen = [row | {"cluster": i % 20, "distance": 0.1 + i / 100} for i, row in enumerate(pool[:30])]
        write_jsonl(place / "selected" / "selected.jsonl", chosen)
        write_json(
            place / "selected" / "counts.json",
            {"candidates": len(pool), "asked": 30, "selected": len(chosen), "clusters": {"0": 30}},
        )
        refined = [
            {
                "inputs": row["inputs"],
                "instruction": definition,
                "raw_index": row["raw_index"],
                "targets": self.text("praise" if task == "sentiment" else "zam zam oror"),
                "input": row["input"],
                "outputs": row["outputs"],
                "cluster": row["cluster"],
                "finish_reason": "eos",
            }
            for row in chosen[:-2]
        ]
        write_jsonl(place / "refined" / "refined.jsonl", refined)
        write_jsonl(
            place / "refined" / "rejected.jsonl",
            [
                {
                    "text": row["inputs"],
                    "reason": "strange_reason",
                    "raw_index": row["raw_index"],
                    "input": row["input"],
                    "outputs": row["outputs"],
                    "targets": "too many words",
                }
                for row in chosen[-2:]
            ],
        )
        write_json(
            place / "refined" / "counts.json",
            {"selected": len(chosen), "asked": 30, "kept": len(refined), "dropped": {"strange_reason": 2}},
        )
        for name, seconds in (("raw", 4.8), ("parsed", 0.1), ("selected", 0.6), ("refined", 0.9)):
            reused = name == "raw" and self.seed != 42
            self._step(f"stages/{stage}/synthesis/{name}", seconds, reused=reused, tokens=1000 if name == "raw" else 0)

    def _summaries(self) -> None:
        trained = {task: stage["index"] for stage in self.stages[: self.finished] for task in stage["tasks"]}
        stages = self.stages[: self.finished]
        half = 3.0
        write_json(
            self.folder / "matrix.json",
            {
                "tasks": list(self.tasks),
                "stages": [stage["name"] for stage in stages],
                "base": self.base,
                "values": self.values,
                "intervals": [[[max(0, v - half), min(100, v + half)] for v in row] for row in self.values],
                "trained_at": trained,
            },
        )
        self.metrics = continual(self.values, [trained.get(task) for task in self.tasks])
        definitions = {"AR": "Average over all tasks of the score after the last stage. Higher is better."}
        write_json(self.folder / "metrics.json", {**self.metrics, "definitions": definitions})
        for place, step in self.steps.items():
            write_record(self.folder / place, str(step["fingerprint"]))  # type: ignore[index]
        write_json(
            self.folder / "manifest.json",
            {
                "everlearn": "0.1.0",
                "versions": {"python": "3.11.7", "torch": "2.13.0+cpu", "transformers": "5.23.0", "peft": "0.21.2"},
                "machine": {
                    "processor": self.text("AMD EPYC <64-Core>"),
                    "cores": 2,
                    "memory_gib": 23.5,
                    "device": "cpu",
                },
                "method": {"name": self.method, "options": self.options},
                "label": self.label,
                "seed": self.seed,
                "status": "complete" if self.finished == len(self.stages) else "running",
                "stages": self.stages,
                "tasks": [
                    {
                        "name": task,
                        "metric": self.metric,
                        "train_rows": 300,
                        "evaluation_rows": self.rows,
                        "demonstrations": 20,
                    }
                    for task in self.tasks
                ],
                "data": [self._account(task) for task in self.tasks],
                "steps": self.steps,
            },
        )

    def _account(self, task: str) -> dict[str, object]:
        """As the manifest holds it: of every task, the first but for its name, rows are set aside and cut."""
        is_used_whole = not self.hostile and task != self.tasks[0]
        nasty = " ".join(HOSTILE[place] for place in (0, 1, 3, 4)) if self.hostile else ""
        train = {"source": f"{task}.jsonl{nasty}", "format": "alpaca", "rows": 340, "instances": 340}
        if not is_used_whole:
            train |= {"set_aside": 3, "reasons": [f"line 3: no output{nasty}"], "unread": {f"history{nasty}": 9}}
        return {
            "task": task,
            "parts": {"train": train},
            "held_out": self.rows,
            "metric": self.metric,
            "metric_reason": "3 distinct short answers",
            "trained": 300,
            "prompt_limit": 1024,
            "answer_limit": 512,
            "cut_prompts": 0 if is_used_whole else 12,
            "evaluated": self.rows,
        }


def write_record(folder: Path, fingerprint: str) -> None:
    """The record of an artifact over all files in its folder."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "artifact.json")
    sums = {
        path.relative_to(folder).as_posix(): {
            "bytes": path.stat().st_size,
            "sha256": hashlib.sha256(path.read_bytes()).hexdigest(),
        }
        for path in files
    }
    write_json(folder / "artifact.json", {"fingerprint": fingerprint, "kind": "x", "seconds": 1.0, "files": sums})


def without_records(folder: Path) -> Path:
    """Takes the records away, so that what is written into an artifact is read, whatever its sum."""
    for path in folder.rglob("artifact.json"):
        path.unlink()
    manifest = json.loads((folder / "manifest.json").read_text())
    write_json(folder / "manifest.json", manifest | {"steps": {}})
    return folder


def continual(values: list[list[float | None]], trained: list[int | None]) -> dict[str, dict[str, float | None]]:
    """Continual metrics of a matrix, by the plain formulas, with made-up intervals of half-width 2."""
    known = [(task, stage) for task, stage in enumerate(trained) if stage is not None]
    if not known:
        return {}
    last = values[-1]
    old = [(task, stage) for task, stage in known if stage < len(values)]
    ahead = [values[stage - 2][task] for task, stage in known if stage > 1]
    found: dict[str, float | None] = {
        "AR": _mean(list(last)),
        "FWT": _mean(ahead),
        "BWT": _mean([last[task] - values[stage - 1][task] for task, stage in old]),
        "forgetting": _mean([max(row[task] for row in values[:-1]) - last[task] for task, _ in old]),
        "average_accuracy": _mean(
            [_mean([row[task] for task, stage in known if stage <= at]) for at, row in enumerate(values, 1)]
        ),
        "last_accuracy": _mean([last[task] for task, _ in known]),
    }
    return {
        name: {
            "value": value,
            "low": None if value is None else value - 2,
            "high": None if value is None else value + 2,
        }
        for name, value in found.items()
    }


def _mean(values: list[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def write_text(path: Path, text: str) -> None:
    """Writes without waiting for the disk, unlike `everlearn.files`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def write_json(path: Path, value: object) -> None:
    write_text(path, json.dumps(value, ensure_ascii=False))


def write_jsonl(path: Path, rows: list[dict]) -> None:
    """JSON Lines; lone surrogates are escaped, as a file from elsewhere may hold them."""
    lines = [json.dumps(row, ensure_ascii=False).encode("utf-8", "backslashreplace").decode() for row in rows]
    write_text(path, "".join(f"{line}\n" for line in lines))
