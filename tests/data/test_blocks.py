"""Token files: nothing lost, nothing padded, held-out apart, made once."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest

from everlearn.data import blocks
from everlearn.data.blocks import TokenFiles, tokenise
from everlearn.data.text import TextSource
from everlearn.errors import DataError
from everlearn.files import held
from tests.tiny_models import make_tokenizer

WORDS = "the cat runs the dog sleeps a red bird says yes".split()


def texts(count: int) -> list[str]:
    rng = np.random.default_rng(0)
    return [" ".join([*rng.choice(WORDS, 6), str(number)]) for number in range(count)]


def token_files(folder: Path, documents: list[str], tokenizer=None, **options) -> TokenFiles:
    path = folder / "text.txt"
    path.write_text("\n\n".join(documents))
    settings = {"what": "version v1", "tokenizer_fingerprint": "t", "heldout_ratio": 0.2, **options}
    return tokenise(TextSource(str(path)), tokenizer or make_tokenizer(), folder / "cache", **settings)


def read_all(found: TokenFiles, name: str) -> list[int]:
    return np.fromfile(found.folder / f"{name}.bin", dtype=found.dtype).tolist()


def test_blocks_are_the_documents_one_after_the_other_with_end_tokens(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    documents = texts(40)
    found = token_files(tmp_path, documents, tokenizer, heldout_ratio=0.0)
    expected = [token for text in documents for token in [*tokenizer(text)["input_ids"], tokenizer.eos_token_id]]
    assert read_all(found, "train") == expected
    assert found.train_tokens == len(expected)
    rows = found.train(16)
    assert len(rows) == len(expected) // 16
    assert rows.read([2, 0]).tolist() == [expected[32:48], expected[:16]]


def test_heldout_documents_are_whole_and_apart(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    documents = texts(200)
    found = token_files(tmp_path, documents, tokenizer)
    sides = {}
    for name in ("train", "heldout"):
        ids = read_all(found, name)
        sides[name] = set(tokenizer.decode(ids).replace("<s>", "").split("</s>"))
    assert not {text.strip() for text in sides["train"]} & {text.strip() for text in sides["heldout"]} - {""}
    assert 0.1 < found.heldout_tokens / (found.heldout_tokens + found.train_tokens) < 0.3


def test_copies_of_a_document_stay_on_one_side(tmp_path: Path) -> None:
    found = token_files(tmp_path, ["the cat runs"] * 50)
    assert 0 in (found.train_tokens, found.heldout_tokens)


def test_the_same_text_is_not_tokenised_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = token_files(tmp_path, texts(30))
    monkeypatch.setattr(blocks, "_write", None)
    assert token_files(tmp_path, texts(30)) == first
    with pytest.raises(TypeError):
        token_files(tmp_path, texts(30), tokenizer_fingerprint="another")


def test_a_kill_while_tokenising_leaves_nothing_that_is_taken_for_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    whole = token_files(tmp_path / "a", texts(30))
    monkeypatch.setattr(blocks, "write_json", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(KeyboardInterrupt):
        token_files(tmp_path / "b", texts(30))
    monkeypatch.undo()
    again = token_files(tmp_path / "b", texts(30))
    assert read_all(again, "train") == read_all(whole, "train")


def test_what_a_killed_process_had_tokenised_is_deleted_and_what_a_living_one_has_is_not(tmp_path: Path) -> None:
    made = token_files(tmp_path, texts(20)).folder
    left, living = (made.with_name(f".{made.name}.{number}") for number in (1, 2))
    for folder in (left, living):
        folder.mkdir()
        (folder / "train.bin").write_bytes(b"half")
    with held(living):
        for folder in (left, living):
            os.utime(folder, (0, 0))
        token_files(tmp_path, texts(20))
    assert not left.exists()
    assert (living / "train.bin").exists()
    assert {path.name for path in made.iterdir()} == {"train.bin", "heldout.bin", "blocks.json"}


def test_text_that_looks_like_the_end_token_does_not_end_a_document(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    found = token_files(tmp_path, ["the cat </s> runs"], tokenizer, heldout_ratio=0.0)
    assert read_all(found, "train").count(tokenizer.eos_token_id) == 1


def test_own_heldout_text_leaves_all_documents_to_training(tmp_path: Path) -> None:
    tokenizer = make_tokenizer()
    (tmp_path / "held.txt").write_text("a red bird")
    found = token_files(tmp_path, texts(20), tokenizer, heldout=TextSource(str(tmp_path / "held.txt")))
    assert read_all(found, "heldout") == [*tokenizer("a red bird")["input_ids"], tokenizer.eos_token_id]
    assert read_all(found, "train").count(tokenizer.eos_token_id) == 20


def test_a_version_without_text_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"version v1 has no text: .*text\.txt"):
        token_files(tmp_path, ["  ", "\n"])


def test_many_batches_keep_the_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    documents = texts(300)
    whole = read_all(token_files(tmp_path, documents), "train")
    monkeypatch.setattr(blocks, "_BATCH_CHARACTERS", 50)
    assert read_all(token_files(tmp_path, documents, tokenizer_fingerprint="again"), "train") == whole
