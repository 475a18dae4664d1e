"""On a GPU: nothing waits for the device, numbers are those of the CPU, and a watched run is that of a bare one."""

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import trainmedic

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.gate = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Sigmoid()
        self.hidden, self.head = nn.Linear(8, 16), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.conv(x))).mean((2, 3))
        return self.head(self.gate(self.hidden(x)))


def pair() -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = Net().cuda()
    return model, torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)


def train(
    model: nn.Module, optimizer: torch.optim.Optimizer, medic: trainmedic.Medic | None, steps: int, criterion: nn.Module
) -> list[Tensor]:
    torch.manual_seed(1)
    x = torch.randn(steps, 32, 3, 12, 12, device="cuda")
    y = torch.randint(0, 4, (steps, 32), device="cuda")
    for i in range(steps):
        optimizer.zero_grad()
        loss = criterion(model(x[i]), y[i])
        loss.backward()
        optimizer.step()
        if medic:
            medic.log(loss)
    return [parameter.detach().clone() for parameter in model.parameters()]


@pytest.mark.parametrize("every", [1, 7])
def test_a_watched_step_waits_for_nothing(every: int, tmp_path: Path) -> None:
    model, optimizer = pair()
    criterion = nn.CrossEntropyLoss()
    options = {"settings": {"every": every}, "logdir": tmp_path}
    with trainmedic.watch(model, optimizer, loss_fn=criterion, **options) as medic:
        train(model, optimizer, medic, 3, criterion)  # what is made once may wait: constants, pinned memory
        torch.cuda.set_sync_debug_mode("error")
        try:
            train(model, optimizer, medic, 30, criterion)
        finally:
            torch.cuda.set_sync_debug_mode("default")
    history = medic.report().history
    assert len(history.series("train/loss").steps) == 33
    assert not [note for note in medic.report().notes if "failed" in note or "stopped" in note]


def test_numbers_are_those_of_a_bare_run() -> None:
    torch.backends.cudnn.deterministic = True
    model, optimizer = pair()
    bare = train(model, optimizer, None, 60, nn.CrossEntropyLoss())
    model, optimizer = pair()
    with trainmedic.watch(model, optimizer, settings={"every": 2}) as medic:
        watched = train(model, optimizer, medic, 60, nn.CrossEntropyLoss())
    assert all(torch.equal(a, b) for a, b in zip(bare, watched, strict=True))


def test_what_is_measured_agrees_with_the_cpu() -> None:
    seen = {}
    for device in ("cpu", "cuda"):
        torch.manual_seed(0)
        model = Net().to(device)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
        x, y = torch.randn(32, 3, 12, 12), torch.randint(0, 4, (32,))
        with trainmedic.watch(model, optimizer, settings={"every": 1}) as medic:
            nn.CrossEntropyLoss()(model(x.to(device)), y.to(device)).backward()
            optimizer.step()
        history = medic.report().history
        seen[device] = {s: dict(history.layers(s).latest()) for s in history.statistics()}
        assert ("memory/device" in history) is (device == "cuda")
    assert seen["cpu"].keys() == seen["cuda"].keys()
    for statistic, layers in seen["cpu"].items():
        assert layers == pytest.approx(seen["cuda"][statistic], rel=2e-2, abs=1e-4), statistic
