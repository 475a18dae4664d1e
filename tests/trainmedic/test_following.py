"""Following: what appears and what clears is told once, whatever happens to the file meanwhile."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.readers.test_tensorboard import scalar
from tests.readers.test_tensorboard import write as write_events
from trainmedic.errors import UsageError
from trainmedic.following import Follower, News

FOLLOW = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in the background of a shell
from trainmedic.cli import main
main()
"""
WRITER = """
import sys, time
with open(sys.argv[1], "w", buffering=1) as file:
    file.write("step,loss,val_loss\\n")
    for step in range(60):
        if step == 40:
            sys.stdin.readline()
        line = f"{step},{'nan' if step >= 40 else 1 / (step + 1)},{1 / (step + 1)}\\n"
        file.write(line[:4]); file.flush(); time.sleep(0.01)
        file.write(line[4:]); file.flush(); time.sleep(0.01)
"""


def lines(values: list[float], first: int = 0) -> str:
    return "".join(f"{step},{value}\n" for step, value in enumerate(values, start=first))


def news(follower: Follower) -> list[tuple[str, str]]:
    """Kind, and code of the finding, of what is new."""
    told: list[News] = []
    follower.look(told.append)
    return [(one.kind, one.finding.code if one.finding else "") for one in told]


def test_a_finding_is_told_when_it_appears_and_when_it_clears(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    follower = Follower(path)
    assert news(follower) == [("waiting", "")]
    assert news(follower) == []
    path.write_text("step,loss\n")
    assert news(follower) == [("waiting", "")]
    path.write_text("step,loss\n" + lines([3, 2, 1]))
    assert news(follower) == [("run", "")]
    with path.open("a") as file:
        file.write("3,nan\n4,nan\n5,0.")
    assert news(follower) == [("finding", "TM101")]
    assert news(follower) == []
    with path.open("a") as file:
        file.write("5\n6,nan\n")
    assert news(follower) == []
    path.write_text("step,loss\n" + lines([3, 2, 1, 0.9, 0.8, 0.7, 0.6, 0.5]))
    assert news(follower) == [("cleared", "TM101")]


def test_a_log_that_is_begun_again_is_another_story(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n" + lines([3, 2, float("nan"), float("nan")]))
    follower = Follower(path)
    assert news(follower) == [("run", ""), ("finding", "TM101")]
    os.rename(path, tmp_path / "log.csv.1")
    news(follower)
    path.write_text("step,loss\n" + lines([3, 2]))
    assert news(follower) == [("anew", "")]
    assert [report.history.last_step for report in follower.reports] == [1]
    path.write_text("")
    assert news(follower) == [("waiting", "")]
    path.write_text("step,loss\n" + lines([float("nan")] * 5))
    assert news(follower) == [("finding", "TM101")]


def test_new_runs_and_second_files_of_a_run_are_seen(tmp_path: Path) -> None:
    losses = [1 / (i + 1) for i in range(20)]
    write_events(tmp_path / "a" / "events.out.tfevents.1.host", [scalar("loss", i, x) for i, x in enumerate(losses)])
    follower = Follower(tmp_path)
    assert news(follower) == [("run", "")]
    more = [scalar("loss", 20 + i, float("nan")) for i in range(5)]
    write_events(tmp_path / "a" / "events.out.tfevents.2.host", more)
    assert news(follower) == [("finding", "TM101")]
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "log.csv").write_text("step,loss\n" + lines(losses))
    assert news(follower) == [("run", "")]
    assert len(follower.reports) == 2


def test_an_address_is_not_followed() -> None:
    with pytest.raises(UsageError, match="only files of this machine can be followed"):
        Follower("memory://bucket/run")


def followed(*arguments: object) -> list[str]:
    return [sys.executable, "-c", FOLLOW, "follow", *map(str, arguments)]


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_a_log_that_really_grows_a_piece_of_a_line_at_a_time(tmp_path: Path) -> None:
    path = tmp_path / "runs" / "log.csv"
    path.parent.mkdir()
    pipe = subprocess.PIPE
    command = followed(path.parent, "--every", "0.05", "--format", "json")
    with (
        subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True) as follower,
        subprocess.Popen([sys.executable, "-c", WRITER, str(path)], stdin=pipe, text=True) as writer,
    ):
        assert follower.stdout is not None
        told = (json.loads(line) for line in follower.stdout)
        run = next(one for one in told if one["kind"] != "waiting")
        assert (run["kind"], run["path"]) == ("run", str(path))
        assert writer.stdin is not None
        writer.stdin.write("on\n")
        writer.stdin.flush()
        finding = next(told)
        assert (finding["kind"], finding["finding"]["code"], finding["finding"]["step"]) == ("finding", "TM101", 40)
        assert writer.wait(60) == 0
        follower.send_signal(signal.SIGINT)
        out, err = follower.communicate(timeout=60)
    assert (out, err, follower.returncode) == ("", "", 1)


def test_it_ends_by_itself_when_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "log.csv").write_text("step,loss\n" + lines([1 / (i + 1) for i in range(20)]))
    done = subprocess.run(followed(tmp_path, "--every", "0.05", "--idle", "0.2"), capture_output=True, text=True)
    assert done.returncode == 0
    assert done.stdout.endswith("\n1 run, last step 19: nothing wrong found\n")


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_ctrl_c_ends_it_cleanly(tmp_path: Path) -> None:
    path = tmp_path / "log.csv"
    path.write_text("step,loss\n" + lines([1 / (i + 1) for i in range(20)]))
    pipe = subprocess.PIPE
    with subprocess.Popen(followed(path, "--every", "0.05"), stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().rstrip().endswith("log.csv: a run, now at step 19")
        time.sleep(0.1)
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("1 run, last step 19: nothing wrong found\n", "", 0)
