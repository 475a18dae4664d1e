"""``prescription.json``: a fresh model takes a treated checkpoint again."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.remedies.patients import OPTIMIZERS, different, finding, patient, perceptron, photograph
from trainmedic.errors import UsageError
from trainmedic.remedies import prescription
from trainmedic.remedies.change import Change, Treatment
from trainmedic.remedies.insert_batchnorm import InsertBatchnorm
from trainmedic.remedies.lower_learning_rate import LowerLearningRate
from trainmedic.remedies.remedy import Remedy
from trainmedic.remedies.rewind import Rewind


def treatment(change: Change, outcome: Any = "kept") -> Treatment:
    return Treatment(finding="f1", code="TM201", illness="vanishing-gradient", change=change, step=5, outcome=outcome)


def treated(*remedies: type[Remedy]) -> tuple[Any, list[Treatment]]:
    sick = patient("Adam", schedule=lambda o: None)
    treatments = []
    for remedy in remedies:
        change = remedy().propose(finding("loss-spike"), sick.run)
        assert change is not None
        remedy().apply(change, sick.run)
        treatments.append(treatment(change))
    for _ in range(3):
        sick.step()
    return sick, treatments


def test_a_treated_checkpoint_loads_into_a_fresh_model(tmp_path: Path) -> None:
    sick, treatments = treated(LowerLearningRate, Rewind, InsertBatchnorm)
    path = tmp_path / "prescription.json"
    prescription.write(path, treatments)
    model = perceptron()
    optimizer = OPTIMIZERS["Adam"](model)
    prescription.replay(model, optimizer, path)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(sick.run.learning_rates()[0])
    model.load_state_dict(sick.model.state_dict())
    optimizer.load_state_dict(sick.optimizer.state_dict())
    x = torch.randn(8, 6)
    assert torch.equal(model.eval()(x), sick.model.eval()(x))


def test_only_what_was_kept_is_written(tmp_path: Path) -> None:
    _, treatments = treated(LowerLearningRate)
    prescription.write(tmp_path / "p.json", [treatments[0], treatment(treatments[0].change, "undone")])
    content = json.loads((tmp_path / "p.json").read_text())
    assert content["version"] == 1
    assert len(content["treatments"]) == 1
    assert prescription.read(content) == [treatments[0].change]
    assert list(tmp_path.iterdir()) == [tmp_path / "p.json"]


def test_a_model_alone_can_be_made_to_match() -> None:
    sick, treatments = treated(InsertBatchnorm)
    twins = [perceptron(), perceptron()]
    for model in twins:
        prescription.replay([model], None, {"version": 1, "treatments": [t.model_dump() for t in treatments]})
        model.load_state_dict(sick.model.state_dict())


def broken(change: Change, **update: Any) -> dict[str, Any]:
    return {"version": 1, "treatments": [treatment(change.model_copy(update=update)).model_dump(mode="json")]}


def test_what_does_not_fit_is_one_line_and_changes_nothing() -> None:
    _, (norms, rates) = treated(InsertBatchnorm, LowerLearningRate)
    sick = patient()
    before = photograph(sick)
    for content, reason in (
        (broken(norms.change, target=("nowhere",)), "no plain linear layer or convolution named 'nowhere'"),
        (broken(norms.change, after={"0": {"norm": "BatchNorm1d", "units": 9}}), "has 8 units, not 9"),
        (broken(norms.change, after=None), "not complete"),
        (broken(rates.change, before="much"), "holds no rates"),
        (broken(rates.change, after=[-1.0]), "multiply rates by"),
    ):
        content["treatments"].insert(0, treatment(rates.change).model_dump(mode="json"))
        with pytest.raises(UsageError, match=reason) as error:
            prescription.replay(sick.model, sick.optimizer, content)
        assert "\n" not in str(error.value)
        assert not different(before, photograph(sick))


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "no valid JSON"),
        ("[" * 100_000, "no valid JSON"),
        ("[]", "version 1"),
        ('{"version": 2, "treatments": []}', "version 1"),
        ('{"version": 1}', "should be a list"),
        ('{"version": 1, "treatments": [{}]}', "field required"),
        ('{"version": 1, "treatments": [7]}', "not a prescription"),
    ],
)
def test_what_is_no_prescription_is_one_line_that_names_the_file(tmp_path: Path, text: str, reason: str) -> None:
    path = tmp_path / "p.json"
    path.write_text(text)
    with pytest.raises(UsageError, match=reason) as error:
        prescription.read(path)
    assert str(path) in str(error.value)
    assert "\n" not in str(error.value)


def test_a_file_that_is_not_there_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be read: No such file"):
        prescription.read(tmp_path / "none.json")
