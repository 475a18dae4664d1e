"""Follow logs that are still being written: what appears, what clears, which runs are new."""

import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

from trainmedic.analysis import Given, reports_of, worst_first
from trainmedic.diagnose import Finding
from trainmedic.errors import UnreadableError, UsageError
from trainmedic.readers import find
from trainmedic.readers.reader import Options, Source
from trainmedic.readers.remote import is_address
from trainmedic.reports.report import Report
from trainmedic.settings import Settings

SHARE = 0.1
"""Of the time that is spent on looking, at most: what takes long is looked at less often."""
MOST_FILES = 1_000

Key = tuple[str, object]
"""A run: the file that findings point at, and which of the runs in it."""


@dataclass(frozen=True)
class News:
    """Something to tell of one run.

    ``kind`` is ``"run"`` (a run that was not there before), ``"anew"`` (its log was begun again from an earlier step),
    ``"finding"`` (one that appeared, or grew more severe), ``"cleared"`` (one that is not there any more) or
    ``"waiting"`` (it cannot be read, or not yet; ``text`` says why). ``step`` is the last one that the log holds.
    """

    kind: str
    path: str
    step: int = 0
    text: str = ""
    finding: Finding | None = None


@dataclass
class _Followed:
    """What is known of one log: the state of its files, and its runs with their findings."""

    state: object = None
    runs: dict[Key, Report] = field(default_factory=dict)
    trouble: str = ""


class Follower:
    """Looks at the logs below a path again and again; only those that changed are read, then as a whole.

    Readers take a log as they find it, cut off in a record or a line as it may be, begun anew, or replaced by another:
    so there is no state of half a record to keep, and nothing to go wrong where a file is rotated.
    """

    def __init__(self, path: str | os.PathLike[str], settings: Given = None, options: Options | None = None) -> None:
        self.path = os.fspath(path)
        if is_address(path):
            raise UsageError(
                f"{self.path}: only files of this machine can be followed; to judge it as it is, use analyze"
            )
        self.rules = Settings.load(settings).configured_rules()
        self.options = options or Options()
        self._logs: dict[Path, _Followed] = {}
        self._trouble = ""

    @property
    def reports(self) -> list[Report]:
        """The runs as they stand, the worst first."""
        return worst_first(report for log in self._logs.values() for report in log.runs.values())

    def look(self, tell: Callable[[News], None]) -> bool:
        """Tell what is new since the last look, as it is found; returns whether anything was written since then."""
        try:
            sources = find(self.path)
        except UnreadableError as error:
            if str(error) != self._trouble:
                self._trouble = str(error)
                tell(News("waiting", self.path, text=self._trouble))
            return False
        self._trouble = ""
        self._take_in(sources)
        written = [self._look_at(source, tell) for source in sources]
        return any(written)

    def _take_in(self, sources: list[Source]) -> None:
        """A run that gets a second file may be found as its directory from then on."""
        for source in sources:
            if source.path not in self._logs:
                inside = [path for path in self._logs if path.parent == source.path]
                self._logs[source.path] = log = _Followed()
                for path in inside:
                    log.runs.update(self._logs.pop(path).runs)

    def _look_at(self, source: Source, tell: Callable[[News], None]) -> bool:
        log = self._logs[source.path]
        state = _state(source.path)
        if state == log.state:
            return False
        log.state = state
        try:
            reports = reports_of(source, self.rules, self.options)
        except UnreadableError as error:
            if str(error) != log.trouble:
                log.trouble = str(error)
                tell(News("waiting", str(source.path), text=log.trouble))
            return True
        log.trouble = ""
        before, log.runs = log.runs, {_key(report): report for report in reports}
        for key, report in log.runs.items():
            for news in _news(before.get(key), report):
                tell(news)
        return True


def pause(seconds: float, cost: float) -> None:
    """Wait before the next look: ``seconds``, or longer where the last look took long."""
    time.sleep(max(seconds, cost / SHARE - cost))


def _news(before: Report | None, now: Report) -> Iterator[News]:
    """What of one run is to be told, given how it stood at the last look."""
    step = now.history.last_step
    if before is None:
        yield News("run", now.path, step)
    elif step < before.history.last_step:
        yield News(
            "anew", now.path, step, f"the log was begun again (it had come to step {before.history.last_step:,})"
        )
        before = None
    known = {finding.key: finding for finding in before.findings} if before else {}
    found = {finding.key: finding for finding in reversed(now.findings)}
    for finding in now.findings:
        last = known.get(finding.key)
        if found[finding.key] is finding and (last is None or last.severity.rank < finding.severity.rank):
            yield News("finding", now.path, step, finding.message, finding)
    for key, finding in known.items():
        if key not in found:
            yield News("cleared", now.path, step, finding.message, finding)


def _key(report: Report) -> Key:
    return report.file, report.history.facts.get("run", 1)


def _state(path: Path) -> object:
    """Something that differs where a log, or one of the files in the directory that is one, was written to."""
    files = [path] if path.is_file() else sorted(path.rglob("*"))[:MOST_FILES]
    return [(str(file), stat.st_ino, stat.st_size, stat.st_mtime_ns) for file in files if (stat := _stat(file))]


def _stat(file: Path) -> os.stat_result | None:
    try:
        return file.stat()
    except OSError:
        return None
