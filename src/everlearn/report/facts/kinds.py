"""Methods by what they do, so that a page with many of them can be read.

The kind follows from the traits that a method declares, so nothing here knows a method by its name.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from everlearn.report.facts.study import MethodRuns

MANY = 8
"""More methods than this are grouped, and curves show the best of each kind alone: more lines cannot be told apart."""
REFERENCES = "marks to compare with"
OTHERS = "plain tuning and others"
_KINDS = {
    "synthesizes": "rehearsal of synthetic rows",
    "rehearses": "rehearsal of other rows",
    "projects gradients": "projected gradients",
    "distils": "distillation",
    "keeps to the base": "distillation",
    "averages weights": "averages of weights",
    "changes parts": "parts of their own",
    "penalty": "penalties on weights",
}


def kind_of(method: MethodRuns) -> str:
    """What a method does, in a few words; of a stack, that several do their part."""
    if method.is_reference:
        return REFERENCES
    if "+" in method.first.method:
        return "stacks of several methods"
    return next((kind for trait, kind in _KINDS.items() if trait in method.first.traits), OTHERS)


def grouped(methods: Sequence[MethodRuns]) -> dict[str, list[MethodRuns]]:
    """Methods by kind, the best average at the end first within a kind and of the kinds; references last."""
    ranked = sorted(methods, key=lambda method: -(method.estimate("AR").value or 0.0))
    found: dict[str, list[MethodRuns]] = {}
    for method in ranked:
        found.setdefault(kind_of(method), []).append(method)
    references = found.pop(REFERENCES, [])
    return found | ({REFERENCES: references} if references else {})
