from __future__ import annotations

import pytest

from everlearn.errors import RecipeError
from everlearn.methods.registry import make_method, method_class, method_names
from tests.methods.contexts import facts_of, number_stream


def test_each_method_has_a_title_of_its_own() -> None:
    titles = [method_class(name).title for name in method_names()]
    assert len(set(titles)) == len(titles)
    assert {"SSR", "A-GEM", "LwF", "random rehearsal"} <= set(titles)


@pytest.mark.parametrize("name", [name for name in method_names() if method_class(name).lora_alone])
def test_methods_of_adapters_alone_refuse_full_tuning(name: str) -> None:
    says = rf"^method {name}: \w+ .*, and model\.tuning: full (has|would|moves) .*: set model\.tuning to lora\.$"
    with pytest.raises(RecipeError, match=says):
        make_method(name, {}).check(facts_of(number_stream(), tuning="full"))
