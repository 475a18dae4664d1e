"""TM203 and its look-alikes."""

from typing import Any

import torch
from torch import Tensor, nn

from tests.diagnose.trainings import adam, blobs, net, told, train
from trainmedic.diagnose.rules.frozen_layer import FrozenLayer

RULE = FrozenLayer()


class Cut(nn.Module):
    """Two layers below and one above, with something between them."""

    def __init__(self, how: str = "") -> None:
        super().__init__()
        self.how, self.unused = how, nn.Linear(32, 3)
        self.first, self.second, self.head = nn.Linear(16, 32), nn.Linear(32, 32), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(self.how != "no_grad"):
            hidden = self.second(self.first(x).relu()).tanh()
        if self.how == "pooled":
            self.unused(hidden)  # as a pooler that nobody asks for
        if self.how == "round":
            hidden = (hidden * 4).round() / 4
        return self.head(hidden.detach() if self.how == "detach" else hidden)  # type: ignore[no-any-return]


def test_detached() -> None:
    [finding] = told(RULE, train(Cut("detach"), blobs()))
    assert finding.where == ("second", "first")
    assert finding.detected_at <= 20


def test_under_no_grad() -> None:
    [finding] = told(RULE, train(Cut("no_grad"), blobs()))
    assert set(finding.where) >= {"second", "first"}


def test_rounded() -> None:
    assert told(RULE, train(Cut("round"), blobs()))


def test_whole_and_with_a_head_that_nobody_uses() -> None:
    assert told(RULE, train(Cut(), blobs())) == []
    assert told(RULE, train(Cut("pooled"), blobs())) == []


def test_frozen_on_purpose_is_healthy() -> None:
    model = Cut()
    model.first.requires_grad_(False)
    assert told(RULE, train(model, blobs(), optimizer=adam(model))) == []


def test_a_trained_part_left_alone_is_healthy() -> None:
    torch.manual_seed(0)
    model = Cut()
    train(model, blobs(), optimizer=adam(model, 1e-2))
    model.how, model.head = "no_grad", nn.Linear(32, 2)
    x, y = blobs()
    assert told(RULE, train(model, (x, y % 2), optimizer=adam(model))) == []


def test_dead_rectifiers_are_another_illness() -> None:
    model = net(16, 4)
    with torch.no_grad():
        model[0].bias.fill_(-20.0)
    assert told(RULE, train(model, blobs())) == []


def test_a_group_at_a_rate_of_zero() -> None:
    model = Cut()
    body = {"params": [*model.first.parameters(), *model.second.parameters()], "lr": 0.0}
    optimizer = torch.optim.Adam([body, {"params": model.head.parameters()}], lr=1e-2)
    history = train(model, blobs(), optimizer=optimizer)
    [finding] = told(RULE, history)
    assert set(finding.where) == {"first", "second"}
    assert "no step has moved them" in finding.message


class _Narrow(nn.Module):
    """Kernels of 18 and 36 elements with norms, under a head."""

    def __init__(self, frugal: bool) -> None:
        super().__init__()
        layers = [nn.Conv2d(1, 2, 3, 1, 1), nn.BatchNorm2d(2), nn.ReLU(), nn.Conv2d(2, 2, 3, 1, 1), nn.BatchNorm2d(2)]
        self.body, self.head, self.frugal = nn.Sequential(*layers, nn.ReLU(), nn.Flatten()), nn.Linear(32, 4), frugal

    def forward(self, x: Tensor) -> Tensor:
        with torch.set_grad_enabled(not self.frugal):
            features = self.body(x.view(-1, 1, 4, 4))
        return self.head(features)  # type: ignore[no-any-return]


def test_small_kernels_are_known_together() -> None:
    torch.manual_seed(0)
    [finding] = told(RULE, train(_Narrow(frugal=True), blobs()))
    assert "body.0" in finding.where


def test_norms_that_somebody_trained_say_so() -> None:
    torch.manual_seed(0)
    model = _Narrow(frugal=True)
    with torch.no_grad():
        model.body[1].weight.mul_(torch.tensor([0.9, 1.2]))
    assert told(RULE, train(model, blobs())) == []


class _Towers(nn.Module):
    """Two towers side by side under a head; the second may be cut off, and a third that nobody asks for may run."""

    def __init__(self, cut: bool, idle: bool = False) -> None:
        super().__init__()
        self.left, self.right, self.idle = net(8, 24), net(8, 24), net(8, 10)
        self.head, self.cut, self.runs_idle = nn.Linear(48, 4), cut, idle

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.left(x[:, :8]), self.right(x[:, 8:])
        if self.runs_idle:
            self.idle(x[:, :8])
        return self.head(torch.cat([left, right.detach() if self.cut else right], 1).relu())  # type: ignore[no-any-return]


def test_a_tower_that_is_cut_off() -> None:
    torch.manual_seed(0)
    [finding] = told(RULE, train(_Towers(cut=True), blobs()))
    assert set(finding.where) == {"right.0", "right.2"}
    assert told(RULE, train(_Towers(cut=False, idle=True), blobs())) == []


def test_gradients_zeroed_before_the_step() -> None:
    def step(model: nn.Module, optimizer: Any, x: Tensor, y: Tensor) -> Tensor:
        loss = nn.functional.cross_entropy(model(x), y)
        loss.backward()
        optimizer.zero_grad()
        optimizer.step()
        return loss

    [finding] = told(RULE, train(net(16, 4), blobs(), step=step))
    assert "no step has moved any parameter" in finding.message
    assert finding.detected_at <= 20
