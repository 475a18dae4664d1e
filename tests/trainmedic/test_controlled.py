"""Controlled trials: what helps is kept, what does nothing is not, and every bit is back afterwards."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainmedic
import trainmedic.medic
from tests.patients.patient import clinic
from tests.remedies.patients import OPTIMIZERS
from trainmedic.diagnose import Finding, Severity
from trainmedic.medic import Medic
from trainmedic.remedies.change import Change, Safety, Treatment
from trainmedic.remedies.lower_learning_rate import LowerLearningRate
from trainmedic.remedies.remedy import Remedy, Undo
from trainmedic.remedies.run import Run
from trainmedic.treating import Pending

LONG = 20_000
"""What the medic is told of the run's length, so that a trial fits in."""
QUIET: dict[str, Any] = {"rules": {}, "select": "TM801"}


@pytest.fixture(autouse=True)
def _strict(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(trainmedic.medic, "RAISE_ERRORS", True)
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


class Act(Remedy):
    """What the acts of these tests have in common.

    Safety: unsafe.
    """

    treats: ClassVar = ("vanishing-gradient",)
    safety: ClassVar = Safety.UNSAFE

    def propose(self, finding: Finding, run: Run) -> Change | None:
        return Change(remedy=self.name, summary=f"{self.name} done", code="pass")


def scaled(run: Run, factor: float) -> Undo:
    """Multiply every weight; the inverse is exact."""
    before = [(p, p.detach().clone()) for _, p in run.parameters()]
    with torch.no_grad():
        for parameter, _ in before:
            parameter.mul_(factor)

    def undo() -> None:
        with torch.no_grad():
            for parameter, kept in before:
                parameter.copy_(kept)

    return undo


class Placebo(Act):
    """Changes nothing that matters: a thousandth of each weight.

    Safety: unsafe.
    """

    def apply(self, change: Change, run: Run) -> Undo:
        return scaled(run, 1.001)


class SafePlacebo(Placebo):
    """The same, and safe.

    Safety: safe.
    """

    safety: ClassVar = Safety.SAFE


class Harm(Act):
    """Makes the model worse: of weights that are all zero nothing is learnt.

    Safety: unsafe.
    """

    def apply(self, change: Change, run: Run) -> Undo:
        return scaled(run, 0.0)


class Broken(Act):
    """Cannot be made.

    Safety: unsafe.
    """

    def apply(self, change: Change, run: Run) -> Undo:
        raise RuntimeError("broken in the middle")


class Help(Act):
    """Revives a model whose weights are all the same.

    Safety: unsafe.
    """

    def apply(self, change: Change, run: Run) -> Undo:
        generator = torch.Generator().manual_seed(0)
        undo = scaled(run, 1.0)
        with torch.no_grad():
            for _, parameter in run.parameters():
                if parameter.ndim > 1:
                    parameter.normal_(0, parameter.shape[1] ** -0.5, generator=generator)
        return undo


def data(count: int, seed: int = 0) -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(seed)
    law = torch.randn(6, 3, generator=torch.Generator().manual_seed(7))
    x = torch.randn(count, 16, 6, generator=generator)
    return [(a, (a @ law).argmax(1)) for a in x]


def network() -> nn.Module:
    return nn.Sequential(nn.Linear(6, 16), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, 3))


def still() -> nn.Module:
    """Units that are all alike, and learn alike."""
    model = network()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.01)
    return model


ILL = Finding(
    id="f1", code="TM201", name="vanishing-gradient", severity=Severity.ERROR, step=3, detected_at=9, message="."
)

MILD = ILL.model_copy(update={"severity": Severity.WARNING})


class Loop:
    """A training loop as users write it, with a finding that is put before the medic at given steps."""

    def __init__(
        self,
        make: Callable[[], nn.Module] = network,
        optimize: Callable[[nn.Module], torch.optim.Optimizer] = lambda m: torch.optim.Adam(m.parameters(), 1e-2),
        **watch: Any,
    ) -> None:
        torch.manual_seed(0)
        self.model = make()
        self.optimizer = optimize(self.model)
        self.loss_fn = nn.CrossEntropyLoss()
        given = {"loss_fn": self.loss_fn, "total_steps": LONG, "fix": "unsafe", "settings": QUIET}
        self.medic: Medic = trainmedic.watch(self.model, self.optimizer, **{**given, **watch})
        self.logged: Callable[[Tensor], Any] = lambda loss: loss
        self.seen: list[float] = []

    def run(self, steps: int, *candidates: Remedy, at: tuple[int, ...] = (45,), finding: Finding = ILL) -> None:
        batches = self.medic.batches(data(steps))
        for step, (x, y) in enumerate(batches):
            self.seen.append(float(x.sum()))
            self.model.train()

            def closure(x: Tensor = x, y: Tensor = y) -> Tensor:
                self.optimizer.zero_grad()
                loss: Tensor = self.loss_fn(self.model(x), y)
                loss.backward()
                return loss

            if isinstance(self.optimizer, torch.optim.LBFGS):
                loss = self.optimizer.step(closure)  # type: ignore[arg-type]
            else:
                loss = closure()
                self.optimizer.step()
            self.medic.log(self.logged(loss))
            if step in at and candidates and self.medic.fix != "off":
                treating = self.medic._treating
                made = [(each, each.propose(finding, treating.run)) for each in candidates]
                treating._pending = Pending(finding, [(each, change) for each, change in made if change is not None])

    @property
    def treatments(self) -> tuple[Treatment, ...]:
        return self.medic.report().treatments


@pytest.fixture
def no_other(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing else is chosen when a candidate has lost."""
    from trainmedic.remedies.choose import Choice

    monkeypatch.setattr("trainmedic.treating.choose", lambda *_, **__: Choice([], []))


# -- what comes of it ------------------------------------------------------------------------------------------------


def test_what_helps_wins_and_the_report_has_its_numbers() -> None:
    loop = Loop(still)
    loop.run(60, Harm(), Help())
    (kept,) = loop.treatments
    assert (kept.outcome, kept.trial, kept.change.remedy) == ("kept", "controlled", "help")
    assert kept.horizons[0] >= 30
    assert kept.horizons[1] >= 3 * kept.horizons[0]
    assert kept.effect is not None
    assert kept.effect > 0.3
    assert kept.p_value is not None
    assert kept.p_value < 0.01
    assert [rival.change.remedy for rival in kept.rivals] == ["harm"]

    assert kept.batches == 10
    assert kept.judged_on == "training data set apart"
    assert kept.extra_steps == loop.medic.report().cost["trial_steps"] > 2 * kept.horizons[1]


@pytest.mark.usefixtures("no_other")
def test_a_harmful_change_loses_and_leaves_nothing_behind() -> None:
    loop = Loop()
    loop.run(60, Harm())
    (undone,) = loop.treatments
    assert (undone.outcome, undone.trial) == ("undone", "controlled")
    assert "than without" in undone.reason
    assert loop.medic._treating._on_trial is None


@pytest.mark.usefixtures("no_other")
def test_an_act_that_fails_loses_and_the_others_are_tried() -> None:
    loop = Loop(still)
    loop.run(60, Broken(), Help())
    (kept,) = loop.treatments
    assert kept.change.remedy == "help"
    assert "broken in the middle" in kept.rivals[0].reason


@pytest.mark.usefixtures("no_other")
@pytest.mark.parametrize("rate", [3e-3, 0.3], ids=["well", "chaotic"])
def test_a_placebo_is_not_kept(rate: float, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("trainmedic.controlled.Controlled.failing", lambda *_: False)  # one look each
    settings = {**QUIET, "trial_budget": 1.0, "max_treatments": 100}
    loop = Loop(optimize=lambda m: torch.optim.Adam(m.parameters(), rate), settings=settings)
    loop.run(63, Placebo(), at=tuple(range(42, 60, 4)), finding=MILD)
    assert len(loop.treatments) == 5
    assert all(treatment.trial == "controlled" for treatment in loop.treatments)
    assert [treatment for treatment in loop.treatments if treatment.outcome == "kept"] == []


@pytest.mark.usefixtures("no_other")
def test_a_lower_rate_is_not_kept_because_it_looks_better_at_once() -> None:
    """Against it stands a control that is given the lower rate at the end: where that does as well, nothing is won."""
    loop = Loop(optimize=lambda m: torch.optim.SGD(m.parameters(), 0.3))
    loop.run(85, LowerLearningRate(factor=0.1), at=(60, 80), finding=MILD)
    assert [treatment.outcome for treatment in loop.treatments] == ["undone"] * 2


# -- nothing lasts ---------------------------------------------------------------------------------------------------

KINDS: dict[str, Callable[[], nn.Module]] = {
    "dropout": network,
    "batch norm": lambda: nn.Sequential(nn.Linear(6, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 3)),
    "spectral norm": lambda: nn.Sequential(
        nn.utils.parametrizations.spectral_norm(nn.Linear(6, 16)), nn.Tanh(), nn.Linear(16, 3)
    ),
    "randomised": lambda: nn.Sequential(nn.Linear(6, 16), nn.RReLU(), nn.AlphaDropout(0.2), nn.Linear(16, 3)),
}


def everything(loop: Loop) -> list[Any]:
    state = loop.optimizer.state_dict()["state"]
    values = [value for inner in state.values() for value in (inner.values() if isinstance(inner, dict) else [inner])]
    return [
        *loop.model.state_dict().values(),
        *(p.grad for p in loop.model.parameters()),
        *(value for value in values if isinstance(value, Tensor)),
        torch.get_rng_state(),
    ]


def goes_on_as_if_nothing_had_been(make: Callable[[], nn.Module], optimize: Callable[[Any], Any]) -> list[Treatment]:
    left_alone, tried = Loop(make, optimize, fix="off"), None
    left_alone.run(46)
    expected = everything(left_alone)
    tried = Loop(make, optimize)
    tried.run(46, Harm(), at=(41,))
    for one, other in zip(everything(tried), expected, strict=True):
        assert (one is None and other is None) or torch.equal(one, other)
    assert tried.seen == left_alone.seen
    return list(tried.treatments)


@pytest.mark.usefixtures("no_other")
@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if name != "SparseAdam"])
def test_a_lost_trial_leaves_the_run_bit_for_bit_as_it_was_with_any_optimizer(optimizer: str) -> None:
    bare = optimizer == "Muon"  # it takes matrices only

    def make() -> nn.Module:
        return nn.Sequential(nn.Linear(6, 16, bias=not bare), nn.Dropout(0.1), nn.ReLU(), nn.Linear(16, 3, not bare))

    (treatment,) = goes_on_as_if_nothing_had_been(make, OPTIMIZERS[optimizer])
    assert (treatment.outcome, treatment.trial) == ("undone", "controlled")


@pytest.mark.usefixtures("no_other")
@pytest.mark.parametrize("kind", KINDS)
def test_a_lost_trial_leaves_the_run_bit_for_bit_as_it_was_with_any_module(kind: str) -> None:
    optimize = OPTIMIZERS["Adam"]
    (treatment,) = goes_on_as_if_nothing_had_been(KINDS[kind], optimize)
    assert (treatment.outcome, treatment.trial) == ("undone", "controlled")


@pytest.mark.usefixtures("no_other")
def test_the_record_holds_nothing_of_a_trial() -> None:
    loop = Loop()
    calls: list[int] = []
    loop.model.register_forward_hook(lambda *_: calls.append(1))
    loop.run(60, Harm())
    assert len(calls) == 60
    history = loop.medic.report().history
    assert len(history.series("train/loss").steps) == 60
    assert len(history.series("gradient/norm").steps) == 59  # the last one is on its way


@pytest.mark.parametrize("name", ["tuned-early-converged", "tuned-lbfgs"])
def test_healthy_trainings_are_left_alone(name: str) -> None:
    patient = clinic()[name]
    treated, bare = patient.run(fix="unsafe"), patient.run(watched=False)
    assert treated.report.treatments == ()
    assert treated.report.cost["trial_steps"] == 0
    assert treated.score == bare.score


# -- when it cannot be made ------------------------------------------------------------------------------------------


def reason(loop: Loop, steps: int = 100) -> str:
    loop.run(steps, SafePlacebo())
    assert loop.treatments
    assert {treatment.trial for treatment in loop.treatments} == {"sequential"}
    return loop.treatments[0].uncontrolled


@pytest.mark.usefixtures("no_other")
def test_a_step_that_is_not_the_users_makes_no_controlled_trial() -> None:
    loop = Loop()
    loop.logged = lambda loss: loss * 2
    assert "was logged" in reason(loop)


@pytest.mark.usefixtures("no_other")
@pytest.mark.parametrize(
    ("watch", "told"),
    [
        ({"loss_fn": None}, "neither loss_fn nor step_fn"),
        ({"total_steps": 300}, "150 are allowed"),
        ({"settings": {**QUIET, "kept_batches": 8}}, "too few"),
        ({"settings": {**QUIET, "kept_batches_mb": 1e-6}}, "larger than kept_batches_mb"),
        ({"settings": {**QUIET, "trial_budget_failing": 0.0}}, "0 are allowed"),
    ],
)
def test_the_report_says_why_there_is_no_control(watch: dict[str, Any], told: str) -> None:
    assert told in reason(Loop(still, **watch))


@pytest.mark.usefixtures("no_other")
def test_a_warning_is_given_less_than_an_error() -> None:
    loop = Loop(total_steps=2_000)
    loop.run(60, SafePlacebo(), finding=MILD)
    assert "100 are allowed" in (loop.treatments or loop.medic._treating.record())[0].uncontrolled


@pytest.mark.usefixtures("no_other")
def test_an_unsafe_act_needs_a_control_in_a_run_that_is_getting_somewhere() -> None:
    loop = Loop(total_steps=800)
    loop.run(60, Placebo(), finding=MILD)
    assert loop.treatments == ()
    assert "would need a control" in dict(loop.medic.report().refused)["placebo"]


@pytest.mark.usefixtures("no_other")
def test_where_two_horizons_cannot_be_paid_for_the_first_one_tells_what_is_worth_a_try() -> None:
    """Who trails an untreated copy is not tried, who leads it has its turn first; no control is claimed."""
    loop = Loop(still, total_steps=300)
    loop.run(100, Harm(), Help())
    (kept,) = loop.treatments
    assert (kept.change.remedy, kept.outcome, kept.trial) == ("help", "kept", "sequential")
    assert "below an untreated copy after 30 steps" in kept.reason
    assert "150 are allowed" in kept.uncontrolled
    assert 90 < kept.extra_steps <= 150


# -- bounds ----------------------------------------------------------------------------------------------------------


def chosen_always(monkeypatch: pytest.MonkeyPatch, *acts: Remedy) -> None:
    from trainmedic.remedies.choose import Choice

    def choose(finding: Finding, run: Run, *, tried: Any = (), **_: Any) -> Choice:
        return Choice([(a, a.propose(finding, run)) for a in acts if a.name not in tried], [])  # type: ignore[misc]

    monkeypatch.setattr("trainmedic.treating.choose", choose)


def test_after_a_decision_nothing_is_tried_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen_always(monkeypatch, Help())
    loop = Loop(still, settings={**QUIET, "cooldown": 30})
    loop.run(60, Help())
    (kept,) = loop.treatments
    treating = loop.medic._treating
    for step, waits in ((kept.step + 28, True), (kept.step + 29, False)):
        treating._pending = None
        treating.consider([ILL], step)
        assert (treating._pending is None) == waits


def test_when_nothing_helps_the_report_says_so_and_the_run_ends_if_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen_always(monkeypatch, Harm())
    loop = Loop(settings={**QUIET, "cooldown": 0, "stop_when_lost": True})
    loop.run(60, Harm())
    assert not loop.medic.should_stop
    loop.medic._treating.consider([ILL], 60)
    assert loop.medic.should_stop
    assert any("nothing that was tried helped" in note for note in loop.medic.report().notes)


def test_a_prescription_of_a_controlled_trial_can_be_read(tmp_path: Path) -> None:
    from trainmedic.remedies import prescription

    loop = Loop(still, logdir=tmp_path)
    loop.run(60, Help())
    assert [change.remedy for change in prescription.read(tmp_path / "prescription.json")] == ["help"]


def test_validation_batches_are_fetched_without_a_trace() -> None:
    held = torch.utils.data.TensorDataset(*(torch.cat(part) for part in zip(*data(10, 1), strict=True)))
    generator = torch.Generator().manual_seed(3)
    loader = torch.utils.data.DataLoader(held, 16, shuffle=True, generator=generator)
    loop = Loop(still, val_loader=loader)
    before, everywhere = generator.get_state(), torch.get_rng_state()
    assert len(loop.medic._treating.controlled._validation()) == 10
    assert torch.equal(generator.get_state(), before)
    assert torch.equal(torch.get_rng_state(), everywhere)
    loss = F.cross_entropy(loop.model(held.tensors[0]), held.tensors[1])
    assert torch.isfinite(loss)


# -- from where ------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("no_other")
def test_a_run_that_has_won_nothing_is_treated_from_its_start() -> None:
    """Its weights were torn apart before the illness was found: what was kept since is no better."""
    torn = ILL.model_copy(update={"step": 2})
    loop = Loop(optimize=lambda m: torch.optim.SGD(m.parameters(), 1e3), total_steps=300)
    start = [p.detach().clone() for p in loop.model.parameters()]
    seen: list[list[Tensor]] = []

    class Noting(SafePlacebo):
        """Notes what it is applied to.

        Safety: safe.
        """

        def apply(self, change: Change, run: Run) -> Undo:
            seen.append([p.detach().clone() for _, p in run.parameters()])
            return super().apply(change, run)

    loop.run(60, Noting(), finding=torn)
    treatments = loop.treatments or loop.medic._treating.record()
    assert treatments
    assert all(map(torch.equal, seen[-1], start))


def test_what_was_kept_is_not_lost_when_the_run_is_put_back_later() -> None:
    loop = Loop(still)
    loop.run(60, Help())
    treating = loop.medic._treating
    assert [t.outcome for t in loop.treatments] == ["kept"]
    treating.states.fall_back(ILL.model_copy(update={"step": 55}))
    healthy = treating.run.healthy
    assert healthy is not None
    healthy.restore(treating.run, clocks=False)
    spread = [float(p.std()) for p in loop.model.parameters() if p.ndim > 1]
    assert min(spread) > 0.05, "weights are those that were drawn, not the equal ones of the start"
