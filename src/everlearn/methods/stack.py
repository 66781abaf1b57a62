"""Several methods as one: each does its part of every stage.

A hook either *adds* (all methods are asked, in their order, and what they give is joined) or is *exclusive* (one
method may override it). No hook replaces what another method has made, so methods need not know of each other. What
makes no sense together all the same is refused by what the methods are (`Method.traits`): in one sentence, before
anything is loaded.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from typing import TYPE_CHECKING

from everlearn.checking import first_double
from everlearn.data.mixture import Mixture
from everlearn.errors import RecipeError
from everlearn.findings import Findings, joined
from everlearn.methods.base import Facts, Forecast, Method, MethodOptions, StageContext, Trait
from everlearn.methods.registry import make_method
from everlearn.recipe_method import JOIN

if TYPE_CHECKING:
    import numpy as np

    from everlearn.data.instance import TaskStream
    from everlearn.recipe import MethodConfig
    from everlearn.training.influence import Influence

ADDS = (
    "tokens", "check", "forecast", "try_base", "rehearsal", "influences", "after_stage", "findings",
    "state_tensors", "state_json", "load_state",
)  # fmt: skip
"""Hooks that all methods of a stack are asked at."""
EXCLUSIVE = {
    "stages": "how the tasks are split into stages",
    "phases": "in which phases and from which weights a stage is trained",
    "released": "which model a stage hands on",
    "template": "how instances are worded",
    "answerer": "whose weights answer a row",
}
"""Hooks that one method of a stack may override, and what such a method decides."""
REFUSED: tuple[tuple[Trait, Trait, str], ...] = (
    ("penalty", "projects gradients", "the penalty of {0} would undo what {1} has made of the gradient before"),
    ("projects gradients", "projects gradients", "{1} would change the gradient that {0} has just made harmless"),
    ("keeps tasks apart", "projects gradients", "{0} forgets nothing, so {1} has nothing to protect"),
    ("merges parts", "keeps to the base", "while {0} trains, the base that {1} would keep to is not at hand"),
    ("changes parts", "penalty", "{0} trains other weights in every stage, so {1} has none of the last to hold"),
    ("changes parts", "averages weights", "{0} trains other weights in every stage, which {1} cannot average"),
    ("changes parts", "changes parts", "each says which weights a stage trains"),
    ("averages weights", "averages weights", "each would hand on an average of its own"),
    ("weighs own rows", "weighs own rows", "each sets the weight of a stage's own rows"),
    ("rewrites own rows", "rewrites own rows", "each would train on other rows than the stage's own"),
    ("synthesizes", "synthesizes", "each would write its synthetic rows where the other does"),
    ("trains once", "penalty", "{0} trains all tasks in one stage, so {1} has no earlier weights to hold"),
    ("trains once", "rehearses", "{0} trains all tasks in one stage, so {1} has no earlier task to rehearse"),
    ("trains once", "projects gradients", "{0} trains all tasks in one stage, so {1} has no earlier task to protect"),
    ("trains once", "averages weights", "{0} trains all tasks in one stage, so {1} has nothing to average"),
    ("trains once", "distils", "{0} trains all tasks in one stage, so {1} has no earlier model to keep to"),
    ("trains heads", "rewrites own rows", "{0} trains on the classes of a stage's own rows"),
    ("trains heads", "synthesizes", "{0} knows the classes of the data alone, and {1} writes answers"),
    ("starts elsewhere", "averages weights", "{0} starts a stage from other weights than {1} would go on averaging"),
    ("starts elsewhere", "distils", "{0} starts a stage from another model than the one that {1} would keep to"),
    ("starts elsewhere", "penalty", "{0} starts a stage from other weights than those that {1} would hold"),
)
"""Traits that two methods of a stack may not have, the first one the one and the other the other, and why."""


def assemble(config: MethodConfig) -> Method:
    """Builds the method of a recipe, or a stack of those that it names.

    Raises:
        RecipeError: an unknown method or option, a value out of range, or methods that cannot be stacked.
    """
    parts = [make_method(name, options) for name, options in config.parts.items()]
    if len(parts) == 1:
        return parts[0]
    refuse_unfit(parts)
    return Stack(parts)


def parts_of(method: Method) -> tuple[Method, ...]:
    """The methods of a stack; of one method itself."""
    return method.parts if isinstance(method, Stack) else (method,)


def refuse_unfit(parts: Sequence[Method]) -> None:
    """Refuses methods that cannot be stacked.

    Raises:
        RecipeError: names them and says why.
    """
    for part in parts:
        if not any(part.overrides(hook) for hook in (*ADDS, *EXCLUSIVE)):
            raise RecipeError(f"method {part.name} adds nothing to others: leave it out of the stack.")
    for one, other in combinations(parts, 2):
        if against := list(_against(one, other)):
            (why, remedy), remedies = against[0], {remedy for _, remedy in against}
            change = f"set {remedy}, take" if remedy and len(remedies) == 1 else "take"
            raise RecipeError(
                f"methods {one.name} and {other.name} cannot be stacked ({why}): {change} one of them, or compare "
                f"them (everlearn compare --methods {one.name},{other.name})."
            )


def _against(one: Method, other: Method) -> Iterator[tuple[str, str | None]]:
    """Why two methods cannot be stacked, and the option that would take the reason away."""
    for hook, what in EXCLUSIVE.items():
        if one.overrides(hook) and other.overrides(hook):
            yield f"each decides {what}", None
    for head, acting in ((one, other), (other, one)):
        if "trains by reward" in head.traits and acting.overrides("influences"):
            yield f"{head.name} trains by reward, where {acting.name} would not act", None
        if "trains heads" in head.traits and acting.overrides("influences") and not acting.bears_heads:
            yield (
                f"{head.name} trains heads on classes, and {acting.name} acts where tokens of answers are trained",
                None,
            )
    for first, second, why in REFUSED:
        for a, b in ((one, other), (other, one)):
            if first in a.traits and second in b.traits:
                having = ((a, first), (b, second))
                freed = [f"method.{part.name}.{part.frees[trait]}" for part, trait in having if trait in part.frees]
                yield why.format(a.name, b.name), freed[0] if freed else None


def influences_of(method: Method, context: StageContext) -> list[Influence]:
    """What acts while a phase trains, each named after the method that it comes from."""
    found = []
    for part in parts_of(method):
        for influence in part.influences(context):
            influence.method = part.name
            found.append(influence)
    return found


class Stack(Method):
    """Several methods as one method.

    Args:
        parts: At least two that go together, in their order.
    """

    def __init__(self, parts: Sequence[Method]) -> None:
        super().__init__(MethodOptions())
        self.parts = tuple(parts)
        self.name = JOIN.join(part.name for part in parts)
        self.title = JOIN.join(part.title for part in parts)
        self.traits = frozenset(trait for part in parts for trait in part.traits)
        for hook in EXCLUSIVE:
            for part in parts:
                if part.overrides(hook):
                    setattr(self, hook, getattr(part, hook))

    def overrides(self, hook: str) -> bool:
        """Whether a method of the stack does."""
        return any(part.overrides(hook) for part in self.parts)

    def described(self) -> dict[str, object]:
        """The options of each method by its name."""
        return {part.name: part.described() for part in self.parts}

    @property
    def versions(self) -> object:
        """The version of each method by its name."""
        return {part.name: part.versions for part in self.parts}

    def tokens(self, stream: TaskStream) -> Sequence[str]:
        """Those of each, in order."""
        return [token for part in self.parts for token in part.tokens(stream)]

    def check(self, facts: Facts) -> None:
        """Asks each."""
        for part in self.parts:
            part.check(facts)

    def try_base(self, context: StageContext) -> None:
        """Asks each."""
        for part in self.parts:
            part.try_base(context)

    def forecast(self, context: StageContext, facts: Facts) -> Forecast:
        """That of all together."""
        found = [part.forecast(context, facts) for part in self.parts]
        return Forecast(
            _joined([one.mixture for one in found]),
            [writing for one in found for writing in one.writings],
            sum(one.read_tokens for one in found),
            [told for one in found for told in one.unknown],
        )

    def rehearsal(self, context: StageContext) -> Mixture:
        """The groups of each, in order."""
        return _joined([part.rehearsal(context) for part in self.parts])

    def influences(self, context: StageContext) -> Sequence[Influence]:
        """Those of each, in order."""
        return influences_of(self, context)

    def after_stage(self, context: StageContext) -> None:
        """Asks each, in order."""
        for part in self.parts:
            part.after_stage(context)

    def findings(self, context: StageContext) -> Findings | None:
        """Those of each, under its name."""
        found = {part.name: part.findings(context) for part in self.parts}
        return joined({name: one for name, one in found.items() if one is not None})

    def state_tensors(self) -> dict[str, np.ndarray]:
        """Those of each, below its name."""
        return {f"{part.name}/{key}": value for part in self.parts for key, value in part.state_tensors().items()}

    def state_json(self) -> dict[str, object]:
        """That of each, by its name."""
        return {part.name: part.state_json() for part in self.parts}

    def load_state(self, tensors: Mapping[str, np.ndarray], values: Mapping[str, object]) -> None:
        """Gives each what it gave."""
        for part in self.parts:
            own = {
                key.removeprefix(f"{part.name}/"): value
                for key, value in tensors.items()
                if key.startswith(f"{part.name}/")
            }
            kept = values[part.name]
            assert isinstance(kept, Mapping), "a method's JSON state is a mapping"
            part.load_state(own, kept)


def _joined(mixtures: Sequence[Mixture]) -> Mixture:
    """The groups of all, in order."""
    groups = [group for mixture in mixtures for group in mixture.groups]
    own = [mixture.own for mixture in mixtures if mixture.own is not None]
    rewritten = [mixture.rewritten for mixture in mixtures if mixture.rewritten is not None]
    assert first_double(group.name for group in groups) is None, "a method's groups have names of its own"
    assert len(own) < 2, "a method that weighs the stage's own rows has the trait that says so"
    assert len(rewritten) < 2, "a method that rewrites the stage's own rows has the trait that says so"
    return Mixture(tuple(groups), own[0] if own else None, rewritten[0] if rewritten else None)
