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

import trainmedic.remedies
from tests.remedies.patients import OPTIMIZERS, Patient, different, finding, patient, photograph
from trainmedic.remedies import _drawing, _schedulers, _surgery
from trainmedic.remedies._state import State
from trainmedic.remedies.change import Change, Safety
from trainmedic.remedies.remedy import HEADINGS, Refused, Remedy, pharmacy

WHERE = {"dead-relu": ("1",), "overfitting": ("validation/loss",)}
CASES = [
    (remedy, illness)
    for remedy in pharmacy()
    for illness in remedy.treats
    if illness in (remedy.treats[0], "dead-relu", "vanishing-gradient")
]
"""Every remedy with the illnesses that make it act differently."""


def proposed(remedy: type[Remedy], illness: str, sick: Patient) -> Change | None:
    return remedy().propose(finding(illness, *WHERE.get(illness, ())), sick.run)


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
            assert field.metadata

    def test_it_treats_something_and_is_not_left_to_nobody(self, remedy: type[Remedy]) -> None:
        assert remedy.treats
        assert remedy.safety in (Safety.SAFE, Safety.UNSAFE)


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
    sick = patient(optimizer)
    before = photograph(sick)
    for remedy, illness in CASES:
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
    sick = patient("AdamW")
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


def old_parameters(sick: Patient) -> list[torch.nn.Parameter]:
    return [p for name, p in sick.model.named_parameters() if "medic_norm" not in name]


@named(CASES)
def test_a_treated_model_can_be_copied_pickled_and_saved(remedy: type[Remedy], illness: str) -> None:
    sick = patient("SGD")
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
    sick = patient()
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


PARTS = ((_schedulers._Slot, "put"), (_drawing.Ledger, "write"), (torch.nn.Module, "add_module"), (State, "restore"))
"""What acts do piece by piece."""


@pytest.mark.parametrize("pieces", [0, 1])
@named([(remedy, illness) for remedy, illness in CASES if remedy.name not in ("clip-gradients", "skip-step")])
def test_an_act_that_fails_in_the_middle_leaves_all_as_it_was(
    remedy: type[Remedy], illness: str, pieces: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    sick = patient()
    change = proposed(remedy, illness, sick)
    assert change is not None
    before = photograph(sick)
    for holder, name in PARTS[: 4 - pieces]:  # a state is put back in one piece
        monkeypatch.setattr(holder, name, breaking(pieces, getattr(holder, name)))
    if remedy.name == "stop-early" and pieces:
        monkeypatch.setattr(type(sick.run), "__setattr__", breaking(0, object.__setattr__))
    with pytest.raises(MemoryError):
        remedy().apply(change, sick.run)
    monkeypatch.undo()
    assert not different(before, photograph(sick))


def test_surgery_knows_optimizers_that_can_be_joined_by_name() -> None:
    assert set(_surgery.JOINABLE) < set(vars(torch.optim))
