"""Parts of other kinds than LoRA: computed along everywhere, stored, loaded, and refused where they cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM

from everlearn.errors import ModelError
from everlearn.evaluation.general import perplexity
from everlearn.generation.engine import make_generator
from everlearn.generation.protocol import Sampling
from everlearn.models import loading
from everlearn.models.adapters import adapter_off
from everlearn.models.experts import ExpertLinear, gate_of, gated, put_experts
from everlearn.models.parameters import tuned_parameters
from everlearn.models.state import MOVING, PartSettings, Tuning
from everlearn.recipe import LoraConfig, ModelConfig
from everlearn.training.answer_loss import AnswerLoss
from everlearn.training.rows import EncodedRow
from tests.malformed.model_folders import faults_of, spoil
from tests.models.test_adapters import refusal
from tests.tiny_models import ARCHITECTURES, TARGETS, save_tiny_model

PROMPT = {MOVING: PartSettings("PROMPT_TUNING", {"num_virtual_tokens": 6, "prompt_tuning_init": "SAMPLE_VOCAB"})}
EXPERTS = {MOVING: PartSettings("MOE_LORA", {"experts": 2})}
PROMPTS = [[1, 5, 6, 7], [1, 9], [1, 9, 10, 11, 12, 13, 14]]


def config_of(folder: Path, architecture: str = "llama", **changes: object) -> ModelConfig:
    lora = LoraConfig(rank=4, alpha=8, targets=TARGETS[architecture])
    return ModelConfig(base=str(folder), device="cpu", dtype="float32", lora=lora).model_copy(update=changes)


def with_noise(loaded: loading.LoadedModel) -> loading.LoadedModel:
    """So that what begins as nothing does something."""
    torch.manual_seed(5)
    for weight in tuned_parameters(loaded.model).values():
        torch.nn.init.normal_(weight, std=0.3)
    return loaded


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_a_soft_prompt_stands_before_each_row_that_is_completed(architecture: str, tmp_path: Path) -> None:
    config = config_of(save_tiny_model(tmp_path / "base", architecture), architecture)
    loading.save_checkpoint(loading.load_model(config, trainable=True, seed=1, adds=PROMPT), tmp_path)
    loaded = loading.load_model(config, checkpoint=tmp_path)
    assert loaded.context_length == loading.context_length(config) - 6
    found = make_generator(loaded).generate(PROMPTS, Sampling(max_new_tokens=8))
    for ids, (completion,) in zip(PROMPTS, found, strict=True):
        model, prompt = loaded.model, torch.tensor([ids])
        whole = model.generate(  # PEFT's own way
            input_ids=prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=8, do_sample=False, pad_token_id=3
        )
        assert [*completion.token_ids, 2][:8] == [*whole[0, len(ids) :].tolist(), 2][: len(completion.token_ids) + 1][
            :8
        ]
    with adapter_off(loaded.model):  # type: ignore[arg-type]
        off = make_generator(loaded).generate(PROMPTS, Sampling(max_new_tokens=8))
    assert off == make_generator(loading.load_model(config)).generate(PROMPTS, Sampling(max_new_tokens=8)) != found


@pytest.mark.parametrize("architecture", ["llama", "gpt2"])
def test_a_soft_prompt_stands_before_each_row_that_is_trained_and_read(architecture: str, tmp_path: Path) -> None:
    config = config_of(save_tiny_model(tmp_path, architecture), architecture)
    loaded = loading.load_model(config, trainable=True, seed=1, adds=PROMPT)
    names = list(tuned_parameters(loaded.model))
    assert names == ["prompt_encoder.default.embedding.weight"]
    rows = [EncodedRow((1, 5, 6, 7, 9, 2), 3), EncodedRow((1, 8, 4, 2), 2)]
    loss = AnswerLoss(loaded.model, pad_id=3)
    with loss.packed_where_equal(rows) as is_packed:
        found = sum(loss(part) for part in loss.micro_batches(rows, 1000))
    assert not is_packed
    base = loading.load_model(config).model
    prompt, words = tuned_parameters(loaded.model)[names[0]], base.get_input_embeddings()
    expected = torch.zeros(())
    for row in rows:
        embedded = torch.cat([prompt, words(torch.tensor(row.ids))])[None]
        logits = base(inputs_embeds=embedded).logits[0, len(prompt) :]
        wanted = torch.tensor(row.ids[row.prompt_length :])
        expected = expected + torch.nn.functional.cross_entropy(
            logits[row.prompt_length - 1 : -1], wanted, reduction="sum"
        )
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    text = ["the cat runs a dog sleeps"]
    with_prompt = perplexity(loaded, text)["value"]
    with adapter_off(loaded.model):  # type: ignore[arg-type]
        assert (
            perplexity(loaded, text)["value"] == perplexity(loading.load_model(config), text)["value"] != with_prompt
        )


def test_a_soft_prompt_as_long_as_the_context_is_refused(tiny_model: Path) -> None:
    whole = {MOVING: PartSettings("PROMPT_TUNING", {"num_virtual_tokens": 100_000})}
    with pytest.raises(ModelError, match="cannot have a soft prompt of 100000 tokens"):
        loading.load_model(config_of(tiny_model), trainable=True, adds=whole)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("prompt_tuning_init", "TEXT"),
        ("tokenizer_name_or_path", "x"),
        ("num_virtual_tokens", 10**9),
        ("peft_type", "POLY"),
    ],
)
def test_a_soft_prompt_whose_settings_open_files_is_refused(tiny_model: Path, tmp_path: Path, key: str, value) -> None:
    config = config_of(tiny_model)
    loading.save_checkpoint(loading.load_model(config, trainable=True, adds=PROMPT), tmp_path)
    file = tmp_path / "adapter" / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {key: value}))
    assert f"adapter_config.json: {key} is" in (refusal(config, tmp_path / "adapter") or "")


@pytest.mark.parametrize("adds", [PROMPT, EXPERTS])
def test_no_wrong_value_of_a_part_ends_in_a_traceback(tiny_model: Path, tmp_path: Path, adds: dict) -> None:
    config, told = config_of(tiny_model), []
    loading.save_checkpoint(loading.load_model(config, trainable=True, adds=adds), tmp_path)
    for file in (tmp_path / "adapter").iterdir():
        if not file.name.startswith("adapter_"):
            file.unlink()
    faults = [fault for fault in faults_of(tmp_path / "adapter") if fault.file == "adapter_config.json"]
    for fault in faults[::17]:
        try:
            told.append(refusal(config, spoil(tmp_path / "adapter", fault, tmp_path / "spoilt")))
        except Exception as error:  # says which
            pytest.fail(f"{fault} ends in {type(error).__name__}: {error}")
    assert sum(one is not None for one in told) > 10


def test_experts_are_those_of_the_golden_vectors(golden_dir: Path) -> None:
    cases = json.loads((golden_dir / "baselines" / "moelora.json").read_text())["cases"]
    assert cases
    for case in cases:
        given = {
            name: torch.tensor(case[name], dtype=torch.float64) for name in ("W", "A", "B", "router", "x", "upstream")
        }
        experts, rank, router = case["experts"], case["total_rank"], given["router"].requires_grad_()
        base = torch.nn.Linear(given["W"].shape[1], given["W"].shape[0], bias=False).double()
        base.weight.data = given["W"]
        layer = _layer(base, experts, rank, case["scaling"] * rank).double()
        layer.lora_A["default"].weight = torch.nn.Parameter(given["A"].flatten(0, 1))
        layer.lora_B["default"].weight = torch.nn.Parameter(torch.cat(list(given["B"]), dim=1))
        layer.lora_router["default"].weight = torch.nn.Parameter(router.detach())
        output = layer(given["x"])
        output.backward(given["upstream"])
        gate = gate_of(given["x"], router)
        weighed = gated(layer.lora_A["default"](given["x"]), gate)
        assert weighed.shape[-1] == rank
        found = {
            "gate": gate,
            "output": output,
            "grad_router": layer.lora_router["default"].weight.grad,
            "grad_A": layer.lora_A["default"].weight.grad.unflatten(0, (experts, -1)),
        }
        for name, value in found.items():
            expected = torch.tensor(case[f"expected_{name}"], dtype=torch.float64)
            torch.testing.assert_close(value, expected, rtol=0, atol=1e-6)


def _layer(base: torch.nn.Module, experts: int, rank: int, alpha: float, dropout: float = 0.0) -> ExpertLinear:
    from peft import LoraConfig as PeftLoraConfig
    from peft import get_peft_model

    from everlearn.models.experts import experts_config

    model = torch.nn.Sequential(base)
    settings = PeftLoraConfig(r=rank, lora_alpha=alpha, lora_dropout=dropout, target_modules=["0"])
    return get_peft_model(model, experts_config(settings, experts)).base_model.model[0]  # type: ignore[no-any-return]


def test_experts_begin_by_the_seed_of_this_machine_s_processor_wherever_they_go(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Draws on a GPU would be those of its own generator, which nothing seeds here: other ones in every process."""
    moved: list[torch.Tensor] = []

    def note(layer: ExpertLinear, name: str) -> None:
        moved.append(layer.lora_A[name].weight.detach().clone())

    monkeypatch.setattr(ExpertLinear, "_move_adapter_to_device_of_base_layer", note)
    layer = _layer(torch.nn.Linear(64, 4), experts=2, rank=64, alpha=2)
    assert torch.equal(moved[0], layer.lora_A["default"].weight)
    assert moved[0].std().item() == pytest.approx(0.01, rel=0.1)
    assert not layer.lora_B["default"].weight.any()


def test_each_expert_draws_a_mask_of_its_own_and_the_router_none() -> None:
    layer = _layer(torch.nn.Linear(64, 4), experts=2, rank=2, alpha=2, dropout=0.5)
    torch.nn.init.ones_(layer.lora_B["default"].weight)
    torch.nn.init.ones_(layer.lora_A["default"].weight)
    torch.nn.init.zeros_(layer.lora_router["default"].weight)
    x = torch.randn(1, 64)
    with torch.no_grad():
        added = [(layer(x) - layer.base_layer(x))[0, 0].item() for _ in range(200)]
        torch.manual_seed(0)
        one = torch.nn.functional.dropout(x, 0.5).sum().item(), torch.nn.functional.dropout(x, 0.5).sum().item()
        torch.manual_seed(0)
        assert (layer(x) - layer.base_layer(x))[0, 0].item() == pytest.approx(sum(one) / 2, rel=1e-4)
    assert torch.tensor(added).mean().item() == pytest.approx(x.sum().item(), abs=3.0)


@pytest.mark.parametrize("architecture", ARCHITECTURES)
def test_experts_are_stored_loaded_and_handed_on_and_peft_refuses_them(architecture: str, tmp_path: Path) -> None:
    folder = save_tiny_model(tmp_path / "base", architecture)
    config = config_of(folder, architecture)
    made = with_noise(loading.load_model(config, trainable=True, adds=EXPERTS))
    assert any("lora_router" in name for name in tuned_parameters(made.model))
    loading.save_checkpoint(made, tmp_path)
    ids = torch.tensor(PROMPTS[2:])
    with torch.no_grad():
        expected = made.model.eval()(input_ids=ids).logits
        again = loading.load_model(config, checkpoint=tmp_path, trainable=True).model
        assert list(tuned_parameters(again)) == list(tuned_parameters(made.model))
        handed = put_experts(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
        for model in (again, handed):
            torch.testing.assert_close(model(input_ids=ids).logits, expected)
        with adapter_off(made.model):  # type: ignore[arg-type]
            torch.testing.assert_close(
                made.model(input_ids=ids).logits, loading.load_model(config).model(input_ids=ids).logits
            )
    from peft import PeftModel

    with pytest.raises(KeyError, match="MOE_LORA"):
        PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(folder), tmp_path / "adapter")
    with pytest.raises(NotImplementedError):
        handed.merge_and_unload()


@pytest.mark.parametrize(
    ("kind", "options"),
    [
        ("OSF", {"effective_rank": 0.5, "target_modules": "all-linear"}),
        ("LOHA", {"r": 2, "target_modules": ["q_proj"]}),
    ],
)
def test_a_part_that_is_merged_leaves_plain_weights_that_compute_the_same(
    tiny_model: Path, tmp_path: Path, kind: str, options: dict
) -> None:
    config = config_of(tiny_model, tuning="full")
    adds = {"low": PartSettings(kind, options)}
    loaded = loading.load_model(config, trainable=True, adds=adds, moving=["low"])
    moving = {name for name, weight in loaded.model.named_parameters() if weight.requires_grad}
    assert set(tuned_parameters(loaded.model)) == moving
    assert all(".low" in name for name in moving)
    for name, weight in tuned_parameters(loaded.model).items():
        if name.endswith("S_low"):
            weight.data.mul_(3)
        elif kind != "OSF":
            torch.nn.init.normal_(weight, std=0.3)
    ids = torch.tensor(PROMPTS[2:])
    with torch.no_grad():
        expected = loaded.model.eval()(input_ids=ids).logits
        merged = loading.save_checkpoint(loaded, tmp_path, tuning=Tuning(None, adds=adds, after="merge"))  # type: ignore[arg-type]
        stored = AutoModelForCausalLM.from_pretrained(tmp_path / "model")
        for model in (merged.model, stored):
            torch.testing.assert_close(model(input_ids=ids).logits, expected, rtol=1e-4, atol=1e-5)
