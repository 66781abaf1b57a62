"""General texts as rows: GeRe's golden encodings, windows, and what is refused or told."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from everlearn.data.general_set import read_general_set
from everlearn.data.text import TextSource
from everlearn.errors import DataError
from everlearn.files import write_jsonl
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.rows import EncodedRow

GOLDEN = Path(__file__).parents[1] / "golden" / "gere"
CASES = json.loads((GOLDEN / "encode.json").read_text())["cases"]
PUBLISHED = 563


@pytest.fixture(scope="module")
def tokenizer():
    """Word `w17` is id 17."""
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = Tokenizer(models.WordLevel({f"w{at}": at for at in range(1000)}, unk_token="w999"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, bos_token="w1", eos_token="w2")


def source_of(folder: Path, texts: list[str]) -> TextSource:
    write_jsonl(folder / "texts.jsonl", ({"text": text} for text in texts))
    return TextSource(str(folder / "texts.jsonl"))


def words(count: int, first: int = 3) -> str:
    return " ".join(f"w{first + at}" for at in range(count))


@pytest.mark.parametrize("case", [pytest.param(case, id=case["id"]) for case in CASES])
def test_texts_are_encoded_as_published(case: dict, tmp_path: Path, tokenizer) -> None:
    texts = case.get("texts") or [words(case["text_words"])]
    kept = [at for at, text in enumerate(texts) if len(text.split()) > 1]  # one token predicts nothing: passed over
    found = read_general_set(source_of(tmp_path, texts), tokenizer, count=len(kept), window=PUBLISHED, windows="first")
    ids = [list(row.tokens) for row in found.rows]
    if "expected_length" in case:
        assert [len(one) for one in ids] == [case["expected_length"]]
        return
    assert ids == [case["expected_ids"][at] for at in kept]
    padded = AnswerLoss.padded(
        SimpleNamespace(pad_id=case["pad_id"], device=torch.device("cpu")),  # type: ignore[arg-type]
        [EncodedRow(tuple(one), 0, is_text=True) for one in ids],
    )
    for name, of_case in (("input_ids", "ids"), ("labels", "labels"), ("attention_mask", "mask")):
        assert padded[name].tolist() == [case[f"expected_padded_{of_case}"][at] for at in kept]


def test_the_first_texts_are_taken_and_what_is_cut_or_passed_over_is_told(tmp_path: Path, tokenizer) -> None:
    source = source_of(tmp_path, [words(12), "w5", "", words(4), words(10), words(10, first=50)])
    found = read_general_set(source, tokenizer, count=3, window=10, windows="first")
    assert [len(row.tokens) for row in found.rows] == [10, 4, 10]
    assert found.rows[0].output == words(10)
    assert all(row.form == "text" for row in found.rows)
    assert found.notes == (
        "1 of 4 texts are longer than 10 tokens and lose their end",
        "1 of 4 texts are shorter than 10 tokens and stay so",
        "1 of 4 texts have no token to predict and are passed over",
        "1 of 6 rows hold no text and are passed over",
    )


def test_short_texts_are_joined_into_windows_of_full_length(tmp_path: Path, tokenizer) -> None:
    source = source_of(tmp_path, ["w5 w6 w7", "w8 w9", "w10 w11 w12 w13"])
    found = read_general_set(source, tokenizer, count=2, window=6, windows="packed", first=(1,))
    assert [row.tokens for row in found.rows] == [(1, 5, 6, 7, 2, 8), (1, 9, 2, 10, 11, 12)]
    assert found.notes == ("3 texts are joined and cut into 2 windows of 6 tokens",)


@pytest.mark.parametrize(
    ("texts", "settings", "words_"),
    [
        ([], {}, "holds no text: name a file, a folder or a dataset with texts"),
        (["", " "], {}, "holds no text"),
        (
            ["w5 w6", "w7 w8"],
            {},
            "it has 2 texts of two tokens and more, 5 were asked for: add texts, or set count to 2",
        ),
        (["w5", "w7"], {}, "it has 0 texts of two tokens and more, 5 were asked for: add texts, or name longer texts"),
        (["w5 w6", "w7 w8"], {"windows": "packed"}, "its 2 texts fill 1 windows of 4 tokens, 5 were asked for"),
        (
            ["w5 w6", " w7 w8 "],
            {"measured": ["w7 w8\n"]},
            "text 2 of .* is one of those on which perplexity is measured",
        ),
    ],
)
def test_what_cannot_be_replayed_is_refused_with_the_remedy(
    tmp_path: Path, tokenizer, texts: list[str], settings: dict, words_: str
) -> None:
    with pytest.raises(DataError, match=words_):
        read_general_set(
            source_of(tmp_path, texts), tokenizer, **{"count": 5, "window": 4, "windows": "first", **settings}
        )


def test_a_source_without_the_column_is_refused_with_those_it_has(tmp_path: Path, tokenizer) -> None:
    write_jsonl(tmp_path / "texts.jsonl", [{"body": "w5 w6"}])
    with pytest.raises(DataError, match=r"line 1: there is no 'text'; it has body\. Set 'column'"):
        read_general_set(TextSource(str(tmp_path / "texts.jsonl")), tokenizer, count=1, window=4, windows="first")
