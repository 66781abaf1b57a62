"""Base models in GGUF files, written by the package gguf as llama.cpp's converter writes them."""

from __future__ import annotations

import json
import math
import shutil
import threading
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from transformers import AutoTokenizer

from everlearn.errors import ModelError
from everlearn.files import read_json
from everlearn.models import gguf as ours
from everlearn.models.checking import check_model
from everlearn.models.loading import load_model
from everlearn.models.sources import base_fingerprint, find_base
from everlearn.recipe import ModelConfig, make_recipe
from everlearn.runs.loop import execute
from tests.tiny_models import make_config

gguf = pytest.importorskip("gguf", reason="the package gguf is not installed: pip install 'everlearn[gguf]'")

CHAT = "{% for m in messages %}<|start|>{{ m['content'] }}<|end|>{% endfor %}"
MARKS = ("<|start|>", "<|end|>")
MERGES = ("1 2", "12 3", "123 4", "Ġ i")
TOKENS_ALONE = ("Ġzz",)  # no merge leads to it


LETTERS = ("▁", "a", "b", "▁a", "ab", "▁ab")


def pieces_of_sentencepiece() -> list[str]:
    return ["<s>", "</s>", "<unk>", *[f"<0x{byte:02X}>" for byte in range(256)], *LETTERS]


@pytest.fixture(autouse=True)
def _own_assets(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_ASSETS_CACHE", str(tmp_path / "assets"))


def vocabulary() -> list[str]:
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    merged = [merge.replace(" ", "") for merge in MERGES]
    return [*MARKS, *bytes_to_unicode().values(), *merged, *TOKENS_ALONE]


def llama(**settings: object):
    from transformers import LlamaForCausalLM

    torch.manual_seed(0)
    config = make_config("llama", len(vocabulary()), tied=True)
    config.update({"bos_token_id": 0, "eos_token_id": 1, "pad_token_id": None, **settings})
    return LlamaForCausalLM(config).eval()


def tensors_of(model) -> dict[str, torch.Tensor]:
    """Under llama.cpp's names, queries and keys permuted as its converter does."""
    names = {
        "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down", "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
    }  # fmt: skip
    found = {"token_embd.weight": model.model.embed_tokens.weight, "output_norm.weight": model.model.norm.weight}
    for at, layer in enumerate(model.model.layers):
        for path, name in names.items():
            weight = layer.get_submodule(path).weight
            heads = {"attn_q": 4, "attn_k": 2}.get(name)
            if heads:
                weight = weight.reshape(heads, 2, -1, weight.shape[-1]).transpose(1, 2).reshape(weight.shape)
            found[f"blk.{at}.{name}.weight"] = weight
    return {name: weight.detach() for name, weight in found.items()}


def write(
    path: Path,
    tensors: dict[str, torch.Tensor],
    *,
    architecture: str = "llama",
    pre: str | None = "smollm",
    quantized: str | None = None,
    **facts: object,
) -> Path:
    writer = gguf.GGUFWriter(path, architecture)
    writer.add_name("tiny")
    writer.add_context_length(256)
    writer.add_embedding_length(32)
    writer.add_block_count(2)
    writer.add_feed_forward_length(64)
    writer.add_head_count(4)
    writer.add_head_count_kv(2)
    writer.add_rope_dimension_count(8)
    writer.add_rope_freq_base(10000.0)
    writer.add_layer_norm_rms_eps(1e-6)
    if pre == "sentencepiece":
        writer.add_tokenizer_model("llama")
        writer.add_token_list(pieces_of_sentencepiece())
        writer.add_token_scores([-float(at) for at in range(len(pieces_of_sentencepiece()))])
        writer.add_token_types([3, 3, 2, *[6] * 256, *[1] * len(LETTERS)])
        writer.add_unk_token_id(2)
    else:
        writer.add_tokenizer_model("gpt2")
        if pre is not None:
            writer.add_tokenizer_pre(pre)
        writer.add_token_list(vocabulary())
        writer.add_token_types([3 if token in MARKS else 1 for token in vocabulary()])
        writer.add_token_merges(list(MERGES))
    writer.add_bos_token_id(0)
    writer.add_eos_token_id(1)
    writer.add_chat_template(CHAT)
    for key, value in facts.items():
        key = key.replace("__", ".")
        if isinstance(value, str):
            writer.add_string(key, value)
        elif isinstance(value, bool):
            writer.add_bool(key, value)
        else:
            writer.add_uint16(key, value)
    for name, weight in tensors.items():
        kind = getattr(gguf.GGMLQuantizationType, quantized) if quantized and weight.dim() > 1 else None
        data = weight.float().numpy()
        writer.add_tensor(name, gguf.quantize(data, kind) if kind else data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def refusal(place: Path) -> str:
    with pytest.raises(ModelError) as caught:
        find_base(ModelConfig(base=str(place)))
    text = str(caught.value)
    assert "\n" not in text
    assert text.startswith("model.base")
    assert not list((place.parent / "assets").glob("**/*.safetensors")), "nothing half made stays"
    return text


def pieces(folder: Path, text: str) -> list[str]:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    return [str(token) for token in tokenizer.convert_ids_to_tokens(tokenizer(text)["input_ids"])]


def test_a_file_computes_what_the_model_did_that_it_was_made_from(tmp_path: Path) -> None:
    model = llama()
    file = write(tmp_path / "tiny.gguf", tensors_of(model))
    loaded = load_model(ModelConfig(base=str(file), dtype="float32"))
    ids = torch.tensor([[5, 9, 200, 31]])
    with torch.inference_mode():
        assert torch.allclose(loaded.model(ids).logits, model(ids).logits, atol=1e-5)
    assert loaded.context_length == 256
    assert check_model(ModelConfig(base=str(file))).lora.targets == ["q_proj", "v_proj"]


def test_it_is_written_once_and_found_again_under_another_name(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf", tensors_of(llama()))
    first = find_base(ModelConfig(base=str(file)))
    made = (first.folder / "model.safetensors").stat()
    fingerprint = base_fingerprint(ModelConfig(base=str(file)))
    (tmp_path / "other").mkdir()
    shutil.move(file, tmp_path / "other" / "renamed.gguf")
    again = find_base(ModelConfig(base=str(tmp_path / "other")))  # the folder means the one file in it
    assert again.folder == first.folder
    assert (again.folder / "model.safetensors").stat().st_mtime_ns == made.st_mtime_ns
    settings = again.folder / "config.json"
    settings.write_text(settings.read_text().replace('"transformers_version": "', '"transformers_version": "9'))
    assert base_fingerprint(ModelConfig(base=str(tmp_path / "other"))) == fingerprint, "whatever has written it out"


def test_two_runs_at_once_write_it_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "tiny.gguf", tensors_of(llama()))
    written, plain = [], ours._write

    def counted(files: Sequence[Path], label: str, folder: Path) -> None:
        written.append(folder)
        plain(files, label, folder)

    monkeypatch.setattr(ours, "_write", counted)
    runs = [threading.Thread(target=find_base, args=(ModelConfig(base=str(file)),)) for _ in range(3)]
    for run in runs:
        run.start()
    for run in runs:
        run.join()
    assert len(written) == 1


def test_quantized_weights_are_told_and_can_be_saved(tmp_path: Path) -> None:
    from transformers import AutoModelForCausalLM

    file = write(tmp_path / "tiny.gguf", tensors_of(llama()), quantized="Q8_0")
    source = find_base(ModelConfig(base=str(file)))
    assert "15 in Q8_0, 5 in F32), written out as bfloat16; what their quantization has lost" in str(source.note)
    model = AutoModelForCausalLM.from_pretrained(source.folder)
    assert model.dtype == torch.bfloat16
    assert not hasattr(model.config, "quantization_config")
    model.save_pretrained(tmp_path / "saved")
    assert str(tmp_path) not in (source.folder / "config.json").read_text()
    assert str(tmp_path) not in (source.folder / "tokenizer_config.json").read_text()


def test_a_run_says_what_it_trains_on(tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf", tensors_of(llama()), quantized="Q8_0")
    rows = [{"instruction": "Say it.", "input": word, "output": word} for word in ("1", "2", "it", "a")]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    task = {"name": "say", "train": str(tmp_path / "rows.jsonl"), "evaluation_ratio": 0.3}
    tree = {
        "name": "run",
        "runs_dir": str(tmp_path / "runs"),
        "model": {"base": str(file)},
        "stream": {"tasks": [task]},
        "method": "sequential",
        "training": {"epochs": 1},
        "evaluation": {"max_new_tokens": 2, "general": False, "bootstrap_samples": 100},
    }
    folder = execute(make_recipe(tree)).folder
    manifest = read_json(folder / "manifest.json")
    assert any("in Q8_0" in note for note in manifest["notes"])  # type: ignore[index, call-overload]
    assert manifest["template"] == "chat"  # type: ignore[index, call-overload]
    assert "in Q8\\_0" in (folder / "model" / "README.md").read_text()


@pytest.mark.parametrize(
    ("pre", "expected"),
    [
        ("smollm", ["1", "2", "3", "4", "Ġi", "t"]),
        ("gpt-2", ["1234", "Ġi", "t"]),
        ("llama-bpe", ["<|start|>", "123", "4", "Ġi", "t"]),
        ("qwen2", ["1", "2", "3", "4", "Ġi", "t"]),
    ],
)
def test_text_is_split_by_the_rules_that_the_file_names(pre: str, expected: list[str], tmp_path: Path) -> None:
    file = write(tmp_path / "tiny.gguf", tensors_of(llama()), pre=pre)
    folder = find_base(ModelConfig(base=str(file))).folder
    assert pieces(folder, "1234 it") == expected
    assert max(AutoTokenizer.from_pretrained(folder).get_vocab().values()) == len(vocabulary()) - 1
    assert (pieces(folder, " zz")[-1:] == ["Ġzz"]) == (pre == "llama-bpe")
    assert pieces(folder, "<|end|>")[-1] == "<|end|>"
    assert (folder / "chat_template.jinja").read_text() == CHAT


def test_the_file_says_whether_a_text_begins_with_a_begin_token(tmp_path: Path) -> None:
    facts = {"tokenizer__ggml__add_bos_token": False}
    file = write(tmp_path / "without.gguf", tensors_of(llama()), pre="llama-bpe", **facts)
    assert pieces(find_base(ModelConfig(base=str(file))).folder, "123") == ["123"]


@pytest.mark.parametrize("prefix", [True, False, None])
def test_a_sentencepiece_vocabulary_begins_a_text_as_the_file_says(prefix: bool | None, tmp_path: Path) -> None:
    facts = {} if prefix is None else {"tokenizer__ggml__add_space_prefix": prefix}
    tensors = tensors_of(llama(vocab_size=len(pieces_of_sentencepiece())))
    file = write(tmp_path / "tiny.gguf", tensors, pre="sentencepiece", **facts)
    if prefix is False:
        assert "begins a text otherwise than Transformers builds it" in refusal(file)
    else:
        assert pieces(find_base(ModelConfig(base=str(file))).folder, "ab b") == ["<s>", "▁ab", "▁", "b"]


@pytest.mark.parametrize("pre", ["deepseek-llm", "default", None])
def test_rules_that_are_not_known_are_refused(pre: str | None, tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "tiny.gguf", tensors_of(llama()), pre=pre))
    assert ("'deepseek-llm', which is not known here" if pre == "deepseek-llm" else "that are not said") in text


def test_an_architecture_that_transformers_cannot_read_is_refused(tmp_path: Path) -> None:
    text = refusal(write(tmp_path / "tiny.gguf", tensors_of(llama()), architecture="plamo"))
    assert "cannot be read by Transformers (GGUF model with architecture plamo is not supported yet)" in text


def test_a_file_that_is_cut_short_is_refused(tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.gguf", tensors_of(llama())).read_bytes()
    for place, share in enumerate((0.99, 0.3, 0.01)):
        file = tmp_path / f"{place}.gguf"
        file.write_bytes(whole[: int(share * len(whole))])
        assert "no whole GGUF file" in refusal(file)
    (tmp_path / "other.gguf").write_bytes(b"PK\3\4 and so on")
    assert "does not begin as a GGUF file does" in refusal(tmp_path / "other.gguf")


def test_tensors_that_are_not_there_are_named(tmp_path: Path) -> None:
    tensors = tensors_of(llama())
    del tensors["blk.1.ffn_up.weight"]
    assert "1 tensors of this model do not come out" in refusal(write(tmp_path / "tiny.gguf", tensors))


def test_numbers_that_belong_nowhere_are_counted(tmp_path: Path) -> None:
    tensors = tensors_of(llama()) | {"blk.0.attn_sinks.weight": torch.zeros(4)}
    source = find_base(ModelConfig(base=str(write(tmp_path / "tiny.gguf", tensors))))
    assert "; 4 numbers of the file belong to no part of the model" in str(source.note)


def split(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> list[Path]:
    names = list(tensors)
    files = []
    for part in range(2):
        own = {name: tensors[name] for name in names[part::2]}
        file = tmp_path / f"tiny-{part + 1:05}-of-00002.gguf"
        files.append(write(file, own, split__count=2, split__no=part))
    return files


def test_a_split_model_is_put_together(tmp_path: Path) -> None:
    model = llama()
    files = split(tmp_path, tensors_of(model))
    for place in (files[1], tmp_path):
        loaded = load_model(ModelConfig(base=str(place), dtype="float32"))
        ids = torch.tensor([[5, 9, 200, 31]])
        with torch.inference_mode():
            assert torch.allclose(loaded.model(ids).logits, model(ids).logits, atol=1e-5)


def test_missing_parts_are_named(tmp_path: Path) -> None:
    first, second = split(tmp_path, tensors_of(llama()))
    second.rename(tmp_path / "elsewhere.gguf")
    assert "split into 2 files, and 1 of them are not beside it (tiny-00002-of-00002.gguf)" in refusal(first)
    assert "one of 2 files of a split model under a name of its own" in refusal(tmp_path / "elsewhere.gguf")


def test_a_folder_of_several_models_is_refused(tmp_path: Path) -> None:
    (tmp_path / "both").mkdir()
    for name in ("a", "b"):
        (tmp_path / "both" / f"{name}.gguf").write_bytes(b"GGUF")
    assert "2 models as GGUF files (a.gguf, b.gguf): name one" in refusal(tmp_path / "both")


def test_without_the_package_the_remedy_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = write(tmp_path / "tiny.gguf", tensors_of(llama()))
    monkeypatch.setattr(ours, "find_spec", lambda name: None)
    assert "pip install 'everlearn[gguf]'" in refusal(file)


def llama3_factors(count: int) -> torch.Tensor:
    """As llama.cpp's converter computes them (factor 8)."""
    found = []
    for at in range(count):
        length = 2 * math.pi * 10000.0 ** (2 * at / (2 * count))
        smooth = (8192 / length - 1) / 3
        inner = 1 / ((1 - smooth) / 8 + smooth)
        found.append(1.0 if length < 2048 else 8.0 if length > 8192 else inner)
    return torch.tensor(found)


def test_the_long_context_scaling_of_llama_3_is_found_again(tmp_path: Path) -> None:
    model = llama(head_dim=64, rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    tensors = tensors_of(model) | {"rope_freqs.weight": llama3_factors(32)}
    file = write(tmp_path / "tiny.gguf", tensors, llama__rope__dimension_count=64)
    source = find_base(ModelConfig(base=str(file)))
    rope = load_model(ModelConfig(base=str(file))).model.config.rope_parameters
    assert (rope["rope_type"], rope["factor"], rope["original_max_position_embeddings"]) == ("llama3", 8.0, 8192)
    assert "no part" not in str(source.note)


@pytest.mark.parametrize("kind", ["factors", "stated"])
def test_other_scaling_is_refused(kind: str, tmp_path: Path) -> None:
    tensors, facts = tensors_of(llama()), {}
    if kind == "factors":
        tensors |= {"rope_freqs.weight": torch.tensor([1.0, 2.0, 3.0, 9.0])}
    else:
        facts = {"llama__rope__scaling__type": "linear"}
    assert "scales its rotary angles" in refusal(write(tmp_path / "tiny.gguf", tensors, **facts))
