"""The trackers that a run may report to, through Accelerate."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from everlearn.errors import MissingExtraError, UserError, unknown

TRACKERS = ("tensorboard", "wandb", "mlflow", "trackio")


def check_trackers(names: Sequence[str]) -> None:
    """Refuses unknown trackers and those that are not installed.

    Raises:
        UserError: unknown name.
        MissingExtraError: not installed.
    """
    from accelerate.tracking import get_available_trackers

    for name in names:
        if name not in TRACKERS:
            raise UserError(f"training.report_to: {unknown('tracker', name, TRACKERS)}")
        if name not in [getattr(known, "value", known) for known in get_available_trackers()]:
            raise MissingExtraError(f"training.report_to: {name} is not installed: run 'pip install {name}'.")


@contextmanager
def tracking(names: Sequence[str], folder: Path, what: str) -> Iterator[Callable[[Mapping[str, float]], None]]:
    """Yields what sends the values of one step to the trackers; without names it does nothing."""
    check_trackers(names)
    if not names:
        yield lambda _: None
        return
    from accelerate import Accelerator

    accelerator = Accelerator(log_with=list(names), project_dir=str(folder))
    accelerator.init_trackers(what.replace(" ", "-"))

    def track(row: Mapping[str, float]) -> None:
        values = {f"train/{name}": value for name, value in row.items() if name not in ("step", "seconds")}
        accelerator.log(values, step=int(row["step"]))

    try:
        yield track
    finally:
        accelerator.end_training()
