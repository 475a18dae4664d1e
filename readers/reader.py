"""``Reader``: one format of logs. A file in this folder that holds one is a reader; there is no second list."""

import importlib
import pkgutil
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatch
from functools import cache
from pathlib import Path
from typing import ClassVar

import trainmedic.readers
from trainmedic.errors import TrainmedicError, UnreadableError
from trainmedic.history import History
from trainmedic.readers.renaming import CLOCK, renamed

__all__ = ["CLOCK", "HEAD", "Claim", "Options", "Reader", "Source", "encoding", "head", "readers"]

HEAD = 1 << 16
"""Bytes from the beginning of a file that a reader sees before it says whether the file is one of its own."""


@dataclass(frozen=True)
class Options:
    """What the user asks for: ``verify`` checks the checksums of formats that have some; ``names`` maps names of the
    log to those of our series, for logs whose names mean something else than they seem to."""

    verify: bool = False
    names: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Claim:
    """What a reader takes from one directory: the logs in it, and what else belongs to them and is no log of its own.

    All names are relative to the directory; ``logs`` may lie in folders below it.
    """

    logs: tuple[str, ...] = ()
    files: frozenset[str] = frozenset()
    folders: frozenset[str] = frozenset()


class Reader(ABC):
    """Reads one format.

    ``name`` stands in reports, ``supports`` in the list of formats. ``patterns`` are the file
    names that are looked at in a directory; a file that is named by the user is shown to every reader. Readers with a
    smaller ``rank`` are asked first: the more particular the format, the smaller. ``beside`` are names of files that
    are read with a log, but are none (below the directory: ``*metrics/*``).
    """

    name: ClassVar[str]
    supports: ClassVar[str]
    patterns: ClassVar[tuple[str, ...]]
    beside: ClassVar[tuple[str, ...]] = ()
    rank: ClassVar[int] = 5

    @abstractmethod
    def declines(self, path: Path, head: bytes) -> str | None:
        """Why this file is none of its own, by its name and its first bytes; ``None`` where it is one."""

    @abstractmethod
    def read(self, path: Path, options: Options) -> list[History]:
        """The runs in this file, or in a directory that it claimed as a whole.

        May raise whatever it likes: :meth:`Source.read` makes one clear error of it.
        """

    def file(self, path: Path) -> Path:
        """The file that findings of a log point at; of a directory that was claimed as a whole, one that holds it."""
        return path

    def line(self, path: Path, history: History, step: int) -> int | None:
        """The line of that file, from 1, that first tells of ``step``; ``None`` for formats without lines."""
        return history.line_of(step)

    def claim(self, directory: Path, files: frozenset[str], folders: frozenset[str]) -> Claim:
        """What this reader takes from a directory that holds ``files`` and ``folders``.

        The log ``"."`` is the directory as a whole: the reader is then given the directory to read.
        """
        logs = sorted(name for name in files if any(fnmatch(name.lower(), pattern) for pattern in self.patterns))
        mine = [name for name in logs if self.declines(directory / name, head(directory / name)) is None]
        return Claim(tuple(mine), frozenset(mine))


@dataclass(frozen=True)
class Source:
    """One log, and who reads it."""

    path: Path
    reader: Reader
    address: str = ""
    home: Path = Path()

    def shown(self, path: Path) -> str:
        """What a file of this log is called: of one at an ``address``, whose copy lies at ``home``, that."""
        if not self.address:
            return str(path)
        below = path.relative_to(self.home).as_posix()
        return self.address if below == "." else f"{self.address.rstrip('/')}/{below}"

    @property
    def file(self) -> Path:
        """The file that findings point at."""
        return self.reader.file(self.path)

    def line(self, history: History, step: int) -> int | None:
        """The line of that file that first tells of ``step`` of a run that was read from it, if it has one."""
        try:
            return self.reader.line(self.path, history, step)
        except OSError:  # gone since
            return None

    def read(self, options: Options | None = None) -> list[History]:
        """The runs in this log; ``UnreadableError`` with one clear sentence where there are none."""
        name = self.shown(self.path)
        try:
            histories = self.reader.read(self.path, options or Options())
        except TrainmedicError as error:
            text = _one_line(error).replace(str(self.path), name)
            raise UnreadableError(text if name in text else f"{name}: {text}") from error
        except OSError as error:
            raise UnreadableError(f"{name}: {error.strerror or _one_line(error)}") from error
        except Exception as error:  # whatever a broken or hostile file sets off, it is the file that is wrong
            raise UnreadableError(f"{name}: broken {self.reader.name} log: {_one_line(error)}") from error
        if options and options.names and self.reader.name != "trainmedic":  # which has the names that it should
            histories = [renamed(history, options.names) for history in histories]
        for history in histories:
            history.facts["source"] = name
        if not any(history.names() or history.statistics() for history in histories):
            raise UnreadableError(f"{name}: a {self.reader.name} log without a single number in it")
        return histories


@cache
def readers() -> tuple[Reader, ...]:
    """All readers, the most particular format first. The package is walked."""
    found: list[Reader] = []
    for module in pkgutil.iter_modules(trainmedic.readers.__path__):
        loaded = importlib.import_module(f"trainmedic.readers.{module.name}")
        found += [
            thing()
            for thing in vars(loaded).values()
            if isinstance(thing, type)
            and issubclass(thing, Reader)
            and thing is not Reader
            and thing.__module__ == loaded.__name__
        ]
    return tuple(sorted(found, key=lambda reader: (reader.rank, reader.name)))


def head(path: Path) -> bytes:
    """The first bytes of a file; none where it cannot be opened."""
    try:
        with open(path, "rb") as file:
            return file.read(HEAD)
    except OSError:
        return b""


def encoding(head: bytes) -> str:
    """The encoding of a text that begins with these bytes, by its byte order mark."""
    return "utf-16" if head.startswith((b"\xff\xfe", b"\xfe\xff")) else "utf-8-sig"


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
