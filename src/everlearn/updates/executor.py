"""Carries out a plan: segments in the order of their dependence, states kept for the next version, releases written.

Running again is resuming: finished segments are found in the manifest, a segment that was cut off goes on from its
newest checkpoint (or its parent's state) with the same losses, bit by bit on the same machine. What the log holds is
counted as executed; it must agree with the plan.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from everlearn.crew import crew
from everlearn.data.text_account import data_line
from everlearn.devices import choose_device
from everlearn.errors import RunError
from everlearn.files import append_text, held, read_jsonl, unfinished, write_error, write_jsonl, write_vouched
from everlearn.models.loading import save_tokenizer, without_bars
from everlearn.progress import LineProgress, Progress
from everlearn.room import refuse_without_room
from everlearn.run_folder import UPDATE, refuse_other, unmade_if_refused
from everlearn.training.checkpoint import is_state, read_record, recover_folder, remove_state, replace_folder
from everlearn.training.engine import Row
from everlearn.training.processes import here
from everlearn.updates.folder import UpdateFolder, claim, now
from everlearn.updates.outcome import describe_plan, describe_run, measure, text_of, write_ledger
from everlearn.updates.plan import Segment
from everlearn.updates.prepare import Prepared, least_bytes, prepare
from everlearn.updates.quality import keep_heldout
from everlearn.updates.work import Job, Trained, Training, forget, train

if TYPE_CHECKING:
    from everlearn.updates.config import UpdateRecipe


def execute(
    recipe: UpdateRecipe, *, folder: Path | None = None, progress: Progress | None = None
) -> dict[str, object]:
    """Runs a recipe from where its folder stands to the end.

    Args:
        recipe: What to run.
        folder: The run folder; nothing means `runs_dir/name`.
        progress: Where to show what goes on.

    Returns:
        `folder`, `ledger` (rows of planned and executed work), `costs` and `quality`.

    Raises:
        UserError: something cannot be done as asked; nothing that was computed is lost.
    """
    path = folder or Path(recipe.runs_dir) / recipe.name
    shown = progress or LineProgress()
    here(choose_device(recipe.training.device)).share(recipe.training.batch_blocks)  # refuses what cannot be divided
    store = UpdateFolder(path)
    refuse_other(path, UPDATE)
    with unmade_if_refused(path):
        if not store.manifest:  # else what stands there stays until this recipe is known to be sound
            claim(path, recipe)
        prepared = prepare(recipe, store, shown)
        refuse_without_room(path, path, least_bytes(prepared))
        claim(path, recipe)
    with held(path):
        store = UpdateFolder(path)  # as it stands now that no other process works in it
        return _Run(recipe, prepared, store, shown).go()


class _Run:
    """One run in progress."""

    def __init__(self, recipe: UpdateRecipe, prepared: Prepared, store: UpdateFolder, progress: Progress) -> None:
        self.recipe = recipe
        self.prepared = prepared
        self.store = store
        self.progress = progress
        self.plan = prepared.plan
        self.segments = self.plan.segments()
        self.job = Job(
            recipe,
            prepared.settings,
            prepared.files,
            prepared.annealing,
            prepared.steps,
            prepared.tokenizer_fingerprint,
        )

    def go(self) -> dict[str, object]:
        """All segments, then quality and ledger."""
        self._begin()
        self._reopen()
        try:
            for segment in self.segments:
                if not self.store.is_complete(segment.id):
                    self._train(segment)
            crew().together(forget, None)  # measuring needs the memory
        finally:
            forget()
        return {"folder": self.store.path, **self._finish()}

    def _begin(self) -> None:
        """The folder's plan, tokenizer, held-out blocks and manifest."""
        store, prepared = self.store, self.prepared
        store.remove_partial()
        if not (store.path / "tokenizer").exists():
            partial = unfinished(store.path / "tokenizer")
            save_tokenizer(prepared.tokenizer, partial)
            partial.rename(store.path / "tokenizer")
        width, most = self.recipe.training.block_tokens, self.recipe.quality.heldout_blocks
        for name, files in zip(prepared.ids, prepared.files, strict=True):
            keep_heldout(files.heldout(width), most, store.heldout(name))
        write_vouched(store.path / "plan.json", describe_plan(self.recipe, prepared))
        store.update(**describe_run(self.recipe, prepared, crew().count, store.path), status="running")
        if line := data_line(text_of(self.recipe, prepared)):
            self.progress.say(line)
        self._prune()

    def _reopen(self) -> None:
        """Has segments trained again of which the state is gone that another one starts from."""
        store = self.store
        for segment in self.segments:
            recover_folder(store.checkpoint(segment.id))
            recover_folder(store.state(segment.id))
        releasing = {segment.id for segment in self.segments if segment.releases}
        for segment in reversed(self.segments):
            parent = segment.parent
            if parent is None or store.is_complete(segment.id) or is_state(store.checkpoint(segment.id)):
                continue
            needs_state = segment.optimizer == "inherit" or parent not in releasing
            if needs_state and store.is_complete(parent) and not is_state(store.state(parent)):
                self.progress.say(f"the state at the end of {parent} is gone: {parent} is trained again")
                store.manifest["segments"][parent]["status"] = "running"

    def _train(self, segment: Segment) -> None:
        """One segment from its checkpoint or its start to its end, and what is kept of it."""
        order = self._order(segment)
        done, history = order.done, self.store.history(segment.id)
        repeated = self.store.segment(segment.id).get("repeated_steps", 0) + _truncate(history, done)
        self.store.update_segment(segment.id, status="running", repeated_steps=repeated)
        what = f"{segment.id} ({segment.kind}{f', release {self._id(segment)}' if segment.releases else ''})"
        with self.progress.step(what, segment.steps) as tick:
            if done:
                tick(done, resumed=True)

            def log(rows: list[Row]) -> None:
                append_text(history, "".join(json.dumps(row) + "\n" for row in rows))
                tick(int(rows[-1]["step"]) + 1, note=f"loss {rows[-1]['loss']:.3f}")

            trained = crew().together(train, order, log)
        if trained:
            self._release(segment, trained)
        self._complete(segment)

    def _order(self, segment: Segment) -> Training:
        """With which weights and moments the segment goes on, and where its states go."""
        store = self.store
        newest, done = store.checkpoint(segment.id), 0
        weights: Path | None = newest / "model.safetensors"
        moments: Path | None = newest
        if is_state(newest):
            record = read_record(newest)
            belongs = (segment.to_json(), self.prepared.tokenizer_fingerprint)
            if (record.get("segment"), record.get("tokenizer")) != belongs:
                raise RunError(f"{newest} belongs to another plan: delete it; the segment is trained from its start.")
            done = int(str(record["finished"]))
        elif segment.parent is None:
            weights = moments = None
        elif is_state(state := store.state(segment.parent)):
            read_record(state)
            weights, moments = state / "model.safetensors", state if segment.optimizer == "inherit" else None
        else:
            parent = next(other for other in self.segments if other.id == segment.parent)
            weights, moments = store.release(self._id(parent)) / "model.safetensors", None
        needs = self._needed_states({segment.id}).get(segment.id, set())
        kept = store.state(segment.id) if needs else None
        return Training(self.job, segment, weights, moments, done, newest, kept, "inherit" in needs)

    def _release(self, segment: Segment, trained: Trained) -> None:
        """A plain Transformers folder, tokenizer included."""
        target = self.store.release(self._id(segment))
        partial = unfinished(target)
        try:
            with without_bars():
                trained.model.save_pretrained(str(partial), state_dict=trained.tensors)
            save_tokenizer(self.prepared.tokenizer, partial)
            replace_folder(partial, target)
        except (OSError, SafetensorError) as error:
            raise write_error(target, error) from None
        finally:
            shutil.rmtree(partial, ignore_errors=True)

    def _complete(self, segment: Segment) -> None:
        """Counts the log, marks the segment, and removes the states that nothing will start from."""
        rows = list(read_jsonl(self.store.history(segment.id)))
        if [row["step"] for row in rows] != list(range(segment.steps)):
            raise RunError(
                f"{self.store.history(segment.id)} holds {len(rows)} steps where the plan has {segment.steps}: delete "
                f"{self.store.path / 'segments' / segment.id} and run again to train the segment anew."
            )
        self.store.update_segment(
            segment.id,
            status="complete",
            steps=len(rows),
            tokens=len(rows) * self.prepared.tokens_per_step,
            seconds=round(sum(float(str(row["seconds"])) for row in rows), 3),
            finished=now(),
        )
        self._prune()

    def _prune(self) -> None:
        for segment in self.segments:
            if self.store.is_complete(segment.id):
                remove_state(self.store.checkpoint(segment.id))
        needed = self._needed_states(set())
        for name in self.store.manifest.get("segments", {}):
            if name not in needed:
                remove_state(self.store.state(name))

    def _needed_states(self, finishing: set[str]) -> dict[str, set[str]]:
        """Segments whose state a segment to come starts from, and whether its moments are inherited or not.

        Segments to come are those of this plan and of one with another version after it.
        """
        releasing = {segment.id for segment in self.segments if segment.releases}
        needed: dict[str, set[str]] = {}
        for segment in self.plan.extended().segments():
            if self.store.is_complete(segment.id) or segment.id in finishing or segment.parent is None:
                continue
            if segment.optimizer == "inherit" or segment.parent not in releasing:
                needed.setdefault(segment.parent, set()).add(segment.optimizer)
        return needed

    def _finish(self) -> dict[str, object]:
        quality = measure(self.recipe, self.prepared, self.store, self.progress)
        report = write_ledger(self.recipe, self.prepared, self.store)
        self.store.update(status="complete")
        return {"ledger": report, "quality": quality}

    def _id(self, segment: Segment) -> str:
        assert segment.releases is not None, "only some segments release"
        return self.prepared.ids[segment.releases - 1]


def _truncate(path: Path, steps: int) -> int:
    """Takes back the rows after so many steps; returns how many there were."""
    if not path.exists():
        return 0
    lines = path.read_text(encoding="utf-8").splitlines()
    whole_lines = [line for line in lines if line.endswith("}")]
    write_jsonl(path, (json.loads(line) for line in whole_lines[:steps]))
    return len(whole_lines) - steps
