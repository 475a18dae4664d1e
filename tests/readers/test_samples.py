"""Real logs: what stands in them is what is read."""

import csv
import json
import math
import re
from pathlib import Path

import pytest

from trainmedic.analysis import examine
from trainmedic.readers import find, read

SAMPLES = Path(__file__).parent / "samples"


def test_detectron2() -> None:
    path = SAMPLES / "detectron2-medwaste" / "metrics.json"
    (history,) = read(path)
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for ours, theirs in (("train/loss", "total_loss"), ("optimizer/learning_rate", "lr"), ("loss_cls", "loss_cls")):
        steps, values = history.series(ours)
        assert steps.tolist() == [row["iteration"] for row in rows if theirs in row]
        assert values.tolist() == [row[theirs] for row in rows if theirs in row]


def test_pix2pix_counts_its_iterations_within_the_epoch() -> None:
    path = SAMPLES / "gan-edges2shoes" / "loss_log.txt"
    (history,) = read(path)
    text = path.read_text()
    for name in ("G_GAN", "G_L1", "D_real", "D_fake"):
        assert history.series(name).values.tolist() == [float(x) for x in re.findall(rf"{name}: ([\d.]+)", text)]
    assert history.facts["time"] == "row"
    assert history.series("epoch").values[-1] == 117


@pytest.mark.parametrize(("name", "count"), [("megatron-tr1-13b-spike", 8), ("megatron-tr11-176b-31214", 11)])
def test_megatron(name: str, count: int) -> None:
    path = SAMPLES / name / "excerpt.log"
    (history,) = read(path)
    text = path.read_text()
    steps, losses = history.series("train/loss")
    assert steps.tolist() == [int(x) for x in re.findall(r"iteration +(\d+)/", text)]
    assert losses.tolist() == [float(x) for x in re.findall(r"lm loss: (\S+)", text)]
    assert history.series("gradient/norm").values.tolist() == [float(x) for x in re.findall(r"grad norm: (\S+)", text)]
    assert len(steps) == count
    assert {"nan", "number", "iterations"}.isdisjoint(history.names())


def test_twenty_runs_in_one_file_behind_the_code_that_made_them() -> None:
    path = SAMPLES / "modded-concat" / "51ece938-03c5-4343-8dcc-3f3336b07008.txt"
    histories = read(path)
    told = [float(x) for x in re.findall(r"^step:\d+/3375 val_loss:(\S+)", path.read_text(), re.MULTILINE)]
    assert len(histories) == 20
    assert [v for history in histories for v in history.series("validation/loss").values.tolist()] == told
    for history in histories:
        steps = history.series("validation/loss").steps
        assert (steps[0], steps[-1]) == (0, 3375)


def column(path: Path, name: str) -> list[float]:
    with path.open(newline="") as file:
        return [float(row[name]) for row in csv.DictReader(file) if row[name]]


def test_lightning_tells_the_same_in_its_table_and_in_tensorboard() -> None:
    (table,) = read(SAMPLES / "lightning" / "metrics.csv")
    (events,) = read(SAMPLES / "lightning" / "events.out.tfevents.1795614480.host.1.0")
    names = {
        "train/loss": "train_loss_step",
        "train/accuracy": "train_acc",
        "validation/loss": "val_loss",
        "validation/accuracy": "val_acc",
        "optimizer/learning_rate": "lr-Adam",
        "gradient/norm": "grad_2.0_norm_total",
    }
    assert table.facts["names"] == events.facts["names"] == names
    assert table.facts["time"] == events.facts["time"] == "step"
    for name, theirs in names.items():
        assert table.series(name).values.tolist() == column(SAMPLES / "lightning" / "metrics.csv", theirs)
        assert table.series(name).steps.tolist() == events.series(name).steps.tolist()
        assert table.series(name).values.tolist() == pytest.approx(events.series(name).values.tolist(), rel=1e-6)
    for history in (table, events):
        gradients = history.layers("gradient_norm")
        assert sorted(gradients.layers) == ["0.bias", "0.weight", "2.bias", "2.weight"]
        whole = (gradients.values.astype(float) ** 2).sum(axis=1) ** 0.5
        assert whole.tolist() == pytest.approx(history.series("gradient/norm").values.tolist(), rel=1e-3)


def test_keras_tells_the_same_in_its_table_its_history_and_what_it_prints() -> None:
    path = SAMPLES / "keras" / "log.csv"
    for source in find(SAMPLES / "keras"):
        (history,) = source.read()
        for ours, theirs in (
            ("train/loss", "loss"),
            ("train/accuracy", "accuracy"),
            ("validation/loss", "val_loss"),
            ("validation/accuracy", "val_accuracy"),
        ):
            assert history.series(ours).values.tolist() == pytest.approx(column(path, theirs), abs=1e-4), source
        assert len(history.series("optimizer/learning_rate").steps if source.path != path else range(5)) == 5
    assert len(find(SAMPLES / "keras")) == 3


def test_hugging_face_with_several_evaluation_sets_and_a_nan_that_it_hides() -> None:
    path = SAMPLES / "huggingface-hidden-nan" / "trainer_state.json"
    (history,) = read(path)
    rows = json.loads(path.read_text())["log_history"]
    for name in ("easy", "hard_set"):
        told = [row[f"eval_{name}_accuracy"] for row in rows if f"eval_{name}_accuracy" in row]
        assert history.series(f"validation/{name}/accuracy").values.tolist() == told
        assert math.isnan(history.series(f"validation/{name}/loss").values[-1])
    assert history.facts["total_steps"] == 64
    (finding,) = [finding for finding in examine(history) if finding.code == "TM802"]
    assert finding.step == 45
    (source,) = find(path)
    line = source.line(history, finding.step)
    assert line is not None
    assert path.read_text().splitlines()[line - 1].strip().rstrip(",") == '"step": 45'


def test_wandb() -> None:
    (history,) = read(SAMPLES / "wandb" / "run-sample.wandb")
    assert history.facts["names"] == {
        "train/loss": "train/loss",
        "train/accuracy": "train/acc",
        "validation/loss": "eval/loss",
        "validation/accuracy": "eval/accuracy",
        "optimizer/learning_rate": "lr",
    }
    steps, losses = history.series("train/loss")
    assert losses[:40].tolist() == [1 / (s + 1) for s in range(40)]
    assert math.isnan(losses[40])
    assert history.series("optimizer/learning_rate").values[-1] == math.inf
    assert (steps[0], steps[-1]) == (0, 44)


def test_mlflow() -> None:
    (history,) = read(SAMPLES / "mlflow")
    assert history.series("train/loss").values.tolist() == [1 / (s + 1) for s in range(20)]
    assert history.series("validation/loss").steps.tolist() == list(range(20))
    assert history.facts["names"]["validation/accuracy"] == "val_accuracy"


def test_no_rule_fails_on_any_sample() -> None:
    from trainmedic.diagnose.judge import judge

    for history in read(SAMPLES):
        assert judge(history).errors == ()
