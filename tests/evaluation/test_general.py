"""Perplexity against Transformers' own loss; micro-task accuracy with a generator that answers by heart."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from everlearn.data.control_tokens import plain_ids
from everlearn.data.prompts import bos_ids
from everlearn.evaluation import general, likelihood
from everlearn.evaluation.general import microtask_accuracy, perplexity
from everlearn.generation.protocol import Sampling
from everlearn.models.loading import LoadedModel, load_model
from everlearn.recipe import ModelConfig
from tests.conftest import make_tiny_model
from tests.evaluation.by_heart import ByHeart, answered
from tests.odd_models import SWITCH, make_odd
from tests.tiny_models import make_tokenizer

TEXTS = ["the red cat runs", "a big dog sleeps and the small bird says yes", "no", "red red blue " * 9]


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def loaded(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    folder = make_tiny_model(tmp_path_factory.mktemp(f"tiny-{request.param}"), request.param, TEXTS, context=64)
    return load_model(ModelConfig(base=str(folder), tuning="full", device="cpu"))


def ids_of(loaded: LoadedModel, text: str) -> list[int]:
    return [*bos_ids(loaded.tokenizer), *plain_ids(text, loaded.tokenizer)]


def plain_loss(loaded: LoadedModel, ids: Sequence[int], scored_from: int = 1) -> float:
    """Summed loss of the tokens from `scored_from` on, from Transformers' labels."""
    row = torch.tensor([list(ids)])
    labels = row.clone()
    labels[:, :scored_from] = -100
    with torch.no_grad():
        return float(loaded.model(input_ids=row, labels=labels).loss) * (len(ids) - scored_from)


def test_perplexity_equals_transformers_loss_weighted_by_tokens(loaded: LoadedModel) -> None:
    found = perplexity(loaded, TEXTS)
    passages = [ids_of(loaded, text) for text in TEXTS]
    tokens = sum(len(ids) - 1 for ids in passages)
    expected = math.exp(sum(plain_loss(loaded, ids) for ids in passages) / tokens)
    assert found["tokens"] == tokens
    assert found["value"] == pytest.approx(expected, rel=1e-5)


def test_the_interval_holds_the_value(loaded: LoadedModel) -> None:
    found = perplexity(loaded, TEXTS)
    low, high = found["interval"]  # type: ignore[misc]
    assert low < found["value"] < high


def test_a_long_passage_is_read_in_windows_that_overlap_by_half(loaded: LoadedModel) -> None:
    width = 16
    ids = ids_of(loaded, " ".join(TEXTS) * 3)
    assert len(ids) > 3 * width
    found = perplexity(replace(loaded, context_length=width), [" ".join(TEXTS) * 3])
    total = plain_loss(loaded, ids[:width])
    done = width
    for start in range(width // 2, len(ids), width // 2):
        if done == len(ids):
            break
        end = min(start + width, len(ids))
        total += plain_loss(loaded, ids[start:end], done - start)
        done = end
    assert found["tokens"] == len(ids) - 1
    assert found["value"] == pytest.approx(math.exp(total / (len(ids) - 1)), rel=1e-5)


def test_a_longer_context_sees_no_more_than_the_longest_window(
    loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    text = " ".join(TEXTS) * 3
    expected = perplexity(replace(loaded, context_length=16), [text])
    assert general.WINDOW_TOKENS == 1024
    monkeypatch.setattr(general, "WINDOW_TOKENS", 16)
    assert perplexity(replace(loaded, context_length=64), [text]) == expected


@pytest.mark.parametrize("width", [2, 3, 7, 64])
@pytest.mark.parametrize("length", [2, 3, 6, 7, 8, 40])
def test_every_token_but_the_first_is_predicted_once(width: int, length: int) -> None:
    ids = tuple(range(length))
    scored = []
    for window in general._windows(0, ids, width):
        assert 1 <= window.scored_from < len(window.ids) <= width
        scored += window.ids[window.scored_from :]
    assert scored == list(ids[1:])


def test_batching_changes_nothing(loaded: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    together = perplexity(loaded, TEXTS)
    monkeypatch.setattr(likelihood, "tokens_at_once", lambda *_, **__: 1)
    assert perplexity(loaded, TEXTS)["value"] == pytest.approx(together["value"], rel=1e-6)
    assert perplexity(loaded, TEXTS) == perplexity(loaded, TEXTS)


@pytest.mark.parametrize("name", ["phi3", "phimoe", "deepseek_v32"])
def test_a_passage_s_loss_does_not_depend_on_the_longest_passage(name: str) -> None:
    tokenizer = make_tokenizer()
    model = make_odd(name)
    loaded = LoadedModel(model, tokenizer, "", "", 256, model.device)
    texts = ["red cat " * count for count in (2, 9, SWITCH // 2, 40)]
    losses = [plain_loss(loaded, ids_of(loaded, text)) for text in texts]
    tokens = sum(len(ids_of(loaded, text)) - 1 for text in texts)
    assert perplexity(loaded, texts)["value"] == pytest.approx(math.exp(sum(losses) / tokens), rel=1e-5)


def test_special_tokens_in_the_text_are_read_as_text(loaded: LoadedModel) -> None:
    plain = perplexity(loaded, ["cat </s> dog"])
    assert plain["tokens"] == len(ids_of(loaded, "cat </s> dog")) - 1
    assert loaded.tokenizer.eos_token_id not in ids_of(loaded, "cat </s> dog")


def test_an_adapter_can_be_measured(tiny_model: Path) -> None:
    config = ModelConfig(base=str(tiny_model), device="cpu")
    fresh = load_model(config, trainable=True)
    assert perplexity(fresh, TEXTS)["value"] == pytest.approx(perplexity(load_model(config), TEXTS)["value"])


def item(answer: str, family: str) -> dict[str, str]:
    return {"prompt": "the cat says\n\nInput: a\nOutput:", "answer": answer, "family": family}


def test_microtasks_are_counted_in_all_and_by_family() -> None:
    items = [item("red", "label"), item("blue", "label"), item("the dog", "copy")]
    found = microtask_accuracy(ByHeart(*map(answered, (" red", " green", " the dog\n"))), make_tokenizer(), items)
    families = found["families"]
    assert found["value"] == pytest.approx(200 / 3)
    assert found["rows"] == 3
    assert {name: (part["value"], part["rows"]) for name, part in families.items()} == {  # type: ignore[attr-defined]
        "label": (50.0, 2),
        "copy": (100.0, 1),
    }
    low, high = found["interval"]  # type: ignore[misc]
    assert 0 <= low <= 200 / 3 <= high <= 100


def test_punctuation_and_capitals_count_in_microtasks() -> None:
    items = [item("red + blue", "join"), item("Red", "form")]
    assert microtask_accuracy(ByHeart(answered("red - blue"), answered("red")), make_tokenizer(), items)["value"] == 0
    longer = microtask_accuracy(ByHeart(answered("Red cat"), answered("red + blue +")), make_tokenizer(), items[::-1])
    assert longer["value"] == 0


def test_microtask_answers_end_at_a_blank_line_and_have_room_for_the_longest() -> None:
    tokenizer = make_tokenizer()
    generator = ByHeart(answered(""), answered(""))
    items = [item("red", "a"), item("the red cat runs", "a")]
    microtask_accuracy(generator, tokenizer, items)
    assert generator.sampling == Sampling(max_new_tokens=4 + general.SPARE_TOKENS, stop=("\n\n",))
    assert generator.prompts[0][0] == tokenizer.bos_token_id
    assert tokenizer.eos_token_id not in generator.prompts[0]
