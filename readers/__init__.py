"""Read: logs of any tool go in, ``History`` comes out. One format, one file. Imports no torch."""

import glob
import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatch
from pathlib import Path
from typing import TYPE_CHECKING

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers.remote import fetched, is_address

if TYPE_CHECKING:
    from trainmedic.readers.reader import Reader, Source

__all__ = ["find", "opinions", "read"]

FORMATS = "trainmedic formats"
MORE = f"what each reader says of it: {FORMATS}"


def read(
    path: str | os.PathLike[str], *, verify: bool = False, names: Mapping[str, str] | None = None
) -> list[History]:
    """The runs recorded in a file, anywhere below a directory, or in all that a glob matches, as histories.

    ``verify`` checks the checksums of formats that have some. ``names`` maps names of the log to those of our series
    (``{"train/objective": "train/loss"}``), where the log means something else than its names say.

    The facts say where a history is from (``"source"``), what its steps count (``"time"``: "step", "epoch", "batch" or
    "row"), which names were understood (``"names"``: our series -> name in the log), where the step fell back
    (``"restarts"``) and what else there is to know (``"notes"``). A log that is broken is left out as long as another
    one can be read. ``UnreadableError`` where there is none.
    """
    from trainmedic.readers.reader import Options

    options = Options(verify=verify, names=dict(names or {}))
    histories: list[History] = []
    errors: list[UnreadableError] = []
    for source in find(path):
        try:
            histories += source.read(options)
        except UnreadableError as error:
            errors.append(error)
    if not histories:
        raise errors[0]
    return histories


def find(path: str | os.PathLike[str]) -> list["Source"]:
    """The logs at ``path``: the file itself, all below a directory, or those at all places that a glob matches.

    An address (``s3://...``) stands for the copy that is fetched of it. ``UnreadableError`` where there are none.
    """
    return _at_address(os.fspath(path)) if is_address(path) else _at(Path(path))


def _at_address(address: str) -> list["Source"]:
    home = fetched(address)
    try:
        return [replace(source, address=address, home=home) for source in _at(home)]
    except UnreadableError as error:
        raise UnreadableError(str(error).replace(str(home), address)) from error


def _at(path: Path) -> list["Source"]:
    if path.is_dir():
        return _search(path)
    if path.is_file():
        return [_identify(path)]
    if not path.exists() and glob.has_magic(str(path)):
        return _matched(path)
    if path.exists():
        raise UnreadableError(f"{path}: neither a file nor a directory")
    raise UnreadableError(f"{path}: there is no such file or directory")


def _matched(pattern: Path) -> list["Source"]:
    """The logs at all places that match; places that hold none are left out as long as another one does."""
    found: dict[Path, Source] = {}
    errors = [UnreadableError(f"{pattern}: nothing matches")]
    for place in sorted(glob.iglob(str(pattern), recursive=True)):
        try:
            found.update((source.path, source) for source in find(place))
        except UnreadableError as error:
            errors.append(error)
    if not found:
        raise errors[-1]
    return list(found.values())


def opinions(path: str | os.PathLike[str]) -> list[tuple[str, str | None]]:
    """(name of the reader, why it does not know the file, or ``None`` where it does) of every reader, for one file."""
    from trainmedic.readers.reader import readers

    path = Path(path)
    head = _head(path)
    return [(reader.name, _declined(reader, path, head)) for reader in readers()]


def _identify(path: Path) -> "Source":
    from trainmedic.readers.reader import Source, readers

    head = _head(path)
    reasons = []
    for reader in readers():
        reason = _declined(reader, path, head)
        if reason is None:
            return Source(path, reader)
        if any(fnmatch(path.name.lower(), pattern) for pattern in reader.patterns):
            reasons.append(f"{reader.name}: {reason}")
    told = "; ".join(reasons) or "neither its name nor what is in it is that of one"
    raise UnreadableError(f"{path}: not a log of a training that is known ({told}); {MORE} {path}")


def _declined(reader: "Reader", path: Path, head: bytes) -> str | None:
    """Why a reader does not know a file; whatever the file sets off in it is a reason too."""
    try:
        reason = reader.declines(path, head)
        return None if reason is None else " ".join(reason.split())  # what a database says of itself may have lines
    except Exception as error:
        return f"it cannot be looked at: {type(error).__name__}"


def _head(path: Path) -> bytes:
    from trainmedic.readers.reader import HEAD

    try:
        with open(path, "rb") as file:
            head = file.read(HEAD)
    except OSError as error:
        raise UnreadableError(f"{path}: {error.strerror or error}") from error
    if not head:
        raise UnreadableError(f"{path}: the file is empty")
    return head


def _search(root: Path) -> list["Source"]:
    found = list(_walk(root))
    if not found:
        raise UnreadableError(f"{root}: no log of a training in this directory or below it; what is known: {FORMATS}")
    return found


def _walk(root: Path) -> Iterator["Source"]:
    """Every log below ``root``, each taken by the reader of the most particular format that knows it."""
    from trainmedic.readers.reader import Source, readers

    for directory, folders, files in os.walk(root):  # links to directories are not followed: they may lead in circles
        regular = (file for file in files if os.path.isfile(os.path.join(directory, file)))  # opening a pipe waits
        left, below = frozenset(regular), frozenset(folders)
        for reader in readers():
            claim = reader.claim(Path(directory), left, below)
            yield from (Source(Path(directory, log), reader) for log in claim.logs)
            left, below = left - claim.files, below - claim.folders
        folders[:] = sorted(folder for folder in below if not folder.startswith(".") and folder != "__pycache__")
