"""One count of tokens for all calls of an engine."""

from __future__ import annotations

from everlearn.generation.counting import Counted


def test_neither_prompts_nor_tokens_fall_back_from_call_to_call() -> None:
    shown: list[tuple[int, int]] = []

    def tick(done: int, of: int | None, note: str = "") -> None:
        assert of == 12
        shown.append((done, int(note.split(" tokens written, ")[0].replace(",", ""))))

    counted = Counted(tick, 12)
    for done, reports in ((0, [(0, 700), (3, 1500)]), (4, [(0, 10), (1, 90)]), (8, [(4, 5)])):
        report = counted.call(done)
        for finished, tokens in reports:
            report(finished, 4, tokens)
    assert shown == [(0, 700), (3, 1500), (4, 1510), (5, 1590), (12, 1595)]
    assert shown == sorted(shown)


def test_what_an_earlier_run_has_finished_is_told_before_anything_is_written() -> None:
    ticks: list[tuple[int, bool]] = []
    counted = Counted(lambda done, of, note="", resumed=False: ticks.append((done, resumed)))
    counted.call(20)(1, 4, 3)
    counted.call(24)(0, 4, 1)
    assert ticks == [(20, True), (21, False), (24, False)]
