"""Stacked methods: hooks add or are exclusive, what cannot be combined is refused by name with the reason."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import get_args

import numpy as np
import pytest

from everlearn.data.instance import Instance
from everlearn.data.mixture import Group, Mixture
from everlearn.errors import RecipeError
from everlearn.methods.base import Facts, Method, MethodOptions, StageContext, Trait, one_stage_per_task
from everlearn.methods.registry import make_method, method_names
from everlearn.methods.stack import ADDS, EXCLUSIVE, REFUSED, Stack, assemble, parts_of, refuse_unfit
from everlearn.recipe import MethodConfig, make_recipe
from everlearn.training.influence import Influence
from everlearn.training.phase import Phase
from tests.methods.contexts import (
    Bench,
    equal_tensors,
    facts_of,
    number_stream,
    penalty_of,
    stored_and_loaded,
    trained,
)

STREAM = number_stream()


def stacked(*given: object) -> Method:
    return assemble(make_recipe({"method": list(given)}).method)


class Noted(Method):
    """Notes at which hooks it was asked."""

    def __init__(self, name: str, notes: list[str], own: tuple[float, str] | None = None) -> None:
        super().__init__(MethodOptions())
        self.name, self.notes, self.own = name, notes, own
        self.kept = np.zeros(0)

    def _note(self, hook: str) -> None:
        self.notes.append(f"{self.name} {hook}")

    def check(self, facts: Facts) -> None:
        self._note("check")

    def try_base(self, context: StageContext) -> None:
        self._note("try_base")

    def rehearsal(self, context: StageContext) -> Mixture:
        self._note("rehearsal")
        return Mixture((Group(self.name, (Instance("", self.name, "", "first"),)),), self.own)  # type: ignore[arg-type]

    def influences(self, context: StageContext) -> Sequence[Influence]:
        self._note("influences")
        return [Influence()]

    def after_stage(self, context: StageContext) -> None:
        self._note("after_stage")

    def state_tensors(self) -> dict[str, np.ndarray]:
        return {"kept": np.full(2, len(self.name))}

    def state_json(self) -> dict[str, object]:
        return {"kept": self.name}

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        self.notes.append(f"{values['kept']} {tensors['kept'][0]:g}")


def test_every_hook_adds_or_is_exclusive() -> None:
    about = {"overrides", "described"}
    hooks = {name for name, value in vars(Method).items() if callable(value) and name[0].islower()} - about
    assert hooks == {*ADDS, *EXCLUSIVE}
    assert not set(ADDS) & set(EXCLUSIVE)


def test_hooks_that_add_ask_every_method_in_its_order(tmp_path: Path, tiny_model: Path) -> None:
    notes: list[str] = []
    stack = Stack([Noted("one", notes), Noted("three", notes, own=(0.5, "rows"))])
    context = Bench(tmp_path, tiny_model).context(stack.stages(STREAM)[0])
    stack.check(facts_of(STREAM))
    for hook in ("try_base", "after_stage"):
        getattr(stack, hook)(context)
    mixture = stack.rehearsal(context)
    assert [group.name for group in mixture.groups] == ["one", "three"]
    assert mixture.own == (0.5, "rows")
    assert len(stack.influences(context)) == 2
    stored_and_loaded(stack, stack, tmp_path / "state")
    hooks = ("check", "try_base", "after_stage", "rehearsal", "influences")
    assert notes == [f"{name} {hook}" for hook in hooks for name in ("one", "three")] + ["one 3", "three 5"]


@pytest.mark.parametrize(
    ("names", "owns", "message"),
    [(("one", "one"), (None, None), "names of its own"), (("one", "two"), ((1.0, "rows"),) * 2, "the trait")],
)
def test_groups_of_one_name_and_two_weights_of_the_own_rows_never_meet(
    names: tuple[str, str], owns: tuple[tuple[float, str] | None, ...], message: str, tmp_path: Path, tiny_model: Path
) -> None:
    stack = Stack([Noted(name, [], own=own) for name, own in zip(names, owns, strict=True)])
    with pytest.raises(AssertionError, match=message):
        stack.rehearsal(Bench(tmp_path, tiny_model).context(stack.stages(STREAM)[0]))


def test_an_exclusive_hook_is_that_of_the_method_that_overrides_it(tmp_path: Path, tiny_model: Path) -> None:
    stack = stacked("random_rehearsal", "single_task")
    context = Bench(tmp_path, tiny_model).context(stack.stages(STREAM)[1])
    assert stack.phases(context) == make_method("single_task", {}).phases(context) != [Phase()]
    assert stack.overrides("phases")
    assert not stack.overrides("stages")
    assert stacked("random_rehearsal", "l2").phases(context) == [Phase()]


@pytest.mark.parametrize("hook", EXCLUSIVE)
def test_two_methods_that_override_an_exclusive_hook_are_refused(hook: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("l2", "ewc"):
        monkeypatch.setattr(type(make_method(name, {})), hook, lambda *_: None)
    with pytest.raises(RecipeError, match=rf"l2 and ewc cannot be stacked \(each decides {EXCLUSIVE[hook]}\): take"):
        stacked("l2", "ewc")


@pytest.mark.parametrize("row", REFUSED)
@pytest.mark.parametrize("order", [("l2", "random_rehearsal"), ("random_rehearsal", "l2")])
def test_each_pair_of_traits_is_refused_in_either_order_with_the_reason(
    row: tuple[Trait, Trait, str], order: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second, why = row
    monkeypatch.setattr(type(make_method("l2", {})), "traits", frozenset({first}))
    monkeypatch.setattr(type(make_method("random_rehearsal", {})), "traits", frozenset({second}))
    reason = why.format("l2", "random_rehearsal") if first != second else why.format(*order)
    with pytest.raises(RecipeError) as caught:
        stacked(*order)
    assert str(caught.value) == (
        f"methods {order[0]} and {order[1]} cannot be stacked ({reason}): take one of them, or compare them "
        f"(everlearn compare --methods {order[0]},{order[1]})."
    )


def test_every_trait_stands_in_the_table() -> None:
    elsewhere = {"is told tasks", "trains by reward"}  # refused by what a stream hides, or beside any influence
    assert {trait for row in REFUSED for trait in row[:2]} == set(get_args(Trait)) - elsewhere


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (("sequential", "l2"), "method sequential adds nothing to others: leave it out of the stack"),
        (("l2", "multitask"), "multitask trains all tasks in one stage, so l2 has no earlier weights"),
        (("ssr", "multitask"), "so ssr has no earlier task to rehearse"),
        (("single_task", "ewc"), "single_task starts a stage from other weights than those that ewc would hold"),
        (("l2", {"name": "merging", "start": "base"}), "merging starts a stage from other weights than those that l2"),
        (("l2", {"name": "merging", "use": "continue_from_merged"}), "merging starts a stage from other weights"),
        (("multitask", "merging"), "so merging has nothing to average"),
        (("agem", "l2"), "the penalty of l2 would undo what agem has made of the gradient"),
        (("gem", "agem"), "agem would change the gradient that gem has just made harmless"),
        (("olora", "l2"), "olora trains other weights in every stage, so l2 has none of the last to hold"),
        (("merging", "olora"), "each decides in which phases"),
        (("single_task", "ssr", "lr_path_switching"), "each decides in which phases and from which weights"),
        (("ssr", "l3"), "unknown method 'l3': did you mean 'l2'"),
        (({"name": "l2", "strenght": 1}, "ssr"), "method l2: unknown key 'strenght' .did you mean 'strength'"),
    ],
)
def test_what_makes_no_stack_is_refused_by_name(names: tuple[object, ...], message: str) -> None:
    with pytest.raises(RecipeError, match=message):
        stacked(*names)


@pytest.mark.parametrize(
    "names",
    [
        ("l2", "ewc"),
        ("ssr", "l2"),
        ("ssr", "random_rehearsal", "kmeans_rehearsal", "ewc"),
        ("merging", "l2"),
        ("agem", "merging"),
        ("olora", "ssr"),
        ("lr_path_switching", "random_rehearsal"),
    ],
)
def test_what_does_not_disturb_each_other_goes_together(names: tuple[str, ...]) -> None:
    assert [part.name for part in parts_of(stacked(*names))] == list(names)


@pytest.mark.parametrize("given", ["l2", ["l2"], {"name": "l2"}, [{"name": "l2"}]])
def test_a_stack_of_one_is_that_method(given: object) -> None:
    method = assemble(make_recipe({"method": given}).method)
    assert type(method) is type(make_method("l2", {}))
    assert method.described() == {"strength": 0.1}
    assert (method.name, method.versions) == ("l2", 1)
    assert parts_of(method) == (method,)


def test_the_parts_of_a_stack_act_as_they_do_alone(tmp_path: Path, tiny_model: Path) -> None:
    bench = Bench(tmp_path, tiny_model)
    parts = {"random_rehearsal": {"ratio": 0.25}, "l2": {"strength": 2.0}, "ewc": {"fisher_rows": 3}}
    stack = assemble(MethodConfig.model_validate([{"name": name, **options} for name, options in parts.items()]))
    alone = {name: make_method(name, options) for name, options in parts.items()}
    first, second = stack.stages(STREAM)[:2]
    for method in (stack, *alone.values()):
        method.after_stage(bench.context(first))
    stack = stored_and_loaded(stack, stacked(*({"name": n, **o} for n, o in parts.items())), tmp_path / "state")
    for name, method in alone.items():
        (part,) = (part for part in parts_of(stack) if part.name == name)
        assert equal_tensors(part.state_tensors(), method.state_tensors())
    for parameter in bench.latest.model.parameters():
        parameter.data += 0.01 * parameter.requires_grad
    context = bench.context(second)
    assert stack.rehearsal(context) == alone["random_rehearsal"].rehearsal(context)
    found = [penalty_of(method, context, bench.latest.model) for method in (stack, alone["l2"], alone["ewc"])]
    whole, one, other = (penalty.item() for penalty in found if penalty is not None)
    assert min(one, other) > 0
    assert whole == pytest.approx(one + other, rel=1e-6)


def test_any_two_methods_go_together_or_are_refused(tmp_path: Path, tiny_model: Path) -> None:
    bench, parts = Bench(tmp_path, tiny_model), []
    for name in method_names():
        few = {"ratio": 0.5} if name == "kmeans_rehearsal" else {"ratio": 0.1} if name == "ssr" else {}
        parts.append(make_method(name, few))
    one, two = one_stage_per_task(STREAM.tasks)[:2]
    for part in parts:
        part.after_stage(trained(part, bench.context(one), bench.latest.model))
    refused, stacked = [], 0
    for pair in combinations(parts, 2):
        try:
            refuse_unfit(pair)
        except RecipeError as error:
            refused.append((pair, str(error)))
            continue
        stack, context, stacked = Stack(pair), bench.context(two), stacked + 1
        groups = [group.name for part in pair for group in part.rehearsal(context).groups]
        assert [group.name for group in stack.rehearsal(context).groups] == groups
        assert len(stack.influences(context)) == sum(len(part.influences(context)) for part in pair)
    assert all(" adds nothing " in said or all(part.name in said for part in pair) for pair, said in refused)
    assert min(stacked, len(refused)) > len(parts)
