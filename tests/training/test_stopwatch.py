"""Time by name."""

from __future__ import annotations

import time

import torch

from everlearn.training.stopwatch import Stopwatch


def test_blocks_of_a_name_add_up_with_what_was_counted_before() -> None:
    watch = Stopwatch(torch.device("cpu"))
    watch.add({"ewc": 10.0})
    for _ in range(2):
        with watch.of("ewc"):
            time.sleep(0.01)
    with watch.of("lcia"):
        pass
    found = watch.seconds()
    assert list(found) == ["ewc", "lcia"]
    assert 10.02 <= found["ewc"] < 11
    assert 0 <= found["lcia"] < 0.01
