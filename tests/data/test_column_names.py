"""The columns of well-known tables are found by their names, both texts of a pair among them."""

from __future__ import annotations

import pytest

from everlearn.data.column_names import guess_columns

PAIRS = {
    "mnli": ("idx premise hypothesis label", ["premise", "hypothesis"], "label"),
    "rte": ("sentence1 sentence2 label idx", ["sentence1", "sentence2"], "label"),
    "sick": ("id sentence_A sentence_B label", ["sentence_A", "sentence_B"], "label"),
    "qqp": ("question1 question2 label", ["question1", "question2"], "label"),
    "qnli": ("question sentence label", ["question", "sentence"], "label"),
    "boolq": ("question passage label idx", ["question", "passage"], "label"),
    "squad": ("id title context question answers", ["context", "question"], "answers"),
    "race": ("article question answer", ["article", "question"], "answer"),
    "multirc": ("paragraph question answer label", ["paragraph", "question", "answer"], "label"),
    "copa": ("premise choice1 choice2 question label", ["premise", "choice1", "choice2", "question"], "label"),
    "wic": ("word sentence1 sentence2 label", ["word", "sentence1", "sentence2"], "label"),
    "scored pairs": ("text1 text2 score label", ["text1", "text2"], "label"),
    "search": ("query document label", ["query", "document"], "label"),
    "evidence": ("claim evidence label", ["claim", "evidence"], "label"),
    "dbpedia": ("label title content", ["title", "content"], "label"),
    "reviews": ("title review label", ["title", "review"], "label"),
    "sst2": ("idx sentence label", "sentence", "label"),
    "imdb": ("text label", "text", "label"),
    "translation": ("source target", "source", "target"),
    "dolly": ("instruction context response category", "context", "response"),
    "orca": ("id system_prompt question response", "question", "response"),
}


@pytest.mark.parametrize("name", PAIRS)
def test_columns_are_found_by_their_usual_names(name: str) -> None:
    columns, asked, output = PAIRS[name]
    found = guess_columns(dict.fromkeys(columns.split(), "x"))
    assert found is not None
    assert (found["input"], found["output"]) == (asked, output)
    assert found.get("system") == ("system_prompt" if name == "orca" else None)


def test_a_column_that_holds_no_text_is_not_joined() -> None:
    row = {"question": "q", "context": ["c"], "answer": "a"}
    assert guess_columns(row) == {"input": "question", "output": "answer"}
