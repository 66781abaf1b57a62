"""The form of ROUGE-L follows the script of the answers."""

from __future__ import annotations

import pytest

from everlearn.data.scripts import rouge_form


@pytest.mark.parametrize(
    ("answers", "metric"),
    [
        (["The fox."], "rouge_l"),
        (["última novela", "Straße"], "rouge_l"),
        (["今天天气很好"], "rouge_l"),
        (["Быстрая лиса"], "rouge_l_unicode"),
        (["Ελληνικά"], "rouge_l_unicode"),
        (["तेज़ लोमड़ी"], "rouge_l_unicode"),
        (["الثعلب"], "rouge_l_unicode"),
        (["שלום"], "rouge_l_unicode"),
        (["여우가"], "rouge_l_unicode"),
        (["ありがとうございます、先生"], "rouge_l_unicode"),
        (["สุนัข"], "rouge_l_unicode"),
        (["the Russian word лиса means fox"], "rouge_l"),
        (["лиса", "x" * 3], "rouge_l_unicode"),
        (["лиса", "x" * 4], "rouge_l"),
        (["12", "..."], "rouge_l"),
        ([], "rouge_l"),
    ],
)
def test_the_published_form_is_for_latin_and_chinese(answers: list[str], metric: str) -> None:
    name, why = rouge_form(answers)
    assert name == metric
    assert bool(why) == (metric == "rouge_l_unicode")
