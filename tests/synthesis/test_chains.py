"""Walks for parallel rows: which are kept, with what, and why others are not."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from everlearn.data.instance import Instance, Task
from everlearn.data.prompts import VanillaTemplate
from everlearn.data.translation import asked
from everlearn.data.walk_patterns import Pattern
from everlearn.files import read_json, read_jsonl
from everlearn.generation.protocol import Completion, Sampling
from everlearn.progress import LineProgress
from everlearn.synthesis.chains import fault_of, write_chains

PATTERNS = [Pattern("A", "a", ("look", "write")), Pattern("B", "b", ("guess",))]
ROWS = tuple(Instance(asked("German", "English"), f"Satz {at}", f"sentence {at}", "t", id=str(at)) for at in range(4))


class Scribe:
    """Thinks a little, and translates row 2 wrongly."""

    def __init__(self, tokenizer: Any) -> None:
        self.tokenizer, self.prompts = tokenizer, list[str]()

    def generate(
        self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Any = None
    ) -> list[list[Completion]]:
        texts = [self.tokenizer.decode(ids, skip_special_tokens=True) for ids in prompts]
        self.prompts += texts
        found = []
        for text in texts:
            at = text.split("Satz ")[1][0]
            answer = "another thing altogether" if at == "2" else f"sentence  {at}"
            found.append([Completion(f"I look.</think>\n<answer>{answer}</answer>", (1,), "eos")])
        return found


def test_walks_are_kept_with_pattern_and_writer_and_faults_are_counted(tmp_path: Path, tiny_model: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    scribe, task = Scribe(tokenizer), Task("t", ROWS, ())
    form = VanillaTemplate()
    asked_by = {"context": 1024, "seed": 0, "written_by": "scribe"}
    write_chains(tmp_path / "a", task, PATTERNS, form, tokenizer, scribe, LineProgress(), **asked_by)  # type: ignore[arg-type]
    rows = list(read_jsonl(tmp_path / "a" / "rows.jsonl"))
    assert {row["id"] for row in rows} == {"0", "1", "3"}
    assert all(row["walk"] == "I look." and row["written_by"] == "scribe" for row in rows)
    assert {row["pattern"] for row in rows} == {"A", "B"}
    assert read_json(tmp_path / "a" / "counts.json") == {"asked": 4, "dropped": {"another_answer": 1}}
    assert all(prompt.endswith("<think>") for prompt in scribe.prompts)
    assert sum("- look\n- write" in prompt for prompt in scribe.prompts) == 2
    asked_by["context"] = 20
    write_chains(tmp_path / "b", task, PATTERNS, form, tokenizer, scribe, LineProgress(), **asked_by)  # type: ignore[arg-type]
    assert read_json(tmp_path / "b" / "counts.json") == {"asked": 4, "dropped": {"prompt_too_long": 4}}


@pytest.mark.parametrize(
    ("response", "fault"),
    [
        ("<think>so</think><answer>Good day to you all.</answer>", None),
        ("<think>so</think><answer>Good  day to you all.</answer>", None),
        ("<think>so</think><answer>Good day to you all</answer>", None),
        ("<think>so</think><answer>Bad night!</answer>", "another_answer"),
        ("<think> </think><answer>Good day to you all.</answer>", "empty_walk"),
        ("<think>so</think>Good day to you all.", "wrong_tags"),
    ],
)
def test_why_a_chain_is_not_kept(response: str, fault: str | None) -> None:
    assert fault_of(response, "Good day to you all.") == fault
