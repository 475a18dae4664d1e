"""The saved state: every bit comes back, into the same tensors, for every optimizer, scheduler and kind of module."""

import copy
import inspect
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn, optim
from torch.nn.utils import parametrizations
from torch.optim import lr_scheduler

from trainmedic.errors import UnreadableError, UsageError
from trainmedic.history import History
from trainmedic.remedies._state import State
from trainmedic.remedies.run import Run

Optimizer = optim.Optimizer
Make = Callable[[Any], Optimizer]

OPTIMIZERS: dict[str, Make] = {
    "ASGD": lambda p: optim.ASGD(p, lr=0.05, t0=2.0),
    "Adadelta": lambda p: optim.Adadelta(p, lr=0.1),
    "Adafactor": lambda p: optim.Adafactor(p, lr=0.05),
    "Adagrad": lambda p: optim.Adagrad(p, lr=0.05, lr_decay=0.1),
    "Adagrad fused": lambda p: optim.Adagrad(p, lr=0.05, fused=True),
    "Adam": lambda p: optim.Adam(p, lr=0.05, amsgrad=True),
    "Adam capturable": lambda p: optim.Adam(p, lr=torch.tensor(0.05), foreach=False),
    "Adam foreach": lambda p: optim.Adam(p, lr=0.05, foreach=True),
    "Adam fused": lambda p: optim.Adam(p, lr=0.05, fused=True),
    "AdamW": lambda p: optim.AdamW(p, lr=0.05, weight_decay=0.1),
    "AdamW fused": lambda p: optim.AdamW(p, lr=0.05, fused=True),
    "Adamax": lambda p: optim.Adamax(p, lr=0.05),
    "LBFGS": lambda p: optim.LBFGS(p, lr=0.1, max_iter=4, history_size=3),
    "LBFGS line search": lambda p: optim.LBFGS(p, lr=0.1, max_iter=4, line_search_fn="strong_wolfe"),
    "Muon": lambda p: optim.Muon([x for x in p if x.ndim == 2], lr=0.05),
    "NAdam": lambda p: optim.NAdam(p, lr=0.05, decoupled_weight_decay=True),
    "RAdam": lambda p: optim.RAdam(p, lr=0.05),
    "RMSprop": lambda p: optim.RMSprop(p, lr=0.05, momentum=0.9, centered=True),
    "RMSprop foreach": lambda p: optim.RMSprop(p, lr=0.05, momentum=0.9, centered=True, foreach=True),
    "Rprop": lambda p: optim.Rprop(p, lr=0.05),
    "SGD": lambda p: optim.SGD(p, lr=0.05),
    "SGD fused": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, fused=True),
    "SGD momentum": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, weight_decay=0.1),
    "SGD nesterov": lambda p: optim.SGD(p, lr=0.05, momentum=0.9, nesterov=True, foreach=True),
    "SparseAdam": lambda p: optim.SparseAdam(p, lr=0.05),
}

SCHEDULERS: dict[str, Callable[[Optimizer], Any]] = {
    "ChainedScheduler": lambda o: lr_scheduler.ChainedScheduler(
        [lr_scheduler.ConstantLR(o, 0.5, 4), lr_scheduler.ExponentialLR(o, 0.9)]
    ),
    "ConstantLR": lambda o: lr_scheduler.ConstantLR(o, 0.5, 4),
    "CosineAnnealingLR": lambda o: lr_scheduler.CosineAnnealingLR(o, 9, eta_min=0.01),
    "CosineAnnealingWarmRestarts": lambda o: lr_scheduler.CosineAnnealingWarmRestarts(o, 3, 2),
    "CyclicLR": lambda o: lr_scheduler.CyclicLR(o, 0.01, 0.1, step_size_up=3),
    "ExponentialLR": lambda o: lr_scheduler.ExponentialLR(o, 0.9),
    "LRScheduler": lambda o: lr_scheduler.LambdaLR(o, Remembering()),
    "LambdaLR": lambda o: lr_scheduler.LambdaLR(o, lambda step: 1 / (step + 1)),
    "LinearLR": lambda o: lr_scheduler.LinearLR(o, 0.1, total_iters=5),
    "MultiStepLR": lambda o: lr_scheduler.MultiStepLR(o, [2, 4, 4, 7]),
    "MultiplicativeLR": lambda o: lr_scheduler.MultiplicativeLR(o, lambda step: 0.9),
    "OneCycleLR": lambda o: lr_scheduler.OneCycleLR(o, 0.1, total_steps=40),
    "PolynomialLR": lambda o: lr_scheduler.PolynomialLR(o, 20),
    "ReduceLROnPlateau": lambda o: lr_scheduler.ReduceLROnPlateau(o, patience=1, factor=0.5),
    "SequentialLR": lambda o: lr_scheduler.SequentialLR(
        o, [lr_scheduler.LinearLR(o, 0.1, total_iters=3), lr_scheduler.CosineAnnealingLR(o, 9)], [5]
    ),
    "StepLR": lambda o: lr_scheduler.StepLR(o, 2),
    "SWALR": lambda o: optim.swa_utils.SWALR(o, 0.01, anneal_epochs=4),
}


class Remembering:
    """A schedule with a memory of its own."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, step: int) -> float:
        self.calls += 1
        return 1 / (self.calls + 1)


@pytest.fixture(autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


def network() -> nn.Module:
    return nn.Sequential(
        nn.Linear(4, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 2)
    )


class Loop:
    """A training under way."""

    def __init__(self, model: nn.Module, optimizer: Optimizer, scheduler: Any = None, scaler: Any = None) -> None:
        self.model, self.optimizer, self.scheduler, self.scaler = model, optimizer, scheduler, scaler
        schedulers = [scheduler] if scheduler is not None else []
        self.run = Run([model], [optimizer], History(), schedulers=schedulers, scaler=scaler)

    def steps(self, count: int) -> list[float]:
        losses = []
        for _ in range(count):
            x = self.inputs()

            def closure(x: Tensor = x) -> Tensor:
                self.optimizer.zero_grad()
                output = self.model(x)
                loss = F.cross_entropy(output, torch.arange(len(output)) % output.shape[1])
                loss.backward()
                return loss

            if isinstance(self.optimizer, optim.LBFGS):
                losses.append(float(self.optimizer.step(closure).detach()))
            else:
                losses.append(float(closure().detach()))
                self.optimizer.step()
            if isinstance(self.scheduler, lr_scheduler.ReduceLROnPlateau):
                self.scheduler.step(losses[-1])
            elif self.scheduler is not None:
                self.scheduler.step()
            self.run.step += 1
        return losses

    def inputs(self) -> Tensor:
        return torch.randint(0, 9, (6,)) if isinstance(self.model, nn.Embedding) else torch.randn(6, 4)


def loop(optimizer: str = "Adam", scheduler: str | None = None, model: nn.Module | None = None) -> Loop:
    torch.manual_seed(0)
    made = model if model is not None else nn.Embedding(9, 3, sparse=True) if optimizer == "SparseAdam" else network()
    of = OPTIMIZERS[optimizer](list(made.parameters()))
    return Loop(made, of, SCHEDULERS[scheduler](of) if scheduler else None)


def everything(loop: Loop) -> dict[str, Any]:
    """All that a run holds, independently of ``State``, with who holds it."""
    model, optimizer = loop.model, loop.optimizer
    schedulers = [loop.scheduler, *getattr(loop.scheduler, "_schedulers", ())] if loop.scheduler is not None else []
    flat = {
        **{f"parameter {name}": p for name, p in model.named_parameters(remove_duplicate=False)},
        **{f"buffer {name}": b for name, b in model.named_buffers(remove_duplicate=False)},
        **{
            f"gradient {name}": p.grad if p.grad is None else frozen(p.grad)[1:] for name, p in model.named_parameters()
        },
        **{f"mode {name}": (m.training, sorted(m._buffers)) for name, m in model.named_modules()},
        **{f"trains {name}": p.requires_grad for name, p in model.named_parameters()},
        "state": {str(i): dict(v) for i, v in enumerate(optimizer.state.values())},
        "groups": [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups],
        "members": [[id(p) for p in group["params"]] for group in optimizer.param_groups],
        "schedulers": [
            {k: v for k, v in vars(s).items() if k not in ("optimizer", "_schedulers", "lr_lambdas")}
            for s in schedulers
        ],
        "memories": [
            dict(vars(f)) for s in schedulers for f in getattr(s, "lr_lambdas", ()) if isinstance(f, Remembering)
        ],
        "scaler": dict(vars(loop.scaler)) if loop.scaler is not None else None,
        "random": (random.getstate(), np.random.get_state(), torch.get_rng_state().tolist()),
    }
    return {key: frozen(value) for key, value in flat.items()}


def frozen(value: Any) -> Any:
    """A value that compares bit for bit, and by which object holds it."""
    if isinstance(value, Tensor):
        copied = value.detach().clone()
        dense = copied.to_dense() if copied.is_sparse else copied
        return (id(value), str(value.dtype), value.layout, dense.contiguous().view(torch.uint8).flatten().tolist()) \
            if dense.ndim and dense.numel() else (id(value), str(value.dtype), repr(dense))  # fmt: skip
    if isinstance(value, np.ndarray):
        return value.tolist()
    if isinstance(value, dict):
        return type(value).__name__, {key: frozen(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [frozen(inner) for inner in value]
    return copy.copy(value)


def differences(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    return [key for key in {*one, *other} if one.get(key) != other.get(key)]


def test_every_optimizer_and_scheduler_of_torch_is_tested() -> None:
    shipped = {name for name, thing in vars(optim).items() if inspect.isclass(thing)} - {"Optimizer"}
    assert shipped == {name.split()[0] for name in OPTIMIZERS}
    schedulers = {
        name
        for name, thing in vars(lr_scheduler).items()
        if inspect.isclass(thing) and issubclass(thing, lr_scheduler.LRScheduler) and not name.startswith("_")
    }
    assert schedulers <= set(SCHEDULERS)


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize("before", [0, 3])
def test_all_of_it_comes_back_and_training_repeats_itself(optimizer: str, before: int) -> None:
    run = loop(optimizer)
    run.steps(before)
    state, there = State.capture(run.run), everything(run)
    assert not differences(there, everything(run))
    first = run.steps(4)
    assert differences(there, everything(run))
    state.restore(run.run)
    assert not differences(there, everything(run))
    assert run.steps(4) == first
    state.restore(run.run)
    assert not differences(there, everything(run))


@pytest.mark.parametrize("scheduler", SCHEDULERS)
def test_schedulers_come_back_with_what_they_are_made_of(scheduler: str) -> None:
    run = loop("SGD momentum", scheduler)
    run.steps(3)
    state, there = State.capture(run.run), everything(run)
    rates = []
    for _ in range(2):
        run.steps(5)
        rates.append(run.run.learning_rates())
        state.restore(run.run)
        assert not differences(there, everything(run))
    assert rates[0] == rates[1]


@pytest.mark.parametrize("optimizer", ["Adam", "Adam capturable", "SGD momentum", "RMSprop"])
def test_without_clocks_only_what_was_learnt_comes_back(optimizer: str) -> None:
    run = loop(optimizer, "OneCycleLR" if optimizer != "Adam capturable" else "StepLR")
    run.steps(3)
    state, there = State.capture(run.run), everything(run)
    run.steps(3)
    run.model.eval()
    run.optimizer.param_groups[0]["weight_decay"] = 0.25
    later = everything(run)
    state.restore(run.run, clocks=False)
    now = everything(run)
    goes_on = {key for key in now if key.split()[0] in ("mode", "trains")}
    goes_on |= {"groups", "schedulers", "random", "members"}
    assert {key: now[key] for key in goes_on} == {key: later[key] for key in goes_on}
    assert {key: now[key] for key in now if key not in goes_on} == {
        key: there[key] for key in there if key not in goes_on
    }


def test_capturing_again_takes_the_memory_of_the_older_state() -> None:
    run = loop()
    run.steps(3)
    older = State.capture(run.run)
    memory = {copy.data_ptr() for copy in older.copies().values()}
    run.steps(2)
    state, there = State.capture(run.run, into=older), everything(run)
    assert {copy.data_ptr() for copy in state.copies().values()} == memory
    with pytest.raises(RuntimeError, match="its memory was used for a newer one"):
        older.restore(run.run)
    run.steps(2)
    state.restore(run.run)
    assert not differences(there, everything(run))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_state_of_another_precision_than_its_parameter_is_kept_as_it_is(dtype: torch.dtype) -> None:
    run = loop("Adam", model=network().to(dtype))
    run.inputs = lambda: torch.randn(6, 4, dtype=dtype)  # type: ignore[method-assign]
    run.steps(2)
    for values in run.optimizer.state.values():
        values["exp_avg"] = values["exp_avg"].float() + 1e-6
    state, there = State.capture(run.run), everything(run)
    run.model.half()
    for values in run.optimizer.state.values():
        values["exp_avg"] = values["exp_avg"] + 1
    run.model.to(dtype)
    state.restore(run.run)
    assert not differences(there, everything(run))


class Odd(nn.Module):
    """Everything a module may hold: tied weights, buffers of all kinds, extra state."""

    def __init__(self) -> None:
        super().__init__()
        self.first = parametrizations.weight_norm(nn.Linear(4, 4))
        self.second = parametrizations.spectral_norm(nn.Linear(4, 4))
        self.third = nn.Linear(4, 4)
        self.third.bias = self.first.bias
        self.register_buffer("count", torch.zeros((), dtype=torch.int64))
        self.register_buffer("phase", torch.ones(3, dtype=torch.complex64))
        self.register_buffer("hidden", torch.ones(2), persistent=False)
        self.register_buffer("absent", None)
        self.register_buffer("wide", torch.ones(3, 1).expand(3, 5))
        self.register_buffer("view", self.third.weight.detach()[1:3, ::2])
        self.register_buffer("empty", torch.empty(0))
        self.log: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.count += 1
            self.phase *= 1j
            self.hidden = self.hidden * 2  # another tensor under the same name
            self.log.append(int(self.count))
            if self.count > 2 and self.absent is None:
                self.absent = torch.ones(1)
                self.register_buffer("late", torch.ones(2))
        return self.third(self.second(self.first(x)))

    def get_extra_state(self) -> Any:
        return {"log": self.log}

    def set_extra_state(self, state: Any) -> None:
        self.log = state["log"]


def test_odd_modules_come_back() -> None:
    run = loop("Adam", model=Odd())
    run.steps(2)
    run.model.third.weight.requires_grad_(False)  # type: ignore[union-attr,operator]
    state, there = State.capture(run.run), everything(run)
    log = list(run.model.log)  # type: ignore[arg-type]
    run.steps(3)
    run.model.eval()
    run.model.third.requires_grad_(True)  # type: ignore[union-attr]
    state.restore(run.run)
    assert not differences(there, everything(run))
    assert run.model.log == log
    run.model.train()
    run.steps(1)
    state.restore(run.run)
    assert run.model.log == log, "the kept extra state is not handed out itself"


@pytest.mark.filterwarnings("ignore:torch.cuda.amp")
@pytest.mark.parametrize("used", [False, True])
def test_the_scaler_comes_back(used: bool) -> None:
    run = loop("SGD momentum")
    run.scaler = run.run.scaler = torch.amp.GradScaler("cpu", init_scale=8.0, growth_interval=2)

    def step() -> None:
        run.optimizer.zero_grad()
        run.scaler.scale(run.model(torch.randn(6, 4)).sum()).backward()
        run.scaler.step(run.optimizer)
        run.scaler.update()

    if used:
        step()
    state, there = State.capture(run.run), everything(run)
    for _ in range(3):
        step()
    state.restore(run.run)
    assert not differences(there, everything(run))
    step()


def test_differentiable_optimizers() -> None:
    weight = nn.Parameter(torch.ones(3), requires_grad=False)
    model = nn.ParameterList([weight])
    optimizer = optim.Adam(model.parameters(), lr=0.1, differentiable=True)
    run = Loop(model, optimizer)

    def step() -> None:
        weight.grad = torch.randn(3)
        optimizer.step()

    step()
    state, there = State.capture(run.run), everything(run)
    step()
    state.restore(run.run)
    assert not differences(there, everything(run))


def test_an_optimizer_with_a_state_of_its_own_kind() -> None:
    run = loop("SGD momentum")
    run.steps(1)
    run.optimizer.state["global"] = {"step": 1, "history": [torch.ones(2)]}  # type: ignore[index]
    state, there = State.capture(run.run), everything(run)
    run.optimizer.state["global"]["history"].append(torch.zeros(2))  # type: ignore[index]
    run.optimizer.state["global"]["history"][0].add_(1)  # type: ignore[index]
    run.optimizer.state["other"] = {"x": 1}  # type: ignore[index]
    state.restore(run.run)
    assert not differences(there, everything(run))


@pytest.mark.parametrize("optimizer", ["Adam", "Adam capturable", "LBFGS", "Rprop", "SGD momentum", "SparseAdam"])
def test_a_saved_state_loads_into_a_fresh_run(optimizer: str, tmp_path: Path) -> None:
    run = loop(optimizer)
    run.steps(3)
    state = State.capture(run.run)
    state.save(tmp_path / "deep" / "state.pt")
    content = torch.load(tmp_path / "deep" / "state.pt", weights_only=True)
    assert content["models"][0].keys() == run.model.state_dict().keys()
    assert content["step"] == 3
    random_state = torch.get_rng_state()
    expected = run.steps(3)

    fresh = loop(optimizer)
    untouched = everything(fresh)
    loaded = State.load(tmp_path / "deep" / "state.pt", fresh.run)
    assert not differences(untouched, everything(fresh))
    loaded.restore(fresh.run)
    torch.set_rng_state(random_state)
    assert loaded.step == 3
    assert fresh.steps(3) == expected
    assert list(tmp_path.glob("**/*.part")) == []


def test_a_saved_state_has_the_shape_of_its_time(tmp_path: Path) -> None:
    run = loop()
    run.steps(1)
    state, keys = State.capture(run.run), list(run.model.state_dict())
    weight = run.model[0].weight.detach().clone()  # type: ignore[index,union-attr,operator]
    run.model.add_module("later", nn.Linear(2, 2))
    run.optimizer.param_groups[0]["params"].extend(run.model.later.parameters())  # type: ignore[operator,union-attr]
    run.steps(2)
    state.save(tmp_path / "state.pt")
    content = torch.load(tmp_path / "state.pt", weights_only=True)
    assert list(content["models"][0]) == keys
    assert torch.equal(content["models"][0]["0.weight"], weight)
    fresh = loop()
    fresh.model.load_state_dict(content["models"][0])
    fresh.optimizer.load_state_dict(content["optimizers"][0])


def test_odd_modules_are_saved_whole(tmp_path: Path) -> None:
    run = loop("Adam", model=Odd())
    run.steps(1)
    State.capture(run.run).save(tmp_path / "state.pt")
    saved = torch.load(tmp_path / "state.pt", weights_only=True)["models"][0]
    own = run.model.state_dict()
    assert saved.keys() == own.keys()
    assert all(torch.equal(saved[key], own[key]) for key in own if isinstance(own[key], Tensor))
    fresh = loop("Adam", model=Odd())
    State.load(tmp_path / "state.pt", fresh.run).restore(fresh.run)
    assert all(torch.equal(fresh.model.state_dict()[key], own[key]) for key in own if isinstance(own[key], Tensor))


def test_files_that_are_no_states(tmp_path: Path) -> None:
    run = loop()
    path = tmp_path / "state.pt"
    with pytest.raises(UnreadableError, match=r"state\.pt: cannot be read: No such file"):
        State.load(path, run.run)
    path.write_bytes(b"PK\x03\x04 not much")
    with pytest.raises(UnreadableError, match=r"state\.pt: not a saved state, or a broken one"):
        State.load(path, run.run)
    torch.save({"version": 99}, path)
    with pytest.raises(UnreadableError, match=r"state\.pt: not a saved state of version 1"):
        State.load(path, run.run)
    State.capture(loop(model=nn.Linear(4, 2)).run).save(path)
    with pytest.raises(UsageError, match=r"state\.pt: does not fit the model: 0\.bias is only in one of them"):
        State.load(path, run.run)
    State.capture(run.run).save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(UnreadableError, match="or a broken one"):
        State.load(path, run.run)


def test_a_failed_write_leaves_the_older_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = loop()
    path = tmp_path / "state.pt"
    State.capture(run.run).save(path)
    before = path.read_bytes()

    def broken(*_: Any) -> None:
        raise OSError("disk full")

    monkeypatch.setattr(torch, "save", broken)
    with pytest.raises(OSError, match="disk full"):
        State.capture(run.run).save(path)
    assert path.read_bytes() == before
    assert [p.name for p in tmp_path.iterdir()] == ["state.pt"]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_finite_looks_at_weights_buffers_and_optimizers(bad: float) -> None:
    run = loop()
    run.steps(1)
    assert State.capture(run.run).finite()
    first = next(iter(run.optimizer.state.values()))
    for tensor in (run.model[0].weight, run.model[1].running_var, first["exp_avg"]):  # type: ignore[index,union-attr]
        state = State.capture(run.run)
        tensor.data.flatten()[0] = bad  # type: ignore[union-attr,operator]
        assert not State.capture(run.run).finite()
        state.restore(run.run)
        assert State.capture(run.run).finite()
