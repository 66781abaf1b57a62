"""A phase that is trained by reward: GRPO on TRL's trainer, with rollouts, rewards and checkpoints of this house.

    advantages    within the rollouts of a prompt (`group_advantages`)
    loss          - min(ratio A, clip(ratio, 1 - 0.2, 1 + 0.2) A) + beta k3, mean over tokens; one update a step

The reference is a frozen copy of the weights as they are when the phase begins, before any checkpoint is taken back:
TRL would load it from the path in the model's configuration under full tuning, which is another model wherever weights
in memory have moved. So TRL is told beta 0 and the term is added here; it is also clipped as published, and not
multiplied by the ratio, as TRL does by default since 1.16. Dropout is off, so that a ratio of 1 is one.

Which rows a step asks is planned from the seed, and every step seeds its own random streams, so that a phase goes on
from its last checkpoint as if nothing had happened: weights and moments, as safetensors. Format and quality are two
reward functions and are noted apart. Where the scorer is remote, the scores of some prompts are computed while the
completions of the next are written. Source: R1-T1 (arXiv 2502.19735), `main_grpo.sh` (spec sections 6 and 10).
"""

from __future__ import annotations

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from everlearn.data.walk_patterns import likest
from everlearn.data.walks import OPENING, walk_in
from everlearn.devices import autocast_format
from everlearn.errors import MissingExtraError, UserError
from everlearn.files import write_json, write_jsonl
from everlearn.fingerprints import fingerprint_of
from everlearn.generation.engine import make_generator
from everlearn.generation.protocol import Sampling
from everlearn.models.adapters import inner_model
from everlearn.models.batching import ran_out_of_memory
from everlearn.recipe import NOT_OF_A_STEP
from everlearn.rewards.reward import format_reward, group_advantages, quality_reward, scored_answer, token_kl
from everlearn.rewards.scorers import QualityScorer, make_scorer
from everlearn.seeds import derive
from everlearn.training.checkpoint import (
    FORM,
    delete_partials,
    keep_one_partial,
    load_moments,
    load_tensors,
    moments_of,
    moving_tensors,
    newest_partial,
    partial_folder,
    save_moments,
    save_state,
)
from everlearn.training.divergences import exchanged
from everlearn.training.engine import Row, seed_device
from everlearn.training.memory import recomputes
from everlearn.training.optimizers import make_adamw
from everlearn.training.processes import here
from everlearn.training.stage import means_of_notes, schedule_of, state_kept
from everlearn.training.trackers import tracking

if TYPE_CHECKING:
    from everlearn.data.prompts import PromptTemplate
    from everlearn.generation.protocol import Completion
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Progress
    from everlearn.recipe import TrainingConfig
    from everlearn.training.phase import Phase, PolicyTraining

_AHEAD = 4
"""Parts in which a step's completions are written where the scores of one are computed elsewhere meanwhile."""
_NOTES = {
    "reward": "reward",
    "rewards/format/mean": "reward: format",
    "rewards/quality/mean": "reward: quality",
    "kl": "KL to the start",
    "completions/mean_length": "tokens of a completion",
    "completions/clipped_ratio": "share of completions cut",
    "frac_reward_zero_std": "share of prompts with equal rewards",
    "entropy": "entropy",
}
"""What TRL logs of a step, by its names, and what the history calls it."""


def check_trl() -> None:
    """Refuses to go on without TRL.

    Raises:
        MissingExtraError: says what to install.
    """
    from importlib.util import find_spec

    if find_spec("trl") is None:
        raise MissingExtraError(
            "training by reward needs TRL: run \"pip install 'everlearn[rl]'\", or set method.epochs to 0 for the "
            "supervised phase alone."
        )


def train_policy(
    loaded: LoadedModel,
    config: TrainingConfig,
    template: PromptTemplate,
    *,
    seed: int,
    folder: Path,
    progress: Progress,
    what: str,
    phase: Phase,
) -> dict[str, object]:
    """Trains the model in place by reward.

    Args:
        loaded: Loaded with `trainable=True`.
        config: Rate, schedule, decay, clipping, precision, checkpoints.
        template: Makes prompts of the rows.
        seed: Of all random streams of this stage.
        folder: Receives `history.jsonl` and `summary.json`, and checkpoints while training goes on.
        progress: Where to show what goes on.
        what: Name of the step, for the display and for trackers.
        phase: With a `policy`.

    Returns:
        The summary: steps, rows, tokens, seconds and more.

    Raises:
        UserError: TRL is missing, the scorer does not answer, or memory does not suffice.
    """
    assert phase.policy is not None, "a phase by reward says how"
    check_trl()
    policy, processes = phase.policy, here(loaded.device)
    if processes.count > 1:
        raise UserError("training by reward is the work of one process: start the run without accelerate launch.")
    steps, moving = policy.steps, moving_tensors(loaded.model)
    key = fingerprint_of(loaded.fingerprint, seed, config.hashed(exclude=NOT_OF_A_STEP), policy.describe())
    parameters = [weight for weight in loaded.model.parameters() if weight.requires_grad]
    start = [(weight, weight.detach().clone()) for weight in parameters] if policy.beta else []
    rate, decay = config.learning_rate, config.weight_decay
    optimizer = make_adamw(loaded.model, rate=rate, weight_decay=decay, optimizer=config.optimizer)
    history: list[Row] = []
    found = newest_partial(folder, key, FORM)
    if found is not None:
        load_tensors(found[0] / "model.safetensors", moving)
        load_moments(found[0], loaded.model, [optimizer])
        history += found[1]["history"]
    done = len(history)
    judge = Judge(policy, make_scorer(policy.scorer, folder / "scores.jsonl"))
    if rest := len(policy.rows) % policy.prompts:
        progress.say(
            f"{what}: {rest} of {len(policy.rows)} rows, other ones each time, are left out of each pass by reward, "
            f"since a step asks {policy.prompts} (method.prompts)."
        )
    with (
        closing(judge),
        state_kept(loaded, recompute=recomputes(config)),
        progress.step(what, steps) as tick,
        tracking(config.report_to, folder, what) as track,
        _forwards_kept(loaded),
    ):
        tick(done, steps, resumed=True) if done else tick(0, steps)
        began, before = time.perf_counter(), history[-1]["seconds"] if history else 0.0

        def seed_step(step: int) -> None:
            seed_device(loaded.device, derive(seed, "policy step", step))

        def look(logs: dict[str, float]) -> None:
            step = len(history) + 1
            row = {"step": step, "loss": logs["loss"], "learning_rate": logs["learning_rate"]}
            row["seconds"] = before + time.perf_counter() - began
            row |= {told: logs[name] for name, told in _NOTES.items() if logs.get(name) is not None}
            row |= {name: value for name, value in logs.items() if "walk" in name}
            history.append(row)
            track(row)
            tick(step, steps, f"reward {row['reward']:.3f}")
            if config.checkpoint_every and step % config.checkpoint_every == 0 and step < steps:
                record = {"key": key, "form": FORM, "step": step, "history": history}
                moments = moments_of(loaded.model, [optimizer])
                save_state(
                    partial_folder(folder, step), moving_tensors(loaded.model), record, processes, moments=moments
                )
                keep_one_partial(folder, step)

        try:
            if done < steps:
                trainer = make_trainer(
                    loaded,
                    config,
                    template,
                    policy,
                    judge,
                    optimizer,
                    start,
                    seed=seed,
                    done=done,
                    hooks=(seed_step, look),
                )
                trainer.train()
        except RuntimeError as error:
            if not ran_out_of_memory(error):
                raise
            raise UserError(
                f"training by reward ran out of memory on {loaded.device}: lower method.pass_rows, with method.loss: "
                "dapo where the loss is not to depend on it (a run with changed keys needs another --name)."
            ) from None
    equal = sum(row["share of prompts with equal rewards"] == 1.0 for row in history)
    if equal:
        progress.say(f"{what}: in {equal} of {steps} steps all completions of each prompt had equal rewards.")
    last = history[-1]
    trained = round(sum(row["tokens of a completion"] for row in history) * policy.prompts * policy.rollouts)
    summary: dict[str, object] = {
        "steps": steps,
        "rows": len(policy.rows),
        "tokens": trained,
        "answer_tokens": trained,
        "seconds": last["seconds"],
        "tokens_per_second": trained / max(last["seconds"], 1e-9),
        "final_loss": last["loss"],
        "packed": False,
        "micro_batch_tokens": 0,
        "precision": str(autocast_format(config.precision, loaded.device) or parameters[0].dtype).removeprefix(
            "torch."
        ),
        "notes": means_of_notes(history),
        "scorer": policy.scorer.name,
        "equal_steps": equal,
    }
    write_jsonl(folder / "history.jsonl", history)
    write_json(folder / "summary.json", summary)
    if phase.keeps_moments:
        save_moments(folder / "optimizer.safetensors", loaded.model, [optimizer], processes)
    delete_partials(folder)
    return summary


def order_of(policy: PolicyTraining, seed: int) -> list[list[int]]:
    """Numbers of the rows that each step asks: passes in an order of their own, the rest of each left out."""
    steps = []
    for epoch in range(policy.epochs):
        drawn = np.random.default_rng(derive(seed, "policy order", epoch)).permutation(len(policy.rows)).tolist()
        whole = len(drawn) // policy.prompts
        steps += [drawn[at * policy.prompts : (at + 1) * policy.prompts] for at in range(whole)]
    return steps


class Judge:
    """The two reward functions of a phase, over completions without their opening tag."""

    def __init__(self, policy: PolicyTraining, scorer: QualityScorer) -> None:
        self._policy, self._scorer = policy, scorer
        self._ahead: dict[int, Future[list[float]]] = {}
        self._pool = ThreadPoolExecutor(1)

    def close(self) -> None:
        """Forgets what has not begun, so that an interrupted phase waits for one request at most."""
        self._pool.shutdown(wait=False, cancel_futures=True)

    def begin(self, row: int, completions: Sequence[str]) -> None:
        """Begins to score the completions of a row, in another thread."""
        self._ahead[row] = self._pool.submit(self._quality, row, completions)

    def format(self, completions: Sequence[str]) -> list[float]:
        """What the tags of completions are worth."""
        return [format_reward(OPENING + text, self._policy.format_weight) for text in completions]

    def walks(self, completions: Sequence[str]) -> dict[str, float]:
        """What the history notes of the walks of a step: their length, and which patterns they are like."""
        walks = [walk_in(OPENING + text) or "" for text in completions]
        found = {"words of a walk": sum(len(walk.split()) for walk in walks) / len(walks)}
        if patterns := self._policy.patterns:
            names = [likest(walk, patterns) or "no pattern" for walk in walks]
            for name in (*dict.fromkeys(pattern.name for pattern in patterns), "no pattern"):
                found[f"share of walks like: {name}"] = names.count(name) / len(names)
        return found

    def quality(self, rows: Sequence[int], completions: Sequence[str]) -> list[float]:
        """What the answers of completions are worth; those of a row stand together."""
        count, found = self._policy.rollouts, []
        for at in range(0, len(rows), count):
            ahead = self._ahead.pop(rows[at], None)
            found += ahead.result() if ahead else self._quality(rows[at], completions[at : at + count])
        return found

    def _quality(self, row: int, completions: Sequence[str]) -> list[float]:
        """Of a row's whole group, its answers in one call."""
        asked = self._policy.rows[row]
        answers = [scored_answer(OPENING + text) for text in completions]
        there = [answer for answer in answers if answer is not None]
        scores = iter(
            self._scorer.score([asked.input or asked.query] * len(there), there, [asked.output] * len(there))
            if there
            else ()
        )
        rounds = self._policy.rounds_quality
        return [0.0 if answer is None else quality_reward(next(scores), rounds=rounds) for answer in answers]


def make_trainer(
    loaded: LoadedModel,
    config: TrainingConfig,
    template: PromptTemplate,
    policy: PolicyTraining,
    judge: Judge,
    optimizer: torch.optim.Optimizer,
    start: Sequence[tuple[torch.nn.Parameter, torch.Tensor]],
    *,
    seed: int,
    done: int,
    hooks: tuple[Callable[[int], None], Callable[[dict[str, float]], None]],
) -> Any:
    """TRL's trainer for the steps that are still to do.

    Args:
        loaded: The model, on its device.
        config: As for `train_policy`.
        template: As for `train_policy`.
        policy: How it is trained.
        judge: Gives rewards.
        optimizer: Of the moving weights.
        start: These and their values when the phase began; none: there is no KL.
        seed: Of all random streams.
        done: Steps finished.
        hooks: Called before a step with its number, and after it with what TRL logs.
    """
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    seed_step, look = hooks
    rollouts, whole = policy.rollouts, policy.prompts * policy.rollouts
    most = policy.pass_rows or whole
    tokenizer, asked = loaded.tokenizer, policy.rows
    ends = template.end_ids(tokenizer)
    generator = make_generator(loaded)
    schedule = schedule_of(config, policy.steps)

    def prompt_of(number: int) -> list[int]:
        return template.prompt_ids(asked[number], tokenizer, config.max_prompt_tokens)

    def sampling(step: int, part: int) -> Sampling:
        return Sampling(
            policy.max_new_tokens,
            temperature=policy.temperature,
            end_ids=ends,
            samples_per_prompt=rollouts,
            seed=derive(seed, "rollouts", step, part),
        )

    def roll_out(prompts: list[str], trainer: Any) -> dict[str, Any]:
        """Completes the rows whose numbers the prompts are."""
        numbers = [int(prompt) for prompt in prompts[::rollouts]]
        size = -(-len(numbers) // _AHEAD) if policy.scorer.is_remote else len(numbers)
        written: list[Completion] = []
        for part in range(0, len(numbers), size):
            some = numbers[part : part + size]
            groups = generator.generate(
                [prompt_of(at) for at in some], sampling(done + trainer.state.global_step, part)
            )
            for number, group in zip(some, groups, strict=True):
                written += group
                if policy.scorer.is_remote:
                    judge.begin(number, [one.text for one in group])
        return {
            "prompt_ids": [prompt_of(at) for at in numbers for _ in range(rollouts)],
            "completion_ids": [[*one.token_ids, *(ends[:1] if one.finish_reason == "eos" else ())] for one in written],
            "logprobs": None,
        }

    class Trainer(GRPOTrainer):
        """TRL's, with the prompts, advantages and reference of this house."""

        def _tokenize_prompts(self, prompts: list[str]) -> tuple[list[list[int]], None, dict[str, Any]]:
            return [prompt_of(int(prompt)) for prompt in prompts], None, {}

        def _calculate_rewards(self, *args: Any) -> torch.Tensor:
            self.last_rewards: torch.Tensor = super()._calculate_rewards(*args)
            return self.last_rewards

        def _get_per_token_logps_and_entropies(self, *args: Any, **options: Any) -> Any:
            found = super()._get_per_token_logps_and_entropies(*args, **options)
            self.last_logps: torch.Tensor = found[0]
            return found

        def _generate_and_score_completions(self, inputs: Any) -> dict[str, Any]:
            output: dict[str, Any] = super()._generate_and_score_completions(inputs)
            output["advantages"] = group_advantages(self.last_rewards.sum(dim=1), rollouts, policy.epsilon)
            if start:
                ids = torch.cat([output["prompt_ids"], output["completion_ids"]], dim=1)
                mask = torch.cat([output["prompt_mask"], output["completion_mask"]], dim=1)
                with torch.no_grad(), exchanged(start):
                    output["ref_per_token_logps"] = self._get_per_token_logps_and_entropies(
                        self.model, ids, mask, output["completion_ids"].size(1), batch_size=most
                    )[0]
            return output

        def _compute_loss(self, model: torch.nn.Module, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
            loss: torch.Tensor = super()._compute_loss(model, inputs)
            if not start:
                return loss
            mask = inputs["completion_mask"]
            kl = (token_kl(self.last_logps, inputs["ref_per_token_logps"], policy.kl_clip) * mask).sum()
            self._metrics["train"]["kl"].append((kl.detach() / mask.sum()).item())
            if policy.loss == "bnpo":
                return loss + policy.beta * kl / mask.sum() / self.current_gradient_accumulation_steps
            return loss + policy.beta * kl / inputs["num_items_in_batch"]

    class Hooks(TrainerCallback):
        """Before and after each step."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seed_step(done + state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "reward" in logs:
                look(logs)

    def format(prompts: list[str], completions: list[str], log_metric: Any, **_: Any) -> list[float]:
        for name, value in judge.walks(completions).items():
            log_metric(name, value)
        return judge.format(completions)

    def quality(prompts: list[str], completions: list[str], **_: Any) -> list[float]:
        return judge.quality([int(prompt) for prompt in prompts], completions)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        settings = GRPOConfig(
            output_dir="unused",  # nothing is saved by TRL
            save_strategy="no",
            report_to=[],
            logging_steps=1,
            logging_nan_inf_filter=False,
            disable_tqdm=True,
            use_cpu=loaded.device.type == "cpu",
            bf16=autocast_format(config.precision, loaded.device) is not None,
            seed=derive(seed, "trl") % 2**31,
            max_steps=policy.steps - done,
            per_device_train_batch_size=most,
            gradient_accumulation_steps=whole // most,
            gradient_checkpointing=False,  # set on the model already
            num_generations=rollouts,
            max_completion_length=policy.max_new_tokens,
            temperature=policy.temperature,
            top_k=0,
            shuffle_dataset=False,
            disable_dropout=True,
            beta=0.0,
            epsilon=policy.clip,
            loss_type=policy.loss,
            max_grad_norm=config.max_grad_norm,
            learning_rate=config.learning_rate,
            use_vllm=policy.rollouts_by == "vllm",
        )
        numbers = [str(number) for step in order_of(policy, seed)[done:] for number in step]
        trainer = Trainer(
            model=loaded.model,
            reward_funcs=[format, quality],
            args=settings,
            train_dataset=Dataset.from_dict({"prompt": numbers}),
            processing_class=tokenizer,
            callbacks=[Hooks()],
            optimizers=(optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda at: schedule(done + at))),
            rollout_func=roll_out if policy.rollouts_by == "engine" else None,
        )
    from transformers.trainer_callback import PrinterCallback

    trainer.remove_callback(PrinterCallback)
    return trainer


@contextmanager
def _forwards_kept(loaded: LoadedModel) -> Iterator[None]:
    """Takes off the model what TRL and Accelerate put around its forward pass."""
    models = {id(one): one for one in (loaded.model, inner_model(loaded.model))}.values()
    before = [dict(one.__dict__) for one in models]
    try:
        yield
    finally:
        for model, own in zip(models, before, strict=True):
            for name in ("forward", "_original_forward"):
                if name in own:
                    model.__dict__[name] = own[name]
                else:
                    model.__dict__.pop(name, None)
