from __future__ import annotations

from everlearn.methods.registry import method_class, method_names


def test_each_method_has_a_title_of_its_own() -> None:
    titles = [method_class(name).title for name in method_names()]
    assert len(set(titles)) == len(titles)
    assert {"SSR", "A-GEM", "LwF", "random rehearsal"} <= set(titles)
