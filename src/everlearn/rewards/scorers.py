"""Who judges a translation: one small protocol, and the judges that need nothing but this machine.

| scorer | what it gives |
| --- | --- |
| `chrf` (default) | sentence chrF / 100 |
| `bleu` | sentence BLEU / 100 (sacrebleu) |
| `exact` | 1 or 0 |
| `table` | what a JSON Lines file says of `source` (may be left out), `hypothesis` and `reference` under `score` |
| `comet` | a COMET model from a folder (package unbabel-comet); its own loader reads the checkpoint, so trust it |
| `service` | what a service over HTTP says |
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Protocol
from urllib.parse import urlsplit

from everlearn.errors import DataError, MissingExtraError, ModelError, RunError
from everlearn.files import append_text, read_jsonl, sha256_of
from everlearn.http import Server
from everlearn.rewards.texts import bleu, chrf, exact

ScorerName = Literal["chrf", "bleu", "exact", "table", "comet", "service"]


class QualityScorer(Protocol):
    """Judges translations."""

    def score(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
        """The quality of each translation, the higher the better; all of a call belong together.

        Raises:
            UserError: the scorer cannot say.
        """
        ...


@dataclass(frozen=True)
class TextScorer:
    """Judges by the letters of a translation and its reference."""

    alike: Callable[[str, str], float]

    def score(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
        """See `QualityScorer.score`."""
        return [self.alike(written, given) for written, given in zip(hypotheses, references, strict=True)]


class TableScorer:
    """Looks scores up in a file.

    Raises:
        DataError: a row lacks something; names it.
    """

    def __init__(self, file: Path) -> None:
        self.file = file
        self._known: dict[tuple[str | None, str, str], float] = {}
        for at, row in enumerate(read_jsonl(file), 1):
            try:
                source = None if row.get("source") is None else str(row["source"])
                self._known[source, str(row["hypothesis"]), str(row["reference"])] = float(str(row["score"]))
            except (KeyError, ValueError):
                raise DataError(
                    f"{file}, row {at}: it has no hypothesis, reference and score (a number): give all three."
                ) from None

    def score(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
        """See `QualityScorer.score`."""
        found = []
        for source, written, given in zip(sources, hypotheses, references, strict=True):
            score = self._known.get((source, written, given), self._known.get((None, written, given)))
            if score is None:
                raise DataError(f"{self.file} has no score for the translation {written!r} of {source!r}: add it.")
            found.append(score)
        return found


@dataclass(frozen=True)
class CometScorer:
    """Judges by a COMET model."""

    folder: Path

    @cached_property
    def _model(self) -> Any:
        try:
            from comet import load_from_checkpoint
        except ModuleNotFoundError:
            raise MissingExtraError(
                "scorer comet needs the package unbabel-comet: run \"pip install 'everlearn[comet]'\", or set the "
                "scorer to chrf."
            ) from None
        found = sorted(self.folder.rglob("*.ckpt"))
        if not found:
            raise ModelError(f"{self.folder} has no COMET checkpoint (*.ckpt): give the folder of a downloaded model.")
        return load_from_checkpoint(str(found[0]), local_files_only=True)

    def score(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
        """See `QualityScorer.score`."""
        rows = [
            {"src": source, "mt": written, "ref": given}
            for source, written, given in zip(sources, hypotheses, references, strict=True)
        ]
        return [float(score) for score in self._model.predict(rows, batch_size=len(rows), progress_bar=False).scores]


class ServiceScorer:
    """Asks a service over HTTP: a POST of a list of `src`, `mt` and `ref`, all of a call at once.

    It answers with `scores`, one a translation; to a single one, as published, with `system_score` alone.

    Args:
        settings: Address, time-out and retries.
        kept: A JSON Lines file of the scores that are known, to which new ones are added.
    """

    def __init__(self, settings: ScorerSettings, kept: Path | None) -> None:
        parts = urlsplit(settings.source or "")
        self._path = parts.path.lstrip("/") + (f"?{parts.query}" if parts.query else "")
        self._server = Server(
            f"{parts.scheme}://{parts.netloc}",
            "method.scorer_source",
            timeout_s=settings.timeout_s,
            attempts=1 + settings.retries,
        )
        self._kept = kept
        self._known = dict(_kept_scores(kept)) if kept and kept.exists() else {}

    def score(self, sources: Sequence[str], hypotheses: Sequence[str], references: Sequence[str]) -> list[float]:
        """See `QualityScorer.score`."""
        rows = list(zip(sources, hypotheses, references, strict=True))
        new = [row for row in dict.fromkeys(rows) if row not in self._known]
        if new:
            self._known |= dict(zip(new, self._asked(new), strict=True))
            if self._kept:
                told = ({**_as_json(row), "score": self._known[row]} for row in new)
                append_text(self._kept, "".join(json.dumps(one, ensure_ascii=False) + "\n" for one in told))
        return [self._known[row] for row in rows]

    def _asked(self, rows: Sequence[tuple[str, str, str]]) -> list[float]:
        answer = self._server.post(self._path, [_as_json(row) for row in rows])
        scores = answer.get("scores", [answer.get("system_score")] if len(rows) == 1 else None)
        if (
            not isinstance(scores, list)
            or len(scores) != len(rows)
            or not all(isinstance(score, int | float) and math.isfinite(score) for score in scores)
        ):
            raise RunError(
                f"method.scorer_source: {self._server.url}/{self._path} gives no list 'scores' of {len(rows)} "
                "numbers: see that it is a scoring service that answers a list of src, mt and ref."
            )
        return [float(score) for score in scores]


def _as_json(row: tuple[str, str, str]) -> dict[str, str]:
    return dict(zip(("src", "mt", "ref"), row, strict=True))


def _kept_scores(path: Path) -> Iterator[tuple[tuple[str, str, str], float]]:
    """The scores of a file; a last line that a kill has cut short is left out."""
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            row = json.loads(line)
        except ValueError:
            continue
        yield (row["src"], row["mt"], row["ref"]), row["score"]


@dataclass(frozen=True, slots=True)
class ScorerSettings:
    """Which scorer, and by what.

    Attributes:
        name: Of the table above.
        source: The table's file, the model's folder, or the service's address.
        timeout_s: That a service may take to answer.
        retries: Of a request that has failed.
    """

    name: ScorerName = "chrf"
    source: str | None = None
    timeout_s: float = 60.0
    retries: int = 4

    @property
    def is_remote(self) -> bool:
        """Whether scores are computed elsewhere, so that this machine can do other things meanwhile."""
        return self.name == "service"

    def describe(self) -> list[object]:
        """What scores depend on, as JSON; of a file its content."""
        content = sha256_of(Path(self.source)) if self.name == "table" and self.source else None
        return [self.name, self.source, *([content] if content else [])]


def make_scorer(settings: ScorerSettings, kept: Path | None = None) -> QualityScorer:
    """The scorer.

    Args:
        settings: Which one.
        kept: A file in which a service's scores are kept, so that none is asked for twice.

    Raises:
        UserError: what it needs is missing.
    """
    source = settings.source or ""
    if settings.name == "table":
        return TableScorer(Path(source))
    if settings.name == "comet":
        return CometScorer(Path(source))
    if settings.name == "service":
        return ServiceScorer(settings, kept)
    if settings.name == "bleu":
        bleu("a", "a")
    return TextScorer({"chrf": chrf, "bleu": bleu, "exact": exact}[settings.name])
