from __future__ import annotations

import itertools
import random

from everlearn.generation.prefix_tree import Node, plan
from tests.generation.models import make_prompts


def path(node: Node | None) -> list[int]:
    return [*path(node.parent), *node.token_ids] if node else []


def joined(parts: list[list[int]]) -> list[int]:
    return list(itertools.chain.from_iterable(parts))


def tokens_fed(planned, prompts) -> int:
    nodes = {}
    for node, rows in planned:
        while node is not None:
            nodes[node] = len(node.token_ids)
            node = node.parent
    tails = sum(len(prompts[i]) - (node.depth if node else 0) for node, rows in planned for i in rows)
    return sum(nodes.values()) + tails


def test_all_ordered_pairs_give_the_definition_and_each_first_demonstration():
    definition = make_prompts(1, low=100, high=100)[0]
    demonstrations = [[number, *make_prompts(1, low=40, high=60, seed=number)[0]] for number in range(10)]
    prompts = [definition + a + b + [3] for a, b in itertools.permutations(demonstrations, 2)]
    planned = plan(prompts)
    deep = [node for node, _ in planned if node is not None and node.parent is not None]
    assert len(deep) == 10
    assert {len(rows) for node, rows in planned if node in deep} == {9}
    assert {path(node.parent) == definition for node in deep} == {True}


def test_every_prompt_is_below_a_prefix_of_its_own_and_comes_once():
    draw = random.Random(0)
    pool = [make_prompts(1, low=20, high=90, seed=i)[0] for i in range(6)]
    prompts = [joined(draw.choices(pool, k=draw.randint(1, 4)))[: draw.randint(1, 200)] for _ in range(150)]
    planned = plan(prompts, copies=3)
    assert sorted(i for _, rows in planned for i in rows) == list(range(150))
    for node, rows in planned:
        for i in rows:
            depth = node.depth if node else 0
            assert path(node) == prompts[i][:depth]
            assert depth < len(prompts[i])
    assert tokens_fed(planned, prompts) < sum(map(len, prompts))


def test_descendants_of_a_node_follow_it_without_a_gap():
    draw = random.Random(1)
    pool = [make_prompts(1, low=70, high=90, seed=i)[0] for i in range(3)]
    prompts = [[*joined(draw.choices(pool, k=3)), draw.randrange(90)] for _ in range(400)]
    left: set[Node] = set()
    current: list[Node] = []
    for node, _ in plan(prompts):
        line: list[Node] = []
        while node is not None:
            line.insert(0, node)
            node = node.parent
        assert not left.intersection(line)
        left.update(set(current) - set(line))
        current = line
    assert len(left) > 10


def test_short_common_beginnings_are_left_alone():
    prompts = [[7, 8, *prompt] for prompt in make_prompts(20, low=30, high=40)]
    assert [node for node, _ in plan(prompts)] == [None]


def test_a_prompt_that_begins_another_keeps_its_last_token():
    long = make_prompts(1, low=400, high=400)[0]
    prompts = [long[:300], *([*long[:300], i] for i in range(10))]
    planned = plan(prompts)
    assert [(node.depth if node else 0, len(rows)) for node, rows in planned] == [(299, 11)]


def test_many_samples_of_one_long_prompt_share_it():
    prompt = make_prompts(1, low=200, high=200)[0]
    assert [node.depth if node else 0 for node, _ in plan([prompt], copies=16)] == [199]
    assert [node for node, _ in plan([prompt], copies=1)] == [None]
