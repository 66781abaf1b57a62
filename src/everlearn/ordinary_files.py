"""Files that somebody gives, looked at and read with care: anything may stand at a path.

A named pipe would wait for ever, a device never ends, a name may be too long for the system or hold a zero byte, a
link may lead nowhere or in a circle, and access may be denied. Each of these is one sentence here, in the class of
error that the caller says; nothing is opened that is no regular file, and nothing is read beyond a bound.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from everlearn.errors import DataError, UserError

MOST_BYTES = 2 << 30
"""Most bytes of one file, unpacked: it is held in memory, its rows as several times that."""
_SHOWN = 160  # letters of a path in a sentence
_KINDS = {
    stat.S_IFDIR: "a folder",
    stat.S_IFIFO: "a named pipe",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFSOCK: "a socket",
}


def stat_of(path: str | Path, fault: type[UserError] = DataError) -> os.stat_result | None:
    """What stands at a path, links followed; None where nothing does (also behind a broken link).

    Args:
        path: Whatever the user wrote.
        fault: Class of the error.

    Raises:
        UserError: it cannot be told: no access, a name too long or with a zero byte, links in a circle.
    """
    try:
        return os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (OSError, ValueError) as error:
        raise fault(_sentence(path, error)) from None


def is_folder(path: str | Path, fault: type[UserError] = DataError) -> bool:
    """Whether a folder stands there; raises as `stat_of`."""
    found = stat_of(path, fault)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_regular(path: str | Path, fault: type[UserError] = DataError) -> bool:
    """Whether a regular file stands there; raises as `stat_of`."""
    found = stat_of(path, fault)
    return found is not None and stat.S_ISREG(found.st_mode)


def inside(folder: str | Path, fault: type[UserError] = DataError) -> list[Path]:
    """What a folder holds, sorted by name.

    Raises:
        UserError: it is no folder, or cannot be looked into.
    """
    try:
        return sorted(Path(folder).iterdir())
    except (OSError, ValueError) as error:
        raise fault(_sentence(folder, error)) from None


@contextmanager
def opened(path: str | Path, fault: type[UserError] = DataError) -> Iterator[BufferedReader]:
    """Opens a regular file for reading bytes.

    Raises:
        UserError: nothing is there, it is no regular file (says what it is), or it cannot be opened.
    """
    try:
        _refuse_special(path, os.stat(path).st_mode, fault)  # before it is opened: opening may act on a device
        file = open(path, "rb", opener=_without_waiting)  # noqa: SIM115 - closed below
    except (OSError, ValueError) as error:
        raise fault(_sentence(path, error)) from None
    with file:
        _refuse_special(path, os.fstat(file.fileno()).st_mode, fault)  # exchanged meanwhile
        yield file


def read_bytes(path: str | Path, fault: type[UserError] = DataError, most: int = MOST_BYTES) -> bytes:
    """Reads a regular file whole.

    Args:
        path: Of the file.
        fault: Class of the error.
        most: Most bytes that such a file can mean.

    Raises:
        UserError: as `opened`, or the file is larger or cannot be read.
    """
    with opened(path, fault) as file:
        try:
            data = file.read(most + 1)
        except OSError as error:
            raise fault(_sentence(path, error)) from None
    if len(data) > most:
        raise fault(f"{shown(path)} is larger than {size(most)}, the most that is read of such a file.")
    return data


def read_text(path: str | Path, fault: type[UserError] = DataError, most: int = MOST_BYTES) -> str:
    """Reads a regular file of UTF-8 text whole, with or without a byte order mark.

    Raises:
        UserError: as `read_bytes`, or it is not UTF-8.
    """
    try:
        return read_bytes(path, fault, most).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise fault(
            f"{shown(path)} is not UTF-8 text (byte 0x{error.object[error.start]:02X} at offset {error.start}): "
            "convert it with `iconv -t UTF-8`."
        ) from None


def shown(path: str | Path) -> str:
    """A path as a sentence shows it: shortened in the middle, its unprintable letters written out."""
    text = "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in str(path))
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN // 2]}...{text[-_SHOWN // 2 :]}"


def size(count: int) -> str:
    """Bytes in words: `64 MiB`."""
    for unit, shift in (("GiB", 30), ("MiB", 20), ("KiB", 10)):
        if count >> shift:
            return f"{count / (1 << shift):.3g} {unit}"
    return f"{count} bytes"


def _without_waiting(path: str, flags: int) -> int:
    return os.open(path, flags | getattr(os, "O_NONBLOCK", 0))


def _refuse_special(path: str | Path, mode: int, fault: type[UserError]) -> None:
    if not stat.S_ISREG(mode):
        kind = _KINDS.get(stat.S_IFMT(mode), "something special")
        raise fault(f"{shown(path)} is {kind}, not a regular file: give a file.")


def _sentence(path: str | Path, error: OSError | ValueError) -> str:
    """What is wrong with a path, and what to do."""
    name = shown(path)
    if isinstance(error, ValueError):  # the system takes no zero byte, nor half a surrogate pair
        return f"{name!r} is not a name that a file can have: mend it."
    if isinstance(error, FileNotFoundError):
        link = os.readlink(path) if os.path.islink(path) else ""
        return (
            f"{name} is a link to {shown(link)}, which is not there."
            if link
            else f"there is no {name}: mend the path."
        )
    remedies = {
        errno.ENAMETOOLONG: "the name is longer than the system allows: mend it",
        errno.ELOOP: "links lead in a circle: mend them",
        errno.EACCES: "access is denied: choose one that you may read, or ask for access",
        errno.EPERM: "access is denied: choose one that you may read, or ask for access",
        errno.ENOTDIR: "it is not a folder, or stands below something that is none: mend the path",
    }
    reason = remedies.get(error.errno or 0, f"{error.strerror or error}: give one that can be read")
    return f"{name} cannot be read: {reason}."
