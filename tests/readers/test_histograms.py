"""Histograms and texts of event files: what they say of layers, whoever wrote them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tensorboard.compat.proto import event_pb2, summary_pb2
from tensorboard.plugins.histogram.summary_v2 import histogram_pb
from torch import nn, tensor
from torch.utils.tensorboard import SummaryWriter

from tests.readers.test_tensorboard import restart, scalar, write
from trainmedic.history import History
from trainmedic.readers import read
from trainmedic.readers.histograms import of_buckets


def v2(tag: str, step: int, values: Any, buckets: int = 200) -> Any:
    summary = histogram_pb(tag, np.asarray(values, dtype=np.float64), buckets=buckets)
    return event_pb2.Event(step=step, summary=summary_pb2.Summary(value=list(summary.value)))


def v1(tag: str, step: int, values: Any) -> Any:
    values = np.asarray(values, dtype=np.float64)
    histogram = summary_pb2.HistogramProto(
        min=values.min(), max=values.max(), num=len(values), sum=values.sum(), sum_squares=(values**2).sum()
    )
    entry = summary_pb2.Summary.Value(tag=tag, histo=histogram)
    return event_pb2.Event(step=step, summary=summary_pb2.Summary(value=[entry]))


def history_of(tmp_path: Path, *events: Any) -> History:
    (history,) = read(write(tmp_path / "events.out.tfevents.1.host", events))
    return history


def test_what_torch_draws_of_a_model_becomes_statistics_of_its_layers(tmp_path: Path) -> None:
    model = nn.Sequential(nn.Linear(8, 16), nn.Linear(16, 4))
    gradients: dict[str, list[float]] = {}
    weights: dict[str, list[float]] = {}
    with SummaryWriter(str(tmp_path)) as writer:
        for step in range(3):
            model(tensor([[float(step + 1)] * 8])).sum().backward()
            for name, parameter in model.named_parameters():
                assert parameter.grad is not None
                writer.add_histogram(name, parameter, step)
                writer.add_histogram(f"gradients/{name}", parameter.grad, step)
                gradients.setdefault(name, []).append(float(parameter.grad.norm()))
                weights.setdefault(name, []).append(float(parameter.std(correction=0)))
    (history,) = read(tmp_path)
    table = history.layers("gradient_norm")
    assert table.layers == ("0.weight", "0.bias", "1.weight", "1.bias")
    for name in table.layers:
        np.testing.assert_allclose(table.column(name).values, gradients[name], rtol=1e-5)
        np.testing.assert_allclose(history.layers("weight_std").column(name).values, weights[name], rtol=1e-4)
    assert table.steps.tolist() == [0, 1, 2]
    assert not history.names()


@pytest.mark.parametrize(
    ("tag", "statistic", "layer"),
    [
        ("gradients/fc1.weight", "gradient_norm", "fc1.weight"),
        ("grad/encoder/layer.0", "gradient_norm", "encoder/layer.0"),
        ("fc1.weight.grad", "gradient_norm", "fc1.weight"),
        ("fc1.weight/grad", "gradient_norm", "fc1.weight"),
        ("weights/fc1", "weight_norm", "fc1"),
        ("fc1.weight", "weight_norm", "fc1.weight"),
        ("dense/kernel_0/histogram", "weight_norm", "dense/kernel_0"),
        ("parameters/fc1.bias", "weight_norm", "fc1.bias"),
        ("activations/relu1", "activation_std", "relu1"),
    ],
)
def test_names_say_whose_a_histogram_is(tmp_path: Path, tag: str, statistic: str, layer: str) -> None:
    values = [3.0, 4.0, -12.0]
    for kind in (v1, v2):
        table = history_of(tmp_path, kind(tag, 5, values)).layers(statistic)
        assert (table.steps.tolist(), table.layers) == ([5], (layer,))
        exact = {"gradient_norm": 13.0, "weight_norm": 13.0, "activation_std": float(np.std(values))}[statistic]
        assert table.values[0, 0] == pytest.approx(exact, rel=1e-5 if kind is v1 else 0.02)


@pytest.mark.parametrize("tag", ["q_values", "gradual", "upgrades/x", "activation", "weight", "loss", "grad", "grad_x"])
def test_other_histograms_are_series_of_their_own(tmp_path: Path, tag: str) -> None:
    history = history_of(tmp_path, *(v1(tag, step, [step, step + 2.0]) for step in range(3)))
    assert history.statistics() == []
    assert history.names() == [f"{tag}/mean", f"{tag}/std"]
    assert history.series(f"{tag}/mean").values.tolist() == [1, 2, 3]
    assert history.series(f"{tag}/std").values.tolist() == [1, 1, 1]


def test_a_spread_that_is_only_rounding_is_not_measured(tmp_path: Path) -> None:
    events = [v1("norm.weight", 0, [1.0, 1.0, 1.0 + 1e-12]), v1("norm.bias", 0, [0.0, 0.0])]
    history = history_of(tmp_path, *events)
    assert history.layers("weight_std").latest() == [("norm.bias", 0.0)]
    assert len(history.layers("weight_norm").latest()) == 2


def test_a_restart_takes_histograms_back_too(tmp_path: Path) -> None:
    def drawn(step: int, value: float) -> list[Any]:
        return [scalar("loss", step, value), v1("grad/a", step, [value])]

    events = [event for step in range(4) for event in drawn(step, 1.0)] + [restart(2)]
    events += [event for step in range(2, 4) for event in drawn(step, 5.0)]
    history = history_of(tmp_path, *events)
    assert history.layers("gradient_norm").column("a").values.tolist() == [1, 1, 5, 5]
    assert history.series("train/loss").values.tolist() == [1, 1, 5, 5]


def test_texts_are_kept_the_last_of_each_tag(tmp_path: Path) -> None:
    with SummaryWriter(str(tmp_path)) as writer:
        writer.add_text("config", "lr: 0.1", 0)
        writer.add_text("config", "lr: 0.01", 7)
        writer.add_scalar("loss", 1.0, 0)
        writer.add_scalar("loss", 0.5, 1)
    (history,) = read(tmp_path)
    assert history.facts["texts"] == {"config/text_summary": {"step": 7, "text": "lr: 0.01"}}
    assert history.names() == ["train/loss"]


def test_empty_and_broken_histograms_are_left_out(tmp_path: Path) -> None:
    empty = summary_pb2.Summary.Value(tag="grad/a", histo=summary_pb2.HistogramProto())
    wild = summary_pb2.Summary.Value(tag="grad/b", histo=summary_pb2.HistogramProto(num=float("nan"), sum=1))
    events = [event_pb2.Event(step=1, summary=summary_pb2.Summary(value=[entry])) for entry in (empty, wild)]
    history = history_of(tmp_path, scalar("loss", 0, 1), *events)
    assert history.statistics() == []
    assert of_buckets(np.empty((0, 3))) == (0, 0, 0, 0, 0)
