"""Work by several processes: in order, and told where a process died."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from trainmedic.parallel import mapped

ROOT = Path(__file__).parents[2]


def squared(number: int) -> int:
    return number * number


def dying(number: int) -> int:
    if number == 5:
        os.kill(os.getpid(), signal.SIGKILL)
    return number


def failing(number: int) -> int:
    raise ValueError(f"number {number}")


def lost(number: int) -> int:
    return -number


@pytest.mark.parametrize("jobs", [1, 2, 50])
def test_results_come_in_the_order_of_the_things(jobs: int) -> None:
    assert list(mapped(squared, range(40), jobs, lost)) == [number * number for number in range(40)]
    assert list(mapped(squared, [], jobs, lost)) == []


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no such signal here")
def test_a_process_that_is_killed_loses_only_what_was_not_done() -> None:
    results = list(mapped(dying, range(40), 2, lost))
    assert [abs(result) for result in results] == list(range(40))
    assert results[5] == -5


INTERRUPTED = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored, where the tests run in the background of a shell
from trainmedic.parallel import mapped
from tests.trainmedic.test_parallel import slow, lost
print("begun", flush=True)
try:
    list(mapped(slow, range(1_000), 2, lost))
except KeyboardInterrupt:
    print("interrupted")
"""


def slow(number: int) -> int:
    time.sleep(0.2)
    return number


@pytest.mark.skipif(sys.platform == "win32", reason="signals are others there")
def test_an_interruption_ends_all_of_it_without_a_word(tmp_path: Path) -> None:
    pipe = subprocess.PIPE
    command = [sys.executable, "-c", INTERRUPTED]
    with subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, start_new_session=True, cwd=ROOT) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "begun\n"
        time.sleep(0.3)
        os.killpg(process.pid, signal.SIGINT)  # as a terminal does it
        out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("interrupted\n", "", 0)


def test_an_error_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="number 0"):
        list(mapped(failing, range(4), 2, lost))
