"""Skipping: a bad step does nothing at all, and it ends where it cannot help."""

import copy

import pytest
import torch

from tests.remedies.patients import Patient, different, finding, patient, photograph
from trainmedic.remedies.remedy import Refused
from trainmedic.remedies.skip_step import Skip, SkipStep, held_off, stand_by


def treated(optimizer: str = "AdamW") -> tuple[Patient, Skip]:
    sick = patient(optimizer)
    change = SkipStep().propose(finding("non-finite"), sick.run)
    assert change is not None
    SkipStep().apply(change, sick.run)
    guard = sick.run.guards[-1]
    assert isinstance(guard, Skip)
    return sick, guard


def spoil(sick: Patient, bad: float = float("nan")) -> None:
    """Gradients as a bad batch makes them."""
    for parameter in sick.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    next(sick.model.parameters()).grad[0, 0] = bad


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_a_bad_step_moves_nothing(bad: float) -> None:
    sick, guard = treated()
    before = photograph(sick)
    spoil(sick, bad)
    guard(sick.optimizer)
    sick.optimizer.step()
    assert different(before, photograph(sick)) == ["gradients"]
    assert guard.skipped == [sick.run.step]


def test_good_steps_are_those_of_the_untreated_twin() -> None:
    sick, guard = treated()
    twin = copy.deepcopy(sick.model)
    of = torch.optim.AdamW(twin.named_parameters(), lr=0.01)
    of.load_state_dict(copy.deepcopy(sick.optimizer.state_dict()))
    for model, optimizer in ((sick.model, sick.optimizer), (twin, of)):
        optimizer.zero_grad()
        model(torch.ones(4, 6)).square().sum().backward()
        if optimizer is not of:
            guard(optimizer)
        optimizer.step()
    assert all(map(torch.equal, sick.model.parameters(), twin.parameters()))
    assert guard.skipped == []


def test_large_but_finite_gradients_are_no_reason_to_skip() -> None:
    sick, guard = treated()
    spoil(sick, 3e38)
    guard(sick.optimizer)
    assert next(sick.model.parameters()).grad is not None


def test_it_goes_on_as_long_as_there_is_something_to_protect() -> None:
    sick, guard = treated()
    for _ in range(SkipStep().patience + 3):
        spoil(sick)
        assert guard(sick.optimizer)
        assert next(sick.model.parameters()).grad is None
    assert len(guard.skipped) == SkipStep().patience + 3


def test_it_lets_go_after_a_few_in_a_row_of_weights_that_are_spoilt() -> None:
    sick, guard = treated()
    with torch.no_grad():
        next(sick.model.parameters()).fill_(float("nan"))
    for _ in range(SkipStep().patience):
        spoil(sick)
        assert guard(sick.optimizer)
    spoil(sick)
    assert not guard(sick.optimizer)
    assert next(sick.model.parameters()).grad is not None


def test_a_step_that_a_scaler_looked_at_is_left_to_it() -> None:
    sick, guard = treated()
    spoil(sick)
    sick.optimizer.found_inf = torch.ones(())
    assert not guard(sick.optimizer)
    assert guard.skipped == []


def test_a_mask_with_infinities_is_sound() -> None:
    sick = patient()
    sick.run.healthy = None
    sick.model.register_buffer("mask", torch.full((3, 3), -float("inf")).triu(1))
    assert SkipStep().propose(finding("non-finite"), sick.run) is not None
    sick.model.mask[0, 0] = float("nan")
    assert SkipStep().propose(finding("non-finite"), sick.run) is None


def test_a_good_step_between_counts_anew() -> None:
    sick, guard = treated()
    for _ in range(10):
        spoil(sick)
        guard(sick.optimizer)
        spoil(sick, 1.0)
        guard(sick.optimizer)
    assert len(guard.skipped) == 10


def test_it_is_not_proposed_where_nothing_is_left_to_protect() -> None:
    sick = patient()
    sick.run.healthy = None
    assert SkipStep().propose(finding("non-finite"), sick.run) is not None
    with torch.no_grad():
        next(sick.model.parameters())[0, 0] = float("nan")
    assert SkipStep().propose(finding("non-finite"), sick.run) is None


def test_it_is_not_proposed_where_the_optimizer_is_spoilt_or_the_loss_stays_so() -> None:
    sick = patient()
    sick.run.healthy = None
    for step in range(5, 8):
        sick.run.history.add("train/loss", step, float("nan"))
    assert SkipStep().propose(finding("non-finite"), sick.run) is None
    sick = patient()
    sick.run.healthy = None
    next(iter(sick.optimizer.state.values()))["exp_avg"].fill_(float("inf"))
    assert SkipStep().propose(finding("non-finite"), sick.run) is None


def test_a_loss_scaler_skips_by_itself() -> None:
    sick = patient()
    sick.run.scaler = torch.amp.GradScaler("cpu")
    assert SkipStep().propose(finding("non-finite"), sick.run) is None
    sick.run.scaler = torch.amp.GradScaler("cpu", enabled=False)
    assert SkipStep().propose(finding("non-finite"), sick.run) is not None


def test_lbfgs_is_refused() -> None:
    with pytest.raises(Refused, match="inside step"):
        SkipStep().propose(finding("non-finite"), patient("LBFGS").run)


def test_one_that_stands_by_holds_off_what_no_rule_has_told_of_yet_and_gives_way() -> None:
    sick = patient("AdamW")
    stand_by(sick.run)
    (guard,) = sick.run.guards
    before = photograph(sick)
    spoil(sick)
    assert guard(sick.optimizer) is False, "rules are to see that step"
    sick.optimizer.step()
    assert different(before, photograph(sick)) == ["gradients"]
    assert held_off(sick.run) == [sick.run.step + 1]
    change = SkipStep().propose(finding("non-finite"), sick.run)
    assert change is not None
    undo = SkipStep().apply(change, sick.run)
    (taken_over,) = sick.run.guards
    assert taken_over is not guard
    spoil(sick)
    assert taken_over(sick.optimizer) is True
    undo()
    assert sick.run.guards == [guard]


@pytest.mark.parametrize("optimizer", ["LBFGS", "Adam"])
def test_nobody_stands_by_where_gradients_come_later_or_a_scaler_looks(optimizer: str) -> None:
    sick = patient(optimizer)
    sick.run.scaler = torch.amp.GradScaler("cpu") if optimizer == "Adam" else None
    stand_by(sick.run)
    assert sick.run.guards == []
