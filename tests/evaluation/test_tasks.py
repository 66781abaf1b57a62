"""Answers to a task and their scores, with a generator that answers by heart."""

from __future__ import annotations

import numpy as np
import pytest

from everlearn.data.instance import Instance, Task
from everlearn.data.prompts import VanillaTemplate
from everlearn.errors import DataError, RecipeError
from everlearn.evaluation.bootstrap import mean_interval
from everlearn.evaluation.tasks import predict_task, score_rows
from everlearn.generation.protocol import Sampling
from everlearn.progress import LineProgress
from tests.evaluation.by_heart import ByHeart, answered
from tests.tiny_models import make_tokenizer

METRICS = ("exact_match", "token_f1")


def instance(text: str, output: str, *references: str, id: str = "") -> Instance:
    return Instance("say", text, output, "speak", id=id, references=references)


def speak(*rows: Instance, metric: str = "exact_match") -> Task:
    return Task("speak", rows, rows, metric=metric)


TOKENIZER = make_tokenizer()


def predict(generator: ByHeart, task: Task, **options: object) -> list[dict]:
    settings: dict = {"max_new_tokens": 9, "progress": LineProgress(), "metrics": METRICS, **options}
    return predict_task(generator, VanillaTemplate(), TOKENIZER, task, **settings)


def test_rows_carry_question_answer_and_all_scores() -> None:
    generator = ByHeart(answered(" red cat\n"), answered("blue", "length"))
    task = speak(instance("one", "a red cat", "red cat", id="x-1"), instance("two", "the dog", id="x-2"))
    first, second = predict(generator, task)
    assert first == {
        "id": "x-1",
        "instruction": "say",
        "input": "one",
        "gold": "a red cat",
        "references": ["red cat"],
        "prediction": "red cat",
        "finish_reason": "eos",
        "scores": {"exact_match": 100.0, "token_f1": 100.0},
    }
    assert (second["prediction"], second["finish_reason"]) == ("blue", "length")
    assert second["scores"] == {"exact_match": 0.0, "token_f1": 0.0}


def test_the_gold_answer_counts_beside_other_references() -> None:
    (row,) = predict(ByHeart(answered("the dog")), speak(instance("one", "the dog", "a hound")))
    assert row["scores"]["exact_match"] == 100


def test_prompts_are_the_training_prompts_and_decoding_is_greedy() -> None:
    generator = ByHeart(answered("yes"))
    task = speak(instance("the red cat", "yes"))
    predict(generator, task, context_length=64)
    assert generator.prompts == [VanillaTemplate().prompt_ids(task.evaluation[0], TOKENIZER)]
    assert generator.sampling == Sampling(max_new_tokens=9, max_length=64, end_ids=(TOKENIZER.eos_token_id,))
    assert generator.sampling.temperature == 0


def test_the_main_metric_is_scored_even_when_it_is_not_listed() -> None:
    (row,) = predict(ByHeart(answered("yes")), speak(instance("a", "yes"), metric="rouge_l_word"))
    assert set(row["scores"]) == {"exact_match", "token_f1", "rouge_l_word"}


def test_a_prompt_that_fills_the_context_is_refused_by_task_and_row() -> None:
    generator = ByHeart(answered("yes"), answered("yes"))
    long = instance("the cat " * 8, "yes", id="long")
    task = speak(instance("the cat", "yes", id="short"), long)
    length = len(VanillaTemplate().prompt_ids(long, TOKENIZER))
    with pytest.raises(DataError, match=rf"'speak'.*'long'.*{length} tokens.*context is {length}.*shorten"):
        predict(generator, task, context_length=length)
    assert not generator.prompts
    assert len(predict(generator, task, context_length=length + 1)) == 2


def test_an_unknown_metric_is_refused_before_anything_is_generated() -> None:
    generator = ByHeart(answered("yes"))
    with pytest.raises(RecipeError, match="bleu"):
        predict(generator, speak(instance("a", "yes"), metric="bleu"))
    assert not generator.prompts


def test_an_answer_ends_where_the_template_ends_its_turns() -> None:
    dot = TOKENIZER.convert_tokens_to_ids(".")

    class ClosedByDot(VanillaTemplate):
        def end_ids(self, tokenizer: object) -> tuple[int, ...]:
            return (dot, TOKENIZER.eos_token_id)

    generator = ByHeart(answered("yes"))
    task = speak(instance("a", "yes"))
    predict_task(generator, ClosedByDot(), TOKENIZER, task, max_new_tokens=9, progress=LineProgress(), metrics=METRICS)
    assert generator.sampling is not None
    assert generator.sampling.end_ids == (dot, TOKENIZER.eos_token_id)


def test_scores_are_means_with_an_interval_of_the_main_metric() -> None:
    task = speak(*(instance(str(i), "yes") for i in range(4)))
    rows = predict(ByHeart(*(answered(text) for text in ("yes", "yes", "no", "yes yes"))), task)
    scores = score_rows(rows, task, samples=500, confidence=0.9, seed=1)
    low, high = scores.pop("interval")  # type: ignore[misc]
    assert scores == {
        "task": "speak",
        "metric": "exact_match",
        "rows": 4,
        "empty": 0,
        "values": {"exact_match": 50.0, "token_f1": pytest.approx((100 + 100 + 0 + 200 / 3) / 4)},
    }
    assert 0 <= low < 50 < high <= 100
    other = score_rows(rows, speak(*task.evaluation, metric="token_f1"), samples=500, confidence=0.9, seed=1)
    assert other["interval"] == list(mean_interval([100, 100, 0, 200 / 3], 500, 0.9, 1))
    assert np.isfinite([low, high]).all()
