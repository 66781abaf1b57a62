"""What the numbers mean: names, plain words, formulas and which direction is good.

Formulas are written with a(i, j), the score on task j after stage i, and T, the number of stages. Source of AR, FWT
and BWT: arXiv 2403.01244, section 4.1. Where the run's own `metrics.json` brings a definition in words, that is shown.
"""

from __future__ import annotations

from dataclasses import dataclass

from everlearn.report.page.numbers import percent, score, signed


@dataclass(frozen=True, slots=True)
class Meaning:
    """One number of the report.

    Attributes:
        key: Its name in metrics.json.
        short: In table heads.
        title: In full.
        plain: What it says, in one clause.
        formula: How it is computed.
        rises: Whether higher is better.
        is_change: Whether it is a difference, written with its sign.
        unit: What the number counts.
    """

    key: str
    short: str
    title: str
    plain: str
    formula: str
    rises: bool = True
    is_change: bool = False
    unit: str = "%"

    @property
    def direction(self) -> str:
        """`higher is better`."""
        return "higher is better" if self.rises else "lower is better"

    @property
    def arrow(self) -> str:
        """The direction of good."""
        return "↑" if self.rises else "↓"


CONTINUAL = (
    Meaning(
        "AR",
        "AR",
        "Average at the end",
        "mean score over all tasks after the last stage",
        "AR = mean over j of a(T, j)",
    ),
    Meaning(
        "BWT",
        "BWT",
        "Backward transfer",
        "how much the earlier tasks have changed since each was learnt; 0 means nothing was lost",
        "BWT = mean over i < T of a(T, i) − a(i, i)",
        is_change=True,
        unit="points",
    ),
    Meaning(
        "FWT",
        "FWT",
        "Forward transfer",
        "score on a task just before it is trained",
        "FWT = mean over i > 1 of a(i − 1, i)",
    ),
    Meaning(
        "FWT_over_base",
        "FWT over base",
        "Forward transfer over the base",
        "how much the earlier tasks have added to a task's score before it is trained",
        "FWT over base = mean over i > 1 of a(i − 1, i) − a(0, i), row 0 being the base model",
        is_change=True,
        unit="points",
    ),
    Meaning(
        "forgetting",
        "Forgetting",
        "Forgetting",
        "how far the earlier tasks have fallen from their best score since each was learnt",
        "Forgetting = mean over j < T of max over j ≤ i < T of a(i, j) − a(T, j)",
        rises=False,
        unit="points",
    ),
    Meaning(
        "forgetting_highest",
        "Forgetting ≥ 0",
        "Forgetting, never below 0",
        "as forgetting, where a task that has risen since it was learnt does not make up for one that has fallen",
        "Forgetting ≥ 0 = mean over j < T of max over j ≤ i ≤ T of a(i, j) − a(T, j)",
        rises=False,
        unit="points",
    ),
    Meaning(
        "average_accuracy",
        "Average",
        "Average over the stages",
        "mean over the stages of the mean score on the tasks seen so far",
        "Average = mean over i of mean over j ≤ i of a(i, j)",
    ),
    Meaning(
        "last_accuracy",
        "Last",
        "Last accuracy",
        "mean score on the tasks seen, after the last stage",
        "Last = mean over j ≤ T of a(T, j)",
    ),
    Meaning(
        "probe_gap",
        "Probe gap",
        "Gap to the probe",
        "how much more a fresh head on the model's features gets right after the last stage than the model itself",
        "Gap = mean over j ≤ T of p(T, j) − a(T, j), p being the probe",
        rises=False,
        unit="points",
    ),
    Meaning(
        "probe_slope",
        "Probe slope",
        "Slope of the probe",
        "points a stage by which the features themselves gain or lose",
        "Slope = least-squares slope over i ≥ 1 of the mean over all j of p(i, j), p being the probe",
        is_change=True,
        unit="points",
    ),
)
PROBES = {
    "linear": "linear probe",
    "cosine_linear": "cosine linear",
    "prototype": "prototype",
    "cosine_prototype": "cosine prototype",
}
MICROTASKS = Meaning(
    "microtasks",
    "General ability",
    "General ability",
    "accuracy on small tasks from pre-training that the stream never trains",
    "Share of held-out micro-tasks answered exactly",
)
PERPLEXITY = Meaning(
    "perplexity",
    "Perplexity",
    "Perplexity",
    "how surprised the model is by ordinary text that the stream never trains",
    "Exponential of the mean loss per token on held-out text",
    rises=False,
    unit="",
)
TASK_METRICS = {
    "exact_match": "exact match",
    "accuracy": "accuracy",
    "rouge_l": "ROUGE-L (published form: jieba tokens)",
    "rouge_l_word": "ROUGE-L (ASCII words)",
    "rouge_l_unicode": "ROUGE-L (Unicode words)",
    "token_f1": "token F1",
    "macro_f1": "macro F1 (entities, mean over types)",
    "micro_f1": "micro F1 (entities)",
    "chrf": "chrF",
}
RIGHT_OR_WRONG = frozenset({"exact_match", "accuracy"})
"""Task metrics that are either 0 or 100."""
BOUNDED = frozenset(meaning.key for meaning in CONTINUAL if meaning.unit == "%")
"""Scores: no interval of theirs is shown beyond 0 and 100."""


def written(meaning: Meaning, value: float | None) -> str:
    """A value with its unit or sign, as the meaning asks."""
    if meaning.is_change:
        return signed(value)
    return percent(value) if meaning.unit == "%" else score(value)


def metric_title(name: str) -> str:
    """A task metric's name for reading, with its form where it has several."""
    return TASK_METRICS.get(name, name.replace("_", " "))


def metric_word(name: str) -> str:
    """The name without its form."""
    return metric_title(name).split(" (")[0]
