"""Stopping early: the best monitored state is in the model when the loop is told to stop."""

import torch

from tests.remedies.patients import finding, patient
from trainmedic.remedies.stop_early import StopEarly


def test_the_best_state_is_restored_and_the_run_asked_to_stop() -> None:
    sick = patient(steps=3)
    best = [parameter.detach().clone() for parameter in sick.model.parameters()]
    for step in range(3, 7):
        sick.step()
        sick.run.history.add("validation/loss", step, 2.0)
    change = StopEarly().propose(finding("overfitting"), sick.run)
    assert change is not None
    assert change.after == {"step": 2}
    undo = StopEarly().apply(change, sick.run)
    assert sick.run.stop_requested
    assert all(map(torch.equal, sick.model.parameters(), best))
    undo()
    assert not sick.run.stop_requested
    assert not all(map(torch.equal, sick.model.parameters(), best))


def test_without_a_best_state_there_is_nothing_to_stop_with() -> None:
    sick = patient()
    sick.run.best = None
    assert StopEarly().propose(finding("overfitting"), sick.run) is None


def test_as_advice_it_names_the_best_step_on_record() -> None:
    sick = patient()
    sick.run.best, sick.run.advising = None, True
    change = StopEarly().propose(finding("overfitting"), sick.run)
    assert change is not None
    assert change.after == {"step": 2}
    sick.run.history.facts["mode"] = "max"
    change = StopEarly().propose(finding("overfitting"), sick.run)
    assert change is not None
    assert change.after == {"step": 0}


def test_it_waits_until_the_loop_asks() -> None:
    assert StopEarly.ends_the_run


def test_against_overfitting_it_waits_until_the_best_is_past() -> None:
    sick = patient(steps=4)
    assert StopEarly().propose(finding("overfitting"), sick.run) is None, "one look since the best"
    assert StopEarly().propose(finding("divergence"), sick.run) is not None
