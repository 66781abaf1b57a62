"""What a run ran on, as its manifest says."""

from __future__ import annotations

from collections.abc import Mapping

from everlearn.layout import ENGINE
from everlearn.report.page.markup import Html, el, name_of

NAMES = {"memory_gib": "memory (GiB)", "python": "Python", "torch": "PyTorch"}


def facts(manifest: Mapping[str, object]) -> Html:
    """Versions, machine and model as a manifest holds them."""
    pairs: list[tuple[str, object]] = []
    for key in ("versions", "machine"):
        part = manifest.get(key)
        if isinstance(part, Mapping):
            pairs += [(NAMES.get(str(name), str(name).replace("_", " ")), value) for name, value in part.items()]
    model = manifest.get("model")
    if isinstance(model, Mapping):
        pairs += [(f"model {name}".replace("_", " "), value) for name, value in model.items()]
    engine = manifest.get(ENGINE)
    if isinstance(engine, Mapping):
        pairs += [(f"engine {name}".replace("engine name", "engine"), value) for name, value in engine.items()]
    if not any(name == "everlearn" for name, _ in pairs):
        pairs.insert(0, ("everlearn", manifest.get("everlearn", "")))
    return el(
        "dl",
        *(
            part
            for name, value in pairs
            if value not in (None, "")
            for part in (el("div", el("dt", name), el("dd", name_of(str(value)))),)
        ),
        class_="facts",
    )
