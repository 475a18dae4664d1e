"""Real logs: what stands in them is what is read."""

import json
import re
from pathlib import Path

import pytest

from trainmedic.readers import read

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
