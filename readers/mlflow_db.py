"""MLflow's SQLite store, ``mlflow.db``: every run in it."""

import math
import sqlite3
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path
from urllib.parse import quote

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers.mlflow import LONGEST_PARAM, MOST_PARAMS, Points
from trainmedic.readers.reader import Options, Reader
from trainmedic.readers.table import LARGEST_STEP

MAGIC = b"SQLite format 3\0"
LARGEST = 1.7976931348623157e308
"""What MLflow stores for infinity."""
BROKEN = (sqlite3.Error, UnicodeDecodeError)
"""What a broken database sets off; the second where it is named in the text of the first, in no known encoding."""
STEPS_A_TURN = 1_000_000
PATIENCE = 20_000
"""Turns of SQLite's machine after which a query is given up: only a made-up file needs more."""


class MlflowDatabaseReader(Reader):
    name = "mlflow_db"
    supports = "MLflow databases (mlflow.db)"
    patterns = ("*.db", "*.sqlite", "*.sqlite3")
    rank = 3

    def declines(self, path: Path, head: bytes) -> str | None:
        if not head.startswith(MAGIC):
            return "not an SQLite database"
        try:
            with closing(_opened(path)) as connection:
                return None if _has_metrics(connection) else "an SQLite database without metrics of runs"
        except BROKEN as error:
            return f"not a sound SQLite database: {error}"

    def read(self, path: Path, options: Options) -> list[History]:
        _check_size(path)
        try:
            with closing(_opened(path)) as connection:
                histories = list(_runs(connection))
        except BROKEN as error:
            raise UnreadableError(f"not a sound database: {error}") from error
        for history in histories if path.with_name(f"{path.name}-wal").exists() else []:
            history.facts["notes"].append("what stands in the log beside the database was not read")
        return histories


def _check_size(path: Path) -> None:
    """SQLite takes pages behind the end of a file for zeros."""
    with open(path, "rb") as file:
        begin = file.read(32)
        size = file.seek(0, 2)
    if len(begin) < 32:
        raise UnreadableError("not a sound database: cut off in its header")
    page, pages = int.from_bytes(begin[16:18], "big"), int.from_bytes(begin[28:32], "big")
    if size < pages * (page if page > 1 else 1 << 16):
        raise UnreadableError(f"not a sound database: cut off at byte {size:,}")


def _opened(path: Path) -> sqlite3.Connection:
    """The database as it lies there: nothing is locked, written, or run that the file brings along."""
    connection = sqlite3.connect(f"file:{quote(str(path.absolute()))}?mode=ro&immutable=1", uri=True)
    connection.execute("PRAGMA trusted_schema = OFF")
    connection.execute("PRAGMA cell_size_check = ON")
    connection.text_factory = lambda text: text.decode(errors="replace")
    turns = iter(range(PATIENCE))
    connection.set_progress_handler(lambda: next(turns, None) is None, STEPS_A_TURN)
    return connection


def _has_metrics(connection: sqlite3.Connection) -> bool:
    kind = connection.execute("SELECT type FROM sqlite_master WHERE name = 'metrics'").fetchone()
    return kind is not None and kind[0] == "table"


def _runs(connection: sqlite3.Connection) -> Iterator[History]:
    if not _has_metrics(connection):
        raise UnreadableError('no table "metrics" in it')
    query = "SELECT run_uuid, key, value, timestamp, step, is_nan FROM metrics ORDER BY run_uuid, timestamp"
    run, points = None, Points()
    params = _params(connection)
    for uuid, key, value, time, step, is_nan in connection.execute(query):
        if uuid != run and run is not None:
            yield from _named(points, run)
        if uuid != run:
            points = Points()
            points.configure(params.get(uuid, {}))
        run = uuid
        if not isinstance(value, int | float) or not isinstance(step, int) or not isinstance(time, int | float):
            points.broken += 1
        elif abs(step) <= LARGEST_STEP:
            points.add(str(key), time, step, math.nan if is_nan else _value(value))
    if run is not None:
        yield from _named(points, run)


def _params(connection: sqlite3.Connection) -> dict[object, dict[str, str]]:
    """What each run was set to, empty where the database does not say."""
    params: dict[object, dict[str, str]] = {}
    with suppress(sqlite3.Error):
        for uuid, key, value in connection.execute("SELECT run_uuid, key, value FROM params ORDER BY key"):
            of_run = params.setdefault(uuid, {})
            if len(of_run) < MOST_PARAMS:
                of_run[str(key)] = str(value)[:LONGEST_PARAM]
    return params


def _named(points: Points, run: object) -> Iterator[History]:
    for history in points.histories():
        history.facts["run"] = str(run)
        history.facts["notes"] = [f"MLflow run {run}", *history.facts.get("notes", [])]
        yield history


def _value(stored: float) -> float:
    return math.copysign(math.inf, stored) if abs(stored) >= LARGEST else float(stored)
