"""Rewinding: back to what the run had, on with lower rates, clocks untouched."""

import pytest
import torch

from tests.remedies.patients import Patient, finding, patient, photograph, same
from trainmedic.remedies.insert_batchnorm import InsertBatchnorm
from trainmedic.remedies.remedy import Refused
from trainmedic.remedies.rewind import Rewind


def weights(sick: Patient) -> list[torch.Tensor]:
    return [parameter.detach().clone() for parameter in sick.model.parameters()]


@pytest.mark.parametrize("optimizer", ["SGD", "Adam", "Adam tensor"])
def test_weights_and_optimizer_go_back_and_the_schedule_goes_on_lower(optimizer: str) -> None:
    sick = patient(optimizer, steps=2)
    then = photograph(sick)
    weights_then = weights(sick)
    for _ in range(5):
        sick.step()
    rates, position = sick.run.learning_rates(), sick.scheduler.last_epoch
    random = torch.get_rng_state()
    change = Rewind().propose(finding("loss-spike", step=4), sick.run)
    assert change is not None
    assert change.after["step"] == 1
    Rewind().apply(change, sick.run)
    assert all(map(torch.equal, weights(sick), weights_then))
    assert same(photograph(sick)["optimizer"], then["optimizer"])
    assert sick.run.learning_rates() == pytest.approx([0.3 * rate for rate in rates])
    assert sick.scheduler.last_epoch == position
    assert torch.equal(torch.get_rng_state(), random)


def test_weights_that_are_not_finite_come_back() -> None:
    sick = patient()
    with torch.no_grad():
        for parameter in sick.model.parameters():
            parameter.fill_(float("nan"))
    change = Rewind().propose(finding("non-finite"), sick.run)
    assert change is not None
    Rewind().apply(change, sick.run)
    assert bool(torch.isfinite(sick.step()))


def test_without_a_healthy_state_there_is_nothing_to_go_back_to() -> None:
    sick = patient()
    sick.run.healthy = None
    assert Rewind().propose(finding("divergence"), sick.run) is None


def test_as_advice_it_names_the_step_before_the_onset() -> None:
    sick = patient()
    sick.run.healthy, sick.run.advising = None, True
    change = Rewind().propose(finding("divergence", step=40), sick.run)
    assert change is not None
    assert "step_39" in change.code


def test_a_state_kept_after_the_onset_is_refused() -> None:
    with pytest.raises(Refused, match="after divergence began"):
        Rewind().propose(finding("divergence", step=0), patient().run)


def test_a_state_that_is_not_finite_is_refused() -> None:
    sick = patient(steps=1)
    with torch.no_grad():
        next(sick.model.parameters())[0, 0] = float("inf")
    sick.step()
    with pytest.raises(Refused, match="not finite"):
        Rewind().propose(finding("divergence", step=5), with_healthy(sick).run)


def with_healthy(sick: Patient) -> Patient:
    from trainmedic.remedies._state import State

    sick.run.healthy = State.capture(sick.run)
    return sick


def test_a_state_of_before_the_model_was_changed_is_refused() -> None:
    sick = patient()
    change = InsertBatchnorm().propose(finding("vanishing-gradient"), sick.run)
    assert change is not None
    undo = InsertBatchnorm().apply(change, sick.run)
    with pytest.raises(Refused, match="before the model was changed"):
        Rewind().propose(finding("divergence"), sick.run)
    undo()
    assert Rewind().propose(finding("divergence"), sick.run) is not None
