"""Answers by instruction: a row is answered by the model of the group that its instruction is most like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Annotated, Literal

from pydantic import Field

from everlearn.data.instance import Instance
from everlearn.evaluation.answering import Answerer
from everlearn.evaluation.instruction_groups import InstructionText, instruction_of, routed
from everlearn.models.state import ModelState
from everlearn.recipe import Section

Routing = Literal["instance", "task"]
"""Whether each row's group is found by itself, or one for all rows of a task together."""


_TEXTS: dict[InstructionText, str] = {
    "field": "that of a row without its input, or where there is none the first line of the input",
    "last_line": "the last line of a question",
    "last_line_to_colon": "the last line of a question, up to its first colon",
    "second_line": "the second line of a question",
    "whole": "the whole question",
}
_NEAREST = """\
def words(text, stop_words):
    return Counter(word for word in re.findall(r"\\b\\w\\w+\\b", text.lower()) if word not in stop_words)


def alike(one, other):
    def size(mine, others):
        return sum(n * n * (1 if word in others else (1 + math.log(1.5)) ** 2) for word, n in mine.items())

    shared = sum(n * other[word] for word, n in one.items())
    return shared / math.sqrt(size(one, other) * size(other, one)) if shared else 0.0


def nearest(rule, instructions):
    stop_words = set(rule["stop_words"])
    asked = [words(text, stop_words) for text in instructions]
    groups = [[words(text, stop_words) for text in group] for group in rule["groups"]]
    means = [
        sum(alike(one, other) for one in asked for other in group) / (len(asked) * len(group)) for group in groups
    ]
    best = max(means)
    return f"group_{means.index(best) + 1 if best >= rule['threshold'] else len(means)}"


"""
_OF_A_ROW = """\
def chosen(routing, instruction):
    rule = routing["rule"]
    if rule["instruction"] == "field":
        instruction = " ".join(instruction.split())
    for number, group in enumerate(rule["groups"], 1):
        if rule["exact_first"] and instruction in group:
            return f"group_{number}"
    return nearest(rule, [instruction])"""
_OF_A_TASK = """\
def chosen(routing, instructions):
    return nearest(routing["rule"], list(dict.fromkeys(instructions)))"""


class Groups(Section):
    """What an instruction's group is found by, as it stands beside the models."""

    threshold: float
    routing: Routing
    exact_first: bool
    instruction: InstructionText
    stop_words: list[str]
    groups: Annotated[list[Annotated[list[str], Field(min_length=1)]], Field(min_length=1)]
    """The instructions of each group, in order of age; its model is `group_1`, `group_2`, ..."""


class ByInstruction(Answerer):
    """A row is answered by the model of the group that its instruction is nearest to, else of the newest."""

    Rule = Groups
    rule: Groups
    asks = "instruction"
    imports = ("import math", "import re", "from collections import Counter")
    example = _NEAREST + _OF_A_ROW

    def __init__(self, rule: Section, models: Mapping[str, ModelState]) -> None:
        super().__init__(rule, models)
        self.about = f"An instruction is {_TEXTS[self.rule.instruction]}."
        if self.rule.routing == "task":
            self.knows_task, self.asks, self.example = True, "instructions", _NEAREST + _OF_A_TASK
            self.about += " Those of all rows of a task are given together, each once, as they were measured."

    def choose(self, rows: Sequence[Instance]) -> list[str]:
        """Of each row, or of all of them together."""
        texts = [instruction_of(row, self.rule.instruction) for row in rows]
        groups = {text: f"group_{group}" for text, (group, _) in self.routes(dict.fromkeys(texts)).items()}
        return [groups[text] for text in texts]

    def routes(self, texts: Iterable[str]) -> dict[str, tuple[int, bool]]:
        """Group of each distinct instruction, and whether it is the newest for want of one that is like it."""
        rule, texts = self.rule, list(texts)
        alone = rule.routing == "instance"
        found = dict(zip(texts, routed(texts, rule.groups, rule.threshold, rule.stop_words, alone=alone), strict=True))
        if rule.exact_first:
            for number, group in reversed(list(enumerate(rule.groups, 1))):
                found |= {text: (number, False) for text in group if text in found}
        return found

    def named(self) -> Iterable[str]:
        """The groups' names."""
        return [f"group_{number}" for number in range(1, len(self.rule.groups) + 1)]
