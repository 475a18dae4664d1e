"""Logs at an address (``s3://``, ``gs://``, ``memory://``): what readers would look at is fetched and read from a copy.

Needs fsspec and its driver for the address: ``pip install 'trainmedic[remote]'``. Copies lie in a directory of their
own and are removed when the process ends.
"""

import atexit
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from fnmatch import fnmatch
from functools import cache
from pathlib import Path, PurePosixPath
from typing import Any

from trainmedic.errors import UnreadableError

ADDRESS = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+://")
MOST_FILES = 20_000
MOST_BYTES = 16 << 30


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether this is no path of this machine; ``file://`` is one too."""
    return bool(ADDRESS.match(os.fspath(path)))


@cache
def fetched(address: str) -> Path:
    """The copy of the logs at an address: a file, or a directory; ``UnreadableError`` where nothing can be fetched."""
    try:
        return _fetch(address)
    except UnreadableError:
        raise
    except ImportError as error:
        wanted = "pip install 'trainmedic[remote]'"
        raise UnreadableError(f"{address}: needs a driver that is not installed ({error}): {wanted}") from error
    except FileNotFoundError as error:
        raise UnreadableError(f"{address}: there is no such file or directory") from error
    except Exception as error:  # each driver has errors of its own
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UnreadableError(f"{address}: cannot be fetched: {reason}") from error


def _fetch(address: str) -> Path:
    from fsspec.core import url_to_fs  # type: ignore[import-untyped]

    files, root = url_to_fs(address)
    home = Path(tempfile.mkdtemp(prefix="trainmedic-"))
    atexit.register(_remove, home, os.getpid())
    if files.isfile(root):
        copy = home / (PurePosixPath(root).name or "log")
        files.get_file(root, str(copy))
        return copy
    wanted = list(_wanted(files.find(root, detail=True), root))
    size = sum(size for _, _, size in wanted)
    if len(wanted) > MOST_FILES or size > MOST_BYTES:
        raise UnreadableError(
            f"{address}: {len(wanted):,} files of {size / 1e9:.1f} GB that may be logs are more than are fetched; "
            "name a directory further down"
        )
    for name, relative, _ in wanted:
        copy = home / relative
        copy.parent.mkdir(parents=True, exist_ok=True)
        files.get_file(name, str(copy))
    if not wanted and not files.exists(root):
        raise FileNotFoundError(root)
    return home


def _wanted(listing: dict[str, dict[str, Any]], root: str) -> Iterator[tuple[str, PurePosixPath, int]]:
    """Name, place below ``root`` and size of what a reader may know by its name. No name leads out of the copy."""
    from trainmedic.readers.reader import readers

    patterns = {pattern for reader in readers() for pattern in (*reader.patterns, *reader.beside)}
    above = len(PurePosixPath(root.strip("/")).parts)
    for name, facts in sorted(listing.items()):
        relative = PurePosixPath(*PurePosixPath(name.strip("/")).parts[above:])
        if not relative.parts or not {"..", "."}.isdisjoint(relative.parts) or "\\" in name:
            continue
        if any(fnmatch(str(relative).lower(), p) or fnmatch(relative.name.lower(), p) for p in patterns):
            yield name, relative, int(facts.get("size") or 0)


def _remove(home: Path, owner: int) -> None:
    if os.getpid() == owner:  # not a process that was forked from it
        shutil.rmtree(home, ignore_errors=True)
