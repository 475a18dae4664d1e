"""What holds for every remedy: looking changes nothing, undoing changes everything back, failing changes nothing."""

import contextlib
import copy
import inspect
import io
import itertools
import pickle
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F

import trainmedic
import trainmedic.remedies
from tests.remedies.patients import OPTIMIZERS, Patient, different, finding, patient, photograph
from tests.remedies.test_state_exact import SCHEDULERS
from trainmedic.diagnose.judge import catalogue
from trainmedic.history import History, Snapshot
from trainmedic.remedies import _drawing, _graft, _schedulers, _surgery
from trainmedic.remedies._rehearsal import Example, Form, Rehearsal
from trainmedic.remedies._state import State
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import HEADINGS, Refused, Remedy, pharmacy

WHERE = {
    "dead-relu": ("1",),
    "overfitting": ("validation/loss",),
    "unnormalized-input": ("input/feature_scale_max",),
    "frozen-layer": ("2",),
}
ACTS = [remedy for remedy in pharmacy() if remedy.safety is not Safety.MANUAL]
CASES = [
    (remedy, illness)
    for remedy in ACTS
    for illness in remedy.treats
    if illness == remedy.treats[0]
    or (
        illness in ("dead-relu", "vanishing-gradient") and remedy.name not in ("find-learning-rate", "normalize-inputs")
    )
]
"""Every remedy with the illnesses that make it act differently."""


def proposed(remedy: type[Remedy], illness: str, sick: Patient) -> Change | None:
    change = remedy().propose(finding(illness, *WHERE.get(illness, ())), sick.run)
    return remedy().measure(change, sick.run) if change is not None else None


def patient_for(remedy: type[Remedy], optimizer: str = "Adam") -> Patient:
    """A patient that has what the remedy is for."""
    optimizer = ONLY.get(remedy.name, optimizer)
    sick = patient(optimizer, MODELS.get(remedy.name), schedule=NONE if remedy.name in UNSCHEDULED else None)
    FAULTS.get(remedy.name, lambda sick: None)(sick)
    return sick


def NONE(optimizer: torch.optim.Optimizer) -> None:
    """No scheduler."""


def _orphaned(sick: Patient, which: slice = slice(-2, None)) -> None:
    """The last layer is new, and no optimizer knows it."""
    gone = {id(p) for p in sick.parameters[which]}
    for group in sick.optimizer.param_groups:
        stay = [i for i, p in enumerate(group["params"]) if id(p) not in gone]
        if "param_names" in group:
            group["param_names"] = [group["param_names"][i] for i in stay]
        group["params"] = [group["params"][i] for i in stay]
    for parameter in sick.parameters[which]:
        sick.optimizer.state.pop(parameter, None)


def _frozen(sick: Patient) -> None:
    """The layer in the middle is frozen, and the optimizer was made without it."""
    _orphaned(sick, slice(2, 4))
    for parameter in sick.parameters[2:4]:
        parameter.requires_grad_(False)
        parameter.grad = None


def _rehearsing(sick: Patient) -> None:
    """The medic has a batch, and can take steps on it."""
    x, y = torch.randn(16, 6), torch.randint(0, 3, (16,))
    sick.run.rehearsal = Rehearsal(sick.run, loss_fn=F.cross_entropy, examples=[Example((x, y))], form=Form())


def _summed(sick: Patient) -> None:
    """The loss is a sum over the batch."""
    sick.run.history.facts.update(reduction="sum", batch_size=16)


def _uneven(sick: Patient) -> None:
    """One class is seen more than the others."""
    sick.run.loss_fn = torch.nn.CrossEntropyLoss()
    for step in range(5):
        sick.run.history.record(Snapshot(step, layers={"label_share": {"0": 0.8, "1": 0.1, "2": 0.1}}))


def _slow(sick: Patient) -> None:
    """Steps so small that nobody could measure them."""
    measured, sick.run.history = sick.run.history, History()
    sick.run.history.architecture = measured.architecture


class Recurrent(torch.nn.Module):
    """Reads six numbers as three steps of two."""

    def __init__(self) -> None:
        super().__init__()
        self.rnn = torch.nn.RNN(2, 5, num_layers=2, batch_first=True, bidirectional=True)
        self.cell = torch.nn.RNNCell(10, 4)
        self.head = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.head(self.cell(self.rnn(x.view(-1, 3, 2))[0][:, -1]))


ONLY = {"swap-optimizer": "SGD", "rescale-loss": "SGD"}
UNSCHEDULED = ("schedule-learning-rate",)
MODELS: dict[str, Callable[[], torch.nn.Module]] = {
    "replace-recurrent": Recurrent,
    "insert-residual": lambda: torch.nn.Sequential(
        *(torch.nn.Linear(6, 6), torch.nn.ReLU(), torch.nn.Linear(6, 6), torch.nn.ReLU(), torch.nn.Linear(6, 3))
    ),
    "replace-activation": lambda: torch.nn.Sequential(
        *(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
    ),
}
FAULTS: dict[str, Callable[[Patient], None]] = {
    "adopt-parameters": _orphaned,
    "unfreeze": _frozen,
    "raise-learning-rate": _slow,
    "find-learning-rate": _rehearsing,
    "rescale-loss": _summed,
    "reweight-classes": _uneven,
    "label-smoothing": lambda sick: setattr(sick.run, "loss_fn", torch.nn.CrossEntropyLoss()),
    "augment-inputs": lambda sick: sick.run.history.facts.update(input_layer="0"),
    "normalize-inputs": lambda sick: sick.run.history.facts.update(input_layer="0"),
    "weight-decay": lambda sick: sick.run.history.facts.update(total_steps=200),
}
GUARDS = ("clip-gradients", "skip-step", "warm-up", "schedule-learning-rate", "zero-gradients", "l1", "rescale-loss")
"""Acts that add one guard, and nothing else that could fail half way."""


def named(cases: Any) -> Any:
    return pytest.mark.parametrize(("remedy", "illness"), cases, ids=[f"{r.name} {i}" for r, i in cases])


def test_the_patients_cover_every_optimizer_of_torch() -> None:
    shipped = {name for name, thing in vars(torch.optim).items() if inspect.isclass(thing)} - {"Optimizer"}
    assert shipped == {name.split()[0] for name in OPTIMIZERS}


@pytest.mark.parametrize("remedy", pharmacy(), ids=lambda remedy: remedy.name)
class TestDescription:
    def test_it_says_all_that_it_should(self, remedy: type[Remedy]) -> None:
        said = remedy.sections()
        assert all(said[heading] for heading in (*HEADINGS, "What it is"))
        assert said["Safety"].startswith(f"{remedy.safety}.")

    def test_its_file_bears_its_name(self, remedy: type[Remedy]) -> None:
        assert Path(inspect.getfile(remedy)).stem == remedy.name.replace("-", "_")

    def test_its_constants_are_described_and_bounded(self, remedy: type[Remedy]) -> None:
        for field in remedy.model_fields.values():
            assert field.description
            assert field.metadata or "Literal" in str(field.annotation)

    def test_it_treats_illnesses_that_there_are(self, remedy: type[Remedy]) -> None:
        assert remedy.treats
        assert set(remedy.treats) <= {rule.name for rule in catalogue()}


def test_the_catalogue_imports_no_torch() -> None:
    code = (
        "import sys; from trainmedic.remedies.remedy import pharmacy; from trainmedic.remedies import prescription;"
        "assert pharmacy(); assert 'torch' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_every_file_without_underscore_is_an_act_or_known() -> None:
    shared = {"__init__", "change", "choose", "prescription", "remedy", "run", "trial"}
    folder = Path(next(iter(trainmedic.remedies.__path__)))
    files = {path.stem for path in folder.glob("*.py") if not path.stem.startswith("_") or path.stem == "__init__"}
    assert files - shared == {remedy.name.replace("-", "_") for remedy in pharmacy()}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_undo_is_exact_on_every_optimizer_or_the_act_is_refused(optimizer: str) -> None:
    wards: dict[str, Patient] = {}
    for remedy, illness in CASES:
        special = remedy.name in {*MODELS, *FAULTS, *UNSCHEDULED, *ONLY}
        if special and (optimizer == "SparseAdam" or (optimizer == "Muon" and remedy.name in MODELS)):
            continue  # it trains an embedding only, or matrices only
        ward = remedy.name if special else ""
        if ward not in wards:
            wards[ward] = patient_for(remedy, optimizer)
        sick = wards[ward]
        before = photograph(sick)
        change = None
        with contextlib.suppress(Refused):
            change = proposed(remedy, illness, sick)
        assert not different(before, photograph(sick)), f"{remedy.name}: propose changed something"
        if change is None:
            continue
        undo = remedy().apply(change, sick.run)
        changed = different(before, photograph(sick))
        assert changed, f"{remedy.name}: apply changed nothing"
        assert "random" not in changed, f"{remedy.name}: the user's random numbers moved"
        undo()
        assert not different(before, photograph(sick)), f"{remedy.name}: undo is not exact"


@named(CASES)
def test_training_goes_on_with_the_change_and_after_undoing_it_later(remedy: type[Remedy], illness: str) -> None:
    sick = patient_for(remedy, "AdamW")
    change = proposed(remedy, illness, sick)
    assert change is not None
    undo = remedy().apply(change, sick.run)
    assert all(known is live for known, live in zip(sick.parameters, old_parameters(sick), strict=True))
    for _ in range(3):
        sick.step()
    undo()
    for _ in range(3):
        sick.step()
    assert all(bool(torch.isfinite(p).all()) for p in sick.model.parameters())
    sick.optimizer.load_state_dict(sick.optimizer.state_dict())


@named([(remedy, illness) for remedy, illness in CASES if remedy.replayed])
def test_a_treated_checkpoint_loads_after_replay(remedy: type[Remedy], illness: str) -> None:
    sick, fresh = patient_for(remedy, "SGD"), patient_for(remedy, "SGD")
    change = proposed(remedy, illness, sick)
    assert change is not None
    remedy().apply(change, sick.run)
    for _ in range(2):
        sick.step()
    entry = {"finding": "f1", "code": "TM000", "illness": illness, "step": 1, "outcome": "kept"}
    kept = {"version": 1, "treatments": [{**entry, "change": change.model_dump(mode="json")}]}
    trainmedic.replay(fresh.model, fresh.optimizer, kept)
    fresh.model.load_state_dict(sick.model.state_dict())
    fresh.optimizer.load_state_dict(sick.optimizer.state_dict())
    x = torch.randn(4, 6)
    assert torch.equal(fresh.model.eval()(x), sick.model.eval()(x))
    fresh.model.train()
    fresh.step()


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_every_act_is_made_and_undone_under_every_scheduler(scheduler: str) -> None:
    sick = patient("SGD", schedule=SCHEDULERS[scheduler])
    for fault in (_summed, _uneven):
        fault(sick)
    sick.run.history.facts.update(input_layer="0", total_steps=200)
    of = sick.optimizer
    done = set()
    for remedy, illness in [(remedy, remedy.treats[0]) for remedy in ACTS]:
        change = None
        with contextlib.suppress(Refused):
            change = proposed(remedy, illness, sick)
        if change is None:
            continue
        undo = remedy().apply(change, sick.run)
        sick.step()
        held = {id(p) for group in of.param_groups for p in group["params"]}
        assert {id(p) for p in sick.model.parameters()} == held, remedy.name
        undo()
        assert all(known is live for known, live in zip(sick.parameters, sick.model.parameters(), strict=True))
        assert type(of) is torch.optim.SGD
        assert not sick.run.guards
        done.add(remedy.name)
    assert len(done) > 15


def old_parameters(sick: Patient) -> list[torch.nn.Parameter]:
    return [p for name, p in sick.model.named_parameters() if "medic_" not in name]


@named(CASES)
def test_a_treated_model_can_be_copied_pickled_and_saved(remedy: type[Remedy], illness: str) -> None:
    sick = patient_for(remedy, "SGD")
    change = proposed(remedy, illness, sick)
    assert change is not None
    keys = list(sick.model.state_dict())
    remedy().apply(change, sick.run)
    sick.step()
    sick.model.eval()
    file = io.BytesIO()
    torch.save(sick.model, file)
    file.seek(0)
    x = torch.randn(4, 6)
    for twin in (
        copy.deepcopy(sick.model),
        pickle.loads(pickle.dumps(sick.model)),
        torch.load(file, weights_only=False),
    ):
        assert torch.equal(sick.model(x), twin(x))
    assert [key for key in sick.model.state_dict() if key in keys] == keys
    copy.deepcopy(sick.optimizer)


@named(CASES)
def test_a_change_is_plain_data_and_says_what_it_is(remedy: type[Remedy], illness: str) -> None:
    sick = patient_for(remedy)
    change = proposed(remedy, illness, sick)
    assert change is not None
    assert change.remedy == remedy.name
    again = Change.model_validate_json(change.model_dump_json())
    assert again == change
    assert change.summary
    assert not change.summary.endswith(".")
    compile(change.code.replace("break", "pass"), "code", "exec")
    before = photograph(sick)
    remedy().apply(again, sick.run)()
    assert not different(before, photograph(sick))


def breaking(after: int, original: Callable[..., Any]) -> Callable[..., Any]:
    """``original``, but the call after so many does its work and then fails, once."""
    calls = itertools.count()

    def broken(*args: Any, **kwargs: Any) -> Any:
        number, result = next(calls), original(*args, **kwargs)
        if number == after:
            raise MemoryError("in the middle")
        return result

    return broken


PARTS = (
    (_schedulers._Slot, "put"),
    (_drawing.Ledger, "write"),
    (_graft, "graft"),
    (_surgery, "graft"),
    (_graft, "join"),
    (_surgery, "join"),
    (State, "restore"),
)
"""What acts do piece by piece."""


@pytest.mark.parametrize("pieces", [0, 1])
@named([(remedy, illness) for remedy, illness in CASES if remedy.name not in GUARDS])
def test_an_act_that_fails_in_the_middle_leaves_all_as_it_was(
    remedy: type[Remedy], illness: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick = patient_for(remedy)
    change = proposed(remedy, illness, sick)
    assert change is not None
    before = photograph(sick)
    for holder, name in PARTS[: len(PARTS) - pieces]:  # a state is put back in one piece
        monkeypatch.setattr(holder, name, breaking(pieces, getattr(holder, name)))
    if remedy.name == "stop-early" and pieces:
        monkeypatch.setattr(type(sick.run), "__setattr__", breaking(0, object.__setattr__))
    try:
        undo = remedy().apply(change, sick.run)
    except MemoryError:
        monkeypatch.undo()
    else:  # it has fewer pieces
        monkeypatch.undo()
        assert pieces or remedy.name in ONE_PIECE
        undo()
    assert not different(before, photograph(sick))


ONE_PIECE = ("weight-decay", "replace-activation", "label-smoothing", "reweight-classes", "average-weights")
"""Acts that set plain values."""


def test_surgery_knows_optimizers_that_can_be_joined_by_name() -> None:
    assert set(_surgery.JOINABLE) < set(vars(torch.optim))
