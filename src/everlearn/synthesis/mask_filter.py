"""The published rules for pseudo-inputs: which are rejected, and what is cut off the others (SERS, spec section 3).

Rules are of the released filter, whose two versions differ in a bound and in how two cuts combine. Those by category
are written for ten tasks of SuperNI. What has an underscore or an equals sign is rejected, so the rules suit no code
and no formulas. There is no search for repetitions.
"""

from __future__ import annotations

import re
from typing import Literal

from everlearn.synthesis.masking import Script
from everlearn.synthesis.parsing import Counters

Category = Literal["qa", "qg", "sa", "sum", "trans", "dsg", "expl", "para", "pe", "pos"]
_CJK = re.compile("[\\u4e00-\\u9fa5]")
_QUESTION = ("Q:", "question:", "\nQ:", "\nquestion", "Question:")
_MOST = {"llama2": 800, "chatglm": 500}
_FEWEST = 20
_MOST_EMBEDDED = 510
_MOST_BY_CATEGORY = {"sa": 200, "trans": 80}
_FEWEST_BY_CATEGORY = {"qg": 100, "sum": 100, "dsg": 100, "expl": 80}


def filtered(inputs: str, category: str, script: Script, counters: Counters) -> tuple[str | None, str]:
    """What is kept of a pseudo-input, or why it is rejected.

    Args:
        inputs: Instruction, blank line, what the model has filled in.
        category: A `Category`, or anything else for a task that no rule is written for.
        script: Whose version of the rules.
        counters: Token counts.

    Returns:
        The text that is kept (None: rejected), and the reason of a rejection.
    """
    definition, separator, text = inputs.partition("\n\n")
    if not separator:
        return None, "no_definition"
    if _CJK.search(text):
        return None, "cjk"
    if "_" in text:
        return None, "blank_left"
    if "=" in text:
        return None, "equals_sign"
    text = _of_category(_cut(text, script), category)
    reason = _fault(text, category, script, counters)
    return (None, reason) if reason else (f"{definition}\n\n{text}", "")


def _cut(text: str, script: Script) -> str:
    """Without what follows a blank line or `###`."""
    if "\n\n" in text:
        text = text.split("\n\n")[0]
        return text if script == "llama2" else text.split("###")[0]
    return text.split("###")[0]


def _of_category(text: str, category: str) -> str:
    """With questions on lines of their own, or without what is one."""
    if category == "qa":
        for mark in (*_QUESTION, "\n\nQuestion:"):
            text = text.replace(mark, "\nQuestion:")
    if category == "qg":
        for mark in (*_QUESTION, "\nQuestion"):
            if mark in text:
                text = text.split(mark)[0].strip()
    return text


def _fault(text: str, category: str, script: Script, counters: Counters) -> str:
    """Why a text is rejected, in the published order; empty where it is not."""
    if category == "qa" and "\nQuestion:" not in text:
        return "no_question"
    if category == "pe" and not text.split(",")[0].strip().isdigit():
        return "no_number_first"
    length = counters.text(text)
    if length == 1:
        return "empty_input"
    if length > _MOST[script]:
        return "input_too_long"
    if length < _FEWEST:
        return "input_too_short"
    if counters.embedded(text) > _MOST_EMBEDDED:
        return "embedding_too_long"
    if length > _MOST_BY_CATEGORY.get(category, length):
        return "input_too_long"
    if length < _FEWEST_BY_CATEGORY.get(category, 0):
        return "input_too_short"
    return ""
