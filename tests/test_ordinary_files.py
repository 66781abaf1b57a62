"""Whatever stands at a path is one sentence when it is no file that can be read."""

from __future__ import annotations

import os
import socket
from pathlib import Path

import pytest

from everlearn import ordinary_files
from everlearn.errors import DataError, ModelError
from everlearn.ordinary_files import inside, is_folder, is_regular, read_bytes, read_text, shown, stat_of


def make_pipe(path: Path) -> None:
    os.mkfifo(path)


def make_socket(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(str(path))


SPECIAL = {
    "a named pipe": make_pipe,
    "a socket": make_socket,
    "a folder": Path.mkdir,
    "a device": lambda path: path.symlink_to("/dev/zero"),
    "is a link to nowhere, which is not there": lambda path: path.symlink_to("nowhere"),
    "links lead in a circle": lambda path: path.symlink_to(path.name),
    "there is no": lambda path: None,
}


@pytest.mark.parametrize("kind", SPECIAL)
def test_what_is_no_regular_file_is_refused_by_its_kind(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    SPECIAL[kind](path)
    with pytest.raises(ModelError, match=kind) as caught:
        read_bytes(path, ModelError)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["n" * 300, "a\0b", "folder/" + "n" * 5000, "half\ud800"])
def test_a_name_that_no_file_can_have_is_one_short_sentence(name: str, tmp_path: Path) -> None:
    for look in (stat_of, is_folder, is_regular, inside, read_bytes):
        sentence = ""
        try:
            found = look(tmp_path / name)
        except DataError as error:
            sentence = str(error)
        else:
            assert not found  # nothing is there: also right
        assert len(sentence.encode()) < 300


def test_access_that_is_denied_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def denied(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(os, "stat", denied)
    for look in (stat_of, is_folder, is_regular, read_bytes):
        with pytest.raises(DataError, match="access is denied"):
            look(tmp_path / "x")


def test_nothing_at_a_path_is_no_fault_of_looking(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    assert stat_of(tmp_path / "none") is None
    assert stat_of(tmp_path / "file" / "below") is None
    assert is_regular(tmp_path / "file")
    assert is_folder(tmp_path)
    with pytest.raises(DataError, match="not a folder"):
        inside(tmp_path / "file")


def test_no_more_than_the_bound_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"12345")
    assert read_bytes(path, most=5) == b"12345"
    with pytest.raises(DataError, match="larger than 4 bytes"):
        read_bytes(path, most=4)


def test_text_is_utf8_with_or_without_a_mark(tmp_path: Path) -> None:
    path = tmp_path / "x"
    path.write_bytes(b"\xef\xbb\xbf\xc3\xa9")
    assert read_text(path) == "é"
    path.write_bytes(b"a\xe9")
    with pytest.raises(DataError, match="0xE9 at offset 1"):
        read_text(path)


def test_sizes_and_paths_are_shown_in_short() -> None:
    assert [ordinary_files.size(count) for count in (3, 2048, 3 << 20, 2 << 30)] == [
        "3 bytes",
        "2 KiB",
        "3 MiB",
        "2 GiB",
    ]
    assert shown("a\0b\x1b") == "a\\x00b\\x1b"
    assert len(shown("n" * 1000)) < 200
