"""Which language an answer is in."""

from __future__ import annotations

import sys

import pytest

from everlearn.evaluation.languages import languages_of

TEXTS = ["Das Haus ist heute sehr schön und groß.", "The house is very nice and large today.", "今天天气很好。"]


def test_languages_are_told_by_their_names() -> None:
    pytest.importorskip("py3langid", reason="py3langid is not installed")
    assert languages_of(TEXTS) == ["German", "English", "Chinese"]


def test_nothing_is_told_where_the_library_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "py3langid", None)
    monkeypatch.setitem(sys.modules, "py3langid.langid", None)
    assert languages_of(TEXTS) is None
