"""Selection against the golden cases, and the improved preset's counts."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from everlearn.synthesis.selection import (
    Chosen,
    fit_clusters,
    largest_remainder,
    nearest_clusters,
    normalise,
    published_counts,
    select_clustered,
    select_drawn,
    select_random,
    spread,
    take_nearest,
)


def cases(golden_dir: Path, name: str) -> list[dict]:
    return json.loads((golden_dir / "ssr" / name).read_text(encoding="utf-8"))["cases"]


def test_kmeans_selects_the_golden_rows(golden_dir: Path) -> None:
    golden = cases(golden_dir, "kmeans_selection.json")
    assert len(golden) == 6
    for case in golden:
        if not case["selected_set_invariant_over_9_seeds"]:
            continue
        chosen = select_clustered(
            np.array(case["embeddings"]),
            case["memory"],
            clusters=case["n_cluster"],
            adds_up=False,
            one_each=case["one_per_cluster_when_memory_equals_clusters"],
        )
        assert {row.index for row in chosen} == set(case["selected_indices_in_order"]), case["name"]


def test_the_selection_step_gives_the_golden_order(golden_dir: Path) -> None:
    for case in cases(golden_dir, "kmeans_selection.json"):
        rows = normalise(np.array(case["embeddings"]))
        labels, centres = np.array(case["labels"]), np.array(case["centers"])
        one_each = case["one_per_cluster_when_memory_equals_clusters"]
        counts = published_counts(case["cluster_sizes"], case["memory"], one_each=one_each)
        assert counts == case["per_cluster_quota"], case["name"]
        chosen = take_nearest(rows, labels, centres, counts)
        assert [row.index for row in chosen] == case["selected_indices_in_order"], case["name"]


def test_kmeans_finds_the_golden_centres_on_the_recorded_version(golden_dir: Path) -> None:
    import sklearn

    content = json.loads((golden_dir / "ssr" / "kmeans_selection.json").read_text(encoding="utf-8"))
    if content["sklearn"] != sklearn.__version__:
        pytest.skip(f"centres were recorded with scikit-learn {content['sklearn']}; cluster numbers depend on it")
    for case in content["cases"]:
        labels, centres = fit_clusters(normalise(np.array(case["embeddings"])), case["n_cluster"])
        assert labels.tolist() == case["labels"], case["name"]
        np.testing.assert_allclose(centres, case["centers"], atol=1e-5)


def test_random_selection_draws_the_golden_rows(golden_dir: Path) -> None:
    golden = cases(golden_dir, "random_selection.json")
    assert len(golden) == 3
    for case in golden:
        chosen = select_random(case["n"], case["memory"])
        assert [row.index for row in chosen] == case["selected_indices_in_order"]


def test_published_counts_round_halves_to_even_and_need_not_add_up() -> None:
    assert published_counts([10, 30, 10], 10) == [2, 6, 2]
    assert published_counts([5, 5, 5, 5], 10) == [2, 2, 2, 2]  # 2.5 each
    assert published_counts([30, 25, 2], 10) == [5, 4, 0]


def test_one_row_of_each_cluster_only_when_asked_for() -> None:
    assert published_counts([12, 8, 4], 3, one_each=True) == [1, 1, 1]
    assert published_counts([12, 8, 4], 3) == [2, 1, 0]
    assert published_counts([12, 8, 4], 6, one_each=True) == [3, 2, 1]


@given(st.lists(st.integers(0, 40), min_size=1, max_size=25).filter(any), st.data())
def test_largest_remainder_adds_up_and_never_exceeds_a_cluster(sizes: list[int], data: st.DataObject) -> None:
    wanted = data.draw(st.integers(0, sum(sizes)))
    parts = largest_remainder(sizes, wanted)
    assert sum(parts) == wanted
    assert all(0 <= part <= size for part, size in zip(parts, sizes, strict=True))
    assert all(abs(part - wanted * size / sum(sizes)) < 1 for part, size in zip(parts, sizes, strict=True))


@pytest.mark.parametrize(
    ("shares", "wanted", "parts"),
    [
        ([219, 227, 86], 436, [180, 186, 70]),  # 179.48..., 186.03..., 70.48...: the first two remainders are equal
        ([86, 227, 219], 436, [71, 186, 179]),
        ([1] * 7, 3, [1, 1, 1, 0, 0, 0, 0]),
        ([49, 49, 2], 10, [5, 5, 0]),
        ([10**17 + 1, 10**17], 1, [1, 0]),
    ],
)
def test_of_equal_remainders_the_first_gains(shares: list[int], wanted: int, parts: list[int]) -> None:
    assert largest_remainder(shares, wanted) == parts


def test_improved_selection_has_the_count_asked_for_and_is_spread_from_its_start() -> None:
    stream = np.random.RandomState(1)
    centres = np.eye(4)
    rows = np.concatenate([centre + 0.05 * stream.randn(25, 4) for centre in centres])
    chosen = select_clustered(rows, 22, clusters=4, adds_up=True)
    assert len({row.index for row in chosen}) == 22
    assert len({row.cluster for row in chosen[:4]}) == 4
    assert max(Counter(row.cluster for row in chosen[:12]).values()) <= 4


def test_spread_takes_clusters_in_turn_by_their_size() -> None:
    rows = [Chosen(at, 0) for at in range(4)] + [Chosen(at, 1) for at in range(4, 6)]
    assert [row.index for row in spread(rows)] == [0, 4, 1, 2, 5, 3]
    rows = [Chosen(at, 0) for at in range(5)] + [Chosen(5, 1)]
    assert [row.index for row in spread(rows)] == [0, 1, 2, 5, 3, 4]  # the middle one of its cluster in the middle


def test_supervised_clusters_come_from_the_reference_rows() -> None:
    reference = np.array([[1.0, 0.0], [0.9, 0.1], [0.0, 1.0], [0.1, 0.9]])
    candidates = np.array([[1.0, 0.05], [0.05, 1.0], [0.6, 0.4], [2.0, 0.1]])
    chosen = select_clustered(candidates, 2, clusters=2, adds_up=True, reference=reference)
    assert {row.index for row in chosen} in ({0, 1}, {3, 1})


def test_the_nearest_centre_is_the_nearest() -> None:
    stream = np.random.RandomState(0)
    rows, centres = normalise(stream.randn(30, 5)), stream.randn(4, 5)
    direct = np.argmin(np.linalg.norm(rows[:, None] - centres[None], axis=2), axis=1)
    np.testing.assert_array_equal(nearest_clusters(rows, centres), direct)


def test_a_row_of_zeros_can_be_normalised() -> None:
    np.testing.assert_array_equal(normalise(np.array([[0.0, 0.0], [3.0, 4.0]])), [[0, 0], [0.6, 0.8]])


def test_clustering_leaves_numpy_s_global_stream_alone() -> None:
    np.random.seed(5)
    expected = np.random.RandomState(5).rand()
    fit_clusters(normalise(np.random.RandomState(0).randn(30, 3)), 3)
    select_random(10, 3)
    assert np.random.rand() == expected


def test_drawing_from_clusters_gives_the_golden_rows_of_sers(golden_dir: Path) -> None:
    golden = json.loads((golden_dir / "sers" / "selection.json").read_text(encoding="utf-8"))["cases"]
    assert {case["variant"] for case in golden} == {"chatglm", "llama2-7b"}
    for case in golden:
        embeddings, wanted, clusters = np.array(case["embeddings"]), case["memory"], case["n_clusters"]
        if case["variant"] == "chatglm":
            chosen = select_drawn(embeddings, wanted, clusters=clusters, distinct=False)
        else:
            chosen = select_clustered(embeddings, wanted, clusters=clusters, adds_up=False)
            assert published_counts(np.bincount(case["labels"]).tolist(), wanted) == case["quotas"]
        assert [one.index for one in chosen] == case["expected_rows_in_output_order"], case["id"]


def test_rows_drawn_twice_are_left_out_where_that_is_asked_for() -> None:
    embeddings = np.eye(6)[[0, 1, 2, 2, 2, 2]]
    published = [one.index for one in select_drawn(embeddings, 6, clusters=3, distinct=False)]
    assert len(published) > len(set(published))
    assert [one.index for one in select_drawn(embeddings, 6, clusters=3, distinct=True)] == list(
        dict.fromkeys(published)
    )
