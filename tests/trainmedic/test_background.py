"""Work beside the training: in order, waited for at the end, and its errors are not lost."""

import os
import threading
from pathlib import Path

import pytest

from trainmedic.background import Background


def test_jobs_are_done_in_order_by_one_other_thread() -> None:
    done: list[tuple[int, int]] = []
    work = Background("test")
    for i in range(50):
        work.do(lambda i=i: done.append((i, threading.get_ident())))  # type: ignore[misc]
    work.finish()
    assert [i for i, _ in done] == list(range(50))
    assert {thread for _, thread in done} != {threading.get_ident()}
    assert not work.busy
    work.do(lambda: done.append((50, 0)))
    work.finish()
    assert done[-1] == (50, 0)


def test_an_error_is_raised_by_the_next_call_and_ends_the_work() -> None:
    done: list[int] = []

    def fail() -> None:
        raise OSError("No space left on device")

    work = Background("test")
    work.do(fail)
    work.do(lambda: done.append(1))
    with pytest.raises(OSError, match="No space left"):
        work.finish()
    assert done == []
    work.finish()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_copy_writes_nothing(tmp_path: Path) -> None:
    work = Background("test")
    work.do(lambda: None)
    child = os.fork()
    if child == 0:
        work.do((tmp_path / "written").touch)
        work.finish()
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0
    assert not (tmp_path / "written").exists()
    work.finish()


def test_where_no_thread_can_start_the_work_is_done_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't create new thread at interpreter shutdown")

    monkeypatch.setattr(threading.Thread, "start", refuse)
    done: list[int] = []
    work = Background("test")
    work.do(lambda: done.append(1))
    work.finish()
    assert done == [1]
