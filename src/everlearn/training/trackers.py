"""The trackers that a run may report to, through the Trainer's own callbacks."""

from __future__ import annotations

from collections.abc import Sequence

from everlearn.errors import MissingExtraError, UserError, unknown

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def check_trackers(names: Sequence[str]) -> None:
    """Refuses unknown trackers and those that are not installed.

    Raises:
        UserError: unknown name.
        MissingExtraError: not installed.
    """
    from transformers.integrations import get_available_reporting_integrations

    for name in names:
        if name not in TRACKERS:
            raise UserError(f"training.report_to: {unknown('tracker', name, TRACKERS)}")
        if name not in get_available_reporting_integrations():
            raise MissingExtraError(f"training.report_to: {name} is not installed: run 'pip install {name}'.")
