"""The same work on many things, by several processes, with the results in the order of the things."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from typing import Any, TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")

SHARES = 16
"""Portions of the work that each process gets, about: few enough to cost little, many enough to end together."""

_work: Callable[[Any], Any]


def processors() -> int:
    """Processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def mapped(
    work: Callable[[Thing], Result], things: Sequence[Thing], jobs: int, lost: Callable[[Thing], Result]
) -> Iterator[Result]:
    """``work`` of each thing in turn, done by up to ``jobs`` processes; by this one where that is one.

    Where a process is killed, as it is when memory runs out, ``lost`` of the thing stands for every result that is
    missing then. ``work`` and the things are pickled.
    """
    jobs = min(jobs, len(things))
    if jobs <= 1:
        yield from map(work, things)
        return
    before = set(multiprocessing.active_children())
    pool = ProcessPoolExecutor(jobs, mp_context=_context(), initializer=_start, initargs=(work,))
    done = 0
    try:
        size = max(1, len(things) // (jobs * SHARES))
        portions = [pool.submit(_do, things[at : at + size]) for at in range(0, len(things), size)]
        for portion in portions:
            for result in portion.result():
                done += 1
                yield result
    except BrokenProcessPool:
        yield from map(lost, things[done:])
    except BaseException:  # an error in the work, or whoever waits for the results has enough
        for process in set(multiprocessing.active_children()) - before:
            process.terminate()
        raise
    finally:
        pool.shutdown()


def _context() -> Any:
    """Forked processes begin at once with all that is imported; a fork of several threads, or on a Mac, may hang."""
    forks = sys.platform == "linux" and threading.active_count() == 1
    return multiprocessing.get_context("fork" if forks else "spawn")


def _start(work: Callable[[Any], Any]) -> None:
    global _work
    _work = work
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the first process hears of it too, and ends the others


def _do(things: Sequence[Any]) -> list[Any]:
    return [_work(thing) for thing in things]
