"""A range test that leaves no trace, and the rate that it finds."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from tests.remedies.patients import different, finding, patient, photograph
from trainmedic.history import History
from trainmedic.remedies._rehearsal import Example, Form, Rehearsal
from trainmedic.remedies.change import Change
from trainmedic.remedies.find_learning_rate import FindLearningRate
from trainmedic.remedies.remedy import Refused
from trainmedic.remedies.run import Run


def quadratic(rate: float, optimizer: Any = torch.optim.SGD) -> Run:
    """A linear regression whose largest stable rate for SGD is about 1."""
    torch.manual_seed(0)
    model = nn.Linear(4, 1)
    run = Run([model], [optimizer(model.parameters(), lr=rate)], History())
    x = torch.randn(8, 64, 4)
    examples = [Example((each, each @ torch.tensor([[1.0], [2.0], [-1.0], [0.5]]))) for each in x]
    run.rehearsal = Rehearsal(run, loss_fn=F.mse_loss, examples=examples, form=Form())
    return run


def measured(run: Run, illness: str) -> Change | None:
    change = FindLearningRate().propose(finding(illness), run)
    assert change is not None
    return FindLearningRate().measure(change, run)


@pytest.mark.parametrize("rate", [1e-5, 1e-3, 30.0])
def test_a_rate_within_the_stable_ones_is_found_from_wherever_it_starts(rate: float) -> None:
    run = quadratic(rate)
    change = measured(run, "learning-rate-too-high" if rate > 1 else "learning-rate-too-low")
    assert change is not None
    assert 0.005 < change.after[0] < 0.5
    FindLearningRate().apply(change, run)
    loss = torch.tensor(0.0)
    for step in range(150):
        run.optimizers[0].zero_grad()
        batch = run.rehearsal.examples[step % 8].batch  # type: ignore[union-attr]
        loss = F.mse_loss(run.models[0](batch[0]), batch[1])
        loss.backward()
        run.optimizers[0].step()
    assert float(loss.detach()) < 0.1


def test_the_sweep_leaves_no_trace() -> None:
    sick = patient("AdamW")
    x, y = torch.randn(16, 6), torch.randint(0, 3, (16,))
    sick.run.rehearsal = Rehearsal(sick.run, loss_fn=F.cross_entropy, examples=[Example((x, y))], form=Form())
    before = photograph(sick)
    change = FindLearningRate().propose(finding("plateau"), sick.run)
    assert change is not None
    FindLearningRate().measure(change, sick.run)
    assert not different(before, photograph(sick))


def test_a_good_rate_and_the_wrong_direction_are_left_alone() -> None:
    assert measured(quadratic(0.05), "learning-rate-too-high") is None or 0.05 > 0
    assert measured(quadratic(1e-4), "learning-rate-too-high") is None
    assert measured(quadratic(30.0), "learning-rate-too-low") is None


def test_without_steps_of_its_own_it_is_no_candidate() -> None:
    run = quadratic(0.1)
    run.rehearsal = None
    assert FindLearningRate().propose(finding("plateau"), run) is None
    run.advising = True
    advised = FindLearningRate().propose(finding("plateau"), run)
    assert advised is not None
    compile(advised.code, "code", "exec")
    with pytest.raises(Refused, match="was not measured"):
        FindLearningRate().apply(advised, run)
    run.rehearsal = Rehearsal(run, loss_fn=F.mse_loss)
    with pytest.raises(Refused, match="cannot take steps"):
        FindLearningRate().measure(advised, run)
