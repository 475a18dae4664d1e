"""What a watched run wrote: ``history.npz``, alone or in its logdir."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers.reader import Claim, Options, Reader

HISTORY = "history.npz"
REPORT = "trainmedic.json"
OTHERS = frozenset({REPORT, "prescription.json", "report.html"})


class OwnReader(Reader):
    name = "trainmedic"
    supports = "a watched run (history.npz, or the logdir with it)"
    patterns = (HISTORY,)
    beside = (REPORT,)
    rank = 0

    def declines(self, path: Path, head: bytes) -> str | None:
        return None if head.startswith(b"PK\x03\x04") else "not a .npz file"

    def claim(self, directory: Path, files: frozenset[str], folders: frozenset[str]) -> Claim:
        if HISTORY not in files:
            return Claim()
        events = {name for name in files if ".tfevents." in name}
        return Claim((HISTORY,), frozenset({HISTORY}) | events | OTHERS)

    def read(self, path: Path, options: Options) -> list[History]:
        history = History.load(path)
        _check(history)
        history.facts.setdefault("time", "step")
        return [history]


def recorded(path: Path) -> Mapping[str, Any] | None:
    """What the medic itself reported at the end of the run whose history is ``path``, if it did: a run of the JSON.

    ``UnreadableError`` where that file is there and cannot be understood.
    """
    beside = path.parent / REPORT
    if path.name != HISTORY or not beside.is_file():
        return None
    try:
        content = json.loads(beside.read_text(encoding="utf-8"))
        if content["version"] != 1:
            raise ValueError(f"version {content['version']!r}, this trainmedic reads version 1")
        run = content["runs"][0]
        if not isinstance(run, Mapping):
            raise TypeError("a run is not an object")
        return run
    except (OSError, ValueError, KeyError, IndexError, TypeError, RecursionError) as error:
        raise UnreadableError(f"{beside}: not a report of trainmedic: {error}") from error


def _check(history: History) -> None:
    """What a file that was made by hand could get wrong without failing to load."""
    if not isinstance(history.facts, dict):
        raise UnreadableError("the facts of the run are not a table")
    for statistic in history.statistics():
        table = history.layers(statistic)
        if table.values.shape != (len(table.steps), len(table.layers)):
            raise UnreadableError(f"table {statistic!r} does not fit its list of layers")
    for name in history.names():
        steps, values = history.series(name)
        if len(steps) != len(values):
            raise UnreadableError(f"series {name!r} does not fit its steps")
