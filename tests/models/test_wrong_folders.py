"""No wrong value of a model folder ends in a traceback or a hang: it is one sentence, or does no harm."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest

from everlearn.errors import ModelError
from everlearn.models.checking import check_model
from everlearn.models.loading import load_model
from everlearn.recipe import LoraConfig, ModelConfig
from tests.malformed.model_folders import Fault, faults_of, spoil
from tests.tiny_models import TARGETS, save_tiny_model, save_with_eyes

EVERY = 17
"""One of so many faults is tried; the numbers have no common divisor with the count of values."""


@pytest.fixture(scope="module", params=["llama", "gpt2"])
def folder(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny_model(tmp_path_factory.mktemp("models") / request.param, request.param)


def config(folder: Path, architecture: str = "llama") -> ModelConfig:
    return ModelConfig(base=str(folder), device="cpu", lora=LoraConfig(targets=TARGETS[architecture]))


def use(folder: Path, architecture: str = "llama") -> str | None:
    """What a run does with a model before it trains; the sentence that refuses it, or None."""
    try:
        check_model(config(folder, architecture))
        load_model(config(folder, architecture), trainable=True)
    except ModelError as error:
        return str(error)
    return None


def refusal(folder: Path) -> str:
    told = use(folder)
    assert told is not None
    return told


def test_no_wrong_value_ends_in_a_traceback(folder: Path, tmp_path: Path) -> None:
    refused = tried = 0
    for fault in list(faults_of(folder))[::EVERY]:
        spoilt = spoil(folder, fault, tmp_path / "spoilt")
        tried += 1
        try:
            told = use(spoilt, folder.name)
        except Exception as error:  # says which
            pytest.fail(f"{fault} ends in {type(error).__name__}: {error}")
        if told is not None:
            refused += 1
            assert "\n" not in told, fault
            assert told.startswith(f"model.base {spoilt}"), (fault, told)
            assert fault.file.split(".")[0].split("_")[0] in told or "tokenizer" in fault.file, (fault, told)
    assert tried > 90
    assert refused > tried // 2


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("hidden_size", "a"),
        ("hidden_size", 10**9),
        ("hidden_size", 10**30),
        ("vocab_size", 10**12),
        ("vocab_size", 20),
        ("vocab_size", -1),
        ("num_attention_heads", 0),
        ("num_attention_heads", 7),
        ("num_attention_heads", -4),
        ("num_hidden_layers", 10_000_000),
        ("num_hidden_layers", 0),
        ("num_hidden_layers", 3),
        ("hidden_act", "nonesuch"),
        ("dtype", "nonesuch"),
        ("dtype", 7),
        ("model_type", ["llama"]),
        ("model_type", None),
        ("architectures", "LlamaForCausalLM"),
        ("rms_norm_eps", math.nan),
        ("rms_norm_eps", -1.0),
        ("rms_norm_eps", 1e300),
        ("attention_dropout", 1.0),
        ("attention_dropout", -0.1),
        ("attention_dropout", None),
        ("rope_parameters", {"rope_type": "default", "rope_theta": "many"}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": -1.0}),
        ("rope_parameters", {"rope_type": "default", "rope_theta": 0.0}),
        ("rope_parameters", {"rope_type": "nonesuch", "rope_theta": 1e4}),
        ("tie_word_embeddings", "false"),
        ("max_position_embeddings", 0),
        ("max_position_embeddings", -1),
        ("max_position_embeddings", 1.5),
        ("max_position_embeddings", "many"),
        ("eos_token_id", 10**6),
        ("eos_token_id", [2, -5]),
        ("eos_token_id", True),
        ("bos_token_id", 10**6),
        ("pad_token_id", 10**6),
        ("pad_token_id", -2),
        ("num_labels", 10**9),
        ("sliding_window", 0),
        ("text_config", {"model_type": []}),
    ],
)
def test_a_wrong_value_of_the_configuration_is_told_with_its_key(
    tmp_path: Path, tmp_path_factory: pytest.TempPathFactory, key: str, value: object
) -> None:
    base = save_tiny_model(tmp_path / "base")
    told = refusal(spoil(base, Fault("config.json", (key,), value), tmp_path / "spoilt"))
    others = (
        "config.json and the weights",
        "config.json describes",
        "the weights in",
        "takes at least",
        "its embeddings only 20",
    )
    if not (key in ("hidden_size", "vocab_size", "num_hidden_layers") and any(words in told for words in others)):
        assert key in told  # else which of both is wrong, nobody knows
        assert "config.json" in told
    assert "\n" not in told


def test_a_key_at_fault_is_found_where_the_error_does_not_name_it(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    told = refusal(spoil(base, Fault("config.json", ("hidden_act",), "nonesuch"), tmp_path / "spoilt"))
    assert "config.json: hidden_act cannot be 'nonesuch' (KeyError 'nonesuch'): mend it." in told


@pytest.mark.parametrize(("key", "words"), [("hidden_size", "the shape (116, 0)"), ("text_config", "describes")])
def test_sizes_that_the_weights_cannot_have_are_told_before_memory_is_taken(
    tmp_path: Path, key: str, words: str
) -> None:
    base = save_with_eyes(tmp_path / "eyes") if key == "text_config" else save_tiny_model(tmp_path / "tiny")
    value = {} if key == "text_config" else 0
    spoilt = spoil(base, Fault("config.json", (key,), value), tmp_path / "spoilt")
    with pytest.raises(ModelError, match=re.escape(words)):
        check_model(ModelConfig(base=str(spoilt), device="cpu"))


def test_no_pad_token_may_be_written_as_minus_one(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    spoilt = spoil(base, Fault("config.json", ("pad_token_id",), -1), tmp_path / "spoilt")
    assert load_model(config(spoilt)).model.get_input_embeddings().padding_idx is None


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", ["model.embed_tokens.weight", "model.norm.weight", "lm_head.weight"])
def test_weights_that_are_no_numbers_are_told_with_the_tensor(tmp_path: Path, name: str, value: float) -> None:
    from safetensors.torch import load_file, save_file

    base = save_tiny_model(tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    tensors[name].view(-1)[-1] = value
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    assert f"its tensor {name} holds numbers that are infinite or none at all" in refusal(base)


def test_a_token_beyond_the_embeddings_is_told_wherever_it_hides(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base")
    file = base / "tokenizer.json"
    tree = json.loads(file.read_text())
    for change in ("vocabulary", "beginning"):
        spoilt = json.loads(file.read_text())
        if change == "vocabulary":
            spoilt["model"]["vocab"]["cat"] = 10**6
        else:
            spoilt["post_processor"]["special_tokens"]["<s>"]["ids"] = [10**6]
        file.write_text(json.dumps(spoilt))
        assert "its embeddings only" in refusal(base)
        file.write_text(json.dumps(tree))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("use_cache", "many"),
        ("eos_token_id", 10**6),
        ("do_sample", 7),
        ("early_stopping", "z"),
        ("top_k", math.nan),
    ],
)
def test_a_wrong_value_of_the_generation_configuration_is_told(tmp_path: Path, key: str, value: object) -> None:
    base = save_tiny_model(tmp_path / "base")
    assert "generation_config.json" in refusal(
        spoil(base, Fault("generation_config.json", (key,), value), tmp_path / "spoilt")
    )


def test_an_end_token_id_of_an_absent_tokenizers_end_token_may_be_anything_but_no_traceback(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", eos=False)
    for content in (b"[]", b"null", b'{"eos_token_id": {}}', b'{"eos_token_id": [[2]]}', b'{"eos_token_id": "a"}'):
        assert "generation_config.json" in refusal(
            spoil(base, Fault("generation_config.json", (), content), tmp_path / "spoilt")
        )


def test_an_unfinished_configuration_of_many_layers_is_refused_at_once(tmp_path: Path) -> None:
    base = save_tiny_model(tmp_path / "base", "qwen3")
    for keys, value in ((("num_hidden_layers",), 10**9), (("text_config",), {"num_hidden_layers": 10**9})):
        spoilt = spoil(base, Fault("config.json", keys, value), tmp_path / "spoilt")
        assert "num_hidden_layers is more than 1,024, the most that is built" in refusal(spoilt)


def test_the_models_of_these_tests_are_whole(folder: Path) -> None:
    assert use(folder, folder.name) is None


def test_a_panic_of_a_library_shows_nothing_but_the_sentence(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    base = save_tiny_model(tmp_path / "base")
    fault = Fault("tokenizer.json", ("model", "continuing_subword_prefix"), "a long prefix")
    tree = json.loads((base / "tokenizer.json").read_text())
    tree["model"] |= {"type": "BPE", "merges": [["a", "b"]], "vocab": {"a": 0, "b": 1, "ab": 2}}
    (base / "tokenizer.json").write_text(json.dumps(tree))
    assert "its tokenizer cannot be read" in refusal(spoil(base, fault, tmp_path / "spoilt"))
    assert "panicked" not in capfd.readouterr().err
