"""Training by reward: rollouts by the engine against TRL's own `generate` path, side by side in one run.

Both are called as the trainer calls them in a step: 8 published prompts (system message, quiz, a sentence), 8
completions of each, sampled at temperature 0.8. The model is a randomly initialised Llama in float32 (speed does not
depend on the weights), the tokenizer a BPE trained on the prompts. Random weights end no completion, so each has a
length of its own, drawn once for both (log-normal, median 64 tokens, at most 256): the engine
through its limits, `generate` through a stopping criterion for each row. Times are CPU seconds of one thread; the
ratio is that of tokens a second, and the median of the rounds is given.

    python benchmarks/rewards.py          # writes benchmarks/results/rewards.json, a few minutes on one core
"""

from __future__ import annotations

import argparse
import random
import statistics
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast, StoppingCriteria

from everlearn.data.instance import Instance
from everlearn.data.prompts import VanillaTemplate
from everlearn.data.translation import asked
from everlearn.data.walk_prompts import WalkTemplate
from everlearn.environment import machine, versions
from everlearn.files import write_json
from everlearn.generation.engine import TransformersGenerator
from everlearn.generation.protocol import Sampling
from everlearn.models.loading import LoadedModel
from everlearn.recipe import TrainingConfig
from everlearn.rewards.scorers import ScorerSettings, make_scorer
from everlearn.training import policy as by_reward
from everlearn.training.optimizers import make_adamw
from everlearn.training.phase import PolicyTraining

RESULTS = Path(__file__).parent / "results" / "rewards.json"
SHAPE = {"hidden_size": 384, "intermediate_size": 1024, "num_hidden_layers": 8, "num_attention_heads": 6}
PROMPTS, ROLLOUTS, MEDIAN, SIGMA, MOST = 8, 8, 64, 0.5, 256
WORDS = "the a of house tree river king child bread night sees takes builds gives red old small quickly today".split()


class GivenLengths(TransformersGenerator):
    """The engine with a length for each completion, which random weights never end."""

    def __init__(self, model: Any, tokenizer: Any, lengths: Sequence[int]) -> None:
        super().__init__(model, tokenizer)
        self.lengths = lengths

    def generate(self, prompts: Sequence[Sequence[int]], sampling: Sampling, progress: Any = None) -> Any:
        one = Sampling(sampling.max_new_tokens, temperature=sampling.temperature, seed=sampling.seed)
        copies = [prompt for prompt in prompts for _ in range(ROLLOUTS)]
        found = super().generate(copies, one)
        return [[one for (one,) in found[at : at + ROLLOUTS]] for at in range(0, len(found), ROLLOUTS)]

    def _limit(self, index: int, length: int, sampling: Sampling) -> int:
        return self.lengths[index]


class EndsEach(StoppingCriteria):
    """Ends each row after its own number of tokens."""

    def __init__(self, lengths: Sequence[int]) -> None:
        self.lengths, self.begin = torch.tensor(lengths), -1

    def __call__(self, input_ids: Any, scores: Any, **_: Any) -> Any:
        if self.begin < 0:
            self.begin = input_ids.shape[1] - 1
        return self.lengths <= input_ids.shape[1] - self.begin


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    draw = random.Random(0)
    rows = tuple(
        Instance(
            asked("German", "English"), " ".join(draw.choices(WORDS, k=draw.randint(8, 24))), "x", "t", id=str(at)
        )
        for at in range(PROMPTS)
    )
    lengths = [max(8, min(MOST, round(MEDIAN * draw.lognormvariate(0, SIGMA)))) for _ in range(PROMPTS * ROLLOUTS)]
    template = WalkTemplate(VanillaTemplate(), published=True)
    tokenizer = make_tokenizer([template.text(row) for row in rows])
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=len(tokenizer), max_position_embeddings=1024, bos_token_id=1, eos_token_id=2, **SHAPE
    )
    model = LlamaForCausalLM(config)
    head = torch.nn.Linear(model.lm_head.in_features, model.lm_head.out_features)
    head.weight, head.bias.data[:] = model.lm_head.weight, 0.0
    head.bias.data[:3] = -1e4  # no completion ends by itself
    model.lm_head = head
    loaded = LoadedModel(model, tokenizer, "", "", 1024, torch.device("cpu"))
    paths = {name: make_path(name, loaded, template, rows, lengths) for name in ("engine", "transformers")}
    found: dict[str, list[float]] = {name: [] for name in paths}
    for _ in range(rounds):
        for name, path in paths.items():
            began = time.process_time()
            written = path()
            found[name].append(sum(lengths) / (time.process_time() - began))
            assert all(one >= length for one, length in zip(written, lengths, strict=True)), "padding may follow"
    ratios = [one / other for one, other in zip(found["engine"], found["transformers"], strict=True)]
    result = {
        "prompt_tokens": statistics.mean(len(template.prompt_ids(row, tokenizer)) for row in rows),
        "completion_tokens": statistics.mean(lengths),
        "tokens_per_cpu_second": {name: statistics.median(values) for name, values in found.items()},
        "ratio": statistics.median(ratios),
        "ratios": ratios,
        "machine": machine(),
        "versions": versions(),
    }
    write_json(RESULTS, result)
    print(f"engine {result['ratio']:.1f} times the tokens a second of TRL's generate path ({ratios})")


def make_path(
    name: Any, loaded: LoadedModel, template: WalkTemplate, rows: Sequence[Instance], lengths: Sequence[int]
) -> Callable[[], list[int]]:
    """What completes the prompts of a step and says how many tokens each completion has."""
    policy = PolicyTraining(tuple(rows), ScorerSettings(), 1, PROMPTS, ROLLOUTS, MOST, beta=0.0, rollouts_by=name)
    vars(by_reward)["make_generator"] = lambda loaded: GivenLengths(loaded.model, loaded.tokenizer, lengths)
    trainer = by_reward.make_trainer(
        loaded,
        TrainingConfig(precision="float32"),
        template,
        policy,
        by_reward.Judge(policy, make_scorer(policy.scorer)),
        make_adamw(loaded.model, rate=1e-3, weight_decay=0.0),
        (),
        seed=0,
        done=0,
        hooks=(lambda step: None, lambda logs: None),
    )
    prompts = [str(at) for at in range(PROMPTS) for _ in range(ROLLOUTS)]
    generate = loaded.model.generate

    def path() -> list[int]:
        if name != "engine":
            loaded.model.generate = partial(generate, stopping_criteria=[EndsEach(lengths)])
        completions = trainer._generate(prompts)[1]
        return [len(one) for one in completions]

    return path


def make_tokenizer(texts: Sequence[str]) -> PreTrainedTokenizerFast:
    core = Tokenizer(models.BPE())
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    special = ["<pad>", "<s>", "</s>"]
    core.train_from_iterator(
        texts,
        trainers.BpeTrainer(
            vocab_size=4096,
            special_tokens=special,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
            show_progress=False,
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=core, bos_token="<s>", eos_token="</s>", pad_token="<pad>")


if __name__ == "__main__":
    main()
