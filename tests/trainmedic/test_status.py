"""The status line, in a real pseudo-terminal whose output a terminal emulator understands."""

import fcntl
import logging
import os
import pty
import re
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from typing import Any

import pytest

from trainmedic.diagnose import Finding, Severity
from trainmedic.history import History
from trainmedic.reports.status import duration, status
from trainmedic.status import Pace, StatusLine, beside_bars

ROWS, COLUMNS = 12, 90
ROOT = Path(__file__).parents[2]

WORK = """
import sys
from trainmedic.status import StatusLine
StatusLine.EVERY = 0.0
def work(bar=range, tell=print):
    line = StatusLine(lambda width: ("medic at work", "error"))
    try:
        for i in bar(40):
            line.update()
            if i % 10 == 0:
                tell(f"my own line {i}")
    finally:
        line.close()
"""
OWN = [f"my own line {i}" for i in range(0, 40, 10)]
TRAINING = """
import torch, trainmedic
from trainmedic.status import StatusLine
StatusLine.EVERY = 0.0
def train(status):
    torch.manual_seed(0)
    model = torch.nn.Linear(4, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    x, y = torch.randn(16, 4), torch.randint(2, (16,))
    with trainmedic.watch(model, optimizer, total_steps=40, status=status) as medic:
        for i in range(40):
            optimizer.zero_grad()
            loss = torch.nn.functional.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            medic.log(loss)
            if status and i % 10 == 0:
                print(f"my own line {i}")
    return [parameter.tolist() for parameter in model.parameters()]
print("same", train(True) == train(False))
"""


class Screen:
    """A terminal of ``ROWS`` rows: what it shows now, and what has scrolled out above."""

    def __init__(self) -> None:
        pyte = pytest.importorskip("pyte")
        self._screen = pyte.HistoryScreen(COLUMNS, ROWS, history=10_000)
        self._stream = pyte.ByteStream(self._screen)

    def feed(self, data: bytes) -> None:
        self._stream.feed(data)

    @property
    def lines(self) -> list[str]:
        return [line.rstrip() for line in self._screen.display]

    @property
    def everything(self) -> list[str]:
        above = ["".join(row[i].data for i in range(COLUMNS)).rstrip() for row in self._screen.history.top]
        return above + self.lines

    @property
    def scrolls_everywhere(self) -> bool:
        margins = self._screen.margins
        return margins is None or (margins.top, margins.bottom) == (0, ROWS - 1)


def in_terminal(code: str, *, term: str = "xterm-256color", **environment: str) -> tuple[bytes, list[str], Screen]:
    """Run code in a terminal: (all that it wrote, each state of the last row, the screen in the end)."""
    screen = Screen()
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", ROWS, COLUMNS, 0, 0))
    variables = {**os.environ, "TERM": term, "OMP_NUM_THREADS": "1", **environment}
    child = subprocess.Popen(
        [sys.executable, "-c", code], stdin=slave, stdout=slave, stderr=slave, close_fds=True, cwd=ROOT, env=variables
    )
    os.close(slave)
    raw, last_rows = b"", []
    while True:
        try:
            data = os.read(master, 4096)
        except OSError:
            break
        if not data:
            break
        raw += data
        for piece in re.split(rb"(?<=\x1b8)", data):  # drawings end with a restored cursor
            screen.feed(piece)
            last_rows.append(screen.lines[-1])
    os.close(master)
    assert child.wait(60) == 0, screen.everything
    return raw, last_rows, screen


def test_prints_scroll_above_the_line_and_none_is_lost() -> None:
    _, last_rows, screen = in_terminal(
        WORK
        + """
line = StatusLine(lambda width: ("medic at work", "error"))
for i in range(50):
    print("mine", i)
    line.update()
    sys.stderr.write("half "); sys.stderr.flush(); line.update(); print("whole", i)
line.close()
print("after")
"""
    )
    text = [line for line in screen.everything if line]
    assert text == [line for i in range(50) for line in (f"mine {i}", f"half whole {i}")] + ["after"]
    assert "medic at work" in last_rows
    assert screen.scrolls_everywhere


def test_a_watched_run_shows_its_state_and_trains_as_without() -> None:
    _, last_rows, screen = in_terminal(TRAINING)
    assert [line for line in screen.everything if line] == [*OWN, "same True"]
    drawn = [row for row in last_rows if row.startswith("medic")]
    assert any(re.match(r"medic  step 40/40  loss 0\.\d+ ", row) for row in drawn)
    assert "nothing wrong found" in drawn[-1]
    assert screen.scrolls_everywhere


def test_under_tqdm_the_bar_stays_whole() -> None:
    pytest.importorskip("tqdm")
    _, last_rows, screen = in_terminal(
        WORK
        + """
import logging, tqdm
from trainmedic.status import beside_bars
logging.basicConfig(format="%(message)s")
def tell(text):
    tqdm.tqdm.write(text)
    with beside_bars():
        logging.warning("it climbs")
work(bar=lambda n: tqdm.tqdm(range(n), mininterval=0), tell=tell)
"""
    )
    text = [line for line in screen.everything if line]
    assert text[:-1] == [line for own in OWN for line in (own, "it climbs")]
    assert re.search(r"100%\|█+\| 40/40", text[-1])
    assert "medic at work" in last_rows


def test_under_rich_the_bar_stays_whole() -> None:
    _, last_rows, screen = in_terminal(
        WORK + "from rich.progress import track\nwork(bar=lambda n: track(range(n), 'mine'))"
    )
    text = [line for line in screen.everything if line]
    assert text[:4] == OWN
    assert re.match(r"mine ━+ 100%", text[4])
    assert len(text) == 5
    assert "medic at work" in last_rows


def test_an_error_gives_the_terminal_back() -> None:
    _, _, screen = in_terminal(WORK + "\ndef tell(text):\n    raise SystemExit(0)\nwork(tell=tell)")
    assert screen.scrolls_everywhere
    assert not any("medic" in line for line in screen.everything)


def test_nothing_is_drawn_on_a_terminal_that_cannot() -> None:
    assert b"\x1b" not in in_terminal(WORK + "work()", term="dumb")[0]


def test_no_color_means_none() -> None:
    assert b"\x1b[31mmedic at work\x1b[0m" in in_terminal(WORK + "work()")[0]
    assert b"\x1b[31m" not in in_terminal(WORK + "work()", NO_COLOR="1")[0]


def test_piped_output_has_no_line() -> None:
    done = subprocess.run([sys.executable, "-c", WORK + "work()"], capture_output=True, text=True, cwd=ROOT, check=True)
    assert (done.stdout.splitlines(), done.stderr) == (OWN, "")


def test_two_lines_do_not_fight() -> None:
    _, last_rows, screen = in_terminal(
        WORK
        + """
lines = [StatusLine(lambda width, name=name: (name, None)) for name in ("first", "second")]
for line in lines * 3:
    line.update()
lines[1].close(); lines[0].close(); lines[1].update(); lines[1].close()
"""
    )
    assert [row for row in dict.fromkeys(last_rows) if row] == ["first", "second"]
    assert screen.scrolls_everywhere


def test_a_notebook_is_told_through_logging(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setitem(sys.modules, "ipykernel", object())
    line = StatusLine(lambda width: ("step 1", None))
    line._next = 0.0
    with caplog.at_level(logging.INFO, logger="trainmedic"):
        line.update()
        line.update()
    assert [record.message for record in caplog.records] == ["step 1"]
    line.close()


def test_it_is_not_described_when_it_is_not_drawn() -> None:
    def never(_: int) -> tuple[str, str | None]:
        raise AssertionError

    line = StatusLine(never)  # no terminal here
    line.update()
    line.close()


def test_bars_are_cleared_only_where_there_are_some(monkeypatch: pytest.MonkeyPatch) -> None:
    class Bars:
        _instances: tuple[int, ...] = ()

    module: Any = type(sys)("tqdm")
    module.tqdm = Bars
    monkeypatch.setitem(sys.modules, "tqdm", module)
    monkeypatch.delitem(sys.modules, "tqdm.std", raising=False)
    with beside_bars():
        pass


def finding(name: str = "dead-relu", severity: Severity = Severity.WARNING) -> Finding:
    return Finding(code="TM301", name=name, severity=severity, step=1_200, detected_at=1_200, message="")


def test_what_matters_least_gives_way_first() -> None:
    history = History.of(train_loss=[1 / (i + 1) for i in range(100)])

    def shown(width: int) -> str:
        return status(history, [finding()], step=100, total_steps=9_536, steps_per_second=12.34, width=width)

    assert shown(200) == (
        "medic  step 100/9,536  loss 0.01  █▂▁▁▁▁▁▁▁▁▁▁  12.3 steps/s  12 min 45 s left"
        "  warning: TM301 dead-relu since step 1,200"
    )
    assert shown(80) == "medic  step 100/9,536  loss 0.01  warning: TM301 dead-relu since step 1,200"
    assert shown(60) == "medic  warning: TM301 dead-relu since step 1,200"
    assert all(len(shown(width)) <= width for width in range(1, 200))


def test_a_hostile_name_does_not_reach_the_terminal() -> None:
    text = status(History(), [finding("\x1b[31m\n")], step=0, doing="\x07")
    assert text.isprintable()


def test_durations_and_pace(monkeypatch: pytest.MonkeyPatch) -> None:
    assert [duration(s) for s in (0, 59.7, 3_725, 200_000)] == ["0 s", "1 min", "1 h 2 min", "2 days 7 h"]
    now = iter([0.0, 2.0, 2.0, 4.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    pace = Pace()
    assert [pace.at(10), pace.at(10), pace.at(40)] == [5.0, 5.0, 10.0]
