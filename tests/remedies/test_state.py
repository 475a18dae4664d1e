"""``State`` against untouched twins: what comes back, what goes on, what is left alone, and what a file holds."""

import copy
import io
import math
import os
import random
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn, optim
from torch.optim import lr_scheduler

from trainmedic.errors import UsageError
from trainmedic.history import History
from trainmedic.remedies._state import State
from trainmedic.remedies.run import Run

OPTIMIZERS: dict[str, Callable[[Any], optim.Optimizer]] = {
    "ASGD": lambda p: optim.ASGD(p, lr=0.05, t0=1, lambd=0.01),
    "Adadelta": lambda p: optim.Adadelta(p, lr=0.5),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.05),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    "Adam": lambda p: optim.Adam(p, lr=0.05),
    "Adam amsgrad foreach": lambda p: optim.Adam(p, lr=0.05, amsgrad=True, foreach=True),
    "Adam fused": lambda p: optim.Adam(p, lr=0.05, fused=True),
    "Adam tensor rate": lambda p: optim.Adam(p, lr=torch.tensor(0.05)),
    "AdamW": lambda p: optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "Adamax": lambda p: optim.Adamax(p, lr=0.05),
    "LBFGS": lambda p: optim.LBFGS(p, lr=0.1, max_iter=3, history_size=2),
    "Muon": lambda p: optim.Muon([each for each in p if each.ndim == 2], lr=0.05),
    "NAdam": lambda p: optim.NAdam(p, lr=0.05),
    "RAdam": lambda p: optim.RAdam(p, lr=0.05),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.05, momentum=0.9, centered=True),
    "Rprop": lambda p: optim.Rprop(p, lr=0.05),
    "SGD": lambda p: optim.SGD(p, lr=0.05),
    "SGD momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9),
    "SGD nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, weight_decay=0.1),
    "SparseAdam": lambda p: optim.SparseAdam(p, lr=0.05),
}
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


class Net(nn.Module):
    """A little of what models are made of: a norm, dropout, a tied weight, buffers that are exchanged."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(4, 4)
        self.norm = nn.BatchNorm1d(4)
        self.last = nn.Linear(4, 4)
        self.last.bias = self.first.bias
        self.register_buffer("level", torch.ones(2), persistent=False)
        self.register_buffer("seen", None, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        self.level = self.level * 1.5
        self.seen = x.detach()[0]
        output: Tensor = self.last(torch.dropout(self.norm(self.first(x)).tanh(), 0.3, self.training))
        return output


class Words(nn.Module):
    """A model with sparse gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(7, 4, sparse=True)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.table((x.abs() * 10).long() % 7).sum(1)
        return output


def seed_all(seed: int) -> None:
    for each in (torch.manual_seed, random.seed, np.random.seed):
        each(seed)


def made(
    optimizer: str = "Adam", *, model: nn.Module | None = None, device: str = "cpu", scheduled: bool = True
) -> Run:
    """A run at its start, always the same one."""
    seed_all(0)
    model = (model or (Words() if optimizer == "SparseAdam" else Net())).to(device)
    owner = OPTIMIZERS[optimizer](list(model.parameters()))
    return Run([model], [owner], History(), [lr_scheduler.StepLR(owner, 2, 0.5)] if scheduled else [])


def train(run: Run, steps: int) -> list[float]:
    """Steps whose data depend on all random numbers; with the losses, which tell whether two runs are the same."""
    model, optimizer, losses = run.models[0], run.optimizers[0], []
    like = next(model.parameters())
    for _ in range(steps):
        x = torch.randn(6, 4) * (1 + random.random()) + float(np.random.random())
        x = x.to(like.device, like.dtype)

        def closure(x: Tensor = x) -> float:
            optimizer.zero_grad()
            loss = (model(x) - 1).float().square().mean()
            loss.backward()
            return loss.item()

        losses.append(optimizer.step(closure))  # type: ignore[arg-type]
        for scheduler in run.schedulers:
            scheduler.step()
        run.step += 1
    return losses


def bits(value: Any) -> Any:
    """A value that compares equal only if every bit is the same, and every tensor the same object."""
    if isinstance(value, Tensor):
        dense = value.detach().to_dense() if value.is_sparse else value.detach()
        where = (id(value), value.dtype, value.shape, value.device, value.requires_grad, value.layout)
        return where, dense.cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes()
    if isinstance(value, dict):
        return {key: bits(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [bits(inner) for inner in value]
    return value.tobytes() if isinstance(value, np.ndarray) else value


def weights(run: Run) -> dict[str, Any]:
    """What training has learnt."""
    module, optimizer = run.models[0], run.optimizers[0]
    modules = dict(module.named_modules())
    return bits(
        {
            "parameters": {name: dict(m._parameters) for name, m in modules.items()},
            "buffers": {name: dict(m._buffers) for name, m in modules.items()},
            "state": {id(key): dict(values) for key, values in optimizer.state.items()},
        }
    )


def gradients(run: Run) -> list[Any]:
    """Gradients by value: they come and go, which tensor holds one tells nothing."""
    leaves = [leaf for group in run.optimizers[0].param_groups for leaf in group["params"]]
    return [None if leaf.grad is None else bits(leaf.grad)[1] for leaf in leaves]


def clocks(run: Run) -> dict[str, Any]:
    """What goes on by itself."""
    schedulers = [{k: v for k, v in vars(s).items() if k != "optimizer"} for s in run.schedulers]
    return bits(
        {
            "groups": [{**group, "params": list(map(id, group["params"]))} for group in run.optimizers[0].param_groups],
            "schedulers": schedulers,
            "scaler": {} if run.scaler is None else dict(vars(run.scaler)),
            "modes": [module.training for module in run.models[0].modules()],
            "python": random.getstate(),
            "numpy": np.random.get_state(),
            "torch": torch.get_rng_state().numpy(),
            "cuda": [s.numpy() for s in torch.cuda.get_rng_state_all()] if torch.cuda.is_initialized() else [],
        }
    )


def everything(run: Run) -> tuple[Any, ...]:
    return weights(run), gradients(run), clocks(run)


def test_every_optimizer_that_torch_ships_is_here() -> None:
    shipped = {name for name, kind in vars(optim).items() if isinstance(kind, type)}
    assert {name.split()[0] for name in OPTIMIZERS} == shipped - {"Optimizer"}


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("before", [0, 1, 3])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_after_a_restore_training_goes_on_as_in_an_untouched_twin(optimizer: str, before: int, device: str) -> None:
    run = made(optimizer, device=device)
    train(run, before)
    there = everything(run)
    state = State.capture(run)
    assert everything(run) == there, "capturing changed something"
    assert state.step == before
    train(run, 3)
    run.optimizers[0].zero_grad(set_to_none=True)
    run.models[0].eval()
    assert weights(run) != there[0]
    state.restore(run)
    assert everything(run) == there
    losses = train(run, 3)
    state.restore(run)
    assert everything(run) == there, "a state can be restored again"

    twin = made(optimizer, device=device)
    train(twin, before)
    assert train(twin, 3) == losses


@pytest.mark.parametrize("optimizer", ["Adam", "Adam tensor rate", "LBFGS", "NAdam", "Rprop", "SGD momentum"])
def test_without_clocks_only_what_was_learnt_comes_back(optimizer: str) -> None:
    run = made(optimizer)
    train(run, 3)
    state, learnt, gradient = State.capture(run), weights(run), gradients(run)
    train(run, 3)
    run.models[0].eval()
    later = clocks(run)
    state.restore(run, clocks=False)
    assert (weights(run), gradients(run)) == (learnt, gradient)
    assert clocks(run) == later


@pytest.mark.parametrize("before", [0, 2])
def test_the_loss_scale_comes_back_or_goes_on(before: int) -> None:
    run = made("SGD momentum")
    run.scaler = torch.amp.GradScaler("cpu", init_scale=4.0, growth_interval=1)

    def steps(count: int) -> None:
        for _ in range(count):
            run.optimizers[0].zero_grad()
            run.scaler.scale(run.models[0](torch.randn(6, 4)).sum()).backward()
            run.scaler.step(run.optimizers[0])
            run.scaler.update()

    steps(before)
    state, there = State.capture(run), everything(run)
    steps(3)
    later = run.scaler.get_scale()
    state.restore(run, clocks=False)
    assert run.scaler.get_scale() == later != 4 * 2**before
    state.restore(run)
    assert everything(run) == there


def test_schedulers_come_back_in_place_with_those_inside_of_them() -> None:
    run = made("SGD momentum", scheduled=False)
    owner = run.optimizers[0]
    inner = [lr_scheduler.LinearLR(owner, 0.1, total_iters=2), lr_scheduler.CosineAnnealingLR(owner, 9)]
    run.schedulers = [lr_scheduler.SequentialLR(owner, inner, [3])]
    train(run, 2)
    lists = [scheduler.base_lrs for scheduler in inner]
    told = inner[0].get_last_lr()
    state, rates = State.capture(run), []
    for _ in range(2):
        state.restore(run)
        train(run, 4)
        rates.append(run.learning_rates())
    assert rates[0] == rates[1] != told
    assert all(scheduler.base_lrs is kept for scheduler, kept in zip(inner, lists, strict=True))


def test_rates_that_somebody_wrote_down_stay() -> None:
    run = made("SGD")
    train(run, 1)
    state = State.capture(run)
    train(run, 1)
    written = run.schedulers[0].get_last_lr()
    before = list(written)
    state.restore(run)
    assert written == before != run.schedulers[0].get_last_lr()


def test_bfloat16_weights_keep_their_float32_averages() -> None:
    run = made("Adam", model=Net().bfloat16())
    train(run, 2)
    for values in run.optimizers[0].state.values():
        for name in ("exp_avg", "exp_avg_sq"):
            values[name] = values[name].float() + 1e-9
    state, there = State.capture(run), everything(run)
    for values in run.optimizers[0].state.values():
        values["exp_avg"] = values["exp_avg"].bfloat16()
        del values["exp_avg_sq"]
        values["new"] = torch.ones(1)
    state.restore(run)
    assert everything(run) == there


class Kinds(nn.Module):
    """Tensors of all kinds, and extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.wave = nn.Parameter(torch.ones(3, dtype=torch.complex64))
        self.block = nn.Parameter(torch.randn(4, 4).T)
        self.register_buffer("wide", torch.ones(3, 1).expand(3, 5))
        self.register_buffer("window", self.block.detach()[1:3, ::2])
        self.register_buffer("conjugate", torch.tensor([1 + 2j]).conj())
        self.register_buffer("mask", torch.tensor([0.0, -math.inf]))
        self.register_buffer("count", torch.tensor(3))
        self.register_buffer("flags", torch.tensor([True, False]))
        self.register_buffer("small", torch.ones(3).to(torch.float8_e4m3fn))
        self.register_buffer("sparse", torch.eye(3).to_sparse())
        self.register_buffer("empty", torch.empty(0, 3))
        with torch.inference_mode():
            self.register_buffer("cache", torch.ones(2))
        self.log = [1]

    def get_extra_state(self) -> Any:
        return {"log": self.log, "tensor": torch.ones(2)}

    def set_extra_state(self, state: Any) -> None:
        self.log = state["log"]


def spoil(module: nn.Module) -> None:
    with torch.inference_mode():
        for name in ("cache", "wave", "window", "conjugate", "count", "flags", "small", "sparse"):
            getattr(module, name).zero_()
        module.wide[:, :1].fill_(7)  # type: ignore[index,union-attr]
    module.log.append(2)  # type: ignore[union-attr,operator]


def buffers(module: nn.Module) -> Any:
    return {
        name: bits(tensor.clone())[1] for name, tensor in module.state_dict(keep_vars=True).items() if "_" not in name
    }


def test_tensors_of_all_kinds_come_back(tmp_path: Path) -> None:
    module = Kinds()
    run = Run([module], [optim.SGD([module.wave], 0.1)], History())
    module.block.grad = torch.eye(4).to_sparse()
    module.wave.grad = torch.ones(1, dtype=torch.complex64).expand(3)
    state, there, identities = State.capture(run), buffers(module), [id(b) for b in module.buffers()]
    assert state.finite()
    for _ in range(2):
        spoil(module)
        module.block.grad = module.wave.grad = None
        state.restore(run)
        assert buffers(module) == there
        assert [id(buffer) for buffer in module.buffers()] == identities
        assert module.log == [1]
        assert torch.equal(module.block.grad.to_dense(), torch.eye(4))  # type: ignore[union-attr]
        assert torch.equal(module.wave.grad, torch.ones(3, dtype=torch.complex64))
    state.save(tmp_path / "kinds.pt")
    spoil(module)
    State.load_into(tmp_path / "kinds.pt", run)
    assert buffers(module) == there
    assert module.log == [1]


def test_lazy_and_scripted_models() -> None:
    lazy = nn.Sequential(nn.LazyLinear(4), nn.LazyBatchNorm1d())
    run = Run([lazy], [optim.SGD(lazy.parameters(), 0.1)], History())
    early = State.capture(run)
    train(run, 1)
    late = weights(run)
    early.restore(run, clocks=False)
    assert weights(run)["parameters"] == late["parameters"], "there was nothing to go back to"

    with pytest.warns(DeprecationWarning, match="jit"):
        scripted = torch.jit.script(nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4)))
    run = Run([scripted], [optim.SGD(scripted.parameters(), 0.1)], History())
    state, there = State.capture(run), [tensor.clone() for tensor in scripted.state_dict().values()]
    train(run, 2)
    state.restore(run)
    assert all(map(torch.equal, scripted.state_dict().values(), there))


def test_states_are_kept_and_restored_inside_of_inference_mode() -> None:
    run = made("SGD momentum")
    train(run, 1)
    with torch.inference_mode():
        state = State.capture(run)
    older, there = State.capture(run), everything(run)
    train(run, 2)
    State.capture(run, into=older)
    with torch.inference_mode():
        state.restore(run)
    assert everything(run) == there
    train(run, 1)


def test_a_newer_state_takes_over_the_memory_of_an_older_one() -> None:
    run = made("Adam")
    train(run, 2)
    older = State.capture(run)
    memory = {copy.data_ptr() for copy in older.copies().values()}
    train(run, 1)
    newer, there = State.capture(run, into=older), everything(run)
    held = {copy.data_ptr() for copy in newer.copies().values()}
    assert len(held - memory) == 2, "level and seen are other tensors after each step"
    train(run, 1)
    with pytest.raises(RuntimeError, match="its memory was used for a newer one"):
        older.restore(run)
    newer.restore(run)
    assert everything(run) == there


def test_running_out_of_memory_leaves_the_older_state_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    run = made("Adam")
    train(run, 2)
    older, there = State.capture(run), everything(run)
    train(run, 1)

    def no_memory(*_: Any) -> Tensor:
        raise torch.OutOfMemoryError("no memory left")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "empty_like", no_memory)
        with pytest.raises(torch.OutOfMemoryError):
            State.capture(run, into=older)
    older.restore(run)
    assert everything(run) == there


def test_what_was_added_since_is_left_alone() -> None:
    run = made("Adam", scheduled=False)
    net, owner = run.models[0], run.optimizers[0]
    train(run, 1)
    state, there = State.capture(run), weights(run)
    net.added = nn.Linear(4, 4)
    net.last.register_forward_hook(lambda module, inputs, output: net.added(output))
    owner.param_groups[0]["params"].append(net.added.weight)
    owner.add_param_group({"params": [net.added.bias]})
    train(run, 2)
    added = bits([net.added.weight, net.added.bias, owner.state[net.added.weight], owner.state[net.added.bias]])
    for clocks in (False, True):
        state.restore(run, clocks=clocks)
        now = weights(run)
        assert {key: now["parameters"][key] for key in there["parameters"]} == there["parameters"]
        assert {key: now["state"][key] for key in there["state"]} == there["state"]
        assert bits([net.added.weight, net.added.bias, *map(owner.state.get, net.added.parameters())]) == added
        assert net.added.weight is owner.param_groups[0]["params"][-1]
        assert len(owner.param_groups) == 2
    train(run, 1)


def test_what_is_gone_is_passed_over() -> None:
    run = made("Adam", model=nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4)), scheduled=False)
    net: Any = run.models[0]
    owner = run.optimizers[0]
    train(run, 1)
    state, first = State.capture(run), bits(net[0].weight)
    gone, net[1] = net[1], nn.Tanh()
    owner.param_groups[0]["params"][2:] = []
    for parameter in gone.parameters():
        del owner.state[parameter]
    train(run, 1)
    gone.weight.data.zero_()
    state.restore(run)
    assert bits(net[0].weight) == first
    assert not gone.weight.any()
    assert len(owner.param_groups[0]["params"]) == len(owner.state) == 2
    run.optimizers = []
    state.restore(run)


def test_parameters_that_belong_to_no_model_come_back_with_their_optimizer() -> None:
    run = made("SGD momentum")
    latent = torch.ones(3, requires_grad=True)
    latent.grad = torch.ones(3)
    run.optimizers[0].add_param_group({"params": [latent], "lr": 0.5})
    run.schedulers = []
    state, there = State.capture(run), bits(latent)
    run.optimizers[0].step()
    latent.requires_grad_(False)
    assert bits(latent) != there
    state.restore(run)
    assert bits(latent) == there
    assert torch.equal(latent.grad, torch.ones(3))


def test_groups_come_back_after_the_optimizer_loaded_a_state_of_its_own() -> None:
    run = made("Adam")
    train(run, 2)
    state, there = State.capture(run), everything(run)
    owner = run.optimizers[0]
    owner.load_state_dict(copy.deepcopy(owner.state_dict()))
    owner.param_groups[0].update(lr=1.0, note="mine")
    train(run, 1)
    state.restore(run, clocks=False)
    assert owner.param_groups[0]["note"] == "mine"
    state.restore(run)
    assert everything(run) == there


def test_copies_of_the_model_are_unaffected() -> None:
    run = made("Adam")
    train(run, 1)
    average = optim.swa_utils.AveragedModel(run.models[0])
    best = copy.deepcopy(run.models[0])
    state = State.capture(run)
    train(run, 2)
    average.update_parameters(run.models[0])
    copies = [copy.deepcopy(each.state_dict()) for each in (average, best)]
    state.restore(run)
    for each, before in zip((average, best), copies, strict=True):
        assert all(torch.equal(value, before[key]) for key, value in each.state_dict().items())


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_finite(bad: float) -> None:
    run = made("Adam")
    net: Any = run.models[0]
    train(run, 1)
    healthy = State.capture(run)
    assert healthy.finite()
    for tensor in (net.first.weight, net.norm.running_var, run.optimizers[0].state[net.first.weight]["exp_avg"]):
        tensor.data.flatten()[0] = bad
        assert not State.capture(run).finite()
        healthy.restore(run)
    net.level.fill_(bad)
    net.first.weight.grad.fill_(bad)
    assert State.capture(run).finite()


# -- files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("optimizer", [name for name in OPTIMIZERS if "foreach" not in name])
def test_a_file_goes_on_in_another_run_and_can_be_loaded_by_hand(optimizer: str, tmp_path: Path) -> None:
    run = made(optimizer)
    train(run, 3)
    state = State.capture(run)
    expected, own = run.models[0].state_dict(), run.optimizers[0].state_dict()
    state.save(tmp_path / "runs" / "healthy.pt")
    saved = torch.load(tmp_path / "runs" / "healthy.pt", weights_only=True)
    assert list(saved["models"][0]) == list(expected)
    assert saved["optimizers"][0]["param_groups"] == own["param_groups"]
    assert saved["optimizers"][0]["state"].keys() == own["state"].keys()
    by_hand = made(optimizer)
    by_hand.models[0].load_state_dict(saved["models"][0])
    by_hand.optimizers[0].load_state_dict(saved["optimizers"][0])

    other = made(optimizer)
    loaded = State.load_into(tmp_path / "runs" / "healthy.pt", other)
    assert loaded.step == 3
    for one in (by_hand, other):
        state.restore(run)
        assert continued(one) == continued(run)


def continued(run: Run) -> list[float]:
    """Losses of a few more steps, with random numbers and what no state dict holds set the same."""
    seed_all(1)
    if isinstance(run.models[0], Net):
        run.models[0].level = torch.ones(2)
    run.schedulers = []
    return train(run, 3)


def test_a_file_has_the_shape_of_the_time_of_its_state(tmp_path: Path) -> None:
    run = made("Adam")
    train(run, 1)
    state, keys = State.capture(run), list(run.models[0].state_dict())
    run.models[0].added = nn.Linear(4, 4)
    run.models[0].norm = nn.Identity()
    train(run, 1)
    state.save(tmp_path / "healthy.pt")
    made("Adam").models[0].load_state_dict(torch.load(tmp_path / "healthy.pt", weights_only=True)["models"][0])
    assert list(torch.load(tmp_path / "healthy.pt", weights_only=True)["models"][0]) == keys


def test_what_no_file_may_hold_is_left_out(tmp_path: Path) -> None:
    run = made("SGD momentum")
    train(run, 1)
    run.optimizers[0].param_groups[0].update(lr=np.float64(0.25), note=print, table=np.ones(2))
    run.optimizers[0].state["odd"] = {"function": print, "number": 3}  # type: ignore[index]
    State.capture(run).save(tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)["optimizers"][0]
    assert saved["param_groups"][0]["lr"] == 0.25
    assert "note" not in saved["param_groups"][0]
    assert torch.equal(saved["param_groups"][0]["table"], torch.ones(2, dtype=torch.float64))
    assert saved["state"]["odd"] == {"number": 3}


def test_a_file_of_other_models_or_optimizers_changes_nothing(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    State.capture(made("SparseAdam")).save(path)
    wide, run = made("Adam"), made("Adam")
    train(run, 1)
    there = everything(run)
    with pytest.raises(UsageError, match=r"does not fit the model: first\.bias is only in one of them"):
        State.load_into(path, run)
    wide.optimizers = [optim.Adam([wide.models[0].first.weight])]  # type: ignore[union-attr,list-item]
    State.capture(wide).save(path)
    with pytest.raises(UsageError, match="does not fit the optimizer: its groups have other sizes"):
        State.load_into(path, run)
    wide.optimizers = []
    State.capture(wide).save(path)
    with pytest.raises(UsageError, match="does not fit the run: it holds another number of optimizers"):
        State.load_into(path, run)
    assert everything(run) == there


@pytest.mark.skipif(not hasattr(os, "fork"), reason="kills a copy of this process")
@pytest.mark.filterwarnings("ignore:This process.*is multi-threaded:DeprecationWarning")
def test_a_writer_that_is_killed_leaves_the_older_file(tmp_path: Path) -> None:
    run, path = made("Adam"), tmp_path / "healthy.pt"
    train(run, 1)
    State.capture(run).save(path)
    train(run, 1)
    newer = State.capture(run)
    writer = os.fork()
    if writer == 0:
        save_half(newer, path)
    assert os.waitstatus_to_exitcode(os.waitpid(writer, 0)[1]) == -signal.SIGKILL
    assert torch.load(path, weights_only=True)["step"] == 1
    (part,) = (each for each in tmp_path.iterdir() if each != path)
    assert part.stat().st_size > 0


def save_half(state: State, path: Path) -> None:
    """Die in the middle of writing, as a process does that is killed; never returns."""
    save = torch.save

    def half(content: Any, file: Any) -> None:
        whole = io.BytesIO()
        save(content, whole)
        file.write(whole.getvalue()[: len(whole.getvalue()) // 2])
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        torch.save = half
        state.save(path)
    finally:
        os._exit(1)


def test_a_writer_that_fails_leaves_the_older_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run = made("SGD")
    path = tmp_path / "healthy.pt"
    State.capture(run).save(path)

    def full(content: Any, file: Any) -> None:
        file.write(b"half of it")
        raise OSError("disk full")

    with monkeypatch.context() as patched:
        patched.setattr(torch, "save", full)
        with pytest.raises(OSError, match="disk full"):
            State.capture(run).save(path)
    assert State.load(path, run).step == 0
    assert [each.name for each in tmp_path.iterdir()] == ["healthy.pt"]
