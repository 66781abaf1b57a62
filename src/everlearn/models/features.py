"""States of a model as features of texts: the last hidden state at the last token of a prompt, at a token of each of
its words, or another pooling.

A classifier on a causal model reads the state from which the first token of the answer would be predicted
(zzz47zzz/codebase-for-incremental-learning-with-llm: the last layer, after its norm, at the last prompt token of a
prompt without its answer). The model is in evaluation mode, so that no dropout acts: the published probing and
training extract features with it (they switch back to training mode after every evaluation). No logits are computed.
Rows of words have a state for each word (`everlearn.data.word_prompts`), one after the other.

Rows of like length share a batch and are padded on the right, where causal attention does not see it; the tests hold a
row's state to be the same alone and beside longer ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from everlearn.artifacts import StepRunner
from everlearn.data.word_prompts import places_in
from everlearn.fingerprints import fingerprint_of
from everlearn.models.adapters import inner_model
from everlearn.models.batching import by_length, tokens_at_once
from everlearn.models.kinds import soft_prompt
from everlearn.models.sides import Sides

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module
    from transformers import PreTrainedModel, PreTrainedTokenizerBase

    from everlearn.crew import Crew
    from everlearn.data.instance import Task
    from everlearn.data.prompts import PromptTemplate
    from everlearn.models.loading import LoadedModel
    from everlearn.progress import Tick

Part = Literal["train", "evaluation"]
"""Of a task's rows."""
Places = Sequence[Sequence[int]]
"""Of each prompt the places of the tokens whose states are asked for, in order."""
BATCH_TOKENS = 8192
"""Tokens computed at once on a GPU, padding included."""
STATES = "states.safetensors"
"""File of an artifact of kept states: `states`, (prompts, width) or, of words, (words, width), float32."""


def last_prompt_states(
    loaded: LoadedModel, prompts: Sequence[Sequence[int]], places: Places | None = None, *, tick: Tick | None = None
) -> np.ndarray:
    """The final hidden state at the last token of each prompt, or at other places of it.

    Args:
        loaded: The model; adapters count as they are switched.
        prompts: Token ids; none is empty.
        places: Of each prompt the places of the tokens whose states are asked for; None: its last one.
        tick: Called with (prompts done, prompts in all).

    Returns:
        (prompts, width), or (places of all prompts, width) in their order; float32.
    """
    return loaded.shared_out(_states, (prompts, places), tick)


def kept_prompt_states(
    step: StepRunner,
    name: str,
    model: str,
    prompts: Sequence[Sequence[int]],
    open_model: Callable[[], LoadedModel],
    show: Callable[[], Tick | None] = lambda: None,
    *,
    places: Places | None = None,
) -> Path:
    """The same as a step of the store, so that states of an unchanged model are computed once, whoever asks.

    Args:
        step: Runs it.
        name: Of the prompts: the artifact's place in `features/` below the stage's folder.
        model: Fingerprint of the model.
        prompts: Token ids.
        open_model: Loads it, where the step has not been made.
        show: Gives what to show by.
        places: As for `last_prompt_states`.

    Returns:
        Path of the file.
    """

    def make(folder: Path) -> None:
        from safetensors.numpy import save_file

        given = () if places is None else (places,)
        save_file({"states": last_prompt_states(open_model(), prompts, *given, tick=show())}, folder / STATES)

    read = {"prompts": fingerprint_of(prompts), **({} if places is None else {"places": fingerprint_of(places)})}
    return step(f"features/{name}", {"model": model, **read}, make).path / STATES


def task_prompts(
    task: Task, part: Part, template: PromptTemplate, tokenizer: PreTrainedTokenizerBase, most: int
) -> tuple[str, list[list[int]], Places | None]:
    """The prompts of a task's rows as their states are read, with their name in the store, the same whoever asks.

    Args:
        task: Whose rows.
        part: Which of them.
        template: How an instance becomes a prompt.
        tokenizer: The model's.
        most: Tokens at which prompts of training rows are cut (`training.max_prompt_tokens`); others are whole.

    Returns:
        Name, token ids, and the places of words where the rows are such.
    """
    rows, cut = (task.train, most) if part == "train" else (task.evaluation, None)
    prompts = [template.prompt_ids(row, tokenizer, cut) for row in rows]
    return f"{task.name}/{part}", prompts, places_in(rows, template, tokenizer, cut)


def read_states(path: Path) -> np.ndarray:
    """Kept states, (prompts, width), float32."""
    from safetensors.numpy import load_file

    states: np.ndarray = load_file(path)["states"]
    return states


def _states(
    loaded: LoadedModel, order: tuple[Sequence[Sequence[int]], Places | None], crew: Crew, tick: Tick | None
) -> np.ndarray:
    """The same in all processes, each some of the batches."""
    prompts, given = order
    places = given or [(len(prompt) - 1,) for prompt in prompts]

    def pool(states: Tensor, _: Tensor, batch: Sequence[int]) -> Tensor:
        return states_at(states, [places[at] for at in batch])

    return pooled(loaded, prompts, pool, crew, tick, sizes=[len(one) for one in places], sees_prompt=True)


def states_at(states: Tensor, places: Places) -> Tensor:
    """The states at places of each row, row after row, (places, width).

    Args:
        states: (rows, length, width).
        places: Of each row.
    """
    import torch

    row_of = [row for row, own in enumerate(places) for _ in own]
    index = torch.tensor([row_of, [at for own in places for at in own]], device=states.device, dtype=torch.long)
    return states[index[0], index[1]]


def pooled(
    loaded: LoadedModel,
    rows: Sequence[Sequence[int]],
    pool: Callable[[Tensor, Tensor, Sequence[int]], Tensor],
    crew: Crew,
    tick: Tick | None = None,
    *,
    sizes: Sequence[int] | None = None,
    batch_tokens: int | None = None,
    sees_prompt: bool = False,
) -> np.ndarray:
    """One vector a row, or several, of its final hidden states.

    Args:
        loaded: The model.
        rows: Token ids; none is empty.
        pool: States (rows, length, width) and mask (rows, length) of a batch, and which rows these are, to their
            vectors, row after row, (vectors, width).
        crew: Processes that share the work; each calls this.
        tick: Called with (rows done, rows in all).
        sizes: How many vectors each row has; None: one.
        batch_tokens: Most tokens of a batch, padding included; None: by the device.
        sees_prompt: Whether a soft prompt of the model stands before each row; else such a model is refused.

    Returns:
        (vectors, width), in the order of the rows, float32.
    """
    import torch

    assert all(rows), "a row has at least one token"
    inner = inner_model(loaded.model, sees_prompt=sees_prompt)
    decoder, before, done = decoder_within(inner), soft_prompt(loaded.model), 0

    def of_batch(batch: Sequence[int]) -> np.ndarray:
        nonlocal done
        tokens, mask = (
            part.to(loaded.device) for part in padded([rows[at] for at in batch], loaded.tokenizer.pad_token_id)
        )
        if before is None:
            states = decoder(input_ids=tokens, attention_mask=mask, use_cache=False).last_hidden_state
        else:
            vectors = inner.get_input_embeddings()(tokens)
            vectors = torch.cat([before.to(vectors.dtype).expand(len(batch), *before.shape), vectors], dim=1)
            seen = torch.cat([mask.new_ones(len(batch), len(before)), mask], dim=1)
            states = decoder(inputs_embeds=vectors, attention_mask=seen, use_cache=False).last_hidden_state
            states = states[:, len(before) :]
        found: np.ndarray = pool(states, mask, batch).float().cpu().numpy()
        done += len(batch)
        if tick:
            tick(min(done * crew.count, len(rows)), len(rows))
        return found

    most_tokens = batch_tokens or tokens_at_once(loaded.device.type, BATCH_TOKENS)
    batches = list(by_length(range(len(rows)), lambda at: len(rows[at]), most_tokens, Sides(inner).of))
    with torch.inference_mode():
        shares = crew.share(batches, of_batch)
    if not batches:
        return np.zeros((0, 1), dtype=np.float32)
    ends = np.cumsum([1] * len(rows) if sizes is None else sizes)
    starts = [0, *ends[:-1]]
    whole = np.empty((ends[-1], shares[0].shape[1]), dtype=np.float32)
    for batch, share in zip(batches, shares, strict=True):
        whole[np.concatenate([np.arange(starts[at], ends[at]) for at in batch])] = share
    return whole


def padded(rows: Sequence[Sequence[int]], pad_id: int) -> tuple[Tensor, Tensor]:
    """Token ids padded on the right, and their mask, (rows, longest) each."""
    import torch

    tokens = torch.full((len(rows), max(map(len, rows))), pad_id)
    mask = torch.zeros_like(tokens)
    for at, row in enumerate(rows):
        tokens[at, : len(row)] = torch.tensor(row)
        mask[at, : len(row)] = 1
    return tokens, mask


def decoder_of(loaded: LoadedModel) -> Module:
    """The model without its output head."""
    return decoder_within(inner_model(loaded.model))


def decoder_within(model: PreTrainedModel) -> Module:
    """A Transformers model without its output head."""
    from transformers import PreTrainedModel

    decoder: Module = model.get_decoder()
    if isinstance(decoder, PreTrainedModel) and decoder is not model:
        return decoder
    # Llama 4 gives itself, ModernBERT's decoder its head
    return next(part for part in model.children() if isinstance(part, PreTrainedModel))
