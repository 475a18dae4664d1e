"""MLflow's file store: a run's directory with one file of values for each metric."""

import re
from collections.abc import Mapping
from itertools import islice
from pathlib import Path

from trainmedic.errors import UnreadableError
from trainmedic.history import History
from trainmedic.readers.numbers import number_of
from trainmedic.readers.reader import Claim, Options, Reader
from trainmedic.readers.table import LARGEST_STEP, Table

META = "meta.yaml"
METRICS = "metrics"
PARAMS = "params"
MOST_METRICS = 20_000
MOST_PARAMS, LONGEST_PARAM = 1_000, 6_000
"""Settings of a run that are read, and characters of one."""
LINE = re.compile(
    rb"\d{9,19} (?:[-+]?[\d.]+(?:e[-+]?\d+)?|nan|[-+]?inf(?:inity)?)(?: -?\d+(?: \S+ \S+)?)?\r?\n", re.IGNORECASE
)


class MlflowReader(Reader):
    name = "mlflow"
    supports = "MLflow runs (mlruns/<experiment>/<run>, or a file of its metrics)"
    patterns = ()
    beside = (META, f"*{METRICS}/*")
    rank = 3

    def declines(self, path: Path, head: bytes) -> str | None:
        if METRICS in path.parts[:-1] and LINE.match(head):
            return None
        return "not a file in the metrics of a run"

    def claim(self, directory: Path, files: frozenset[str], folders: frozenset[str]) -> Claim:
        if META in files and METRICS in folders and any((directory / METRICS).iterdir()):
            return Claim((".",), frozenset({META}), folders & {METRICS, PARAMS, "tags"})
        return Claim()

    def file(self, path: Path) -> Path:
        """Of a run, what it says of itself."""
        return path / META if path.is_dir() else path

    def read(self, path: Path, options: Options) -> list[History]:
        if path.is_dir():
            root = path / METRICS
            files = sorted(file for file in root.rglob("*") if file.is_file() and not file.is_symlink())
        else:
            root = Path(*path.parts[: len(path.parts) - 1 - path.parts[:-1][::-1].index(METRICS)])
            files = [path]
        if len(files) > MOST_METRICS:
            raise UnreadableError(f"{len(files):,} metrics, more than the {MOST_METRICS:,} that are read")
        points = Points()
        for file in files:
            _take(points, file.relative_to(root).as_posix(), file)
        points.configure(_params(root.parent / PARAMS))
        return points.histories()


class Points:
    """Values of metrics, each with its own step, as a table with one row for each value."""

    def __init__(self) -> None:
        self.table = Table()
        self.broken = 0
        self._rows: list[tuple[int, float, str, float]] = []

    def add(self, name: str, time: float, step: int, value: float) -> None:
        """Add one value; ``time`` puts those of one step in order."""
        self._rows.append((step, time, name, value))

    def configure(self, params: Mapping[str, str]) -> None:
        """Take what the run was set to."""
        if params:
            self.table.facts["config"] = dict(params)

    def histories(self) -> list[History]:
        """One run, in the order of steps: MLflow keeps none of its own."""
        stepped = any(step for step, *_ in self._rows)
        for step, _, name, value in sorted(self._rows, key=lambda row: row[:2]):
            self.table.add({"\0step": step, name: value} if stepped else {name: value})
        if stepped:
            self.table.use_clock("\0step", "step")
        if self.broken:
            self.table.notes.append(f"{self.broken:,} lines cannot be read and were left out")
        self.table.facts["tool"] = "mlflow"
        return self.table.histories()


def _take(points: Points, name: str, file: Path) -> None:
    """Lines of ``time value``, ``time value step`` or these and the name and digest of a data set."""
    with open(file, encoding="utf-8", errors="replace") as lines:
        for line in lines:
            parts = line.split()
            time = number_of(parts[0]) if parts else None
            value = number_of(parts[1]) if len(parts) > 1 else None
            step = number_of(parts[2]) if len(parts) > 2 else 0.0
            if (
                time is None
                or value is None
                or step is None
                or not abs(step) <= LARGEST_STEP
                or not line.endswith("\n")
            ):
                points.broken += bool(parts)
                continue
            points.add(name, time, int(step), value)


def _params(folder: Path) -> dict[str, str]:
    """What the run was set to: a file for each, its name the name."""
    if not folder.is_dir():
        return {}
    params: dict[str, str] = {}
    for file in islice(
        (one for one in sorted(folder.rglob("*")) if one.is_file() and not one.is_symlink()), MOST_PARAMS
    ):
        with open(file, encoding="utf-8", errors="replace") as text:
            params[file.relative_to(folder).as_posix()] = text.read(LONGEST_PARAM).strip()
    return params
