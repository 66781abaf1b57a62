"""Folders of version updates that were changed after they were written: one sentence, or a report of what is there."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from everlearn.errors import RunError
from everlearn.report.versions.html import write_report
from everlearn.updates.compare import compare
from tests.malformed.spoilt_json import spoilt
from tests.updates.tiny_runs import tiny_recipe

RUN = "ptfs-s1"


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished comparison of three runs over two versions."""
    from everlearn.progress import LineProgress

    folder = tmp_path_factory.mktemp("whole")
    compare(tiny_recipe(folder, versions=2), LineProgress())
    return folder / "runs" / "tiny"


@pytest.fixture
def both(whole: Path, tmp_path: Path) -> Path:
    ignored = shutil.ignore_patterns("*.safetensors", "*.npy")
    return Path(shutil.copytree(whole, tmp_path / "both", ignore=ignored))


@pytest.mark.parametrize("name", ["comparison.json", *(f"{RUN}/{n}.json" for n in ("plan", "quality", "ledger"))])
@pytest.mark.parametrize("is_vouched", [True, False])
def test_any_change_is_refused_in_one_sentence_or_shown(both: Path, name: str, is_vouched: bool) -> None:
    path = both / name
    written = json.loads(path.read_text())
    if not is_vouched:
        written.pop("cells", None)  # which no report reads
        del written["sum"]
    for place, changed in spoilt(written, at_once=1):
        path.write_text(json.dumps(changed))
        try:
            write_report(path.parent)
        except RunError as error:
            said = str(error)
        except Exception as error:
            raise AssertionError(f"{name}, {place}") from error
        else:
            said = ""
        if is_vouched and place != "sum: gone":
            assert f"{path.name} is corrupt" in said, place
        elif said:
            assert path.name in said or "is not finished" in said or "missing" in said, (place, said)


def test_what_was_not_changed_is_shown(both: Path) -> None:
    assert write_report(both).exists()
    assert write_report(both / RUN).exists()
