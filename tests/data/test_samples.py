from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.data.formats import read_rows
from everlearn.data.instance import Instance, Task
from everlearn.data.samples import class_blocks, equal_parts, first_rows, last_rows, published_sample
from everlearn.data.tasks import find_labels
from everlearn.errors import DataError

TASKS = "dsg expl para pe pos qa qg sa sum trans".split()
RATIOS = {"smp001": 0.01, "smp005": 0.05, "smp01": 0.1}


@pytest.mark.parametrize("name", TASKS)
def test_published_samples_are_reproduced(shared_dir, name):
    folder = shared_dir / "data/superni"
    published = json.loads((folder / "rehearsal_samples.json").read_text(encoding="utf-8"))[name]
    rows = read_rows(str(folder / f"{name}.train.jsonl.gz"), task=name).rows
    task = Task(name, rows, (), labels=find_labels(rows, ())[0])
    assert bool(task.labels) == (name in ("pos", "sa"))
    for key, ratio in RATIOS.items():
        sample = published_sample(task, ratio, rows_in_all=2000)
        assert [row.id for row in sample] == published[key]


def rows_of(outputs: str) -> tuple[Instance, ...]:
    return tuple(Instance("", str(at), output, "task", id=str(at)) for at, output in enumerate(outputs))


def inputs(rows) -> list[int]:
    return [int(row.input) for row in rows]


def test_class_blocks_give_equal_parts_in_order_and_from_the_end_in_reverse():
    rows = rows_of("aaaabbbb")
    assert inputs(first_rows(rows, 4, "ab")) == [0, 1, 4, 5]
    assert inputs(last_rows(rows, 4, "ab")) == [6, 7, 2, 3]
    assert inputs(first_rows(rows, 3, "ab")) == [0, 1, 4]
    assert inputs(last_rows(rows, 3, "ab")) == [6, 7, 3]


def test_mixed_classes_and_free_text_are_cut_as_they_stand():
    rows = rows_of("abababab")
    assert inputs(first_rows(rows, 3, "ab")) == [0, 1, 2]
    assert inputs(last_rows(rows, 3, "ab")) == [5, 6, 7]
    assert inputs(last_rows(rows_of("aaaabbbb"), 3)) == [5, 6, 7]


def test_a_short_class_is_made_up_for_by_the_others():
    assert inputs(first_rows(rows_of("abbbbb"), 4, "ab")) == [0, 1, 2, 3]


def test_more_rows_than_there_are_gives_all():
    assert inputs(first_rows(rows_of("aabb"), 9, "ab")) == [0, 1, 2, 3]
    assert inputs(last_rows(rows_of("xyz"), 9)) == [0, 1, 2]
    assert last_rows(rows_of("xyz"), 0) == ()


def test_one_block_per_class_or_one_for_all():
    assert len(class_blocks(rows_of("aabbcc"), "abc")) == 3
    assert len(class_blocks(rows_of("aabbca"), "abc")) == 1
    assert class_blocks((), "ab") == []


def test_the_sample_of_a_small_task_has_at_least_one_row():
    task = Task("t", rows_of("xyz"), ())
    assert len(published_sample(task, 0.01)) == 1
    assert inputs(published_sample(task, 1)) == [0, 1, 2]


def test_the_size_of_a_sample_is_rounded():
    assert len(published_sample(Task("t", rows_of("x" * 18), ()), 0.1)) == 2
    assert len(published_sample(Task("t", rows_of("x" * 14), ()), 0.1)) == 1


@pytest.mark.parametrize("ratio", [0, -0.1, 1.5])
def test_a_ratio_out_of_range_is_refused(ratio):
    with pytest.raises(DataError, match="give a ratio above 0 and up to 1"):
        published_sample(Task("t", rows_of("xyz"), ()), ratio)


@given(count=st.integers(0, 300), sizes=st.lists(st.integers(0, 50), max_size=8))
def test_parts_fit_and_add_up_and_differ_by_one_at_most_where_there_is_room(count, sizes):
    parts = equal_parts(count, sizes)
    assert sum(parts) == min(count, sum(sizes))
    assert all(0 <= part <= size for part, size in zip(parts, sizes, strict=True))
    free = [part for part, size in zip(parts, sizes, strict=True) if part < size]
    assert not free or max(parts) - min(free) <= 1
