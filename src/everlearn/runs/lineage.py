"""Where the weights of a run come from: `lineage.json`, and from it a section of the report.

    {"model": {"base", "tuning", "fingerprint", ...}, "method": {"name", "options"}, "seed",
     "stages": [{"index", "name", "added", "everlearn", "tasks": {name: rows}, "rehearsed": {name: rows},
                 "weights": [{"place", "fingerprint", "by", "from": [places]}], "released": place}]}

A place is that of an artifact below the run folder, or `base`. A stage stands in it from when it is added to the run,
with the time and the version of everlearn, and gets its weights when it has been trained.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from everlearn.environment import versions
from everlearn.errors import RunError
from everlearn.files import read_jsonl, read_vouched, write_vouched
from everlearn.methods.base import Stage
from everlearn.models.state import ModelState
from everlearn.store import RunStore

LINEAGE = "lineage.json"
MERGE = "merge"


class Lineage:
    """The lineage of one run.

    Args:
        store: Of the run.
        about: Base, method and seed.
        stages: All that the run is to have by now.
    """

    def __init__(self, store: RunStore, about: Mapping[str, object], stages: Sequence[Stage]) -> None:
        self.folder = store.folder
        steps = store.manifest.get("steps")
        known = self._known()
        entries = []
        for stage in stages:
            step = steps.get(f"stages/{stage.name}/training") if isinstance(steps, dict) else None
            now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
            entry = known.get(stage.name) or {
                "index": stage.index,
                "name": stage.name,
                "added": step["finished"] if step else now,  # a run of the first releases kept no lineage
                "everlearn": versions()["everlearn"],
            }
            entries.append({**entry, "tasks": {task.name: len(task.train) for task in stage.tasks}})
        self._value: dict[str, Any] = {**about, "stages": entries}
        self._write()

    def trained(self, stage: Stage, phases: Mapping[str, ModelState], released: ModelState) -> None:
        """Notes what a stage has made.

        Args:
            stage: The stage.
            phases: Name to what it has made.
            released: The model that is measured and gone on with.
        """
        weights = [self._weights(state, name) for name, state in phases.items()]
        if self._place(released) not in [entry["place"] for entry in weights]:
            weights.append(self._weights(released, MERGE))
        rows = read_jsonl(self.folder / "stages" / stage.name / "rehearsal.jsonl")
        self._value["stages"][stage.index - 1] |= {
            "rehearsed": dict(Counter(str(row["task"]) for row in rows)),
            "weights": weights,
            "released": self._place(released),
        }
        self._write()

    def _weights(self, state: ModelState, by: str) -> dict[str, object]:
        origins = dict.fromkeys(place for origin in state.made_of for place in self._places(origin))
        return {"place": self._place(state), "fingerprint": state.fingerprint, "by": by, "from": list(origins)}

    def _place(self, state: ModelState) -> str:
        return self._places(state)[0]

    def _places(self, state: ModelState) -> list[str]:
        return [part.folder.relative_to(self.folder).as_posix() for part in state.parts] or ["base"]

    def _known(self) -> dict[str, dict[str, Any]]:
        try:
            return {stage["name"]: stage for stage in read_vouched(self.folder / LINEAGE)["stages"]}
        except (RunError, KeyError, TypeError):
            return {}  # none yet, or one that was changed: it is made anew from the run's steps

    def _write(self) -> None:
        write_vouched(self.folder / LINEAGE, self._value)
