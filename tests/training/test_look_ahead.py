"""Looking at rows of several steps at once: which, how often, and that nothing but the number of passes is another."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from everlearn.data.mixture import Group, Mixture
from everlearn.training import look_ahead
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.divergences import exchanged
from everlearn.training.influence import Influence
from everlearn.training.look_ahead import LookAhead
from everlearn.training.rows import EncodedRow
from tests.tiny_models import save_tiny_model
from tests.training.test_stage import CONFIG, ROWS, load, train

ROW_TOKENS = 10
STEPS = [[EncodedRow(tuple(range(ROW_TOKENS)), 8, number=2 * step + at) for at in range(2)] for step in range(7)]


def looking(most_tokens: int, at_once: int | None = None) -> tuple[LookAhead, list[list[int]]]:
    """One over seven steps of two rows, and the numbers of the rows of each pass that it makes."""
    passes: list[list[int]] = []

    def look_again(part: SimpleNamespace, view: object) -> tuple[SimpleNamespace, None]:
        passes.append([row.number for row in part.rows])
        states = [torch.full((row.answer_count, 3), float(row.number)) for row in part.rows]
        return SimpleNamespace(states=torch.cat(states)), None

    def micro_batches(rows: Sequence[EncodedRow], most: int) -> list[SimpleNamespace]:
        count = min(max(1, most // ROW_TOKENS), len(rows))
        return [SimpleNamespace(rows=rows[at : at + count]) for at in range(0, len(rows), count)]

    loss = SimpleNamespace(
        device=torch.device("cpu"), packs=lambda row: True, look_again=look_again, micro_batches=micro_batches
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(look_ahead.STRETCH_TOKENS, "cpu", most_tokens)
        ahead = LookAhead(loss, STEPS.__getitem__, len(STEPS))  # type: ignore[arg-type]
    if at_once:
        ahead.at_most(at_once)
    return ahead, passes


def every(row: EncodedRow) -> bool:
    return True


def ask(ahead: LookAhead, step: int, view: object = None) -> None:
    states, _ = ahead.states(step, STEPS[step][::-1], view, every)  # type: ignore[arg-type]
    assert states[:, 0].tolist() == [float(row.number) for row in STEPS[step][::-1] for _ in range(row.answer_count)]


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [[2 * step, 2 * step + 1] for step in range(7)]),
        (3 * 2 * ROW_TOKENS, [list(range(6)), list(range(6, 12)), [12, 13]]),
        (1000, [list(range(14))]),
    ],
)
def test_a_stretch_of_steps_is_looked_at_once_and_none_twice(most: int, expected: list[list[int]]) -> None:
    ahead, passes = looking(most)
    for step in range(7):
        ask(ahead, step)
        ask(ahead, step)  # another part of the step
    assert passes == expected


def test_a_training_that_goes_on_amid_a_stretch_looks_at_all_of_it() -> None:
    whole, passes = looking(3 * 2 * ROW_TOKENS)
    resumed, later = looking(3 * 2 * ROW_TOKENS)
    for step in range(7):
        ask(whole, step)
        if step >= 4:
            ask(resumed, step)
    assert later == passes[1:]


def test_no_more_tokens_are_computed_at_once_than_fit() -> None:
    ahead, passes = looking(1000, at_once=4 * ROW_TOKENS)
    ask(ahead, 0)
    assert passes == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11], [12, 13]]


def test_views_are_told_apart() -> None:
    ahead, passes = looking(1000)
    one, other = object(), object()
    for step in range(7):
        ask(ahead, step, one)
        ask(ahead, step, other)
    assert len(passes) == 2


@pytest.mark.parametrize("is_packed", [True, False])
@pytest.mark.parametrize("tuning", ["lora", "full"])
def test_what_is_seen_ahead_is_what_is_seen_in_the_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tuning: str, is_packed: bool
) -> None:
    passes = []
    real = AnswerLoss.look_again

    def counted(self, part, *arguments, **named):
        passes.append(part)
        return real(self, part, *arguments, **named)

    class Look(Influence):
        reads = True

        def __init__(self) -> None:
            self.looks = 0

        def begin(self, training) -> None:
            kept = [(weight, weight.detach().clone()) for weight in training.parameters.values()]
            self.view = partial(exchanged, kept)

        def term(self, seen) -> None:
            def wanted(row: EncodedRow) -> bool:
                return row.group == "own"

            if not len(seen.places(wanted)):
                return
            there, head = seen.again(self.view)
            before = len(passes)
            ahead, ahead_head = seen.steadily(self.view, wanted)
            self.looks += len(passes) - before
            torch.testing.assert_close(ahead, there[seen.places(wanted)], rtol=1e-4, atol=1e-5)
            assert (head is None) == (ahead_head is None) == (not is_packed)
            if head is not None and ahead_head is not None:
                torch.testing.assert_close(head[0], ahead_head[0])

    if not is_packed:
        monkeypatch.setattr(AnswerLoss, "_agrees", lambda *_: False)
    monkeypatch.setattr(AnswerLoss, "look_again", counted)
    loaded, look = load({"llama": save_tiny_model(tmp_path / "model", "llama")}, tuning=tuning), Look()
    config = CONFIG.model_copy(update={"learning_rate": 1e-2})
    train(
        loaded, tmp_path / "stage", config=config, influences=[look], mixture=Mixture((Group("old", tuple(ROWS[:3])),))
    )
    assert look.looks == 1 if is_packed else look.looks >= 6
