"""Carries out a plan: segments in the order of their dependence, states kept for the next version, releases written.

Running again is resuming: finished segments are found in the manifest, a segment that was cut off goes on from its
newest checkpoint (or its parent's state) with the same losses, bit by bit on the same machine. What the log holds is
counted as executed; it must agree with the plan.
"""

from __future__ import annotations

import json
import shutil
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from everlearn.data.text_account import data_line
from everlearn.errors import RunError
from everlearn.files import append_text, held, read_jsonl, unfinished, write_error, write_jsonl, write_vouched
from everlearn.models.loading import save_tokenizer, without_bars
from everlearn.progress import LineProgress, Progress
from everlearn.run_folder import UPDATE, refuse_other, unmade_if_refused
from everlearn.seeds import derive
from everlearn.shares import share_of
from everlearn.training.block_order import BlockOrder
from everlearn.training.checkpoint import (
    is_state,
    load_moments,
    load_tensors,
    moments_of,
    named_tensors,
    read_record,
    recover_folder,
    remove_state,
    replace_folder,
    save_state,
)
from everlearn.training.engine import Row
from everlearn.training.processes import Processes, fill, join_processes, whole
from everlearn.training.text import TextTraining
from everlearn.updates.folder import UpdateFolder, claim, now
from everlearn.updates.outcome import describe_plan, describe_run, measure, text_of, write_ledger
from everlearn.updates.plan import Segment
from everlearn.updates.prepare import Prepared, prepare
from everlearn.updates.quality import keep_heldout
from everlearn.updates.start import initial_model

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
    processes = join_processes(recipe.training.device)
    shown: Progress = (progress or LineProgress()) if processes.is_first else LineProgress()
    processes.share(recipe.training.batch_blocks)
    store = UpdateFolder(path)
    with processes.first_goes_first():
        if not processes.is_first:
            prepared = prepare(recipe, store, shown)
        else:
            refuse_other(path, UPDATE)
            with unmade_if_refused(path):
                if not store.manifest:  # else what stands there stays until this recipe is known to be sound
                    claim(path, recipe)
                prepared = prepare(recipe, store, shown)
                claim(path, recipe)
    lock: AbstractContextManager[object] = held(store.path) if processes.is_first else nullcontext()
    with lock:
        store = UpdateFolder(path)  # as it stands now that no other process works in it
        return _Run(recipe, prepared, store, processes, shown).go()


class _Run:
    """One run in progress."""

    def __init__(
        self,
        recipe: UpdateRecipe,
        prepared: Prepared,
        store: UpdateFolder,
        processes: Processes,
        progress: Progress,
    ) -> None:
        self.recipe = recipe
        self.prepared = prepared
        self.store = store
        self.processes = processes
        self.progress = progress
        self.plan = prepared.plan
        self.segments = self.plan.segments()
        self._training: TextTraining | None = None
        width, batch = recipe.training.block_tokens, recipe.training.batch_blocks
        self._blocks = [files.train(width) for files in prepared.files]
        self._order = BlockOrder(prepared.steps, tuple(len(b) for b in self._blocks), batch, recipe.seed)
        if prepared.annealing:
            self._annealing = prepared.annealing.train(width)
            steps = len(self._annealing) // batch
            seed = derive(recipe.seed, "annealing")
            self._annealing_order = BlockOrder((steps,), (len(self._annealing),), batch, seed)

    def go(self) -> dict[str, object]:
        """All segments, then quality, ledger and report."""
        if self.processes.is_first:
            self._begin()
        self._reopen()
        for segment in self.segments:
            if not self.store.is_complete(segment.id):
                self._train(segment)
        self._training = None
        result: dict[str, object] = {"folder": self.store.path}
        if self.processes.is_first:
            result |= self._finish()
        self.processes.wait()
        return result

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
        store.update(**describe_run(self.recipe, prepared, self.processes.count, store.path), status="running")
        if line := data_line(text_of(self.recipe, prepared)):
            self.progress.say(line)
        self._prune()

    def _reopen(self) -> None:
        """Has segments trained again of which the state is gone that another one starts from."""
        store = self.store
        if self.processes.is_first:
            for segment in self.segments:
                recover_folder(store.checkpoint(segment.id))
                recover_folder(store.state(segment.id))
        self.processes.wait()
        releasing = {segment.id for segment in self.segments if segment.releases}
        for segment in reversed(self.segments):
            parent = segment.parent
            if parent is None or store.is_complete(segment.id) or is_state(store.checkpoint(segment.id)):
                continue
            needs_state = segment.optimizer == "inherit" or parent not in releasing
            if needs_state and store.is_complete(parent) and not is_state(store.state(parent)):
                self.progress.say(f"the state at the end of {parent} is gone: {parent} is trained again")
                store.manifest["segments"][parent]["status"] = "running"
        self.processes.wait()

    def _train(self, segment: Segment) -> None:
        """One segment from its checkpoint or its start to its end, and what is kept of it."""
        training = self._training = self._training or self._make_training()
        rates = self.recipe.schedule
        optimizer = training.optimizer(rates.maximal_rate)
        done = self._restore(segment, training, optimizer)
        share = self.processes.share(self.recipe.training.batch_blocks)
        what = f"{segment.id} ({segment.kind}{f', release {self._id(segment)}' if segment.releases else ''})"
        with self.progress.step(what, segment.steps) as tick:
            if done:
                tick(done, resumed=True)

            def log(rows: list[Row]) -> None:
                if self.processes.is_first:
                    append_text(self.store.history(segment.id), "".join(json.dumps(row) + "\n" for row in rows))
                tick(int(rows[-1]["step"]) + 1, note=f"loss {rows[-1]['loss']:.3f}")

            def checkpoint(finished: int) -> None:
                self._save(self.store.checkpoint(segment.id), segment, finished, optimizer)

            training.train(
                lambda step: self._read(segment, segment.start + step, share),
                [optimizer],
                schedule=segment.schedule,
                peak=rates.maximal_rate,
                steps=segment.steps,
                done=done,
                first_position=segment.start,
                checkpoint_every=self.recipe.training.checkpoint_every,
                log=log,
                checkpoint=checkpoint,
            )
        if needs := self._needed_states({segment.id}).get(segment.id):
            moments = optimizer if "inherit" in needs else None
            self._save(self.store.state(segment.id), segment, segment.steps, moments)
        if segment.releases:
            self._release(segment)
        if self.processes.is_first:
            self._complete(segment)
        self.processes.wait()
        if not self.processes.is_first:
            self.store.manifest.setdefault("segments", {})[segment.id] = {"status": "complete"}

    def _make_training(self) -> TextTraining:
        model = initial_model(self.recipe.model, self.prepared.settings, self.recipe.seed)
        return TextTraining(model, self.recipe.training, self.processes, self.recipe.seed)

    def _restore(self, segment: Segment, training: TextTraining, optimizer: torch.optim.Optimizer) -> int:
        """Weights and moments that the segment goes on with; returns its finished steps."""
        store = self.store
        newest = store.checkpoint(segment.id)
        done = 0
        if is_state(newest):
            record = read_record(newest)
            belongs = (segment.to_json(), self.prepared.tokenizer_fingerprint)
            if (record.get("segment"), record.get("tokenizer")) != belongs:
                raise RunError(f"{newest} belongs to another plan: delete it; the segment is trained from its start.")
            load_tensors(newest / "model.safetensors", named_tensors(training.model))
            load_moments(newest, training.model, [optimizer])
            done = int(str(record["finished"]))
        else:
            self._start(segment, training, optimizer)
        self.processes.wait()
        if self.processes.is_first:
            repeated = _truncate(store.history(segment.id), done)
            before = store.segment(segment.id).get("repeated_steps", 0)
            store.update_segment(segment.id, status="running", repeated_steps=before + repeated)
        return done

    def _start(self, segment: Segment, training: TextTraining, optimizer: torch.optim.Optimizer) -> None:
        """The weights, and if it inherits them the moments, at the beginning of a segment."""
        if segment.parent is None:
            fresh = initial_model(self.recipe.model, self.prepared.settings, self.recipe.seed)
            for name, tensor in named_tensors(fresh).items():
                fill(named_tensors(training.model)[name], tensor)
            return
        state = self.store.state(segment.parent)
        if is_state(state):
            read_record(state)
            load_tensors(state / "model.safetensors", named_tensors(training.model))
            if segment.optimizer == "inherit":
                load_moments(state, training.model, [optimizer])
            return
        parent = next(other for other in self.segments if other.id == segment.parent)
        release = self.store.release(self._id(parent)) / "model.safetensors"
        load_tensors(release, named_tensors(training.model))

    def _read(self, segment: Segment, position: int, share: slice) -> Tensor:
        """This process's blocks of one step: (blocks, block_tokens)."""
        if segment.data == "annealing":
            return torch.from_numpy(self._annealing.read([b for _, b in self._annealing_order.at(position)[share]]))
        is_mixed = segment.kind == "scratch" and self.recipe.path.ptfs_order == "mixed"
        is_mixed = is_mixed and segment.releases != 1  # one version is shuffled anyway
        batch = self._order.at(position, mixed_until=segment.end if is_mixed else None)
        if segment.kind == "branch" and segment.releases and segment.releases > 1:
            replayed = round(share_of(self.recipe.path.branch_replay_ratio, len(batch)))
            batch[:replayed] = self._order.earlier(position, self.plan.ends[segment.releases - 2], replayed)
        chosen = batch[share]
        rows = np.empty((len(chosen), self.recipe.training.block_tokens), dtype=np.int64)
        for version in {version for version, _ in chosen}:
            places = [place for place, (of, _) in enumerate(chosen) if of == version]
            rows[places] = self._blocks[version].read([chosen[place][1] for place in places])
        return torch.from_numpy(rows)

    def _save(self, place: Path, segment: Segment, finished: int, optimizer: torch.optim.Optimizer | None) -> None:
        assert self._training is not None, "a state is saved while training"
        model = self._training.model
        record = {
            "segment": segment.to_json(),
            "finished": finished,
            "position": segment.start + finished,
            "tokenizer": self.prepared.tokenizer_fingerprint,
            "random": {"seed": self.recipe.seed, "position": segment.start + finished},
            "processes": self.processes.count,
        }
        moments = None if optimizer is None else moments_of(model, [optimizer])
        save_state(place, named_tensors(model), record, self.processes, moments=moments)

    def _release(self, segment: Segment) -> None:
        """A plain Transformers folder, tokenizer included."""
        assert self._training is not None, "a release is written after training"
        model = self._training.model
        tensors = {name: whole(tensor) for name, tensor in named_tensors(model).items()}
        if not self.processes.is_first:
            return
        target = self.store.release(self._id(segment))
        partial = unfinished(target)
        try:
            with without_bars():
                model.save_pretrained(str(partial), state_dict=tensors)
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
        quality = measure(self.recipe, self.prepared, self.store, self.processes.device, self.progress)
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
