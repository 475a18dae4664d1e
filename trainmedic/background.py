"""Work that the training need not wait for: done in order by one thread, its errors told to whoever hands over more."""

import contextlib
import os
import queue
import threading
import time
from collections.abc import Callable
from typing import Any

Job = Callable[[], Any]


class Background:
    """Does jobs one after another in a thread of its own, which starts with the first one.

    An error ends the work: it is raised by the next call, and no further job is done.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self._process = os.getpid()
        self.seconds = 0.0  # of processor time that the jobs took
        self._jobs: queue.SimpleQueue[Job | None] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._error: Exception | None = None

    def do(self, job: Job) -> None:
        """Have ``job`` done after those before it. It must own what it uses, or only read what no longer changes.

        In a forked copy of the process nothing is done: the thread, and the files, are those of the first one.
        """
        if os.getpid() != self._process:
            return
        self._raise()
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=self.name, daemon=True)
            try:
                self._thread.start()
            except RuntimeError:  # the interpreter is on its way out and starts no more threads
                self._thread = None
                job()
                return
        self._jobs.put(job)

    def finish(self) -> None:
        """Wait until everything is done. More can be handed over afterwards."""
        if self._thread is not None and os.getpid() == self._process:
            self._jobs.put(None)
            self._thread.join()
            self._thread = None
        self._raise()

    @property
    def busy(self) -> bool:
        """Whether jobs are waiting."""
        return not self._jobs.empty()

    def _work(self) -> None:
        while (job := self._jobs.get()) is not None:
            if self._error is not None:
                continue
            before = time.thread_time()
            try:
                job()
            except Exception as error:
                self._error = error
            self.seconds += time.thread_time() - before

    def _raise(self) -> None:
        error, self._error = self._error, None
        if error is not None:
            with contextlib.suppress(queue.Empty):
                while True:
                    self._jobs.get_nowait()
            raise error
