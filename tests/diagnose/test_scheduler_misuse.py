"""TM603 and its look-alikes: real schedules of PyTorch's, over losses that follow the rate."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch.optim import lr_scheduler

from trainmedic.diagnose import Finding
from trainmedic.diagnose.rules.scheduler_misuse import SchedulerMisuse
from trainmedic.history import History

STEPS, EPOCH = 600, 30


def run(make: Callable[[torch.optim.Optimizer], Any], per: int = 1, pace: float = 1.0) -> History:
    """A loss that comes down in proportion to the rate; ``per``: batches between two calls of the scheduler."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    scheduler = make(optimizer)
    rates, losses, loss = [], [], 2.3
    for step in range(STEPS):
        rates.append(optimizer.param_groups[0]["lr"])
        loss *= 1 - 0.1 * pace * min(rates[-1], 1.0)
        losses.append(loss * (1 + 0.02 * np.sin(7 * step)))
        optimizer.step()
        if step % per == per - 1:
            scheduler.step()
    facts = {"total_steps": STEPS, "scheduler": type(scheduler).__name__}
    return History.of(train_loss=losses, optimizer_learning_rate=rates, facts=facts)


def look(history: History) -> list[Finding]:
    return list(SchedulerMisuse().check(history))


SICK: dict[str, tuple[Callable[[torch.optim.Optimizer], Any], int]] = {
    "steps of epochs per batch": (lambda o: lr_scheduler.StepLR(o, 5, 0.5), 1),
    "exponential of epochs per batch": (lambda o: lr_scheduler.ExponentialLR(o, 0.9), 1),
    "milestones of epochs per batch": (lambda o: lr_scheduler.MultiStepLR(o, [10, 15], 0.1), 1),
    "a polynomial too short": (lambda o: lr_scheduler.PolynomialLR(o, 40), 1),
    "an exponential that fades within a third": (lambda o: lr_scheduler.ExponentialLR(o, 0.98), 1),
    "a cycle of batches per epoch": (lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS), EPOCH),
    "a warm-up from zero per epoch": (lambda o: lr_scheduler.LambdaLR(o, lambda epoch: min(1.0, epoch / 5)), EPOCH),
}

HEALTHY: dict[str, tuple[Callable[[torch.optim.Optimizer], Any], int]] = {
    "steps": (lambda o: lr_scheduler.StepLR(o, 5, 0.5), EPOCH),
    "exponential down to 1e-4": (lambda o: lr_scheduler.ExponentialLR(o, 1e-4 ** (1 / STEPS)), 1),
    "exponential": (lambda o: lr_scheduler.ExponentialLR(o, 0.8), EPOCH),
    "milestones": (lambda o: lr_scheduler.MultiStepLR(o, [10, 15], 0.1), EPOCH),
    "cosine": (lambda o: lr_scheduler.CosineAnnealingLR(o, STEPS), 1),
    "restarts": (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 40), 1),
    "restarts that grow": (lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 40, 2), 1),
    "cycles": (lambda o: lr_scheduler.CyclicLR(o, 0.0, 0.1, 50), 1),
    "one cycle": (lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=STEPS + 1), 1),
    "polynomial": (lambda o: lr_scheduler.PolynomialLR(o, STEPS), 1),
    "warm-up": (lambda o: lr_scheduler.LambdaLR(o, lambda step: min(1.0, step / 60)), 1),
    "constant": (lambda o: lr_scheduler.ConstantLR(o, 1.0), 1),
}


@pytest.mark.parametrize("name", SICK)
def test_calls_that_stand_for_something_else(name: str) -> None:
    make, per = SICK[name]
    [finding] = look(run(make, per, pace=0.5))
    assert finding.where == ("optimizer/learning_rate",)


@pytest.mark.parametrize("pace", [0.05, 0.5, 3.0])
@pytest.mark.parametrize("name", HEALTHY)
def test_schedules_as_they_are_meant(name: str, pace: float) -> None:
    make, per = HEALTHY[name]
    history = run(make, per, pace)
    for until in range(STEPS, 0, -30):
        history.drop_after(until)
        assert look(history) == []


def test_a_task_that_was_learnt_before_the_rate_died() -> None:
    make, per = SICK["a polynomial too short"]
    assert look(run(make, per, pace=30.0)) == []


def test_the_length_of_a_log_is_its_own() -> None:
    make, per = SICK["steps of epochs per batch"]
    history = run(make, per, pace=0.5)
    history.facts.clear()
    assert look(history)


def test_a_log_that_rounds_to_zero_is_not_judged_by_that() -> None:
    assert look(History.of(train_loss=np.geomspace(2, 1, 300), optimizer_learning_rate=[0.0] * 300)) == []


def test_a_group_that_stays_at_zero_on_purpose() -> None:
    history = History.of(train_loss=[2.3] * 300, optimizer_learning_rate=[0.0] * 300, facts={"total_steps": 300})
    assert look(history)
    history.add_series("optimizer/learning_rate/1", range(300), [1e-3] * 300)
    assert look(history) == []


def test_a_third_of_a_run_is_too_little_where_the_schedule_is_stepped_per_batch() -> None:
    def dies_at(share: float, **facts: Any) -> list[Finding]:
        halved = share * STEPS / 7
        rates = [0.1 * 0.5 ** int(step // halved) for step in range(STEPS)]
        losses = [4.6 - 1.5 * min(step / (0.2 * STEPS), 1.0) for step in range(STEPS)]
        facts = {"total_steps": STEPS, **facts}
        return look(History.of(train_loss=losses, optimizer_learning_rate=rates, facts=facts))

    assert dies_at(0.37, steps_per_epoch=60)
    assert dies_at(0.37, steps_per_epoch=20) == []  # it may have been lowered where the loss stood still
    assert dies_at(0.37) == []
    assert dies_at(0.5, steps_per_epoch=60) == []  # an exponential one, down to 1e-4 at the end
