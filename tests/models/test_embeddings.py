"""Mean-pooled hidden states of the model at hand, and the sentence-transformers option."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import everlearn.models.embeddings as embeddings
from everlearn.data.control_tokens import plain_ids
from everlearn.data.prompts import bos_ids
from everlearn.errors import MissingExtraError, ModelError
from everlearn.models.embeddings import embed_sentences, embed_texts, sentence_fingerprint
from everlearn.models.loading import LoadedModel, base_of, load_model
from everlearn.recipe import LoraConfig, ModelConfig
from tests.odd_models import SWITCH, make_kind, make_odd
from tests.tiny_models import make_tokenizer

TEXTS = ["the red cat", "Input: yes", "a", "the red cat and the blue dog went out for a long long walk", ""]


def test_a_vector_is_the_mean_of_the_text_s_last_hidden_states(folder: Path) -> None:
    loaded = load_model(ModelConfig(base=str(folder), dtype="float32"))
    vectors = embed_texts(loaded, TEXTS)
    assert vectors.dtype == np.float32
    for text, vector in zip(TEXTS[:-1], vectors, strict=False):
        ids = loaded.tokenizer(text, return_tensors="pt")["input_ids"]  # with BOS
        with torch.no_grad():
            states = loaded.model(ids, output_hidden_states=True).hidden_states[-1][0]
        np.testing.assert_allclose(vector, states[1:].mean(0).numpy(), atol=1e-5)


def test_batching_does_not_change_vectors(folder: Path) -> None:
    loaded = load_model(ModelConfig(base=str(folder), dtype="float32"))
    whole, single = embed_texts(loaded, TEXTS), embed_texts(loaded, TEXTS, batch_tokens=1)
    np.testing.assert_allclose(whole, single, atol=1e-5)


def of_model(model) -> LoadedModel:
    return LoadedModel(model, make_tokenizer(), "", "", 256, model.device)


@pytest.mark.parametrize("name", ["phi3", "phimoe", "deepseek_v32"])
def test_a_vector_does_not_depend_on_the_longest_text(name: str) -> None:
    loaded = of_model(make_odd(name))
    texts = ["red cat " * count for count in (2, 9, SWITCH // 2, 40)]
    alone = np.concatenate([embed_texts(loaded, [text]) for text in texts])
    np.testing.assert_allclose(embed_texts(loaded, texts), alone, atol=1e-5)


LLAMA4 = {"num_local_experts": 2, "head_dim": 8, "intermediate_size_mlp": 64, "num_key_value_heads": 2}


@pytest.mark.parametrize(("kind", "more"), [("llama4_text", LLAMA4), ("modernbert-decoder", {})])
def test_models_that_hide_their_decoder_are_embedded(kind: str, more: dict[str, int]) -> None:
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    loaded = of_model(make_kind(kind, **sizes, **more))
    assert embed_texts(loaded, TEXTS).shape == (len(TEXTS), 32)


def test_texts_are_cut_to_the_context_and_to_the_longest_text(
    tiny_model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded = load_model(ModelConfig(base=str(tiny_model), dtype="float32"))
    text = " ".join(["cat", "dog", "red", "blue"] * 500)
    whole = [*bos_ids(loaded.tokenizer), *plain_ids(text, loaded.tokenizer)]
    fed: list[list[int]] = []
    loaded.model.get_input_embeddings().register_forward_hook(lambda _, ids, __: fed.append(ids[0][0].tolist()))
    embed_texts(loaded, [text])
    embed_texts(replace(loaded, context_length=9), [text])
    monkeypatch.setattr(embeddings, "LONGEST_TEXT", 6)
    embed_texts(loaded, [text])
    assert fed == [whole[: min(512, loaded.context_length)], whole[:9], whole[:6]]


def test_an_empty_text_is_the_end_token_s(tiny_model: Path) -> None:
    loaded = load_model(ModelConfig(base=str(tiny_model), dtype="float32"))
    ids = torch.tensor([[*bos_ids(loaded.tokenizer), loaded.tokenizer.eos_token_id]])
    with torch.no_grad():
        states = loaded.model(ids, output_hidden_states=True).hidden_states[-1][0]
    np.testing.assert_allclose(embed_texts(loaded, [""])[0], states[-1].numpy(), atol=1e-5)


def test_no_texts_give_no_vectors(tiny_model: Path) -> None:
    assert embed_texts(load_model(ModelConfig(base=str(tiny_model))), []).shape[0] == 0


def test_the_base_within_an_adapted_model_gives_the_base_s_vectors(tiny_model: Path) -> None:
    plain = load_model(ModelConfig(base=str(tiny_model)))
    adapted = load_model(ModelConfig(base=str(tiny_model), lora=LoraConfig(rank=4)), trainable=True)
    with torch.no_grad():
        for name, parameter in adapted.model.named_parameters():
            if "lora_B" in name:
                parameter.normal_()
    assert not np.allclose(embed_texts(adapted, TEXTS), embed_texts(plain, TEXTS), atol=1e-4)
    with base_of(adapted) as base:
        np.testing.assert_allclose(embed_texts(base, TEXTS), embed_texts(plain, TEXTS), atol=1e-6)


def test_progress_counts_texts(tiny_model: Path) -> None:
    seen: list[tuple[int, int]] = []
    loaded = load_model(ModelConfig(base=str(tiny_model)))
    embed_texts(loaded, TEXTS, batch_tokens=16, tick=lambda done, of: seen.append((done, of)))
    assert seen[-1] == (5, 5)
    assert seen == sorted(seen)


def test_an_absent_sentence_transformers_is_refused_with_the_extra_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(embeddings, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"pip install 'everlearn\[embeddings\]'"):
        embed_sentences("some/model", ["x"])


class SentenceModel:
    made: list[dict[str, object]] = []

    def __init__(self, name: str, **values: object) -> None:
        if (Path(name) / "fails").exists():
            raise OSError("no such model")
        self.made.append(values)

    def encode(self, texts: list[str], **_: object) -> np.ndarray:
        return np.ones((len(texts), 3), dtype=np.float64)


@pytest.fixture
def sentences(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A folder, and a package that loads it."""
    monkeypatch.setattr(embeddings, "find_spec", lambda name: object())
    monkeypatch.setitem(sys.modules, "sentence_transformers", SimpleNamespace(SentenceTransformer=SentenceModel))
    monkeypatch.setattr(SentenceModel, "made", [])
    (tmp_path / "1_Dense").mkdir()
    (tmp_path / "modules.json").write_text('[{"type": "sentence_transformers.models.Transformer"}]')
    return tmp_path


def test_a_sentence_model_is_loaded_from_safetensors_and_without_code_of_its_own(sentences: Path) -> None:
    assert embed_sentences(str(sentences), ["x", "y"]).shape == (2, 3)
    assert SentenceModel.made == [
        {"device": None, "trust_remote_code": False, "model_kwargs": {"use_safetensors": True}}
    ]
    (sentences / "fails").write_text("")
    with pytest.raises(ModelError, match=r"cannot be loaded \(no such model\)"):
        embed_sentences(str(sentences), ["x"])


def test_pickles_and_classes_from_elsewhere_in_a_sentence_model_are_refused(sentences: Path) -> None:
    (sentences / "1_Dense" / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(ModelError, match=r"pytorch_model\.bin is pickled"):
        embed_sentences(str(sentences), ["x"])
    (sentences / "1_Dense" / "model.safetensors").write_bytes(b"")
    embed_sentences(str(sentences), ["x"])
    for content in ('[{"type": "antigravity.Module"}]', "[1]", "{", '{"a": 1}'):
        (sentences / "modules.json").write_text(content)
        with pytest.raises(ModelError, match=r"modules\.json names a class|cannot be loaded"):
            embed_sentences(str(sentences), ["x"])
    assert len(SentenceModel.made) == 1


def test_of_a_sentence_model_on_the_hub_no_pickle_is_fetched(sentences: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import huggingface_hub

    def fetch(name: str, ignore_patterns: list[str]) -> str:
        assert name == "some/model"
        assert {"*.bin", "*.pt", "*.pkl"} <= set(ignore_patterns)
        return str(sentences)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", fetch)
    assert embed_sentences("some/model", ["x"]).shape == (1, 3)


def test_the_content_of_a_sentence_model_s_folder_counts(sentences: Path) -> None:
    first = sentence_fingerprint(str(sentences))
    (sentences / "1_Dense" / "config.json").write_text("{}")
    assert sentence_fingerprint(str(sentences)) != first
    assert sentence_fingerprint("some/model") == ""
