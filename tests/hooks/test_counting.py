"""Histograms counted on the device, against numpy's of the same elements, and read back from the event file."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import trainmedic
from tests.hooks.networks import KINDS, batch
from trainmedic.buckets import EDGES, LIMITS, SIDE
from trainmedic.hooks import counting
from trainmedic.hooks.counting import chosen, counted, put_histograms
from trainmedic.hooks.reading import Reading
from trainmedic.hooks.sampling import thinned
from trainmedic.reports.tensorboard import TensorBoardWriter

NAN, INF = math.nan, math.inf


def loaded(logdir: Path) -> Any:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    events = EventAccumulator(str(logdir), size_guidance={"histograms": 0, "scalars": 0, "tensors": 0})
    events.Reload()
    return events


def by_numpy(sample: Tensor) -> np.ndarray:
    """Counts of the finite elements: of magnitudes on either side, and what is left in the middle."""
    numbers = sample[sample.isfinite()].numpy().astype(float)
    edges = np.append(EDGES[:-1], INF)
    above, below = np.histogram(numbers[numbers > 0], edges)[0], np.histogram(-numbers[numbers < 0], edges)[0]
    return np.concatenate([below[::-1], [len(numbers) - above.sum() - below.sum()], above])


def test_counts_are_those_of_numpy() -> None:
    torch.manual_seed(0)
    wide = torch.randn(3_000) * 10.0 ** torch.randint(-20, 20, (3_000,))
    samples = [torch.randn(4_096), wide, torch.zeros(7), torch.tensor([NAN, 1.0, -INF, -1.0, INF, 1.25, 1e-30, 0.0])]
    samples += [torch.tensor([-(2.0**40), 3e38, -3e38, -0.0, 2.0**-40]), torch.full((5,), NAN)]
    rows = counted(samples).numpy().astype(float)
    assert rows.shape == (len(samples), 4 + len(LIMITS))
    for sample, row in zip(samples, rows, strict=True):
        finite = sample[sample.isfinite()].numpy().astype(float)
        assert np.array_equal(row[4:], by_numpy(sample))
        if finite.size:
            assert row[:2].tolist() == [finite.min(), finite.max()]
            assert row[2] == pytest.approx(finite.sum(), rel=1e-5, abs=1e-5 * np.abs(finite).max())
            assert row[3] * np.abs(finite).max() ** 2 == pytest.approx((finite**2).sum(), rel=1e-5)
    assert rows[3][4 + SIDE] == 2, "what is tiny is counted with zero"
    assert not rows[5][4:].any()


def test_a_histogram_of_a_sample_is_written_as_one_of_the_whole(tmp_path: Path) -> None:
    torch.manual_seed(0)
    large, sparse = (
        torch.randn(50, 1_000),
        torch.sparse_coo_tensor([[1, 1, 3]], [[2.0], [1.0], [-5.0]], (9, 1), check_invariants=True),
    )
    tensors = [("a", large), ("complex", torch.randn(6, dtype=torch.complex64)), ("half", torch.ones(3).bfloat16())]
    reading = Reading()
    put_histograms("weights", [*tensors, ("none", torch.empty(0)), ("nan", torch.tensor([NAN]))], reading)
    put_histograms("gradients", [("a", large * 1_024), ("sparse", sparse * 1_024)], reading, torch.tensor(1_024.0))
    writer = TensorBoardWriter(tmp_path)
    for one in reading.histograms():
        writer.write_histograms(3, 1.0, one)
    writer.close()
    events = loaded(tmp_path)
    names = ["weights/a", "weights/complex", "weights/half", "gradients/a", "gradients/sparse"]
    assert events.Tags()["histograms"] == names
    found = {name: events.Histograms(name)[0].histogram_value for name in names}
    assert {name: one.num for name, one in found.items()} == dict(zip(names, (50_000, 12, 3, 50_000, 2), strict=True))
    assert found["weights/a"] == found["gradients/a"]
    assert found["weights/a"].sum_squares == pytest.approx(float(large.square().sum()), rel=0.1)
    assert (found["weights/a"].min, found["weights/a"].max) == (thinned(large).min(), thinned(large).max())
    limits, counts = found["weights/a"].bucket_limit, np.array(found["weights/a"].bucket)
    assert np.all(np.diff(limits) > 0)
    expected = by_numpy(thinned(large)) * 50_000 / thinned(large).numel()
    filled = np.flatnonzero(counts)
    assert np.allclose(counts[filled], expected[expected > 0])
    assert [limits[i] for i in filled] == LIMITS[expected > 0].tolist()
    assert found["weights/half"].bucket_limit == [1.0, 1.25]
    assert found["gradients/sparse"].sum == -2.0


def test_the_largest_layers_that_train_are_chosen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(counting, "MOST", 3)
    sizes = {"frozen": 100, "small": 2, "large": 50, "middle": 9, "whole numbers": 70, "none": 0}
    named = [(name, nn.Parameter(torch.zeros(size), requires_grad=False)) for name, size in sizes.items()]
    named[4] = ("whole numbers", nn.Parameter(torch.zeros(70, dtype=torch.int64), requires_grad=False))
    for name, parameter in named:
        parameter.requires_grad_(name in ("small", "large"))
    assert [name for name, _ in chosen(named)] == ["frozen", "small", "large"]


def train(logdir: Path | None, steps: int, **options: Any) -> tuple[list[Tensor], nn.Module]:
    torch.manual_seed(0)
    model = KINDS["mlp"].model()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainmedic.watch(model, optimizer, logdir=logdir, settings={"every": 1}, **options) as medic:
        for _ in range(steps):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(model(batch("mlp")[0]), batch("mlp")[1])
            loss.backward()
            optimizer.step()
            medic.log(loss)
    assert not medic.report().notes
    return [p.detach().clone() for p in model.parameters()], model


def test_a_watched_run_leaves_histograms_ever_more_rarely(tmp_path: Path) -> None:
    weights, model = train(tmp_path, 301)
    events = loaded(tmp_path)
    steps = [event.step for event in events.Histograms("weights/0.weight")]
    assert steps == [0, 10, 20, 30, 50, 80, 120, 180, 270]
    assert set(events.Tags()["histograms"]) == {
        f"{kind}/{name}" for name, _ in model.named_parameters() for kind in ("weights", "gradients")
    }
    assert [event.step for event in events.Histograms("gradients/0.weight")] == steps
    assert trainmedic.read(tmp_path)[0].layers("gradient_norm").steps.tolist() == list(range(301))
    numbers = events.Histograms("gradients/0.weight")[3].histogram_value
    table = trainmedic.read(tmp_path)[0].layers("gradient_norm")
    assert math.sqrt(numbers.sum_squares) == pytest.approx(table.values[30, table.layers.index("0.weight")], rel=1e-5)
    assert all(torch.equal(a, b) for a, b in zip(weights, train(None, 301)[0], strict=True))


def test_without_a_logdir_nothing_is_counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    seen: list[str] = []
    monkeypatch.setattr("trainmedic.hooks.probe.put_histograms", lambda kind, *_: seen.append(kind))
    train(None, 12)
    assert seen == []
    train(tmp_path, 2)
    assert seen == ["gradients", "weights"]
