"""Two models that write together, against the published code and against both models computed apart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch

from everlearn.errors import UserError
from everlearn.generation.blending import BlendedState, blended
from everlearn.generation.decoding import Batch, Decoder, Prompt
from everlearn.generation.engine import TransformersGenerator
from everlearn.generation.protocol import Blend, Sampling
from everlearn.generation.rows import Row
from everlearn.models.adapters import adapter_off
from tests.generation.models import END, make_model, make_prompts

GOLDEN = Path(__file__).parents[1] / "golden" / "sers"


def cases(name: str) -> list:
    found = json.loads((GOLDEN / name).read_text())["cases"]
    return [pytest.param(case, id=case["id"]) for case in found]


@pytest.mark.parametrize("case", cases("blend_step.json"))
def test_one_step_is_that_of_the_published_code_in_logits_and_another_one_in_probabilities(case: dict) -> None:
    own, other = (torch.tensor([case[f"{name}_logits"]]) for name in ("current", "base"))
    found = blended(own, other, Blend(case["alpha"], "logits"))[0]
    assert found.tolist() == pytest.approx(case["expected_blended_logits"], abs=1e-6)
    assert int(found.argmax()) == case["expected_token"]
    mixed = blended(own, other, Blend(case["alpha"]))[0]
    assert int(mixed.argmax()) == case["probability_mixture_token_for_contrast"]
    assert float(mixed.logsumexp(-1)) == pytest.approx(0, abs=1e-6)


def test_large_logits_do_not_overflow_and_the_ends_are_the_two_models() -> None:
    own, other = torch.tensor([[300.0, 299.0, -400.0]]), torch.tensor([[-200.0, 500.0, 100.0]])
    for of in ("logits", "probabilities"):
        for weight, alone in ((0.0, own), (1.0, other)):
            found = blended(own, other, Blend(weight, of))
            assert torch.allclose(found.log_softmax(-1), alone.log_softmax(-1))
        assert blended(own, other, Blend(0.5, of)).isfinite().all()


class ByLastToken:
    """A toy model whose next token depends on the last one alone."""

    def __init__(self, logits: Sequence[Sequence[float]]) -> None:
        self.logits = torch.tensor(logits)

    def takes(self, batch: Batch, copies: int) -> bool:
        return True

    def admit(self, batch: Batch, copies: int) -> torch.Tensor:
        return self.logits[[prompt.token_ids[-1] for prompt in batch.prompts]]

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        return self.logits[tokens]

    def keep(self, rows: Sequence[int]) -> None: ...


class EndToken:
    def __init__(self, end: int) -> None:
        self.end = end

    def reason(self, token_ids: Sequence[int]) -> str | None:
        return "eos" if token_ids[-1] == self.end else None


@pytest.mark.parametrize("case", cases("mixture_decode.json"))
def test_a_completion_is_that_of_the_published_code_whose_cap_counts_the_prompt(case: dict) -> None:
    expected, prompt = case["expected_new_ids"], case["prompt_ids"]
    room = case["official_total_length_cap"] - len(prompt)
    assert (written_together(case, room) if room > 0 else []) == expected
    further = written_together(case, case["max_output_length_arg"])  # new tokens count
    assert further[: len(expected)] == expected


def written_together(case: dict, limit: int) -> list[int]:
    """New tokens, end token included."""
    base, current = (ByLastToken(case[f"{name}_next_token_logits_by_last_token"]) for name in ("base", "current"))
    rows: list[Row] = []
    state = BlendedState(current, base, nullcontext, Blend(case["alpha"], "logits"))
    decoder = Decoder(
        state,
        Sampling(),
        EndToken(case["eos_id"]),  # type: ignore[arg-type]
        lambda row, reason: rows.append(row),
        lambda tokens: None,
        torch.device("cpu"),
    )
    decoder.run([Batch([Prompt(0, case["prompt_ids"], limit)])], 1)
    return rows[0].token_ids


def alone(forwards: Sequence[Callable[[torch.Tensor], torch.Tensor]], prompt: list[int], blend: Blend) -> list[int]:
    """Greedy, one prompt at a time, both models over the whole sequence at each step."""
    ids = list(prompt)
    for _ in range(12):
        own, other = (forward(torch.tensor([ids])) for forward in forwards)
        token = int(blended(own, other, blend).argmax())
        if token == END:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.mark.parametrize("of", ["probabilities", "logits"])
@pytest.mark.parametrize("lora", [True, False])
def test_the_engine_mixes_the_model_with_its_base(lora: bool, of: str) -> None:
    model, tokenizer = make_model("llama", lora=lora)
    other = model if lora else make_model("llama", seed=1)[0]

    def own_logits(ids: torch.Tensor) -> torch.Tensor:
        return model(input_ids=ids).logits[:, -1]

    def base_logits(ids: torch.Tensor) -> torch.Tensor:
        if not lora:
            return other(input_ids=ids).logits[:, -1]
        with adapter_off(model):
            return model(input_ids=ids).logits[:, -1]

    prompts = make_prompts(5, shared=4)
    engine = TransformersGenerator(model, tokenizer, base=None if lora else lambda: other)
    found = {}
    for weight in (0.0, 0.4, 1.0):
        blend = Blend(weight, of)  # type: ignore[arg-type]
        completions = engine.generate(prompts, Sampling(max_new_tokens=12, blend=blend))
        found[weight] = [list(row.token_ids) for (row,) in completions]
        with torch.inference_mode():
            assert found[weight] == [alone((own_logits, base_logits), prompt, blend) for prompt in prompts]
    plain = engine.generate(prompts, Sampling(max_new_tokens=12))
    assert found[0.0] == [list(row.token_ids) for (row,) in plain]
    assert found[0.0] != found[1.0]


def test_a_mixture_needs_a_base_with_the_same_vocabulary() -> None:
    model, tokenizer = make_model("llama")
    with pytest.raises(UserError, match="needs that model beside"):
        TransformersGenerator(model, tokenizer).generate([[5]], Sampling(blend=Blend(0.5)))
    other = make_model("llama")[0]
    other.config.vocab_size += 8
    with pytest.raises(UserError, match=r"one vocabulary, but that of the base has .* tuned from"):
        TransformersGenerator(model, tokenizer, base=lambda: other).generate([[5]], Sampling(blend=Blend(0.5)))
