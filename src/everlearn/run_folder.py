"""Whose folder it is: what each command makes, told by the files in it, and what it therefore may be used for.

A run, a comparison, a run of version updates and so on each have a folder of their own. None is made within another
one, nor in a folder that holds somebody's files, and nothing in it may be a link: it would lead what is written or
deleted to another place.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from everlearn import recipe_file
from everlearn.errors import RunError, UserError
from everlearn.files import make_folder, read_json
from everlearn.layout import VLLM_LOG
from everlearn.ordinary_files import stat_of

RUN = "run"
COMPARISON = "comparison"
UPDATE = "update"
UPDATE_COMPARISON = "comparison of updates"
EVALUATION = "evaluation"
SYNTHESIS = "synthesis"
PRETRAINING = "pretraining"
_MEASURED = "measurement"  # an evaluation or a synthesis of the first releases, which did not say which

_IN_WORDS = {
    RUN: "a run of tasks",
    COMPARISON: "a comparison of methods",
    UPDATE: "a run of version updates",
    UPDATE_COMPARISON: "a comparison of version updates",
    EVALUATION: "an evaluation",
    SYNTHESIS: "synthetic data",
    PRETRAINING: "a pre-trained model",
    _MEASURED: "an evaluation or synthetic data",
}
_BEFORE_ALL = frozenset({".lock", "run.log", "bad_rows.jsonl", "report.html"})
"""What may stand in a folder before it says what it is."""
_BEGUN = frozenset({"recipe.yaml", "plan.json", "comparison.json"})
"""By which it says so."""
_OWN = (
    *("recipe.yaml", "manifest.json", "plan.json", "comparison.json", "matrix.json", "metrics.json", "run.log"),
    *("lineage.json", "probing.json", VLLM_LOG),
    *("report.html", "bad_rows.jsonl", "ledger.json", "quality.json", ".lock", "model", "tokenizer"),
)
_OWN_TREES = ("stages", ".own", ".partial", "segments", "states", "releases", "heldout")


def kind_of(folder: Path) -> str | None:
    """Which command made the folder; None where none has, or it is absent.

    Raises:
        RunError: a file that would tell is corrupt.
    """
    manifest, comparison = (_stored(folder / name) for name in ("manifest.json", "comparison.json"))
    if manifest is not None:
        kind = str(manifest.get("kind") or (RUN if "method" in manifest or _recipe_keys(folder) else _MEASURED))
        return kind if kind in _IN_WORDS else RUN
    if comparison is not None:
        return UPDATE_COMPARISON if comparison.get("kind") == UPDATE else COMPARISON
    if (folder / "plan.json").exists():
        return COMPARISON
    if (folder / "recipe.yaml").exists():
        return UPDATE if "versions" in _recipe_keys(folder) else RUN
    return PRETRAINING if (folder / "pretraining.json").exists() else None


def refuse_other(folder: Path, kind: str) -> None:
    """Refuses to use a folder for what it is not, before anything is written into it.

    Raises:
        RunError: another command has made it, it holds other files, or there is a link in it where everlearn writes.
    """
    refuse_links(folder)
    for outer in folder.resolve().parents:
        if (held := _says(outer)) is not None:
            raise RunError(
                f"{folder} is within {outer}, which holds {_IN_WORDS[held]}: choose a --runs-dir or --out elsewhere."
            )
    if not folder.exists():
        return
    if not folder.is_dir():
        raise RunError(f"{folder} is a file: choose another name for the folder.")
    found = kind_of(folder)
    if found is None:
        strange = sorted(path.name for path in folder.iterdir() if path.name not in _BEFORE_ALL)
        strange = [name for name in strange if not (name.startswith(".") and name.endswith(".everlearn"))]
        if strange:
            raise RunError(
                f"{folder} is no folder that everlearn has made, and it holds {strange[0]}: nothing is written into "
                "it; choose another --name or --out, or a folder that is empty."
            )
    elif found != kind and not (found == _MEASURED and kind in (EVALUATION, SYNTHESIS)):
        raise RunError(
            f"{folder} holds {_IN_WORDS[found]}, into which {_IN_WORDS[kind]} is not written: choose another --name "
            "or --out."
        )


@contextmanager
def unmade_if_refused(folder: Path) -> Iterator[None]:
    """Makes the folder of what begins, which can be gone on with from its first second; takes it back if refused.

    What stood there before, and a folder in which something has been computed, stays.

    Raises:
        RunError: the folder cannot be made.
    """
    missing = [place for place in (folder, *folder.parents) if not place.exists()]
    make_folder(folder)
    before = {path.name for path in folder.iterdir()}
    try:
        yield
    except Exception:
        with suppress(OSError):
            made = [path for path in folder.iterdir() if path.name not in before]
            if all(path.name in _BEFORE_ALL | _BEGUN for path in made):
                for path in made:
                    path.unlink()
                for place in missing:
                    place.rmdir()
        raise


def refuse_links(folder: Path) -> None:
    """Refuses a run folder that is a link, or in which one stands where everlearn reads, writes or deletes.

    Raises:
        RunError: names the link; or the system cannot look there.
    """
    stat_of(folder, RunError)
    if folder.is_symlink():
        raise RunError(f"{folder} is a link, which everlearn does not follow: give the folder {os.readlink(folder)}.")
    link = next(_links_in(folder), None) if folder.is_dir() else None
    if link:
        raise RunError(
            f"{link} is a link, and everlearn follows none within a run folder: put what it leads to in its place, or "
            "remove it."
        )


def _links_in(folder: Path) -> Iterator[Path]:
    yield from (folder / name for name in (*_OWN, *_OWN_TREES) if (folder / name).is_symlink())
    for tree in _OWN_TREES:
        for place, folders, files in os.walk(folder / tree):
            yield from (Path(place, name) for name in (*folders, *files) if os.path.islink(os.path.join(place, name)))


def _says(folder: Path) -> str | None:
    """The kind that a folder's manifest names; a file of that name may be another program's."""
    with suppress(UserError, OSError):
        kind = (_stored(folder / "manifest.json") or {}).get("kind")
        return kind if isinstance(kind, str) and kind in _IN_WORDS else None
    return None


def _stored(path: Path) -> dict[str, object] | None:
    """The object in a JSON file; None where the file is absent, an empty one where it holds something else."""
    if not path.exists():
        return None
    value = read_json(path)
    return value if isinstance(value, dict) else {}


def _recipe_keys(folder: Path) -> set[str]:
    """The keys of the folder's recipe; none where it has none."""
    with suppress(UserError):
        tree = recipe_file.read(folder / "recipe.yaml", RunError, recipe_file.MOST_STORED_BYTES)
        return {str(key) for key in tree} if isinstance(tree, dict) else set()
    return set()
