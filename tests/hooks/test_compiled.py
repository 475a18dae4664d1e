"""torch.compile: nothing is compiled again, and no graph breaks, because of watching."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from functorch.compile import make_boxed_func
from torch import Tensor, nn
from torch._dynamo.backends.common import aot_autograd

import trainmedic
from trainmedic.history import History


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.head = nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(F.relu(self.first(x)))


class Counting:
    """A compiler that counts what it is asked to compile, forward and backward, and leaves it as it is."""

    def __init__(self) -> None:
        self.calls = 0
        self.backend = aot_autograd(fw_compiler=self._compile)

    def _compile(self, graph: torch.fx.GraphModule, _: object) -> Callable[..., object]:
        self.calls += 1
        return make_boxed_func(graph.forward)


def in_place(model: nn.Module, backend: object) -> nn.Module:
    model.compile(backend=backend, fullgraph=True)
    return model


def wrapped(model: nn.Module, backend: object) -> nn.Module:
    return torch.compile(model, backend=backend, fullgraph=True)


@pytest.fixture(autouse=True)
def fresh_compiler():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    yield
    torch._dynamo.reset()


def train(net: nn.Module, optimizer: torch.optim.Optimizer, medic: trainmedic.Medic | None) -> list[float]:
    torch.manual_seed(1)
    losses = []
    for _ in range(60):
        x, y = torch.randn(4, 8), torch.randint(0, 3, (4,))
        optimizer.zero_grad()
        loss = F.cross_entropy(net(x), y)
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
        if medic:
            medic.log(loss)
    return losses


@pytest.mark.parametrize("compile_model", [wrapped, in_place])
@pytest.mark.parametrize("when", ["before", "after"])
def test_nothing_is_compiled_again_and_no_graph_breaks(compile_model, when: str) -> None:
    torch.manual_seed(0)
    model, bare = Net(), Net()
    bare.load_state_dict(model.state_dict())
    counting = Counting()
    expected = train(compile_model(bare, counting.backend), torch.optim.SGD(bare.parameters(), lr=0.1), None)
    alone, counting.calls = counting.calls, 0
    torch._dynamo.reset()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    net = compile_model(model, counting.backend) if when == "before" else model
    with warnings.catch_warnings(), trainmedic.watch(net, optimizer, settings={"every": 3}) as medic:
        warnings.simplefilter("error")
        if when == "after":
            net = compile_model(model, counting.backend)
        losses = train(net, optimizer, medic)
    assert counting.calls == alone == 2
    assert not torch._dynamo.utils.counters["recompiles"]
    assert not torch._dynamo.utils.counters["graph_break"]
    assert losses == expected
    history, notes = medic.report().history, " ".join(medic.report().notes)
    assert "activations" in notes
    assert "compile" in notes
    assert len(history.layers("update_ratio").steps) == len(history.layers("gradient_mean_abs").steps) == 33
    assert len(history.series("gradient/norm").steps) == 60
    assert "activation_std" not in history


def steps(model: nn.Module, optimizer: torch.optim.Optimizer, loss_fn, medic: trainmedic.Medic) -> History:
    for _ in range(40):
        optimizer.zero_grad()
        loss_fn(model(torch.randn(4, 8)), torch.randint(0, 3, (4,))).backward()
        optimizer.step()
    return medic.report().history


@pytest.mark.parametrize("warm", [False, True])
def test_compiled_functions_without_modules_leave_activations_in_sight(warm: bool) -> None:
    torch.manual_seed(0)
    counting = Counting()
    model = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3))
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    loss_fn = torch.compile(F.cross_entropy, backend=counting.backend, fullgraph=True)
    if warm:
        loss_fn(torch.randn(4, 3, requires_grad=True), torch.randint(0, 3, (4,))).backward()
    with trainmedic.watch(model, optimizer, settings={"every": 3}) as medic:
        history = steps(model, optimizer, loss_fn, medic)
    assert counting.calls == 2
    assert not torch._dynamo.utils.counters["recompiles"]
    assert len(history.series("gradient/norm").steps) == 40
    assert len(history.layers("activation_std").steps) == 27


@pytest.mark.parametrize(("when", "seen"), [("before", 0), ("at the start", 1), ("later", 22)])
def test_another_model_that_is_compiled_is_not_compiled_again(when: str, seen: int) -> None:
    """A teacher: hooks on all modules would reach it too."""
    torch.manual_seed(0)
    counting = Counting()
    model, teacher = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 3)), Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)

    @torch.compile(backend=counting.backend, fullgraph=True)
    def taught(x: Tensor) -> Tensor:
        with torch.no_grad():
            return teacher(x)

    calls = 0

    def loss_fn(output: Tensor, _: Tensor) -> Tensor:
        nonlocal calls
        calls += 1
        return F.mse_loss(output, taught(torch.randn(4, 8)) if calls > 25 or when != "later" else output.detach())

    if when == "before":
        taught(torch.randn(4, 8))
    with trainmedic.watch(model, optimizer, settings={"every": 3}) as medic:
        history = steps(model, optimizer, loss_fn, medic)
    assert counting.calls == 1
    assert not torch._dynamo.utils.counters["recompiles"]
    assert len(history.layers("activation_std").steps if seen else ()) == seen, "steps before it was compiled"
    assert "modules are compiled in this process" in " ".join(medic.report().notes)


def test_the_model_itself_may_be_handed_over_when_its_compiled_stand_in_trains() -> None:
    torch.manual_seed(0)
    counting = Counting()
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    net = torch.compile(model, backend=counting.backend, fullgraph=True)
    with warnings.catch_warnings(), trainmedic.watch(model, optimizer, settings={"every": 3}) as medic:
        warnings.simplefilter("error")
        train(net, optimizer, medic)
    assert counting.calls == 2
    assert not torch._dynamo.utils.counters["recompiles"]
    assert len(medic.report().history.layers("update_ratio").steps) == 33


def test_no_trace_is_left_for_the_compiler() -> None:
    model = Net()
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    with trainmedic.watch(model, optimizer) as medic:
        train(model, optimizer, medic)
    assert not torch.nn.modules.module._has_any_global_hook()
    assert not torch.nn.modules.module._global_module_registration_hooks
