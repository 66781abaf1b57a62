"""Plain files, written atomically: a reader never sees half a file, a kill never leaves one.

Every writer makes a temporary file beside the target, flushes it to disk and renames it.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from everlearn.errors import RunError

_UNFINISHED = ".everlearn"
_SUM = "sum"


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8 text atomically, making parent folders.

    Raises:
        RunError: the disk is full or the folder cannot be written to.
    """
    _write(path, [text])


def _write(path: Path, pieces: Iterable[str]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = unfinished(path)
        try:
            with temporary.open("x", encoding="utf-8", newline="\n") as file:
                file.writelines(pieces)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise disk_error(path, error) from None


def append_text(path: Path, text: str) -> None:
    """Writes at the end of a UTF-8 file, made with its folder where it is absent; never through a link.

    Raises:
        RunError: the disk is full, the file cannot be written to, or it is a link.
    """

    def without_link(name: str, flags: int) -> int:
        return os.open(name, flags | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0), 0o666)

    make_folder(path.parent)
    try:
        with open(path, "a", encoding="utf-8", opener=without_link) as file:
            file.write(text)
    except OSError as error:
        raise disk_error(path, error) from None


def unfinished(path: Path) -> Path:
    """A name beside the path, for what is being written until it is whole; no other program gives such names."""
    return path.with_name(f".{path.name}.{secrets.token_hex(6)}{_UNFINISHED}")


def move_into(source: Path, target: Path, *, last: str = "") -> None:
    """Makes a finished folder the target, or moves its files into it; what else stands there stays.

    Args:
        source: The folder; gone afterwards.
        target: Where it is to stand.
        last: The file whose presence says that all are there.
    """
    if not target.exists():
        source.rename(target)
        return
    files = sorted(path.relative_to(source) for path in source.rglob("*") if path.is_file())
    for name in sorted(files, key=lambda name: name == Path(last)):
        (target / name).parent.mkdir(parents=True, exist_ok=True)
        os.replace(source / name, target / name)
    shutil.rmtree(source)


def remove_unfinished(folder: Path) -> None:
    """Deletes what killed processes had begun to write under names of `unfinished`; call it with the folder held.

    The report's stays, because it is written without holding the folder, maybe at this moment.
    """
    for path in [*folder.rglob(f".*{_UNFINISHED}")]:
        if path.name.startswith(".report.html.") or not re.fullmatch(rf"\..+\.[0-9a-f]{{12}}{_UNFINISHED}", path.name):
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def make_folder(path: Path) -> None:
    """Makes a folder and its parents where they are absent.

    Raises:
        RunError: the disk is full, or the folder cannot be made there.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise disk_error(path, error) from None


def share_as(shared: Path, path: Path) -> None:
    """Gives what this user has just made in a shared folder, with all below it, that folder's group and its rights.

    Only where the folder is meant to be shared: its group may write to it, or it hands its group on (setgid).
    """
    given = shared.stat()
    if not given.st_mode & (stat.S_IWGRP | stat.S_ISGID):
        return
    below = [Path(place, name) for place, folders, files in os.walk(path) for name in (*folders, *files)]
    for made in [path, *below]:
        with suppress(OSError):  # somebody else's: it has its rights already
            found = made.lstat()
            if stat.S_ISLNK(found.st_mode):
                continue
            if found.st_gid != given.st_gid:
                os.chown(made, -1, given.st_gid)
            rights = given.st_mode & (0o2070 if stat.S_ISDIR(found.st_mode) else 0o0040)
            if found.st_mode | rights != found.st_mode:
                made.chmod(stat.S_IMODE(found.st_mode) | rights)


def disk_error(path: Path, error: OSError) -> RunError:
    """The user's sentence for a failed write."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return RunError(
            f"the disk is full while writing {path}: free some space and run 'everlearn resume'; "
            "finished steps are kept."
        )
    if error.errno == errno.ELOOP:
        return RunError(f"{path} is a link, and everlearn writes through none in a run folder: remove the link.")
    return RunError(f"cannot write {path} ({error.strerror or error}): choose a folder you may write to.")


def write_error(path: Path, error: Exception) -> RunError:
    """The user's sentence for a failed write of tensors; safetensors hides the system's error in its text."""
    if isinstance(error, OSError):
        return disk_error(path, error)
    found = re.search(r"os error (\d+)", str(error))
    return disk_error(path, OSError(int(found[1]) if found else errno.EIO, str(error)))


def write_json(path: Path, value: object) -> None:
    """Writes indented JSON atomically."""
    write_text(path, json.dumps(value, ensure_ascii=False, indent=2) + "\n")


def write_jsonl(path: Path, rows: Iterable[Mapping[str, object]]) -> None:
    """Writes JSON Lines atomically, row by row.

    Raises:
        RunError: as `write_text`.
    """
    encode = json.JSONEncoder(ensure_ascii=False).encode
    _write(path, (f"{encode(row)}\n" for row in rows))


def read_json(path: Path) -> object:
    """Reads a JSON file that everlearn wrote.

    Raises:
        RunError: missing or not JSON (a corrupt artifact).
    """
    text = read_text(path)
    try:
        return json.loads(text)
    except (ValueError, RecursionError) as error:
        raise RunError(f"{path} is corrupt ({error}): delete it and run 'everlearn resume'.") from None


def read_text(path: Path) -> str:
    """Reads a UTF-8 file of a run folder.

    Raises:
        RunError: the file is missing or cannot be read.
    """
    try:
        _refuse_special(path)
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise RunError(f"{path} is missing: run 'everlearn resume' on its run folder to make it again.") from None
    except (OSError, ValueError) as error:
        raise RunError(f"{path} is corrupt ({error}): delete it and run 'everlearn resume'.") from None


def read_mapping(path: Path) -> dict[str, Any]:
    """Reads a JSON file that holds an object.

    Raises:
        RunError: the file is missing, is not JSON, or holds something else.
    """
    value = read_json(path)
    if not isinstance(value, dict):
        raise RunError(f"{path} is corrupt (it holds no object): delete it and run 'everlearn resume'.")
    return value


def write_vouched(path: Path, value: Mapping[str, object]) -> None:
    """Writes a JSON object with its own sum, so that `read_vouched` knows whether it has been changed since."""
    as_read = json.loads(json.dumps(value))  # a key that is a number is read as text
    write_text(path, _in_lines({**as_read, _SUM: _sum_of(as_read)}, levels=2) + "\n")


def _in_lines(value: Any, levels: int, margin: str = "") -> str:
    """JSON with a line for each entry of the outer levels; indentation by `json` takes twenty times as long."""
    if not levels or not value or not isinstance(value, dict | list):
        return json.dumps(value, ensure_ascii=False)
    inner = f"{margin}  "
    if isinstance(value, list):
        entries, ends = [_in_lines(one, levels - 1, inner) for one in value], "[]"
    else:
        entries = [
            f"{json.dumps(key, ensure_ascii=False)}: {_in_lines(one, levels - 1, inner)}" for key, one in value.items()
        ]
        ends = "{}"
    return f"{ends[0]}\n{inner}" + f",\n{inner}".join(entries) + f"\n{margin}{ends[1]}"


def read_vouched(path: Path) -> dict[str, Any]:
    """Reads what `write_vouched` wrote, without the sum; objects of the first releases have none.

    Raises:
        RunError: as `read_mapping`, or it was changed after everlearn had written it.
    """
    value = read_mapping(path)
    if value.pop(_SUM, None) not in (None, _sum_of(value)):
        raise RunError(
            f"{path} is corrupt (it was changed after everlearn had written it: its sum differs): take the change "
            "back, or delete it and run 'everlearn resume'."
        )
    return value


def _sum_of(as_read: Mapping[str, object]) -> str:
    return hashlib.sha256(json.dumps(as_read, sort_keys=True).encode()).hexdigest()


def read_jsonl(path: Path) -> Iterator[dict[str, object]]:
    """Reads the rows of a JSON Lines file that everlearn wrote.

    Raises:
        RunError: missing, or a line is not a JSON object (names the line).
    """
    number = 0
    try:
        _refuse_special(path)
        with path.open(encoding="utf-8") as file:
            for number, line in enumerate(file, 1):
                row = json.loads(line)
                if not isinstance(row, dict):
                    raise ValueError("not an object")
                yield row
    except FileNotFoundError:
        raise RunError(f"{path} is missing: run 'everlearn resume' on its run folder to make it again.") from None
    except (OSError, ValueError, RecursionError) as error:
        raise RunError(
            f"{path} is corrupt near line {number} ({error}): delete it and run 'everlearn resume'."
        ) from None


def _refuse_special(path: Path) -> None:
    """A named pipe would be waited for, and a device never end."""
    if path.exists() and not path.is_file():
        raise ValueError("it is no regular file")


def sha256_of(path: Path) -> str:
    """SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sums_of(folder: Path, record: Mapping[str, object]) -> dict[str, str]:
    """Tells whether a checkpoint is whole: sums of its files of tensors, and of the record that stands with them."""
    tensors = {path.name: sha256_of(path) for path in sorted(folder.glob("*.safetensors"))}
    text = json.dumps(record, ensure_ascii=False, sort_keys=True)
    return {"record": hashlib.sha256(text.encode()).hexdigest(), **tensors}


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Holds a folder, made where it is not there, against a second process.

    Raises:
        RunError: another process works in it, or it cannot be made or written to.
    """
    from filelock import FileLock, Timeout

    make_folder(folder)
    lock = FileLock(folder / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunError(
            f"{folder} is in use by another everlearn process: wait for it or choose another --name."
        ) from None
    except OSError as error:
        raise disk_error(folder, error) from None
    try:
        yield
    finally:
        lock.release()
