"""Work by several processes: in order, and told where a process died."""

import os
import signal
from pathlib import Path

import pytest

from trainmedic.parallel import mapped


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


def test_an_error_is_raised_here(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="number 0"):
        list(mapped(failing, range(4), 2, lost))
