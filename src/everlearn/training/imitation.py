"""Holding a model to another one on rows of raw text: in its hidden states, or in its predictions.

    l1   mean |h - h0|        l2   mean (h - h0)^2        over tokens and units of the final hidden states
    kl   mean over tokens of KL(softmax(z0 / T) || softmax(z / T))
    tm   sum of excess / number of elements outside of their range (`everlearn.training.bands`)

Each is a sum over a row, divided by a count of it. Balance `rows`: every row by itself, then (1 / B) sum over the B
rows of the step; `halves`: sums and counts over all texts of the step. The weight is a number, or `dynamic`:
CE / (IMIT + 1e-8) as a plain number, so that both weigh the same.
Source: GeRe's published code (spec sections 4 and 5); its micro-batches of one row are `rows`, one of all rows is
`halves`. Without any violation TM and its gradient are 0, and a dynamic weight is as large as 1e8 CE.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Literal

import torch
from torch import Tensor

from everlearn.training.bands import excess, unpack_states
from everlearn.training.divergences import divergence
from everlearn.training.influence import Influence, Seen, Training
from everlearn.training.losses import answer_divergence, head_of
from everlearn.training.teacher import BAND, STATES, Teacher

if TYPE_CHECKING:
    from collections.abc import Mapping

    from everlearn.training.rows import EncodedRow

Kind = Literal["kl", "l1", "l2", "tm"]
Weight = float | Literal["dynamic"]
Balance = Literal["rows", "halves"]
_TINY = 1e-8


@dataclass(frozen=True)
class Imitating:
    """How texts are held to a teacher.

    Attributes:
        kind: What is compared.
        weight: Of the term.
        most_weight: Bound of a dynamic weight.
        balance: Row by row, or all texts of a step as one.
        tm_mean: Whether excess is averaged over the elements that have any, or over all.
        temperature: Of `kl`.
    """

    kind: Kind
    weight: Weight
    most_weight: float | None = None
    balance: Balance = "rows"
    tm_mean: Literal["violations", "elements"] = "violations"
    temperature: float = 2.0


def feature_distance(hidden: Tensor, before: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """The distance of each element from the teacher's."""
    difference = hidden - before
    return difference.abs() if kind == "l1" else difference**2


def mean_of(total: Tensor, count: Tensor) -> Tensor:
    """Sums divided by their counts, which carry no gradient and may be 0 where the sum is."""
    return total / (count + _TINY)


def weight_of(losses: Tensor, imitation: Tensor, weight: Weight, most: float | None = None) -> Tensor:
    """The weight of imitation terms beside the cross-entropies of the same rows, without gradient."""
    if weight != "dynamic":
        return torch.full_like(imitation, weight).detach()
    found = losses.detach() / (imitation.detach() + _TINY)
    return found if most is None else found.clamp(max=most)


def halves(task: Tensor | None, texts: Tensor | None) -> Tensor:
    """The cross-entropy of a step of which tasks and texts weigh the same, or what there is of them."""
    there = [loss for loss in (task, texts) if loss is not None]
    return torch.stack(there).mean()


class Imitation(Influence):
    """Adds the imitation of a teacher on the rows of a group.

    Args:
        group: Of rows of raw text, in the order of the teacher's outputs.
        teacher: States by row, or packed states of bands.
        how: What is compared, and how it is weighed.
    """

    reads = True

    def __init__(self, group: str, teacher: Teacher, how: Imitating) -> None:
        self._group, self._teacher, self._how = group, teacher, how
        counts_values = how.weight == "dynamic" or (how.kind, how.tm_mean) == ("tm", "violations")
        self.reads_logits = how.kind == "kl" and how.weight != 0
        self.needs_whole = how.balance == "halves" and counts_values

    def inputs(self) -> Mapping[str, object]:
        """What is compared with which outputs; how they are weighed is said by the method's options."""
        return {"group": self._group, "teacher": self._teacher.fingerprint, "how": repr(self._how)}

    def begin(self, training: Training) -> None:
        """Reads the band, or finds the head that makes the teacher's logits."""
        from safetensors.torch import load_file

        from everlearn.models.adapters import inner_model

        self._device = training.device
        if self._how.kind == "tm":
            self._band = load_file(self._teacher.outputs.folder / BAND)["band"].to(self._device)
        if self._how.kind == "kl":
            self._head = inner_model(training.model).get_output_embeddings()
            self._kept_head = self._teacher.head(self._device)

    def units(self, rows: Sequence[EncodedRow]) -> int:
        """All rows of the step; for `halves` the tokens of its texts, where the sum can be divided beforehand."""
        if self._how.balance == "rows":
            return len(rows)
        return 1 if self.needs_whole else sum(len(row.ids) for row in rows if row.group == self._group)

    def term(self, seen: Seen) -> Tensor | None:
        """The weighted imitation of the texts of a part."""
        places = [at for at, row in enumerate(seen.rows) if row.group == self._group]
        if not places or self._how.weight == 0:
            return None
        totals, counts = self._sums(seen, places)
        how = self._how
        if how.balance == "rows":
            losses = seen.losses[places] / seen.losses.new_tensor([seen.rows[at].answer_count for at in places])
            found = mean_of(totals, counts)
            return (weight_of(losses, found, how.weight, how.most_weight) * found).sum()
        if not self.needs_whole:
            assert how.weight != "dynamic", "a dynamic weight needs the whole step"
            tokens = sum(len(seen.rows[at].ids) for at in places)
            return how.weight * totals.sum() * (tokens / counts.sum())
        found = mean_of(totals.sum(), counts.sum())
        return weight_of(_halved(seen, places), found, how.weight, how.most_weight) * found

    def _sums(self, seen: Seen, places: Sequence[int]) -> tuple[Tensor, Tensor]:
        """Of each row what is summed over it, and by what that is divided."""
        assert seen.text is not None, "rows of raw text have states"
        lengths = [len(row.ids) for row in seen.rows if row.is_text]
        numbers = [seen.rows[at].number for at in places]
        texts = [row.group == self._group for row in seen.rows if row.is_text]
        hidden = seen.text
        if not all(texts):
            of_group = torch.tensor(texts).repeat_interleave(torch.tensor(lengths)).to(self._device)
            hidden = hidden[of_group]
        own = [len(seen.rows[at].ids) for at in places]
        kept = self._teacher.outputs.of(numbers, self._device)[STATES]
        if self._how.kind == "kl":
            logits = seen.logits_at(seen.places(lambda row: row.group == self._group))
            totals = self._divergences(hidden.split(own), kept.split(own), logits)
            return totals, hidden.new_tensor(own, dtype=torch.float32)
        hidden = hidden.float()
        if self._how.kind == "tm":
            each = excess(hidden, unpack_states(kept, hidden.shape[1]), self._band)
        else:
            each = feature_distance(hidden, kept.float(), self._how.kind)
        row_of = torch.arange(len(own)).repeat_interleave(torch.tensor(own)).to(self._device)
        totals = _by_row(each.sum(1), row_of, len(own))
        if self._how.kind == "tm" and self._how.tm_mean == "violations":
            return totals, _by_row((each != 0).sum(1).float(), row_of, len(own))
        return totals, totals.new_tensor(own) * hidden.shape[1]

    def _divergences(self, hidden: Sequence[Tensor], kept: Sequence[Tensor], logits: Tensor | None) -> Tensor:
        """Of each row; logits, where there are any, are of all its tokens but the last, which predicts none."""
        terms = partial(divergence, temperature=self._how.temperature)
        head, other = self._head, self._kept_head or head_of(self._head)
        pairs = zip(hidden, kept, strict=True)
        if logits is None:
            return torch.stack([answer_divergence(now, head, before, other, terms) for now, before in pairs])
        found = []
        for (now, before), own in zip(pairs, logits.split([len(now) - 1 for now in hidden]), strict=True):
            last = answer_divergence(now[-1:], head, before[-1:], other, terms)
            found.append(last + answer_divergence(now[:-1], head, before[:-1], other, terms, own))
        return torch.stack(found)


def _by_row(values: Tensor, row_of: Tensor, rows: int) -> Tensor:
    return values.new_zeros(rows).index_add(0, row_of, values)


def _halved(seen: Seen, places: Sequence[int]) -> Tensor:
    """The cross-entropy of a whole step with balance `halves`."""
    texts = set(places)
    kinds = [[at for at in range(len(seen.rows)) if (at in texts) == is_text] for is_text in (False, True)]
    means = [
        seen.losses[chosen].sum() / sum(seen.rows[at].answer_count for at in chosen) if chosen else None
        for chosen in kinds
    ]
    return halves(*means)
