"""Where saved states lie: in host memory up to a limit, beyond it in files, and bit for bit the same either way."""

import gc
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import trainmedic
import trainmedic.medic
from trainmedic.errors import TrainmedicError
from trainmedic.history import History
from trainmedic.remedies._state import State
from trainmedic.remedies._store import Store
from trainmedic.remedies.run import Run

MEGABYTE = 1 << 20


def training(store: Store) -> tuple[nn.Module, torch.optim.Optimizer, Run]:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 1024), nn.ReLU(), nn.Linear(1024, 4))  # 2 MB and small ones
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    return model, optimizer, Run([model], [optimizer], History(), store=store)


def step(model: nn.Module, optimizer: torch.optim.Optimizer) -> None:
    optimizer.zero_grad()
    model(torch.randn(8, 512)).square().mean().backward()
    optimizer.step()


def held(model: nn.Module, optimizer: torch.optim.Optimizer) -> list[Tensor]:
    moments = [value for state in optimizer.state.values() for value in state.values()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return [value.detach().clone() for value in (*model.parameters(), *gradients, *moments)]


@pytest.mark.parametrize("limit", [100 * MEGABYTE, 3 * MEGABYTE, 0])
def test_a_state_comes_back_from_memory_and_from_files(limit: int, tmp_path: Path) -> None:
    store = Store(limit, tmp_path)
    model, optimizer, run = training(store)
    step(model, optimizer)
    before = held(model, optimizer)
    state = State.capture(run)
    assert (store.filed > 0) == (limit < 8 * MEGABYTE)
    assert store.held <= limit + MEGABYTE / 10  # small tensors stay in memory
    assert store.held + store.filed >= sum(value.numel() * value.element_size() for value in before)
    for _ in range(3):
        step(model, optimizer)
    state.restore(run)
    assert all(map(torch.equal, held(model, optimizer), before))


def test_nothing_is_left_of_the_files(tmp_path: Path) -> None:
    store = Store(0, tmp_path)
    model, optimizer, run = training(store)
    step(model, optimizer)
    state = State.capture(run)
    newer = State.capture(run, into=state)
    assert store.filed == pytest.approx(8 * MEGABYTE, rel=0.05), "its memory was used again"
    del state, newer
    gc.collect()
    assert store.held == store.filed == 0
    assert list(tmp_path.iterdir()) == []


def test_no_room_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 1_000})())
    _, _, run = training(Store(0, tmp_path))
    with pytest.raises(TrainmedicError, match="raise states_mb"):
        State.capture(run)


def test_the_last_healthy_state_is_never_rotated_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many states are kept later, the one of before the illness is there, whole, when it is needed."""
    monkeypatch.setattr(trainmedic.medic, "RAISE_ERRORS", True)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, 1))
    optimizer = torch.optim.SGD(model.parameters(), 0.02, momentum=0.9)
    settings = {"select": "TM402", "states_mb": 0.0}
    weights: dict[int, Tensor] = {}
    with trainmedic.watch(model, optimizer, fix="safe", settings=settings) as medic:
        for number in range(400):
            x = torch.randn(32, 6)
            optimizer.zero_grad()
            loss = (model(x) - x[:, :1]).square().mean()
            loss.backward()
            optimizer.step()
            medic.log(loss)
            weights[number] = model[0].weight.detach().clone()
            if number in range(40, 400, 20):
                medic.log_validation(loss.detach() * (1.0 if number < 200 else 0.5))
        healthy = medic._treating.run.healthy
        assert healthy is not None
        assert not healthy.spent
        assert healthy.finite()
        with torch.no_grad():
            model[0].weight.fill_(float("nan"))
        healthy.restore(medic._treating.run, clocks=False)
    assert torch.equal(model[0].weight, weights[healthy.step])


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("limit", [100 * MEGABYTE, 0])
def test_states_of_a_device_lie_in_host_memory_and_come_back(limit: int, tmp_path: Path) -> None:
    store = Store(limit, tmp_path)
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(512, 1024), nn.BatchNorm1d(1024), nn.ReLU(), nn.Linear(1024, 4)).cuda()
    optimizer = torch.optim.AdamW(model.parameters(), 1e-2)
    run = Run([model], [optimizer], History(), store=store)

    def go(count: int) -> None:
        for _ in range(count):
            optimizer.zero_grad()
            model(torch.randn(8, 512, device="cuda")).square().mean().backward()
            optimizer.step()

    go(2)
    before = [*held(model, optimizer), *(buffer.clone() for buffer in model.buffers())]
    taken = torch.cuda.memory_allocated()
    state = State.capture(run)
    assert torch.cuda.memory_allocated() == taken
    go(3)
    optimizer.zero_grad(set_to_none=True)
    state.restore(run)
    assert all(parameter.grad is not None and parameter.grad.is_cuda for parameter in model.parameters())
    assert all(map(torch.equal, [*held(model, optimizer), *model.buffers()], before))
    assert state.finite()
    go(1)
