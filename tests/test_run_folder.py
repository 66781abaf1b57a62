"""Whose folder it is: no command writes into what another one has made, into somebody's files, or through a link."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from everlearn.cli.main import main
from everlearn.errors import RunError
from everlearn.files import append_text, write_json, write_text
from everlearn.run_folder import (
    COMPARISON,
    EVALUATION,
    PRETRAINING,
    RUN,
    SYNTHESIS,
    UPDATE,
    UPDATE_COMPARISON,
    kind_of,
    refuse_links,
    refuse_other,
)
from everlearn.store import RunStore

FILES: dict[str, dict[str, object]] = {
    RUN: {"manifest.json": {"kind": "run", "method": {}}},
    COMPARISON: {"plan.json": {"methods": [], "seeds": []}, "comparison.json": {"runs": []}},
    UPDATE: {"manifest.json": {"kind": "update"}, "plan.json": {"segments": []}},
    UPDATE_COMPARISON: {"comparison.json": {"kind": "update"}},
    EVALUATION: {"manifest.json": {"kind": "evaluation"}},
    SYNTHESIS: {"manifest.json": {"kind": "synthesis"}},
    PRETRAINING: {"pretraining.json": {"seed": 0}},
}


def folder_of(kind: str, folder: Path) -> Path:
    for name, value in FILES[kind].items():
        write_json(folder / name, value)
    return folder


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("other", FILES)
def test_a_folder_is_used_for_what_it_is_alone(tmp_path: Path, kind: str, other: str) -> None:
    folder = folder_of(kind, tmp_path / "x")
    assert kind_of(folder) == kind
    if kind == other:
        refuse_other(folder, other)
    else:
        with pytest.raises(RunError, match=r"x holds .*, into which .* is not written: choose another"):
            refuse_other(folder, other)


@pytest.mark.parametrize(
    ("files", "kind"),
    [
        ({"manifest.json": {"method": {}, "steps": {}}}, RUN),
        ({"manifest.json": {"steps": {}}, "recipe.yaml": {"stream": {}}}, RUN),
        ({"recipe.yaml": {"stream": {}}}, RUN),
        ({"recipe.yaml": {"versions": []}}, UPDATE),
        ({"comparison.json": {"runs": []}}, COMPARISON),
        ({"plan.json": {"methods": []}}, COMPARISON),
        ({"manifest.json": {"steps": {}}}, "measurement"),
        ({}, None),
    ],
)
def test_folders_of_earlier_releases_and_of_killed_commands_are_known(
    tmp_path: Path, files: dict[str, object], kind: str | None
) -> None:
    for name, value in files.items():
        write_json(tmp_path / name, value)
    assert kind_of(tmp_path) == kind
    if kind == "measurement":
        refuse_other(tmp_path, EVALUATION)
        refuse_other(tmp_path, SYNTHESIS)


@pytest.mark.parametrize("kind", FILES)
@pytest.mark.parametrize("name", ["thesis.txt", "model/config.json", "sentiment.jsonl", ".git/HEAD"])
def test_nothing_is_written_among_somebodys_files(tmp_path: Path, kind: str, name: str) -> None:
    write_text(tmp_path / name, "mine")
    with pytest.raises(RunError, match=f"is no folder that everlearn has made, and it holds {name.split('/')[0]}"):
        refuse_other(tmp_path, kind)


def test_an_absent_an_empty_and_a_barely_begun_folder_are_free(tmp_path: Path) -> None:
    refuse_other(tmp_path / "absent", RUN)
    for name in ("run.log", ".lock", "bad_rows.jsonl", ".recipe.yaml.0123456789ab.everlearn"):
        refuse_other(tmp_path, RUN)
        write_text(tmp_path / name, "")
    refuse_other(tmp_path, RUN)
    write_text(tmp_path / "file", "")
    with pytest.raises(RunError, match="file is a file: choose another name"):
        refuse_other(tmp_path / "file", RUN)


@pytest.mark.parametrize(
    "name",
    [
        *("", "run.log", ".lock", "manifest.json", "stages", "stages/01-a", "stages/01-a/scores.json", ".partial"),
        *(".own", "model", "report.html", "releases/v1", "segments/m1/checkpoint", "states"),
    ],
)
@pytest.mark.parametrize("is_broken", [False, True])
def test_a_link_in_a_run_folder_is_refused_by_name(tmp_path: Path, name: str, is_broken: bool) -> None:
    folder = tmp_path / "run"
    target = tmp_path / "elsewhere"
    if not is_broken:
        target.mkdir()
    link = folder / name
    link.parent.mkdir(parents=True, exist_ok=True)
    link.symlink_to(target)
    with pytest.raises(RunError, match=rf"^{link} is a link"):
        refuse_other(folder, RUN)
    assert link.is_symlink()


def test_links_of_the_users_own_beside_everlearns_files_are_no_matter(tmp_path: Path) -> None:
    folder = folder_of(RUN, tmp_path / "run")
    (folder / "data").symlink_to(tmp_path)
    refuse_links(folder)
    runs = tmp_path / "runs"
    runs.symlink_to(tmp_path)  # where run folders are made may be a link
    refuse_other(runs / "run", RUN)


def test_nothing_is_appended_through_a_link(tmp_path: Path) -> None:
    mine = tmp_path / "mine.txt"
    mine.write_text("mine")
    (tmp_path / "run.log").symlink_to(mine)
    with pytest.raises(RunError, match=r"run\.log is a link"):
        append_text(tmp_path / "run.log", "line\n")
    assert mine.read_text() == "mine"


def test_a_pipe_in_the_place_of_a_log_or_a_file_is_one_sentence(tmp_path: Path) -> None:
    for name in ("run.log", "manifest.json"):
        os.mkfifo(tmp_path / name)
    with pytest.raises(RunError, match=r"cannot write .*run\.log"):
        append_text(tmp_path / "run.log", "line\n")
    with pytest.raises(RunError, match=r"manifest\.json is corrupt \(it is no regular file\)"):
        kind_of(tmp_path)


def test_json_nested_without_end_is_one_sentence(tmp_path: Path) -> None:
    for text in ("[" * 100_000, json.dumps({"kind": "run"})[:-1]):
        write_text(tmp_path / "manifest.json", text)
        with pytest.raises(RunError, match=r"manifest\.json is corrupt"):
            kind_of(tmp_path)


def test_the_cache_beside_runs_may_be_no_link_but_a_named_one_may(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "runs").mkdir()
    link = tmp_path / "runs" / ".cache"
    link.symlink_to(tmp_path / "elsewhere")
    with pytest.raises(RunError, match=rf"{link} is a link.*--cache-dir {tmp_path / 'elsewhere'}"):
        RunStore(tmp_path / "runs" / "x", link)
    assert not list((tmp_path / "elsewhere").iterdir())
    named = tmp_path / "scratch"
    named.symlink_to(tmp_path / "elsewhere")
    RunStore(tmp_path / "runs" / "x", named)


@pytest.mark.parametrize("name", ["train.jsonl", "recipe.txt", "recipe"])
def test_no_file_but_a_recipe_is_overwritten_by_force(
    tmp_path: Path, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    write_text(tmp_path / "train.jsonl", '{"input": "a", "output": "b"}\n' * 30)
    write_text(tmp_path / name, before := (tmp_path / "train.jsonl").read_text())
    assert main(["init", str(tmp_path), "--out", str(tmp_path / name), "--force"]) == 2
    assert f"{name} is no recipe" in capsys.readouterr().err
    assert (tmp_path / name).read_text() == before


@pytest.mark.parametrize("kind", [RUN, UPDATE, EVALUATION, SYNTHESIS])
def test_no_folder_is_made_within_that_of_a_command(tmp_path: Path, kind: str) -> None:
    outer = folder_of(kind, tmp_path / "outer")
    for inner in (outer / "model", outer / "runs" / "deeper"):
        with pytest.raises(RunError, match=r"is within .*outer, which holds .*: choose a --runs-dir"):
            refuse_other(inner, RUN)


def test_a_manifest_of_another_program_and_a_comparison_hold_runs(tmp_path: Path) -> None:
    write_json(tmp_path / "manifest.json", {"kind": "storage#object", "name": "an app"})
    (tmp_path / "recipe.yaml").write_text("name: mine\n")
    refuse_other(folder_of(COMPARISON, tmp_path / "runs" / "c") / "ssr-s1", RUN)
