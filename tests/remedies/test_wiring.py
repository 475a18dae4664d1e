"""What was forgotten between model, loop and optimizer: gradients cleared, parameters handed over, frozen ones free."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import trainmedic
from tests.remedies.patients import finding, patient, perceptron
from trainmedic.history import History
from trainmedic.remedies._clearing import Clear
from trainmedic.remedies.adopt_parameters import AdoptParameters
from trainmedic.remedies.remedy import Refused
from trainmedic.remedies.run import Run
from trainmedic.remedies.unfreeze import Unfreeze
from trainmedic.remedies.weight_decay import WeightDecay
from trainmedic.remedies.zero_gradients import ZeroGradients


def final_loss(forgets: bool, treated: bool = False) -> float:
    """A loop with or without its call of ``zero_grad``."""
    torch.manual_seed(0)
    model = nn.Linear(6, 1)
    of = torch.optim.SGD(model.parameters(), lr=0.05)
    run = Run([model], [of], History())
    x = torch.randn(256, 6)
    y = x @ torch.randn(6, 1)
    for step in range(150):
        if treated and step == 50:
            change = ZeroGradients().propose(finding("missing-zero-grad"), run)
            assert change is not None
            ZeroGradients().apply(change, run)
        rows = torch.randint(0, 256, (64,))
        if not forgets:
            of.zero_grad()
        F.mse_loss(model(x[rows]), y[rows]).backward()
        of.step()
        for guard in run.guards:
            guard.after(of)  # type: ignore[attr-defined]
    return float(F.mse_loss(model(x), y).detach())


def test_a_loop_that_forgets_to_clear_gradients_is_healed() -> None:
    assert final_loss(True) > 0.1
    assert final_loss(True, True) < 0.01
    assert final_loss(False) < 0.01


def test_passes_of_one_step_still_add_up() -> None:
    sick = patient("SGD")
    change = ZeroGradients().propose(finding("missing-zero-grad"), sick.run)
    assert change is not None
    ZeroGradients().apply(change, sick.run)
    (guard,) = sick.run.guards
    weight = sick.parameters[0]
    for _ in range(2):
        sick.model(torch.ones(2, 6)).sum().backward()
    twice = weight.grad.clone()
    guard.after(sick.optimizer)  # type: ignore[attr-defined]
    assert not weight.grad.any()
    sick.model(torch.ones(2, 6)).sum().backward()
    assert torch.allclose(2 * weight.grad, twice)


def stale() -> tuple[nn.Sequential, torch.optim.Optimizer, Run]:
    """The head was replaced after the optimizer was made, whose groups have rates of their own."""
    model = perceptron()
    of = torch.optim.AdamW(
        [{"params": list(model[0].named_parameters()), "lr": 0.1}, {"params": list(model[2:].named_parameters())}],
        lr=0.01,
    )
    model[4] = nn.Linear(8, 3)
    return model, of, Run([model], [of], History())


def test_a_new_layer_joins_the_group_of_its_neighbours_with_its_name() -> None:
    model, of, run = stale()
    schedule = torch.optim.lr_scheduler.OneCycleLR(of, [0.1, 0.01], 50)
    change = AdoptParameters().propose(finding("stale-optimizer"), run)
    assert change is not None
    assert change.target == ("4.weight", "4.bias")
    undo = AdoptParameters().apply(change, run)
    assert any(p is model[4].weight for p in of.param_groups[1]["params"])
    assert of.param_groups[1]["param_names"][-2:] == ["4.weight", "4.bias"]
    before = model[4].weight.detach().clone()
    model(torch.randn(4, 6)).sum().backward()
    of.step()
    schedule.step()
    assert not torch.equal(model[4].weight, before)
    undo()
    assert len(of.param_groups[1]["params"]) == 4
    assert model[4].weight not in of.state


def test_nothing_to_adopt_and_nobody_to_adopt() -> None:
    sick = patient("SGD")
    assert AdoptParameters().propose(finding("stale-optimizer"), sick.run) is None
    model = perceptron()
    run = Run([model], [torch.optim.LBFGS(list(model.parameters())[:2])], History())
    with pytest.raises(Refused, match="cannot join LBFGS"):
        AdoptParameters().propose(finding("stale-optimizer"), run)


def test_a_checkpoint_of_the_adopted_loads_after_replay() -> None:
    _, of, run = stale()
    change = AdoptParameters().propose(finding("stale-optimizer"), run)
    assert change is not None
    AdoptParameters().apply(change, run)
    treatment = {
        "finding": "f1", "code": "TM605", "illness": "stale-optimizer", "step": 1, "outcome": "kept",
        "change": change.model_dump(mode="json"),
    }  # fmt: skip
    model, fresh, _ = stale()
    trainmedic.replay(model, fresh, {"version": 1, "treatments": [treatment]})
    fresh.load_state_dict(of.state_dict())


def finetuned(freed: bool) -> float:
    """A net whose hidden layers are frozen as they were drawn, on a task that its features do not separate."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 32), nn.ReLU(), nn.Linear(32, 2))
    for layer in model[:4]:
        layer.requires_grad_(False)
    of = torch.optim.Adam((p for p in model.parameters() if p.requires_grad), lr=0.01)
    run = Run([model], [of], History())
    if freed:
        change = Unfreeze().propose(finding("underfitting"), run)
        assert change is not None
        Unfreeze().apply(change, run)
    x = torch.rand(256, 2) * 4 - 2
    y = ((x[:, 0] * x[:, 1]) > 0).long()
    for _ in range(300):
        of.zero_grad()
        loss = F.cross_entropy(model(x), y)
        loss.backward()
        of.step()
    return float(loss.detach())


def test_a_net_whose_features_are_frozen_learns_once_they_are_free() -> None:
    assert finetuned(True) < 0.4 * finetuned(False)


def test_what_is_frozen_beside_the_finding_stays_frozen() -> None:
    model = perceptron()
    model[0].requires_grad_(False)
    model[2].requires_grad_(False)
    run = Run([model], [torch.optim.SGD(model[4].parameters())], History())
    change = Unfreeze().propose(finding("frozen-layer", "2"), run)
    assert change is not None
    assert change.target == ("2.weight", "2.bias")
    assert Unfreeze().propose(finding("frozen-layer", "4"), run) is None
    model.requires_grad_(True)
    assert Unfreeze().propose(finding("underfitting"), run) is None


def decay(of: torch.optim.Optimizer, name: str, **history: object) -> list[float] | None:
    run = Run([], [of], History.of(**{"facts": {"total_steps": 1000}, **history}))
    change = WeightDecay().propose(finding(name), run)
    return None if change is None else list(change.after)


def test_decay_forgets_over_the_length_of_the_run() -> None:
    p = [nn.Parameter(torch.ones(2))]
    assert decay(torch.optim.AdamW(p, lr=1e-2), "overfitting") == pytest.approx([0.1])
    assert decay(torch.optim.SGD(p, lr=0.5), "overfitting") == pytest.approx([0.002])
    assert decay(torch.optim.AdamW(p, lr=1e-5), "overfitting") == [1.0]
    assert decay(torch.optim.Adam(p, lr=1e-2), "overfitting") == [5e-4]
    assert decay(torch.optim.AdamW(p, lr=1e-2, weight_decay=0.5), "overfitting") is None


def test_too_much_decay_is_cut() -> None:
    p = [nn.Parameter(torch.ones(2))]
    assert decay(torch.optim.SGD(p, lr=0.1, weight_decay=0.5), "excessive-weight-decay") == pytest.approx([0.05])
    assert decay(torch.optim.SGD(p, lr=0.1), "excessive-weight-decay") is None
    with pytest.raises(Refused, match="Rprop has no weight decay"):
        decay(torch.optim.Rprop(p), "overfitting")


def test_an_underfitting_run_loses_decay_only_if_it_weighs() -> None:
    p = [nn.Parameter(torch.ones(2))]
    of = torch.optim.SGD(p, lr=0.1, weight_decay=0.01)
    assert decay(of, "underfitting", **{"a.weight__update_ratio": [1e-3] * 20}) == pytest.approx([0.001])
    assert decay(of, "underfitting", **{"a.weight__update_ratio": [1e-1] * 20}) is None


def test_gradients_are_cleared_where_the_loss_scaler_leaves_a_step_out() -> None:
    model = nn.Linear(2, 1)
    of = torch.optim.SGD(model.parameters(), lr=0.1)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    with trainmedic.watch(model, of, scaler=scaler, fix="safe") as medic:
        medic._treating.run.guards.append(Clear())
        before = model.weight.detach().clone()
        for factor in (float("inf"), 1.0):
            scaler.scale(factor * model(torch.ones(2, 2)).sum()).backward()
            scaler.step(of)
            scaler.update()
            assert not model.weight.grad.any()
            assert torch.equal(model.weight, before) is (factor != 1.0)


def test_a_group_that_rests_at_a_rate_of_zero_gets_the_rate_of_the_others() -> None:
    model = perceptron()
    rest = {"params": [*model[2].parameters(), *model[4].parameters()]}
    of = torch.optim.SGD([{"params": model[0].parameters(), "lr": 0.0}, rest], lr=0.1)
    run = Run([model], [of], History())
    assert Unfreeze().propose(finding("frozen-layer", "4"), run) is None
    change = Unfreeze().propose(finding("frozen-layer", "0"), run)
    assert change is not None
    undo = Unfreeze().apply(change, run)
    assert [group["lr"] for group in of.param_groups] == [0.1, 0.1]
    undo()
    assert [group["lr"] for group in of.param_groups] == [0.0, 0.1]
    run.schedulers = [torch.optim.lr_scheduler.StepLR(of, 10)]
    with pytest.raises(Refused, match="scheduler"):
        Unfreeze().propose(finding("frozen-layer", "0"), run)
