"""Two processes that train one model: what is recorded is of the whole, and the first one writes it."""

import json
import socket
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F
from torch import nn

import trainmedic
from trainmedic.history import History

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")


def net() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 1), nn.Linear(1, 3))  # uneven and empty shards


def batch(rank: int, step: int) -> tuple[torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(100 * step + rank)
    return torch.randn(6, 8, generator=generator), torch.randint(0, 3, (6,), generator=generator)


STATISTICS = ("gradient_norm", "gradient_mean_abs", "gradient_zeros", "gradient_cosine", "update_ratio", "weight_norm")


def tables(history: History) -> dict[str, dict[str, float]]:
    return {statistic: dict(history.layers(statistic).latest()) for statistic in STATISTICS}


def alone(steps: int) -> tuple[list[float], dict[str, dict[str, float]]]:
    """What one process records that trains on both batches together."""
    model = net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainmedic.watch(model, optimizer, settings={"every": 1}) as medic:
        for step in range(steps):
            x, y = (torch.cat(parts) for parts in zip(batch(0, step), batch(1, step), strict=True))
            optimizer.zero_grad()
            F.cross_entropy(model(x), y).backward()
            optimizer.step()
    history = medic.report().history
    return history.series("gradient/norm").values.tolist(), tables(history)


def data_parallel() -> tuple[nn.Module, nn.Module]:
    model = net()
    return nn.parallel.DistributedDataParallel(model), model


def sharded() -> tuple[nn.Module, nn.Module]:
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    model = net()
    mesh = init_device_mesh("cpu", (2,))
    for part in (model[0], model[2], model[3], model):
        fully_shard(part, mesh=mesh)
    return model, model


KINDS = {"data parallel": data_parallel, "sharded": sharded}


def work(rank: int, port: int, folder: Path) -> None:
    import trainmedic.medic

    trainmedic.medic.RAISE_ERRORS = True
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=2)
    try:
        for kind, make in KINDS.items():
            seen = train(rank, *make(), folder / kind)
            (folder / f"{kind} {rank}.json").write_text(json.dumps(seen))
    finally:
        dist.destroy_process_group()


def train(rank: int, model: nn.Module, watched: nn.Module, logdir: Path) -> dict[str, Any]:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainmedic.watch(watched, optimizer, settings={"every": 1}, logdir=logdir) as medic:
        for step in range(25):
            x, y = batch(rank, step)
            optimizer.zero_grad()
            loss = F.cross_entropy(model(x), y)
            loss.backward()
            optimizer.step()
            medic.log(loss)
    history = medic.report().history
    return {
        "norms": history.series("gradient/norm").values.tolist(),
        "tables": tables(history),
        "written": medic._writing is not None,
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What two processes have recorded, of all kinds: they are slow to start."""
    folder = tmp_path_factory.mktemp("ranks")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mp.spawn(work, (port, folder), nprocs=2)
    return folder


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_and_weights_are_of_the_whole(kind: str, folder: Path) -> None:
    first, second = (json.loads((folder / f"{kind} {rank}.json").read_text()) for rank in range(2))
    norms, expected = alone(25)
    assert first["norms"] == pytest.approx(norms, rel=1e-4)
    assert second["norms"] == pytest.approx(first["norms"], rel=1e-6)
    for statistic in STATISTICS:
        assert first["tables"][statistic] == pytest.approx(expected[statistic], rel=1e-3, abs=1e-6), statistic
        assert second["tables"][statistic] == pytest.approx(first["tables"][statistic], rel=1e-6)
    assert (first["written"], second["written"]) == (True, False)
    assert (folder / kind / "history.npz").exists()
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator  # type: ignore[import-untyped]

    histograms = EventAccumulator(str(folder / kind)).Reload()
    assert "gradients/0.bias" in histograms.Tags()["histograms"]
    assert {event.histogram_value.num for event in histograms.Histograms("weights/0.weight")} == {16 * 8}
