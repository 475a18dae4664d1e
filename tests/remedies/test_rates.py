"""Rates raised, warmed up and put on a schedule, under every scheduler that torch ships or under none."""

import math
from typing import Any

import pytest
import torch
from torch import nn
from torch.optim import lr_scheduler

import trainmedic
from tests.remedies.patients import Patient, finding, patient
from tests.remedies.test_lower_learning_rate import SCHEDULERS
from tests.remedies.test_lower_learning_rate import optimizer as grouped
from trainmedic.history import History
from trainmedic.remedies import _rates
from trainmedic.remedies.lower_learning_rate import LowerLearningRate
from trainmedic.remedies.raise_learning_rate import RaiseLearningRate
from trainmedic.remedies.remedy import Refused
from trainmedic.remedies.run import Run
from trainmedic.remedies.schedule_learning_rate import ScheduleLearningRate
from trainmedic.remedies.warm_up import WarmUp


def optimizer(rate: Any = 0.1) -> torch.optim.Optimizer:
    return torch.optim.SGD([nn.Parameter(torch.ones(2))], lr=rate, momentum=0.9)


def run_of(of: torch.optim.Optimizer, **values: Any) -> Run:
    return Run([], [of], History.of(**values) if values else History())


def steps(run: Run, count: int, scheduler: Any = None) -> list[float]:
    """The rates that the optimizer steps with."""
    (of,), rates = run.optimizers, []
    for _ in range(count):
        for guard in run.guards:
            guard(of)
        rates.append(float(of.param_groups[0]["lr"]))
        of.param_groups[0]["params"][0].grad = torch.ones_like(of.param_groups[0]["params"][0])
        of.step()
        for guard in run.guards:
            getattr(guard, "after", lambda _: None)(of)
        if scheduler is not None:
            scheduler.step(*([1.0] if isinstance(scheduler, lr_scheduler.ReduceLROnPlateau) else []))
        run.step += 1
    return rates


class TestRaise:
    def test_the_factor_takes_updates_to_a_thousandth_of_the_weights(self) -> None:
        for pace, factor in ((1e-5, 100.0), (5e-5, 20.0), (3e-4, 10 / 3), (1e-9, 100.0)):
            of = optimizer(0.01)
            run = run_of(of, train_loss=[1.0] * 20, **{"a.weight__update_ratio": [pace] * 20})
            change = RaiseLearningRate().propose(finding("slow-convergence"), run)
            assert change is not None
            RaiseLearningRate().apply(change, run)
            assert of.param_groups[0]["lr"] == pytest.approx(0.01 * factor, rel=1e-5)

    def test_steps_of_a_good_size_are_left_alone(self) -> None:
        run = run_of(optimizer(), train_loss=[1.0] * 20, **{"a.weight__update_ratio": [1e-3] * 20})
        assert RaiseLearningRate().propose(finding("learning-rate-too-low"), run) is None

    def test_what_was_not_measured_is_raised_a_little_or_not_at_all(self) -> None:
        change = RaiseLearningRate().propose(finding("learning-rate-too-low"), run_of(optimizer()))
        assert change is not None
        assert change.after == pytest.approx([0.3])
        assert RaiseLearningRate().propose(finding("not-learning"), run_of(optimizer())) is None

    def test_a_rate_of_zero_is_refused(self) -> None:
        with pytest.raises(Refused, match="zero"):
            RaiseLearningRate().propose(finding("scheduler-misuse"), run_of(optimizer(0.0)))


class TestWarmUp:
    @pytest.mark.parametrize("scheduler", SCHEDULERS)
    def test_it_lies_over_any_schedule_and_leaves_it_as_it_was(self, scheduler: str) -> None:
        rates, with_it = [], []
        for treated in (False, True):
            of = grouped(False)
            schedule = SCHEDULERS[scheduler](of)
            run = run_of(of)
            if treated:
                change = WarmUp(least=4).propose(finding("learning-rate-too-high", step=0), run)
                assert change is not None
                WarmUp().apply(change.model_copy(update={"after": {"steps": 4}}), run)
            (with_it if treated else rates).extend(steps(run, 8, schedule))
        assert with_it == pytest.approx([rate * min(1, (i + 1) / 4) for i, rate in enumerate(rates)])
        assert with_it[4:] == rates[4:]

    def test_adam_takes_as_long_as_its_averages(self) -> None:
        of = torch.optim.Adam([nn.Parameter(torch.ones(2))], betas=(0.9, 0.98))
        change = WarmUp().propose(finding("divergence", step=3), run_of(of))
        assert change is not None
        assert change.after == {"steps": 100}
        run = run_of(of, facts={"total_steps": 400})
        change = WarmUp().propose(finding("divergence", step=3), run)
        assert change is not None
        assert change.after == {"steps": 40}

    def test_late_illnesses_and_schedules_that_warm_up_are_left_alone(self) -> None:
        late = run_of(optimizer(), facts={"total_steps": 1000})
        assert WarmUp().propose(finding("divergence", step=500), late) is None
        rising = run_of(optimizer(), optimizer_learning_rate=[0.01 * i for i in range(1, 20)])
        assert WarmUp().propose(finding("divergence", step=10), rising) is None

    def test_a_step_that_raises_does_not_keep_the_small_rate(self) -> None:
        of = optimizer()
        envelope = _rates.Envelope(_rates.warm_up(10), 10)
        envelope(of)
        envelope(of)  # the step between them raised
        assert of.param_groups[0]["lr"] == pytest.approx(0.02)
        envelope.after(of)
        assert of.param_groups[0]["lr"] == 0.1

    def test_a_rate_that_is_a_tensor_stays_the_same_object(self) -> None:
        rate = torch.tensor(0.1)
        of = torch.optim.Adam([nn.Parameter(torch.ones(2))], lr=rate)
        envelope = _rates.Envelope(_rates.warm_up(10), 10)
        envelope(of)
        assert float(of.param_groups[0]["lr"]) == pytest.approx(0.01)
        envelope.after(of)
        assert of.param_groups[0]["lr"] is rate


def scheduled(kind: Any, total: int, of: torch.optim.Optimizer | None = None) -> Run:
    run = run_of(of or optimizer(), facts={"total_steps": total})
    run.step = -1
    change = ScheduleLearningRate(kind=kind).propose(finding("plateau"), run)
    assert change is not None
    assert change.after["kind"] == (kind or "cosine")
    ScheduleLearningRate(kind=kind).apply(change, run)
    return run


class TestSchedule:
    def test_cosine_and_exponential_are_those_of_torch(self) -> None:
        for kind, other in (
            ("cosine", lambda o: lr_scheduler.CosineAnnealingLR(o, 20, eta_min=0.001)),
            ("exponential", lambda o: lr_scheduler.ExponentialLR(o, 0.01 ** (1 / 20))),
            ("step", lambda o: lr_scheduler.MultiStepLR(o, [10, 15], 0.1)),
        ):
            of = optimizer()
            assert steps(scheduled(kind, 20), 20) == pytest.approx(steps(run_of(of), 20, other(of)))

    def test_one_cycle_goes_up_and_down(self) -> None:
        rates = steps(scheduled("one-cycle", 100), 100)
        assert max(rates) == pytest.approx(1.0)
        assert rates[0] == pytest.approx(0.1)
        assert rates.index(max(rates)) == 30
        assert rates[-1] < 0.01

    def test_cycles_get_lower(self) -> None:
        rates = steps(scheduled("cyclical", 80), 80)
        peaks = [rates[i] for i in range(1, 79) if rates[i - 1] < rates[i] > rates[i + 1]]
        assert peaks == pytest.approx([0.001 + 0.099 / 2**i for i in (1, 2, 3)], rel=0.2)

    def test_the_rate_is_cut_where_the_loss_stands(self) -> None:
        run = run_of(optimizer(), train_loss=[1.0] * 10)
        run.history.facts.clear()
        remedy = ScheduleLearningRate(window=5, patience=3)
        change = remedy.propose(finding("plateau"), run)
        assert change is not None
        assert change.after["kind"] == "plateau"
        remedy.apply(change, run)
        rates = steps(run, 60)
        assert rates[20] == pytest.approx(0.1)
        assert rates[-1] < 0.011

    def test_a_run_that_has_a_schedule_is_refused(self) -> None:
        of = optimizer()
        schedule = lr_scheduler.StepLR(of, 10)
        with pytest.raises(Refused, match="of its own"):
            ScheduleLearningRate().propose(finding("plateau"), run_of(of))
        del schedule
        by_hand = run_of(optimizer(), optimizer_learning_rate=[0.1 * 0.99**i for i in range(50)])
        with pytest.raises(Refused, match="of its own"):
            ScheduleLearningRate().propose(finding("plateau"), by_hand)

    def test_what_the_user_sets_becomes_the_base(self) -> None:
        run = scheduled("cosine", 20)
        steps(run, 10)
        run.optimizers[0].param_groups[0]["lr"] *= 0.5
        assert steps(run, 1)[0] == pytest.approx(0.5 * _rates.cosine(20, 0.01)(10) * 0.1)
        assert steps(run, 1)[0] == pytest.approx(0.5 * _rates.cosine(20, 0.01)(11) * 0.1)

    def test_undone_later_the_rate_is_what_it_was(self) -> None:
        run = run_of(optimizer(), facts={"total_steps": 20})
        change = ScheduleLearningRate().propose(finding("plateau"), run)
        assert change is not None
        undo = ScheduleLearningRate().apply(change, run)
        steps(run, 10)
        assert run.optimizers[0].param_groups[0]["lr"] < 0.06
        undo()
        assert run.optimizers[0].param_groups[0]["lr"] == 0.1

    def test_steps_that_are_too_small_get_one_cycle_where_the_length_is_known(self) -> None:
        known = ScheduleLearningRate().propose(
            finding("learning-rate-too-low"), run_of(optimizer(), facts={"total_steps": 500})
        )
        assert known is not None
        assert known.after["kind"] == "one-cycle"
        for facts in ({}, {"total_steps": 50}):
            run = run_of(optimizer(), facts=facts)
            assert ScheduleLearningRate().propose(finding("learning-rate-too-low"), run) is None

    @pytest.mark.parametrize("kind", ["plateau", "step", "exponential", "cosine", "cyclical", "one-cycle"])
    def test_the_code_makes_a_scheduler(self, kind: Any) -> None:
        of = optimizer()
        run = run_of(of, facts={"total_steps": 50})
        change = ScheduleLearningRate(kind=kind).propose(finding("plateau"), run)
        assert change is not None
        of.step()
        exec(change.code, {"torch": torch, "optimizer": of, "lr": 0.1, "val_loss": 1.0})


def sick_quadratic(treat: bool) -> float:
    """A valley of curvatures 1 to 30 with noise, whose rate is never lowered."""
    torch.manual_seed(0)
    weight = nn.Parameter(torch.full((10,), 3.0))
    scale = torch.linspace(1, 30, 10)
    of = torch.optim.SGD([weight], lr=0.05)
    run = Run([], [of], History.of(facts={"total_steps": 400}), step=100)
    if treat:
        change = ScheduleLearningRate().propose(finding("noisy-gradient"), run)
        assert change is not None
        ScheduleLearningRate().apply(change, run)
    for _ in range(300):
        weight.grad = scale * weight.detach() + torch.randn(10)
        of.step()
        for guard in run.guards:
            guard.after(of)  # type: ignore[attr-defined]
    return float((scale * weight.detach().square()).sum())


def test_noise_that_a_constant_rate_keeps_up_dies_down() -> None:
    assert sick_quadratic(True) < 0.2 * sick_quadratic(False)


def test_a_patient_under_cosine_warms_up_and_goes_on() -> None:
    sick: Patient = patient("AdamW")
    change = WarmUp().propose(finding("learning-rate-too-high", step=0), sick.run)
    assert change is not None
    undo = WarmUp().apply(change, sick.run)
    sick.step()
    after = sick.optimizer.param_groups[0]["lr"]
    assert after == sick.scheduler.get_last_lr()[0]
    undo()
    assert math.isfinite(float(sick.step()))


def test_a_watched_run_records_the_rates_that_it_steps_with_and_keeps_its_own() -> None:
    model = nn.Linear(2, 1)
    of = torch.optim.SGD(model.parameters(), lr=0.1)
    schedule = lr_scheduler.ExponentialLR(of, 0.9)
    with trainmedic.watch(model, of, fix="safe") as medic:
        medic._treating.run.guards.append(_rates.Envelope(_rates.warm_up(4), 4))
        seen = []
        for _ in range(6):
            of.zero_grad()
            model(torch.randn(4, 2)).sum().backward()
            of.step()
            seen.append(of.param_groups[0]["lr"])
            schedule.step()
    recorded = medic.report().history.series("optimizer/learning_rate").values
    plain = [0.1 * 0.9**i for i in range(6)]
    assert seen == pytest.approx(plain)
    assert list(recorded) == pytest.approx([rate * min(1, (i + 1) / 4) for i, rate in enumerate(plain)])


def brought_down_run(scheduler: Any, total: int = 200, taken: int = 40) -> tuple[Run, Any]:
    """A run whose schedule has come down after ``taken`` steps of ``total``."""
    of = optimizer(0.1)
    schedule = scheduler(of)
    run = Run([], [of], History(), schedulers=[schedule])
    run.history.facts["total_steps"] = total
    for step, rate in enumerate(steps(run, taken, schedule)):
        run.history.add("optimizer/learning_rate", step, rate)
        run.step = step
    return run, schedule


def test_a_schedule_that_died_early_gives_way_and_goes_on_unseen() -> None:
    make = lambda of: lr_scheduler.StepLR(of, 4, 0.5)  # noqa: E731
    run, schedule = brought_down_run(make)
    change = ScheduleLearningRate().propose(finding("scheduler-misuse"), run)
    assert change is not None
    undo = ScheduleLearningRate().apply(change, run)
    group = run.optimizers[0].param_groups[0]
    expected = lr_scheduler.StepLR(optimizer(0.1), 4, 0.5)
    for _ in range(40):
        expected.optimizer.step()
        expected.step()
    assert group["lr"] == expected.get_last_lr()[0], "between steps it is that schedule's"
    taken = steps(run, 159, schedule)
    assert taken[0] == taken[90] == pytest.approx(0.1)
    assert taken[-1] == pytest.approx(0.001, rel=0.3)
    assert taken[95:] == sorted(taken[95:], reverse=True)
    undo()
    for _ in range(159):
        expected.optimizer.step()
        expected.step()
    assert group["lr"] == expected.get_last_lr()[0]
    assert steps(run, 1, schedule) == expected.get_last_lr()


@pytest.mark.parametrize(
    ("scheduler", "taken"),
    [
        (lambda of: lr_scheduler.StepLR(of, 100, 0.1), 40),  # not down yet
        (lambda of: lr_scheduler.CosineAnnealingLR(of, 200), 185),  # at the end, as it should be
    ],
)
def test_a_schedule_that_fits_the_run_is_left_alone(scheduler: Any, taken: int) -> None:
    run, _ = brought_down_run(scheduler, taken=taken)
    with pytest.raises(Refused, match="schedule of its own"):
        ScheduleLearningRate().propose(finding("scheduler-misuse"), run)


def test_a_rate_that_a_schedule_takes_down_again_is_not_raised_first() -> None:
    run, _ = brought_down_run(lambda of: lr_scheduler.StepLR(of, 4, 0.5))
    assert RaiseLearningRate.waits(finding("learning-rate-too-low"), run)
    assert not RaiseLearningRate.waits(finding("learning-rate-too-low"), run_of(optimizer()))


def test_a_schedule_that_drives_the_rate_up_gives_way_to_what_the_run_bore() -> None:
    make = lambda of: lr_scheduler.ExponentialLR(of, 1.1)  # noqa: E731
    run, _ = brought_down_run(make, taken=60)
    for step in range(60):  # lowest around step 25
        run.history.add("train/loss", step, abs(step - 25) / 25 + 1)
    change = ScheduleLearningRate().propose(finding("divergence"), run)
    assert change is not None
    assert change.after["peaks"] == [pytest.approx(0.3 * 0.1 * 1.1**25, rel=0.2)]
    assert LowerLearningRate.waits(finding("divergence"), run), "a rate that is lowered is raised again"
    run, _ = brought_down_run(make, taken=60)
    for step in range(60):
        run.history.add("train/loss", step, 2 - step / 60)
    with pytest.raises(Refused, match="schedule of its own"):
        ScheduleLearningRate().propose(finding("divergence"), run)
