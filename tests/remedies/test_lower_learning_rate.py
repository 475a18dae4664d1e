"""The whole schedule that follows is the old one times the factor, under every scheduler that torch ships."""

import inspect
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler, swa_utils

from tests.remedies.patients import finding, patient
from trainmedic.diagnose import Severity
from trainmedic.history import History
from trainmedic.remedies.lower_learning_rate import LowerLearningRate
from trainmedic.remedies.remedy import Refused
from trainmedic.remedies.run import Run

SCHEDULERS: dict[str, Callable[[Any], Any]] = {
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, [lambda e: 0.95**e, lambda e: 1 / (1 + e)]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda e: 0.95),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 5, 0.5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [4, 12, 14], 0.5),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.3, 15),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, 1.0, 20),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 30, 2.0),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 12, 0.001),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 5, 2, 0.001),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(
        o, 0.001, [0.2, 0.1], 4, mode="exp_range", gamma=0.97, cycle_momentum=False
    ),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, [0.5, 0.2], 60, three_phase=True),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o,
        [lr_scheduler.LinearLR(o, 0.1, 1, 6), lr_scheduler.CosineAnnealingLR(o, 10, 0.01), lr_scheduler.StepLR(o, 3)],
        [6, 20],
    ),
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.LinearLR(o, 0.1, 1, 6), lr_scheduler.ExponentialLR(o, 0.95)]
    ),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(
        o, factor=0.3, patience=2, min_lr=[0.001, 0.0005], eps=1e-3
    ),
    "SWALR": lambda o: swa_utils.SWALR(o, 0.03, anneal_epochs=15),
    "none": lambda o: None,
}
PRIVATE = {"LRScheduler", "_LRScheduler"}


def optimizer(tensor: bool) -> torch.optim.Optimizer:
    """Two groups, with rates of their own or with one tensor as the rate of both."""
    one, two = nn.Linear(2, 2), nn.Linear(2, 2)
    groups: list[dict[str, Any]] = [{"params": one.parameters()}, {"params": two.parameters()}]
    if tensor:
        return torch.optim.Adam(groups, lr=torch.tensor(0.1, dtype=torch.float64), foreach=False)
    groups[1]["lr"] = 0.05
    return torch.optim.SGD(groups, lr=0.1, momentum=0.9)


def advance(of: torch.optim.Optimizer, scheduler: Any) -> list[float]:
    of.step()
    if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau):
        scheduler.step(1.0)
    elif scheduler is not None:
        scheduler.step()
    return [float(group["lr"]) for group in of.param_groups]


def apply(of: torch.optim.Optimizer, schedulers: tuple[Any, ...] = ()) -> Any:
    run = Run([], [of], History(), schedulers=schedulers)
    change = LowerLearningRate().propose(finding("divergence"), run)
    assert change is not None
    return LowerLearningRate().apply(change, run)


def test_every_scheduler_is_covered() -> None:
    shipped = {name for name, kind in vars(lr_scheduler).items() if inspect.isclass(kind)}
    shipped = {name for name in shipped if issubclass(getattr(lr_scheduler, name), lr_scheduler.LRScheduler)}
    assert shipped - PRIVATE == SCHEDULERS.keys() - {"SWALR", "none"}


@pytest.mark.parametrize("tensor", [False, True], ids=["numbers", "tensor"])
@pytest.mark.parametrize("handed", [False, True], ids=["found", "handed over"])
@pytest.mark.parametrize("at", [0, 1, 7, 13])
@pytest.mark.parametrize("name", SCHEDULERS)
def test_the_rates_that_follow_are_those_of_the_untreated_twin_times_the_factor(
    name: str, at: int, handed: bool, tensor: bool
) -> None:
    treated, twin = optimizer(tensor), optimizer(tensor)
    undo = None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        schedule, twin_schedule = SCHEDULERS[name](treated), SCHEDULERS[name](twin)
        for step in range(40):
            if step == at:
                undo = apply(treated, (schedule,) if handed and schedule else ())
            if step == 30 and undo is not None:
                undo()  # from here on the factor is gone again
            factor = 0.3 if at <= step < 30 else 1.0
            expected = [rate * factor for rate in advance(twin, twin_schedule)]
            assert advance(treated, schedule) == pytest.approx(expected, rel=1e-6)


def test_the_same_holds_through_training_steps() -> None:
    sick = patient("SGD", schedule=lambda o: lr_scheduler.ExponentialLR(o, 0.9))
    change = LowerLearningRate().propose(finding("loss-spike"), sick.run)
    assert change is not None
    before = sick.run.learning_rates()
    assert change.before == before
    LowerLearningRate().apply(change, sick.run)
    assert sick.run.learning_rates() == change.after == pytest.approx([0.3 * before[0]])
    sick.step()
    assert sick.run.learning_rates() == pytest.approx([0.27 * before[0]])
    assert sick.scheduler.get_last_lr() == sick.run.learning_rates()


def test_a_scheduler_made_later_goes_on_from_the_lowered_rate() -> None:
    of = optimizer(False)
    apply(of)
    scheduler = lr_scheduler.StepLR(of, 1, 0.1)
    assert advance(of, scheduler) == pytest.approx([0.003, 0.0015])


def test_schedulers_of_other_optimizers_are_left_alone() -> None:
    ours, other = optimizer(False), optimizer(False)
    schedule = lr_scheduler.StepLR(other, 1, 0.5)
    apply(ours)
    assert schedule.base_lrs == [0.1, 0.05]


def test_rates_near_zero_are_not_lowered() -> None:
    of = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=1e-8)
    assert LowerLearningRate().propose(finding("divergence"), Run([], [of], History())) is None


def test_rprop_is_refused() -> None:
    of = torch.optim.Rprop([nn.Parameter(torch.ones(1))])
    with pytest.raises(Refused, match="signs of gradients"):
        LowerLearningRate().propose(finding("divergence"), Run([], [of], History()))


def test_the_code_is_for_the_users_own_groups() -> None:
    one = torch.optim.SGD([nn.Parameter(torch.ones(1))], lr=0.1)
    change = LowerLearningRate().propose(finding("divergence"), Run([], [one], History()))
    assert change is not None
    assert change.code == 'optimizer.param_groups[0]["lr"] *= 0.3'
    two = LowerLearningRate().propose(finding("divergence"), Run([], [optimizer(False)], History()))
    assert two is not None
    assert two.code.startswith("for group in optimizer.param_groups:")
    exec(two.code, {"optimizer": one})
    assert one.param_groups[0]["lr"] == pytest.approx(0.03)


@pytest.mark.parametrize(("torn", "factor"), [(1.0, 0.01), (0.1, 0.1), (0.02, 0.3), (1e-3, 0.3)])
def test_the_larger_the_steps_the_further_down(torn: float, factor: float) -> None:
    """To steps that move the weights by a hundredth of their size, and to three tenths of the rate at most."""
    of = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    run = Run([], [of], History.of(a__update_ratio=[torn] * 20, b__update_ratio=[torn] * 20))
    change = LowerLearningRate().propose(finding("learning-rate-too-high"), run)
    assert change is not None
    assert change.after == [pytest.approx(factor)]
    undo = LowerLearningRate().apply(change, run)
    assert of.param_groups[0]["lr"] == pytest.approx(factor)
    undo()
    assert of.param_groups[0]["lr"] == 1.0


@pytest.mark.parametrize(("losses", "waits"), [([2.0] * 20 + [0.4] * 20, True), ([2.0] * 20 + [1.8] * 20, False)])
def test_a_run_that_learns_at_its_rate_is_to_lower_it_in_the_course_of_the_rest(
    losses: list[float], waits: bool
) -> None:
    of = torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=1.0)
    run = Run([], [of], History.of(train_loss=losses))
    mild = finding("noisy-gradient").model_copy(update={"severity": Severity.WARNING})
    assert LowerLearningRate.waits(mild, run) is waits
    assert not LowerLearningRate.waits(finding("noisy-gradient"), run), "an error does not wait"
