"""The published reward of a translation that is thought about, advantages within a group, and the KL estimate.

    format    0.2 where the tags are right (`everlearn.data.walks`), else 0
    quality   max(0, round(q, 2)) where they are and the answer is not empty, else 0; no upper bound
    total     format + quality

    advantage of rollout j of a group      (R_j - mean) / (std + 1e-6), std unbiased; a group of one: mean 0, std 1
    KL of a token (k3, `low_var_kl`)       exp(ref - lp) - (ref - lp) - 1, clipped to [-10, 10]

Source: R1-T1 (arXiv 2502.19735), `verl/utils/reward_score/translate.py` and verl's `core_algos.py` (spec sections 5
and 6). TRL divides by std + 1e-4 and does not clip.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from everlearn.data.walks import answer_in, is_well_formed

if TYPE_CHECKING:
    from torch import Tensor

FORMAT_WEIGHT = 0.2


def format_reward(response: str, weight: float = FORMAT_WEIGHT) -> float:
    """What right tags are worth.

    Args:
        response: With its opening tag.
        weight: Of right tags.
    """
    return weight if is_well_formed(response) else 0.0


def scored_answer(response: str) -> str | None:
    """The answer whose quality counts; None: there is none, or its tags are wrong."""
    return (answer_in(response) or None) if is_well_formed(response) else None


def quality_reward(quality: float, *, rounds: bool = True) -> float:
    """What the quality of a scored answer is worth.

    Args:
        quality: As the scorer gives it.
        rounds: Whether to two digits, as published.
    """
    return max(0.0, round(quality, 2) if rounds else quality)


def group_advantages(rewards: Tensor, group: int, epsilon: float = 1e-6) -> Tensor:
    """Each rollout's reward against those of its group.

    Args:
        rewards: (groups * group,), group after group.
        group: Rollouts of a prompt.
        epsilon: Added to the standard deviation.

    Returns:
        Advantages of the same shape.
    """
    grouped = rewards.view(-1, group)
    if group == 1:
        return rewards / (1.0 + epsilon)
    mean, deviation = grouped.mean(dim=1, keepdim=True), grouped.std(dim=1, keepdim=True)
    return ((grouped - mean) / (deviation + epsilon)).view(-1)


def token_kl(logps: Tensor, reference: Tensor, clip: float | None = 10.0) -> Tensor:
    """The estimate of each token's KL(policy || reference) from its log-probabilities under both.

    Args:
        logps: Under the policy, any shape.
        reference: Under the reference, of the same shape.
        clip: Bound of the estimate on both sides; None: none.
    """
    difference = reference - logps
    kl = difference.exp() - difference - 1
    return kl if clip is None else kl.clamp(-clip, clip)
