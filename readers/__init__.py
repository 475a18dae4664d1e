"""Read: logs of any tool go in, ``History`` comes out. One format, one file. Imports no torch."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from trainmedic.errors import UnreadableError
from trainmedic.history import History

if TYPE_CHECKING:
    from trainmedic.readers.reader import Source

__all__ = ["find", "read"]


def read(path: str | os.PathLike[str]) -> list[History]:
    """The runs recorded in a file or anywhere below a directory, as histories; their ``facts["source"]`` says where.

    A log that is broken is left out as long as another one can be read. ``UnreadableError`` where there is none.
    """
    histories: list[History] = []
    errors: list[UnreadableError] = []
    for source in find(path):
        try:
            histories += source.read()
        except UnreadableError as error:
            errors.append(error)
    if not histories:
        raise errors[0]
    return histories


def find(path: str | os.PathLike[str]) -> list["Source"]:
    """The logs at ``path``: the file itself, or all below a directory. ``UnreadableError`` where there are none."""
    path = Path(path)
    if path.is_dir():
        return _search(path)
    if path.is_file():
        return [_identify(path)]
    if path.exists():
        raise UnreadableError(f"{path}: neither a file nor a directory")
    raise UnreadableError(f"{path}: there is no such file or directory")


def _identify(path: Path) -> "Source":
    from trainmedic.readers.reader import HEAD, Source, readers, supported

    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror or error}") from error
    if not head:
        raise UnreadableError(f"{path}: the file is empty")
    reasons = []
    for reader in readers():
        reason = reader.declines(path, head)
        if reason is None:
            return Source(path, reader)
        reasons.append(f"{reader.name}: {reason}")
    raise UnreadableError(f"{path}: no reader knows it ({'; '.join(reasons)}); supported are: {supported(readers())}")


def _search(root: Path) -> list["Source"]:
    from trainmedic.readers.reader import readers, supported

    found = list(_walk(root))
    if not found:
        raise UnreadableError(f"{root}: no log in this directory or below it; supported are: {supported(readers())}")
    return found


def _walk(root: Path) -> Iterator["Source"]:
    """Every log below ``root``, each taken by the reader of the most particular format that knows it."""
    from trainmedic.readers.reader import Source, readers

    for directory, folders, files in os.walk(root):  # links to directories are not followed: they may lead in circles
        left, below = frozenset(files), frozenset(folders)
        for reader in readers():
            claim = reader.claim(Path(directory), left, below)
            yield from (Source(Path(directory, log), reader) for log in claim.logs)
            left, below = left - claim.files, below - claim.folders
        folders[:] = sorted(folder for folder in below if not folder.startswith(".") and folder != "__pycache__")
