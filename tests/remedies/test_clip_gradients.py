"""Clipping: the limit comes from the run's own healthy norms, and what is not finite is left alone."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from tests.remedies.patients import Patient, finding, patient
from trainmedic.history import History
from trainmedic.remedies._clipping import Clip, UnitClip, ZClip
from trainmedic.remedies.clip_gradients import ClipGradients
from trainmedic.remedies.remedy import Refused
from trainmedic.remedies.run import Run


def total(of: torch.optim.Optimizer) -> float:
    """The norm of all gradients, each made dense and real."""
    parts = [
        torch.view_as_real(g) if g.is_complex() else g.to_dense()
        for group in of.param_groups
        for p in group["params"]
        if (g := p.grad) is not None
    ]
    return math.sqrt(sum(float(part.double().square().sum()) for part in parts))


def mixed() -> torch.optim.Optimizer:
    """Gradients of many kinds: sparse and not coalesced, complex, bfloat16, none at all, empty."""
    embedding = nn.Embedding(10, 3, sparse=True)
    layer = nn.Linear(3, 4)
    wave = nn.Parameter(torch.ones(3, dtype=torch.complex64))
    half = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    unused, empty = nn.Parameter(torch.ones(2)), nn.Parameter(torch.ones(0))
    of = torch.optim.SGD([*embedding.parameters(), *layer.parameters(), wave, half, unused, empty], lr=0.1)
    loss = layer(embedding(torch.tensor([1, 1, 2]))).sum() * 50 + (wave * half).abs().sum() + empty.sum()
    loss.backward()
    return of


def limit(history: History, step: int) -> float:
    run = Run([], [torch.optim.SGD([nn.Parameter(torch.ones(1))])], history)
    change = ClipGradients().propose(finding("exploding-gradient", step=step), run)
    assert change is not None
    return float(change.after["limit"])


def test_the_limit_is_a_high_percentile_of_the_norms_before_the_onset() -> None:
    norms = [1.0 + i / 100 for i in range(100)] + [1e6, float("nan"), 1e9]
    assert limit(History.of(gradient_norm=norms), 100) == pytest.approx(np.percentile(norms[:100], 90))


def test_norms_that_are_not_finite_give_no_limit() -> None:
    norms = [1.0] * 50 + [float("inf"), float("nan")] + [2.0] * 50
    assert limit(History.of(gradient_norm=norms), 102) == pytest.approx(2.0)


@pytest.mark.parametrize("history", [History(), History.of(gradient_norm=[5.0] * 100)], ids=["no norms", "ill at once"])
def test_without_a_healthy_past_the_limit_is_one(history: History) -> None:
    assert limit(history, 3) == 1.0


def test_all_gradients_are_scaled_by_one_factor() -> None:
    of = mixed()
    before = total(of)
    assert before > 1.5
    reference = of.param_groups[0]["params"][1].grad.clone()
    Clip(1.5)(of)
    assert total(of) == pytest.approx(1.5, rel=1e-3)  # bfloat16 rounds
    assert torch.allclose(of.param_groups[0]["params"][1].grad, reference * (1.5 / before))


def test_it_agrees_with_torch_on_ordinary_gradients() -> None:
    model = nn.Linear(5, 5)
    of = torch.optim.SGD(model.parameters(), lr=0.1)
    model(torch.randn(3, 5)).square().sum().backward()
    expected = [parameter.grad.clone() for parameter in model.parameters()]
    norm = torch.linalg.vector_norm(torch.cat([each.flatten() for each in expected]))
    Clip(0.5)(of)
    for parameter, gradient in zip(model.parameters(), expected, strict=True):
        assert torch.allclose(parameter.grad, gradient * (0.5 / norm), rtol=1e-6)


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_gradients_that_are_not_finite_are_left_alone(bad: float) -> None:
    of = mixed()
    of.param_groups[0]["params"][1].grad[0, 0] = bad
    before = [None if p.grad is None else p.grad.to_dense().clone() for p in of.param_groups[0]["params"]]
    Clip(0.1)(of)
    for parameter, gradient in zip(of.param_groups[0]["params"], before, strict=True):
        if gradient is not None:
            assert torch.equal(parameter.grad.to_dense().nan_to_num(3), gradient.nan_to_num(3))


def test_gradients_below_the_limit_keep_every_bit() -> None:
    of = mixed()
    before = [None if p.grad is None else p.grad.to_dense().clone() for p in of.param_groups[0]["params"]]
    Clip(1e6)(of)
    for parameter, gradient in zip(of.param_groups[0]["params"], before, strict=True):
        if gradient is not None:
            assert torch.equal(parameter.grad.to_dense(), gradient)


def test_a_scale_that_the_gradients_still_carry_is_counted() -> None:
    parameter = nn.Parameter(torch.ones(4))
    of = torch.optim.SGD([parameter], lr=0.1)
    parameter.grad = torch.full((4,), 1024.0)  # of norm 2 under a scale of 1024
    of.grad_scale = torch.tensor(1024.0)
    Clip(1.0)(of)
    assert float(parameter.grad.norm()) == pytest.approx(1024.0)


def test_it_is_not_proposed_twice() -> None:
    sick: Patient = patient()
    change = ClipGradients().propose(finding("loss-spike"), sick.run)
    assert change is not None
    undo = ClipGradients().apply(change, sick.run)
    assert ClipGradients().propose(finding("loss-spike"), sick.run) is None
    undo()
    undo()
    assert sick.run.guards == []


def test_lbfgs_is_refused() -> None:
    with pytest.raises(Refused, match="inside step"):
        ClipGradients().propose(finding("loss-spike"), patient("LBFGS").run)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_finite_gradients_whose_squares_overflow_are_clipped_too(dtype: torch.dtype) -> None:
    parameter = nn.Parameter(torch.ones(4, dtype=dtype))
    of = torch.optim.SGD([parameter], lr=0.1)
    huge = 1e30 if dtype is not torch.float64 else 1e200
    parameter.grad = torch.full((4,), huge, dtype=dtype)
    Clip(1.0)(of)
    assert 0.4 < float(parameter.grad.norm()) < 1.01


def proposal(name: str, step: int, **values: Any) -> Any:
    run = Run([], [torch.optim.SGD([nn.Parameter(torch.ones(1))])], History.of(**values))
    return ClipGradients().propose(finding(name, step=step), run)


def test_normal_gradients_are_not_clipped() -> None:
    norms = [1.0 + 0.2 * (i % 5) for i in range(120)]
    assert proposal("loss-spike", 100, gradient_norm=norms) is None
    assert proposal("divergence", 100, gradient_norm=norms) is None
    assert proposal("loss-spike", 100, gradient_norm=[*norms[:100], 30.0, *norms[101:]]) is not None
    assert proposal("loss-spike", 100, gradient_norm=[*norms[:100], float("nan"), *norms[101:]]) is not None


def test_a_spike_in_a_run_with_a_past_is_clipped_by_its_score() -> None:
    norms = [1.0 + 0.2 * (i % 5) for i in range(100)] + [30.0]
    change = proposal("loss-spike", 100, gradient_norm=norms)
    assert change.after == {
        "kind": "z-score",
        "mean": pytest.approx(1.4),
        "deviation": pytest.approx(0.283, 0.01),
        "z": 2.5,
    }
    assert proposal("exploding-gradient", 100, gradient_norm=norms).after["kind"] == "norm"


def test_an_excess_of_one_layer_is_clipped_per_unit() -> None:
    columns = {f"l{i}.weight__gradient_norm": [1.0] * 30 for i in range(5)}
    columns["l2.weight__gradient_norm"] = [1.0] * 20 + [50.0] * 10
    total = [3.0] * 20 + [51.0] * 10
    assert proposal("exploding-gradient", 20, gradient_norm=total, **columns).after == {"kind": "unit", "share": 0.01}
    everywhere = {name: [1.0] * 20 + [50.0] * 10 for name in columns}
    assert proposal("exploding-gradient", 20, gradient_norm=total, **everywhere).after["kind"] == "norm"


def test_scores_are_those_of_the_paper() -> None:
    parameter = nn.Parameter(torch.ones(1, dtype=torch.float64))
    of = torch.optim.SGD([parameter], lr=0.1)
    guard = ZClip(1.0, 0.1)
    mean, variance = 1.0, 0.01
    for norm in (1.1, 0.9, 2.0, 50.0, 1.0):
        parameter.grad = torch.full((1,), norm, dtype=torch.float64)
        guard(of)
        deviation = variance**0.5 + 1e-6 * mean
        z = (norm - mean) / deviation
        expected = mean + 2.5 / (z / 2.5) * deviation if z > 2.5 else norm
        assert float(parameter.grad) == pytest.approx(expected)
        mean = 0.97 * mean + 0.03 * expected
        variance = 0.97 * variance + 0.03 * (expected - mean) ** 2


def test_a_score_of_gradients_that_are_not_finite_moves_nothing() -> None:
    parameter = nn.Parameter(torch.ones(1))
    of = torch.optim.SGD([parameter], lr=0.1)
    guard = ZClip(1.0, 0.1)
    parameter.grad = torch.tensor([float("nan")])
    guard(of)
    parameter.grad = torch.tensor([1.2])
    guard(of)
    assert float(parameter.grad) == pytest.approx(1.2)
    parameter.grad = torch.tensor([9.0])
    guard(of)
    assert 1.0 < float(parameter.grad) < 1.3


def test_units_are_clipped_as_by_the_paper() -> None:
    layer = nn.Conv2d(3, 4, 3)
    of = torch.optim.SGD(layer.parameters(), lr=0.1)
    with torch.no_grad():
        layer.weight[0] = 0.0
    layer.weight.grad = torch.randn_like(layer.weight)
    layer.weight.grad[1] *= 1e-6
    layer.bias.grad = torch.full_like(layer.bias, 100.0)
    before = layer.weight.grad.clone()
    UnitClip(0.01)(of)
    for unit in range(4):
        limit = 0.01 * max(float(layer.weight[unit].norm()), 1e-3)
        size = float(before[unit].norm())
        assert float(layer.weight.grad[unit].norm()) == pytest.approx(min(size, limit), rel=1e-4)
    assert torch.equal(layer.weight.grad[1], before[1])
    assert torch.equal(layer.bias.grad, torch.full_like(layer.bias, 100.0))


@pytest.mark.parametrize("kind", ["norm", "z-score", "unit"])
def test_the_code_of_each_kind_runs(kind: Any) -> None:
    model = nn.Linear(3, 3)
    of = torch.optim.SGD(model.parameters(), lr=0.1)
    run = Run([model], [of], History.of(gradient_norm=[1.0] * 50 + [9.0]))
    change = ClipGradients(kind=kind).propose(finding("loss-spike", step=50), run)
    assert change is not None
    model(torch.randn(2, 3)).sum().backward()
    exec(change.code, {"torch": torch, "model": model})


def test_units_are_clipped_to_no_less_than_layers_had_while_all_was_well() -> None:
    columns = {f"l{i}.weight__gradient_norm": [1.0] * 30 for i in range(5)}
    columns["l2.weight__gradient_norm"] = [1.0] * 20 + [50.0] * 10
    columns |= {f"l{i}.weight__weight_norm": [4.0 if i else 2.0] * 30 for i in range(5)}
    total = [3.0] * 20 + [51.0] * 10
    change = proposal("exploding-gradient", 20, gradient_norm=total, **columns)
    assert change.after == {"kind": "unit", "share": pytest.approx(0.5)}


def test_a_spike_of_one_layer_is_clipped_by_the_norm_of_all() -> None:
    columns = {f"l{i}.weight__gradient_norm": [1.0] * 30 for i in range(5)}
    columns["l2.weight__gradient_norm"] = [1.0] * 20 + [50.0] + [1.0] * 9
    total = [3.0] * 20 + [51.0] + [3.0] * 9
    change = proposal("exploding-gradient", 20, gradient_norm=total, **columns)
    assert change.after == {"kind": "norm", "limit": pytest.approx(3.0)}
