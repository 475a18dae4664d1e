"""Two models with an optimizer each, as in a GAN: acts are exact on both, or refused."""

import contextlib
import dataclasses
import functools

import pytest
import torch
from torch import Tensor, nn

import trainmedic
import trainmedic.medic
from tests.remedies.patients import Patient, different, finding, patient, photograph
from trainmedic.history import History
from trainmedic.remedies._state import State
from trainmedic.remedies.change import Safety
from trainmedic.remedies.remedy import Refused, Remedy, pharmacy
from trainmedic.remedies.run import Run

ACTS = [remedy for remedy in pharmacy() if remedy.safety is not Safety.MANUAL]


def players() -> tuple[list[Patient], Run]:
    """Two trainings joined into the run of both, with states to go back to."""
    both = [patient("Adam"), patient("SGD")]
    history = History()
    for prefix, player in zip(("0.", "1."), both, strict=True):
        for layer in player.run.history.architecture.values():
            named = dataclasses.replace(layer, name=prefix + layer.name)
            history.architecture[named.name] = named
    for step in range(5):
        history.add("train/loss", step, 1.0)
        history.add("validation/loss", step, abs(step - 2) + 1.0)
    history.facts.update(total_steps=200)
    schedulers = [player.scheduler for player in both]
    run = Run([p.model for p in both], [p.optimizer for p in both], history, schedulers=schedulers, step=4)
    run.healthy = run.best = State.capture(dataclasses.replace(run, step=1))
    for player in both:
        player.step()
        player.run = run
    return both, run


@pytest.mark.parametrize("remedy", ACTS, ids=lambda remedy: remedy.name)
def test_every_act_is_exact_on_two_players_or_refused(remedy: type[Remedy]) -> None:
    both, run = players()
    before = [photograph(player) for player in both]
    for illness in remedy.treats:
        with contextlib.suppress(Refused):
            change = remedy().propose(finding(illness, "0.1", "1.1"), run)
            if change is not None:
                remedy().apply(change, run)()
        for a, b in zip(before, both, strict=True):
            assert not different(a, photograph(b)), illness


def test_a_gan_is_treated_in_sequence_and_told_why(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of both players is far too high: it is lowered for both, on trial without a control."""
    monkeypatch.setattr(trainmedic.medic, "RAISE_ERRORS", True)
    torch.manual_seed(0)
    torch.set_num_threads(1)
    generator = nn.Sequential(nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    critic = nn.Sequential(nn.Linear(2, 32), nn.ReLU(), nn.Linear(32, 1))
    first = torch.optim.SGD(critic.parameters(), 30.0)
    second = torch.optim.SGD(generator.parameters(), 30.0)
    judge = functools.partial(nn.functional.binary_cross_entropy_with_logits)
    real = [torch.randn(32, 2) * 0.1 + 1 for _ in range(150)]

    def score(points: Tensor, truth: float) -> Tensor:
        output = critic(points)
        return judge(output, torch.full_like(output, truth))

    with trainmedic.watch([critic, generator], [first, second], fix="safe", total_steps=150) as medic:
        for points in medic.batches(real):
            fake = generator(torch.randn(32, 4))
            first.zero_grad()
            (score(points, 1.0) + score(fake.detach(), 0.0)).backward()
            first.step()
            second.zero_grad()
            loss = score(fake, 1.0)
            loss.backward()
            second.step()
            medic.log(loss)
    report = medic.report()
    assert report.treatments, [finding.name for finding in report.findings]
    for treatment in report.treatments:
        assert treatment.trial == "sequential"
        assert treatment.uncontrolled
    assert report.cost["trial_steps"] == 0
