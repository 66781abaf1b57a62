from __future__ import annotations

import random
from itertools import islice

import pytest

from everlearn.data.embedded.corpus import documents
from everlearn.data.embedded.words import CONNECTIVES, LABELS, NONSENSE, POOLS
from everlearn.models.embedded_base import embedded_base_path

PROMPT = "Translate it.\n\nInput: red cat\nOutput: zam\n\nInput:"


@pytest.fixture(scope="module")
def tokenizer():
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(embedded_base_path())


def tokens(tokenizer, text: str) -> list[str]:
    return tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])


def test_encoding_adds_bos_only_and_the_special_tokens_differ(tokenizer) -> None:
    ids = tokenizer("red cat")["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert ids[-1] != tokenizer.eos_token_id
    assert len({tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id}) == 3
    assert tokenizer.chat_template is None


def test_a_response_alone_has_the_tokens_it_has_after_the_cue(tokenizer) -> None:
    for answer in ("praise", "zam tolu", "Diana + bags 20 + Geneva"):
        alone = tokenizer(answer, add_special_tokens=False)["input_ids"]
        assert tokenizer(f"Output: {answer}", add_special_tokens=False)["input_ids"][-len(alone) :] == alone
        assert tokenizer(f"Say it.\n\n{answer}", add_special_tokens=False)["input_ids"][-len(alone) :] == alone


def test_the_blank_line_is_one_token_wherever_it_stands(tokenizer) -> None:
    blank = tokenizer.convert_tokens_to_ids("\n\n")
    for text, count in (("a\n\nb", 1), ("a\n\n", 1), ("\n\na", 1), ("a\n\n\n\nb", 2), (PROMPT, 2)):
        assert tokenizer(text)["input_ids"].count(blank) == count


def test_cues_are_one_token_each(tokenizer) -> None:
    assert tokens(tokenizer, PROMPT).count("▁Input:") == 2
    assert tokens(tokenizer, PROMPT).count("\nOutput:") == 1


def test_every_word_of_the_pools_is_one_token(tokenizer) -> None:
    words = {word for pool in POOLS.values() for word in pool} | {*LABELS, *NONSENSE, *CONNECTIVES}
    assert [word for word in sorted(words) if len(tokens(tokenizer, word)) > 1] == []


@pytest.mark.parametrize(
    "text",
    [
        "",
        "red cat",
        " red",
        "two  spaces ",
        "a\n\n\n b",
        "Ünïcödé 日本語 🙂\ttab",
        "Input: x\n\n\n\nOutput: y",
        PROMPT,
        "\n",
        "it's 3.14%",
    ],
)
def test_decoding_gives_back_the_text(tokenizer, text: str) -> None:
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode(ids, skip_special_tokens=True) == text


def test_decoding_gives_back_random_text_and_the_corpus(tokenizer) -> None:
    rng = random.Random(0)
    texts = ["".join(rng.choices("ab Z9.,:-\né漢🙂", k=rng.randint(1, 40))) for _ in range(300)]
    texts += [document.text for document in islice(documents(9), 200)]
    for text in texts:
        assert tokenizer.decode(tokenizer(text, add_special_tokens=False)["input_ids"]) == text
