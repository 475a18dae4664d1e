"""When the rules judge live: often at first, ever more seldom, and at once for what is not finite."""

import itertools
import math

from trainmedic.moments import Moments


def regular(steps: int) -> list[int]:
    moments, judged = Moments(), []
    for step in range(steps):
        if moments.due(step):
            judged.append(step)
            moments.judged(step)
    return judged


def test_often_at_first_then_every_twentieth() -> None:
    judged = regular(100_000)
    assert judged[:4] == [10, 20, 30, 40]
    assert all(after - before <= max(10, before / 20) for before, after in itertools.pairwise(judged))


def test_their_number_grows_with_the_logarithm() -> None:
    for steps in (1_000, 10_000, 100_000):
        assert len(regular(steps)) <= 21 + 1.1 * math.log(steps / 200) / math.log(1.05)


def test_an_alarm_is_heard_at_once_and_an_endless_one_seldom() -> None:
    moments, judged = Moments(), []
    for step in range(10_000):
        if step == 5_003 or step > 6_000:
            moments.alarm(step)
        if moments.due(step):
            judged.append(step)
            moments.judged(step)
    assert {5_003, 6_001} <= set(judged)
    assert len([step for step in judged if step > 6_000]) < 30


def test_evaluations_are_judged_one_by_one_and_later_now_and_then() -> None:
    moments = Moments()
    judged = [i for i in range(1, 10_001) if moments.evaluated()]
    assert judged[:30] == list(range(1, 31))
    assert len(judged) < 200


def test_a_changed_run_begins_anew() -> None:
    moments = Moments()
    moments.judged(10_000)
    moments.restart(10_001)
    assert [moments.due(10_010), moments.due(10_011)] == [False, True]
    moments.alarm(10_002)
    assert moments.due(10_002)


def paced(steps: int, seconds: float, judging: float) -> list[int]:
    """Steps that take ``seconds``, judged by a clock of their own."""
    now = [0.0]
    moments, judged = Moments(clock=lambda: now[0]), []
    for step in range(steps):
        now[0] += seconds
        if moments.due(step):
            judged.append(step)
            now[0] += judging
            moments.spent(judging)
            moments.judged(step)
    return judged


def test_where_steps_take_long_the_clock_changes_nothing() -> None:
    assert paced(5_000, seconds=1.0, judging=0.005) == regular(5_000)


def test_where_steps_are_short_a_judgement_is_put_off_but_not_for_long() -> None:
    judged = paced(5_000, seconds=0.001, judging=0.005)
    assert len(judged) < 0.6 * len(regular(5_000))
    assert all(after - before <= max(10, after / 8) for before, after in itertools.pairwise(judged))


def test_between_the_two_judging_takes_its_share_of_the_time() -> None:
    judged = paced(2_000, seconds=0.05, judging=0.005)
    assert 0.0015 < 0.005 * len(judged) / (0.05 * 2_000) < 0.0025


def test_an_alarm_does_not_wait_for_the_clock() -> None:
    moments = Moments(clock=lambda: 0.0)
    moments.judged(1_000)
    moments.spent(1.0)
    assert not moments.due(1_060)
    moments.alarm(1_060)
    assert moments.due(1_060)
