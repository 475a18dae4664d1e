"""Treatments in live trainings: none for the healthy, in place and exact for the sick, never in the way of training."""

import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainmedic
import trainmedic.medic
from trainmedic.demo import CASES, train
from trainmedic.diagnose import Finding
from trainmedic.medic import Medic
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import Remedy, Undo, pharmacy
from trainmedic.remedies.run import Run


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainmedic.medic, "RAISE_ERRORS", True)
    torch.set_num_threads(1)


# -- healthy runs ----------------------------------------------------------------------------------------------------


class Residual(nn.Module):
    """A small residual net with batch norm."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.blocks = nn.ModuleList(nn.Sequential(nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 16)) for _ in range(3))
        self.head = nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        for block in self.blocks:
            x = x + block(x)
        return self.head(x)


class Sequence(nn.Module):
    """An LSTM over the features."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm, self.head = nn.LSTM(1, 16, batch_first=True), nn.Linear(16, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.lstm(x.unsqueeze(-1))[0][:, -1])


def mlp(activation: type[nn.Module]) -> nn.Sequential:
    return nn.Sequential(
        nn.Linear(8, 32), activation(), nn.Dropout(0.1), nn.Linear(32, 32), activation(), nn.Linear(32, 3)
    )


HEALTHY: dict[
    str, tuple[Callable[[], nn.Module], Callable[[Any], torch.optim.Optimizer], Callable[[Any], Any] | None]
] = {
    "mlp, adam": (lambda: mlp(nn.ReLU), lambda p: torch.optim.Adam(p, 1e-3), None),
    "tanh, sgd, cosine": (
        lambda: mlp(nn.Tanh),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9),
        lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 250),
    ),
    "residual, adamw, one cycle": (
        Residual,
        lambda p: torch.optim.AdamW(p, 1e-3),
        lambda o: torch.optim.lr_scheduler.OneCycleLR(o, 1e-2, 250),
    ),
    "lstm, rmsprop": (Sequence, lambda p: torch.optim.RMSprop(p, 1e-3), None),
    "linear, converged": (lambda: nn.Linear(8, 3), lambda p: torch.optim.SGD(p, 0.5), None),
}


def data(seed: int = 0, size: int = 320) -> list[tuple[Tensor, Tensor]]:
    x = torch.randn(size, 8, generator=torch.Generator().manual_seed(seed))
    y = (x @ torch.randn(8, 3, generator=torch.Generator().manual_seed(100))).argmax(1)
    return list(zip(x.split(32), y.split(32), strict=True))


def healthy_run(name: str, fix: str | None) -> tuple[list[float], list[Tensor], Tensor, Medic | None]:
    make, optimize, schedule = HEALTHY[name]
    batches, held_out = data(), data(1, 320)
    torch.manual_seed(0)
    model = make()
    optimizer = optimize(model.parameters())
    scheduler = schedule(optimizer) if schedule else None
    medic = (
        trainmedic.watch(
            model,
            optimizer,
            scheduler=scheduler,
            fix=fix,
            loss_fn=F.cross_entropy,
            val_loader=held_out,
            total_steps=250,
            settings={"select": "TM201"},
        )
        if fix
        else None
    )
    losses = []
    for _ in range(25):
        model.train()
        for x, y in medic.batches(batches) if medic else batches:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            if scheduler:
                scheduler.step()
            losses.append(loss.item())
            if medic:
                medic.log(loss)
        model.eval()
        with torch.no_grad():
            held = sum(F.cross_entropy(model(x), y).item() for x, y in held_out) / len(held_out)
        if medic:
            medic.log_validation(held)
            assert not medic.should_stop
    if medic:
        medic.close()
    return losses, [p.detach() for p in model.parameters()], torch.get_rng_state(), medic


@pytest.mark.parametrize("name", HEALTHY)
def test_a_healthy_run_is_not_treated_and_is_bit_identical(name: str) -> None:
    losses, parameters, rng, _ = healthy_run(name, None)
    treated_losses, treated_parameters, treated_rng, medic = healthy_run(name, "unsafe")
    assert medic is not None
    assert medic.report().treatments == ()
    assert treated_losses == losses
    assert all(map(torch.equal, treated_parameters, parameters))
    assert torch.equal(treated_rng, rng)


# -- sick runs -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_each_case_of_the_demo_ends_clearly_better_when_treated(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    untreated, treated = train(case, sick=True), train(case, sick=True, fix="unsafe", logdir=tmp_path)
    assert treated.accuracy > untreated.accuracy + 0.1
    assert any(treatment.outcome == "kept" for treatment in treated.report.treatments)
    assert untreated.report.treatments == ()
    assert untreated.report.advised, "with fix off the report says what would be done"
    assert (tmp_path / "prescription.json").is_file()
    assert all("helped" not in treatment.reason for treatment in treated.report.treatments)


@pytest.mark.parametrize("name", CASES)
def test_the_healthy_twins_have_no_finding(name: str) -> None:
    assert train(CASES[name], sick=False).report.findings == ()


def test_fix_safe_makes_safe_changes_only() -> None:
    report = train(CASES["vanishing"], sick=True, fix="safe").report
    assert "vanishing-gradient" in [finding.name for finding in report.findings]
    safety = {remedy.name: remedy.safety for remedy in pharmacy()}
    assert {safety[treatment.change.remedy] for treatment in report.treatments} <= {Safety.SAFE}
    assert safety["insert-batchnorm"] is Safety.UNSAFE


def test_when_should_stop_turns_true_the_best_state_is_in_the_model() -> None:
    case = CASES["overfitting"]
    outcome = train(case, sick=True, fix="safe")
    steps, losses = outcome.report.history.series("validation/loss")
    accuracies = outcome.report.history.series("validation/accuracy").values
    assert len(losses) < case.epochs
    assert outcome.accuracy == pytest.approx(accuracies[losses.argmin()], abs=1e-6)
    assert outcome.report.treatments[0].change.after is not None
    assert steps[losses.argmin()] < steps[-1]


def test_the_users_names_stay_the_live_objects() -> None:
    """After batch norms were inserted, what the user holds is what trains, and old checkpoints still load."""
    torch.manual_seed(0)
    model = CASES["vanishing"].model(True)
    held, first = list(model.parameters()), model[0]
    keys = set(model.state_dict())
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda _: 1.0)
    with trainmedic.watch(model, optimizer, scheduler=scheduler, fix="unsafe", settings={"select": "TM201"}) as medic:
        for x, y in medic.batches([(torch.rand(32, 64), torch.randint(0, 10, (32,))) for _ in range(150)]):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            scheduler.step()
            medic.log(loss)
        tried = [t.change.remedy for t in medic.report().treatments] or [medic._treating._on_trial]
    assert tried
    assert model[0] is first
    assert keys <= set(model.state_dict())
    assert all(any(p is q for q in model.parameters()) for p in held)
    assert len(optimizer.param_groups) == 1


# -- a remedy made for the test: what goes wrong inside it must not show outside --------------------------------------


class Harm(Remedy):
    """Makes the model worse.

    Safety: unsafe.
    """

    treats: ClassVar = ("vanishing-gradient",)
    safety: ClassVar = Safety.UNSAFE
    breaks: bool = False

    def propose(self, finding: Finding, run: Run) -> Change | None:
        return Change(remedy="harm", target=("weights",), summary="weights made worse", code="pass")

    def apply(self, change: Change, run: Run) -> Undo:
        before = [(p, p.detach().clone()) for _, p in run.parameters()]
        with torch.no_grad():
            for parameter, _ in before:
                parameter.mul_(-3).add_(1)
                if self.breaks:
                    raise RuntimeError("broken in the middle")

        def undo() -> None:
            with torch.no_grad():
                for parameter, kept in before:
                    parameter.copy_(kept)

        return undo


@pytest.fixture
def only(monkeypatch: pytest.MonkeyPatch) -> Callable[[Remedy], None]:
    """Let every choice be this one remedy."""
    from trainmedic.remedies.choose import Choice

    def install(remedy: Remedy) -> None:
        def choose(finding: Finding, run: Run, **options: Any) -> Choice:
            tried = remedy.name in options.get("tried", ())
            return Choice([] if tried else [(remedy, remedy.propose(finding, run))], [])

        monkeypatch.setattr("trainmedic.treating.choose", choose)

    return install


def sick_run(medic: Medic, model: nn.Module, optimizer: Any, steps: int) -> Iterator[int]:
    """A run that stands still: eight sigmoid layers; yields after each step."""
    generator = torch.Generator().manual_seed(0)
    batches = [
        (torch.rand(32, 64, generator=generator), torch.randint(0, 10, (32,), generator=generator))
        for _ in range(steps)
    ]
    for i, (x, y) in enumerate(medic.batches(batches)):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        medic.log(loss)
        yield i


def sick_pair() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = CASES["vanishing"].model(True)
    return model, torch.optim.SGD(model.parameters(), 1e-3)


def test_a_remedy_that_fails_in_the_middle_leaves_the_state_as_before(only: Callable[[Remedy], None]) -> None:
    only(Harm(breaks=True))
    model, optimizer = sick_pair()
    with trainmedic.watch(model, optimizer, fix="unsafe", settings={"select": "TM201"}) as medic:
        steps = sum(1 for _ in sick_run(medic, model, optimizer, 100))
    treated = [p.detach().clone() for p in model.parameters()]
    assert steps == 100
    (treatment,) = medic.report().treatments
    assert treatment.outcome == "refused"
    assert "broken in the middle" in treatment.reason
    model, optimizer = sick_pair()
    with trainmedic.watch(model, optimizer, settings={"select": "TM201"}) as medic:
        list(sick_run(medic, model, optimizer, 100))
    assert all(map(torch.equal, treated, model.parameters()))


def test_a_harmful_change_is_undone_to_the_state_before(only: Callable[[Remedy], None]) -> None:
    only(Harm())
    model, optimizer = sick_pair()
    states: dict[int, list[Tensor]] = {}
    with trainmedic.watch(model, optimizer, fix="unsafe", settings={"select": "TM201", "trial_steps": 20}) as medic:
        for i in sick_run(medic, model, optimizer, 200):
            states[i] = [p.detach().clone() for p in model.parameters()]
    treatments = medic.report().treatments
    assert [t.outcome for t in treatments] == ["undone"]
    start, end = treatments[0].step, treatments[0].decided_at
    assert end is not None
    assert end - start >= 19
    moved = max(float((a - b).norm() / b.norm()) for a, b in zip(states[end], states[start - 1], strict=True))
    back = max(float((a - b).norm() / b.norm()) for a, b in zip(states[end + 1], states[start - 1], strict=True))
    assert moved > 0.5
    assert back < 1e-2, "one step away from the state before the change"


def test_treatments_are_bounded(only: Callable[[Remedy], None]) -> None:
    only(Harm())
    model, optimizer = sick_pair()
    settings = {"trial_steps": 10, "cooldown": 0, "max_treatments": 0}
    with trainmedic.watch(model, optimizer, fix="unsafe", settings=settings) as medic:
        list(sick_run(medic, model, optimizer, 120))
    assert medic.report().treatments == ()


def test_ignored_remedies_are_not_applied() -> None:
    model, optimizer = sick_pair()
    settings = {"ignore_remedies": [remedy.name for remedy in pharmacy() if remedy.name != "replace-activation"]}
    with trainmedic.watch(model, optimizer, fix="unsafe", settings=settings) as medic:
        list(sick_run(medic, model, optimizer, 120))
    assert {treatment.change.remedy for treatment in medic.report().treatments} <= {"replace-activation"}


def test_without_batches_the_change_waits_for_a_forward_pass(only: Callable[[Remedy], None]) -> None:
    only(Harm())
    model, optimizer = sick_pair()
    with trainmedic.watch(model, optimizer, fix="unsafe", settings={"select": "TM201", "trial_steps": 10}) as medic:
        for _ in range(150):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(torch.rand(32, 64)), torch.randint(0, 10, (32,)))
            loss.backward()
            optimizer.step()
            medic.log(loss)
    assert [t.outcome for t in medic.report().treatments] == ["undone"]


def test_a_model_is_not_changed_while_another_ones_graph_needs_it(only: Callable[[Remedy], None]) -> None:
    """In a GAN the generator's graph is alive while the critic steps: a change then would break its backward pass."""
    only(Harm())
    torch.manual_seed(0)
    generator, critic = CASES["vanishing"].model(True), nn.Linear(10, 1)
    first = torch.optim.SGD(critic.parameters(), 1e-3)
    second = torch.optim.SGD(generator.parameters(), 1e-3)
    with trainmedic.watch(
        [critic, generator], [first, second], fix="unsafe", settings={"select": "TM201", "trial_steps": 10}
    ) as medic:
        for _ in range(150):
            fake = generator(torch.rand(16, 64))
            first.zero_grad()
            critic(fake.detach()).square().mean().backward()
            first.step()
            second.zero_grad()
            loss = (critic(fake) - 1).square().mean() + 20.0
            loss.backward()
            second.step()
            medic.log(loss)
    assert [t.change.remedy for t in medic.report().treatments] == ["harm"]


def test_steps_with_gradients_that_are_not_finite_are_skipped_and_stay_out_of_the_statistics() -> None:
    torch.manual_seed(0)
    model = mlp(nn.ReLU)
    optimizer = torch.optim.Adam(model.parameters(), 1e-3)
    batches = data()
    poisoned = {60, 130, 200}
    with trainmedic.watch(model, optimizer, fix="safe", settings={"select": "TM101", "trial_steps": 20}) as medic:
        for i, (x, y) in enumerate(medic.batches(batches * 30)):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y) * (float("nan") if i in poisoned else 1.0)
            loss.backward()
            optimizer.step()
            medic.log(loss)
    report = medic.report()
    assert report.treatments[0].change.remedy == "skip-step"
    assert all(torch.isfinite(p).all() for p in model.parameters())
    assert report.history.series("train/loss").values[-1] < 0.5
    assert len(report.treatments) == 1


KILLED = """
    import os, torch, torch.nn.functional as F, trainmedic
    from trainmedic.demo import CASES
    torch.manual_seed(0)
    model = CASES["vanishing"].model(True)
    optimizer = torch.optim.SGD(model.parameters(), 1e-3)
    with trainmedic.watch(model, optimizer, fix="unsafe", logdir="run", settings={"select": "TM201"}) as medic:
        for x, y in medic.batches([(torch.rand(32, 64), torch.randint(0, 10, (32,)))] * 200):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            medic.log(loss)
            if medic._treating._on_trial:
                os._exit(9)
"""


def test_a_run_killed_during_a_trial_leaves_a_loadable_healthy_state(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(KILLED)], cwd=tmp_path, capture_output=True, check=False
    )
    assert done.returncode == 9, done.stderr.decode()
    kept = torch.load(tmp_path / "run" / "healthy.pt", weights_only=True)
    model = CASES["vanishing"].model(True)
    model.load_state_dict(kept["models"][0])
    torch.optim.SGD(model.parameters(), 1e-3).load_state_dict(kept["optimizers"][0])
    assert all(torch.isfinite(p).all() for p in model.parameters())
