"""``watch`` and the Medic: bad input at the door, errors inside, files, findings."""

import json
import logging
import os
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainmedic
from trainmedic.diagnose import Finding
from trainmedic.errors import UsageError
from trainmedic.history import History
from trainmedic.medic import Medic


def pair() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2))
    return model, torch.optim.SGD(model.parameters(), lr=0.1)


def train(medic: Medic, model: nn.Module, optimizer: torch.optim.Optimizer, steps: int = 30) -> list[float]:
    """Train as a user would, through ``batches``."""
    data = [(torch.randn(8, 4), torch.randint(0, 2, (8,))) for _ in range(steps)]
    losses = []
    for x, y in medic.batches(data):
        optimizer.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        optimizer.step()
        medic.log(loss)
        losses.append(loss.item())
    medic.log_validation(0.5, accuracy=0.7)
    return losses


MODEL, OPTIMIZER = pair()


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        ({"model": nn.ReLU()}, "model ReLU has no parameters: there is nothing to train"),
        ({"model": "net"}, "model must be a torch.nn.Module or a list of them, but got str"),
        ({"model": []}, "the list is empty"),
        ({"model": [MODEL, MODEL]}, "model: the same one is given twice"),
        ({"optimizer": None}, "optimizer must be a torch.optim.Optimizer or a list of them, but got NoneType"),
        ({"model": nn.Linear(2, 2)}, "the optimizer (SGD) does not hold any of the model's parameters"),
        ({"loss_fn": 3}, "loss_fn must be callable, but got int"),
        ({"val_loader": 3}, "val_loader must be iterable, but got int"),
        ({"scheduler": 3}, "scheduler must have step(), state_dict(), but got int"),
        ({"scaler": object()}, "scaler must have scale(), step(), update(), but got object"),
        ({"total_steps": 0}, "total_steps must be a whole number from 1 on, but got 0"),
        ({"monitor": ""}, "monitor must name a series, such as 'validation/loss', but got ''"),
        ({"mode": "mim"}, "mode must be one of 'min', 'max', but got 'mim'; did you mean 'min'?"),
        ({"fix": "save"}, "fix must be one of 'off', 'safe', 'unsafe', but got 'save'; did you mean 'safe'?"),
        ({"logdir": 3}, "logdir must be a path or None, but got int"),
        ({"settings": {"ignor": []}}, "settings: unknown setting 'ignor'; did you mean 'ignore'?"),
        ({"settings": {"ignore": ["dead-rely"]}}, "unknown rule 'dead-rely'; did you mean 'dead-relu'?"),
        ({"settings": "nowhere.toml"}, "settings file 'nowhere.toml' does not exist"),
    ],
)
def test_bad_input_is_one_clear_error(arguments: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError) as error:
        trainmedic.watch(**{"model": MODEL, "optimizer": OPTIMIZER, **arguments})
    assert text in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("call", "text"),
    [
        (lambda m: m.log(torch.ones(3)), "loss must be a single number, but got a tensor of shape (3,)"),
        (lambda m: m.log("low"), "loss must be a number or a tensor of one element, but got str"),
        (lambda m: m.log(1.0, step=-1), "step must not be negative, but got -1"),
        (lambda m: m.log(1.0, step=1.5), "step must be a whole number, but got 1.5"),
        (lambda m: m.log_validation(torch.ones(2)), "loss must be a single number"),
        (lambda m: torch.func.vmap(lambda x: (m.log(x), x)[1])(torch.ones(3)), "loss has no value yet inside vmap"),
        (lambda m: m.batches(7), "batches() needs something to iterate over, but got int"),
    ],
)
def test_bad_calls_are_one_clear_error(call: Any, text: str) -> None:
    with trainmedic.watch(*pair()) as medic, pytest.raises(UsageError) as error:
        call(medic)
    assert text in str(error.value)


def test_a_closed_medic_says_so() -> None:
    medic = trainmedic.watch(*pair())
    medic.close()
    medic.close()
    with pytest.raises(UsageError, match="this medic is closed"), medic:
        pass


def breaks(*_: Any, **__: Any) -> Any:
    raise RuntimeError("broken on purpose")


@pytest.mark.parametrize(
    ("target", "part"),
    [
        ("trainmedic.medic.judge", "judging"),
        ("trainmedic.hooks.parameters.Gradients.put", "gradients"),
        ("trainmedic.hooks.activations.Activations.measure", "activations"),
        ("trainmedic.hooks.ends.Ends.model_called", "inputs and outputs"),
        ("trainmedic.hooks.parameters.Updates.before", "updates"),
        ("trainmedic.hooks.assembling.Assembling.snapshots", "the step"),
        ("trainmedic.writing.Writing.value", "writing"),
        ("trainmedic.reports.report.Report.to_json", "writing"),
    ],
)
def test_an_error_inside_is_told_once_and_the_training_goes_on(
    target: str, part: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    model, optimizer = pair()
    with trainmedic.watch(model, optimizer) as medic:
        expected = train(medic, model, optimizer)
    model, optimizer = pair()
    monkeypatch.setattr(target, breaks)
    with caplog.at_level(logging.WARNING, "trainmedic"):
        with trainmedic.watch(model, optimizer, logdir=tmp_path) as medic:
            assert train(medic, model, optimizer) == expected
        report = medic.report()
    told = [record.message for record in caplog.records if "broken on purpose" in record.message]
    assert told == [f"{part} stopped: RuntimeError: broken on purpose (the training goes on)"]
    assert f"{part} stopped: RuntimeError: broken on purpose" in report.notes


def test_a_callback_that_raises_is_told_once() -> None:
    model, optimizer = pair()
    with trainmedic.watch(model, optimizer, on_finding=breaks) as medic:
        train(medic, model, optimizer, 5)
        for step in range(40):
            medic.log(float("nan"), step=step)
        report = medic.report()
    assert [finding.name for finding in report.findings] == ["non-finite"]
    assert sum("telling findings stopped" in note for note in report.notes) == 1


@pytest.mark.parametrize("kind", ["a file stands there", "not writable", "full"])
def test_a_logdir_that_cannot_be_written_does_not_stop_the_training(kind: str, tmp_path: Path) -> None:
    logdir = tmp_path / "run"
    if kind == "a file stands there":
        logdir.write_text("in the way")
    elif kind == "full":
        logdir = Path("/dev/full/run")
    else:
        logdir = Path("/proc/nowhere/run")
    model, optimizer = pair()
    with trainmedic.watch(model, optimizer, logdir=logdir) as medic:
        losses = train(medic, model, optimizer)
    assert len(losses) == 30
    assert sum("writing stopped" in note for note in medic.report().notes) == 1


def test_a_disk_that_is_full_while_writing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    model, optimizer = pair()
    with trainmedic.watch(model, optimizer, logdir=tmp_path) as medic:
        train(medic, model, optimizer)
        monkeypatch.setattr(os, "replace", full)
    assert any("No space left on device" in note for note in medic.report().notes)
    assert not list(tmp_path.glob("*.part"))


def test_the_logdir_holds_the_record_and_the_report(tmp_path: Path) -> None:
    model, optimizer = pair()
    with trainmedic.watch(model, optimizer, logdir=tmp_path) as medic:
        losses = train(medic, model, optimizer)
    document = json.loads((tmp_path / "trainmedic.json").read_text())
    assert document["runs"][0]["last_step"] == 29
    history = History.load(tmp_path / "history.npz")
    assert history.series("train/loss").values == pytest.approx(losses)
    assert history.series("validation/accuracy").values.tolist() == [0.7]
    assert history.facts["optimizer"] == "SGD"
    assert list(tmp_path.glob("events.out.tfevents.*"))
    assert "</html>" in (tmp_path / "report.html").read_text(encoding="utf-8")


def test_without_a_logdir_nothing_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    model, optimizer = pair()
    with trainmedic.watch(model, optimizer) as medic:
        train(medic, model, optimizer)
    assert list(tmp_path.iterdir()) == []


def test_findings_are_told_when_they_appear_and_once() -> None:
    told: list[Finding] = []
    model, optimizer = pair()
    with trainmedic.watch(model, optimizer, on_finding=told.append) as medic:
        train(medic, model, optimizer, 20)
        assert told == []
        with torch.no_grad():
            model[0].weight.fill_(float("nan"))
        train(medic, model, optimizer, 20)
    assert [finding.name for finding in told] == ["non-finite"]
    assert told[0].step == 20
    report = medic.report()
    assert [finding.id for finding in report.findings if finding.name == "non-finite"] == [told[0].id]


def test_findings_are_logged_by_default(caplog: pytest.LogCaptureFixture) -> None:
    model, optimizer = pair()
    with torch.no_grad():
        model[0].weight.fill_(float("nan"))
    with caplog.at_level(logging.WARNING, "trainmedic"), trainmedic.watch(model, optimizer) as medic:
        train(medic, model, optimizer)
    assert any(record.message.startswith("TM101 non-finite at step 0:") for record in caplog.records)


def test_batches_are_as_the_loader_is() -> None:
    dataset = torch.utils.data.TensorDataset(torch.arange(10.0))
    loader = torch.utils.data.DataLoader(dataset, batch_size=5)
    with trainmedic.watch(*pair()) as medic:
        seen = medic.batches(loader)
        assert len(seen) == 2
        assert seen.dataset is dataset
        assert seen.sampler is loader.sampler
        assert [len(b[0]) for b in seen] == [len(b[0]) for b in seen] == [5, 5]
        with pytest.raises(AttributeError):
            _ = seen.nothing
        assert list(medic.batches(x for x in range(3))) == [0, 1, 2]


def test_should_stop_is_never_true_with_fix_off() -> None:
    model, optimizer = pair()
    with trainmedic.watch(model, optimizer) as medic:
        for _ in range(60):
            train(medic, model, optimizer, 1)
            medic.log(float("nan"))
        assert medic.report().findings
        assert not medic.should_stop


@pytest.mark.parametrize("before", [True, False], ids=["logged before the step", "logged after it"])
def test_a_loss_that_is_no_number_is_told_at_the_next_step_whatever_waits(before: bool) -> None:
    model, optimizer = pair()
    told: list[tuple[int, str]] = []
    step = 0
    medic = trainmedic.watch(
        model, optimizer, settings={"every": 25}, on_finding=lambda finding: told.append((step, finding.code))
    )
    with medic:
        for step in range(110):
            optimizer.zero_grad()
            loss = F.cross_entropy(model(torch.randn(8, 4)), torch.randint(0, 2, (8,)))
            loss.backward()
            logged = loss.detach() * (float("nan") if step == 105 else 1.0)
            if before:
                medic.log(logged)
            optimizer.step()
            if not before:
                medic.log(logged)
    assert next(at for at, code in told if code == "TM101") == 106


def test_numbers_that_are_taken_over_together_are_those_taken_over_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    def record(together: int) -> dict[str, list[float]]:
        monkeypatch.setattr("trainmedic.medic.TOGETHER", together)
        model, optimizer = pair()
        with trainmedic.watch(model, optimizer, settings={"every": 25}) as medic:
            train(medic, model, optimizer, 90)
            medic.log_validation(0.4)
            for step in range(60):
                train(medic, model, optimizer, 1)
                medic.log(0.1 * step, step=90 + step // 10)
        history = medic.report().history
        names = [name for name in history.names() if not name.startswith(("time/", "memory/"))]
        return {name: [*history.series(name).steps.tolist(), *history.series(name).values.tolist()] for name in names}

    assert record(16) == record(1)


def test_a_model_that_trains_in_evaluation_mode_from_the_middle_on_is_seen_at_once() -> None:
    model = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 2))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainmedic.watch(model, optimizer, settings={"every": 50}) as medic:
        for step in range(110):
            model.train(step < 60)
            optimizer.zero_grad()
            F.cross_entropy(model(torch.randn(8, 4)), torch.randint(0, 2, (8,))).backward()
            optimizer.step()
    assert medic.report().history.layers("batchnorm_training").steps[-1] == 100
