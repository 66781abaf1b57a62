"""Self-Synthesized Rehearsal: earlier tasks are rehearsed with instances that the model itself has written.

Huang et al., "Mitigating Catastrophic Forgetting in Large Language Models with Self-Synthesized Rehearsal", ACL 2024,
arXiv 2403.01244. After stage i, with theta(0) the base model and theta(i) the latest one:

    (x, y)  ~ theta(0) continuing prompts of K demonstrations of task i      (in-context synthesis)
    x       kept if near a cluster's centre, 10 % of the task's size          (selection)
    y'      = theta(i) answering x greedily                                   (refinement)

and every later stage t trains on d(t) and all sets made so far, simply concatenated. A set is made once, right after
its stage, and never changed. The base model writes, because tuned ones lose the ability to follow demonstrations; the
latest answers, because it has learnt the task. No real row of an earlier task is trained on again.

The steps are in `everlearn.synthesis`, as are the options: preset `faithful` is the published behaviour, `improved`
mends its pitfalls. The rows are kept as the method's state. Not here: the ablation with input-only demonstrations.
"""

from __future__ import annotations

from everlearn.methods.registry import register
from everlearn.methods.synthesizing import Synthesizing, SynthesizingOptions
from everlearn.synthesis.options import DemonstrationOptions


class SSROptions(DemonstrationOptions, SynthesizingOptions):
    """The options of synthesis, as they stand."""


@register
class SSR(Synthesizing):
    """Rehearses what the base model writes after demonstrations and the latest one answers."""

    Options = SSROptions
