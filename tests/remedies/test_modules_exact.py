"""Undo is bit-exact on every kind of module that torch ships: trained on, put back, and trained on again alike."""

import inspect
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn.modules import lazy, loss

from trainmedic.history import History
from trainmedic.remedies._state import State
from trainmedic.remedies.run import Run

Make = Callable[[], nn.Module]


def floats(*shape: int) -> Callable[[], tuple[Any, ...]]:
    return lambda: (torch.randn(*shape),)


def several(*makes: Callable[[], tuple[Any, ...]]) -> Callable[[], tuple[Any, ...]]:
    return lambda: tuple(value for make in makes for value in make())


def tokens() -> tuple[Any, ...]:
    return (torch.randint(0, 5, (4, 3)),)


IMAGES = {1: (4, 4, 8), 2: (4, 4, 8, 8), 3: (4, 4, 6, 6, 6)}
MODULES: dict[str, tuple[Make, Callable[[], tuple[Any, ...]]]] = {
    "Linear": (lambda: nn.Linear(4, 3), floats(5, 4)),
    "Bilinear": (lambda: nn.Bilinear(4, 3, 2), several(floats(5, 4), floats(5, 3))),
    "Embedding": (lambda: nn.Embedding(5, 3, max_norm=1.0), tokens),
    "EmbeddingBag": (lambda: nn.EmbeddingBag(5, 3), tokens),
    "PReLU": (lambda: nn.PReLU(4), floats(5, 4)),
    "RReLU": (nn.RReLU, floats(5, 4)),
    "GroupNorm": (lambda: nn.GroupNorm(2, 4), floats(5, 4, 3)),
    "LayerNorm": (lambda: nn.LayerNorm(4), floats(5, 4)),
    "RMSNorm": (lambda: nn.RMSNorm(4), floats(5, 4)),
    "MultiheadAttention": (lambda: nn.MultiheadAttention(4, 2, 0.1, add_bias_kv=True), several(*[floats(5, 2, 4)] * 3)),
    "Transformer": (lambda: nn.Transformer(4, 2, 1, 1, 8), several(*[floats(5, 2, 4)] * 2)),
    "TransformerEncoderLayer": (lambda: nn.TransformerEncoderLayer(4, 2, 8), floats(5, 2, 4)),
    "TransformerDecoderLayer": (lambda: nn.TransformerDecoderLayer(4, 2, 8), several(*[floats(5, 2, 4)] * 2)),
    "TransformerEncoder": (
        lambda: nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 8), 2, enable_nested_tensor=False),
        floats(5, 2, 4),
    ),
    "TransformerDecoder": (
        lambda: nn.TransformerDecoder(nn.TransformerDecoderLayer(4, 2, 8), 2), several(*[floats(5, 2, 4)] * 2)
    ),
    "AdaptiveLogSoftmaxWithLoss": (
        lambda: nn.AdaptiveLogSoftmaxWithLoss(4, 9, [3, 6]), lambda: (torch.randn(5, 4), torch.randint(0, 9, (5,)))
    ),
    "LinearCrossEntropyLoss": (
        lambda: nn.LinearCrossEntropyLoss(4, 9), lambda: (torch.randn(5, 4), torch.randint(0, 9, (5,)))
    ),
    **{name: (lambda name=name: getattr(nn, name)(4, 3, 2), floats(5, 2, 4)) for name in ("RNN", "LSTM", "GRU")},
    **{f"{name}Cell": (lambda name=name: getattr(nn, f"{name}Cell")(4, 3), floats(5, 4))
       for name in ("RNN", "LSTM", "GRU")},
    **{f"{name}{d}d": (lambda name=name, d=d: getattr(nn, f"{name}{d}d")(4, 3, 2), floats(*IMAGES[d]))
       for name in ("Conv", "ConvTranspose") for d in (1, 2, 3)},
    **{f"{name}{d}d": (lambda name=name, d=d: getattr(nn, f"{name}{d}d")(4, affine=True, track_running_stats=True),
                       floats(*IMAGES[d]))
       for name in ("BatchNorm", "InstanceNorm")
       for d in (1, 2, 3)},
    **{name: (lambda name=name: getattr(nn, name)(0.3), floats(5, 4, 3, 3))
       for name in ("Dropout", "AlphaDropout", "FeatureAlphaDropout", "Dropout2d")},
    "Dropout1d": (lambda: nn.Dropout1d(0.3), floats(5, 4, 3)),
    "Dropout3d": (lambda: nn.Dropout3d(0.3), floats(2, 3, 2, 2, 2)),
    "FractionalMaxPool2d": (lambda: nn.FractionalMaxPool2d(2, output_ratio=0.5), floats(*IMAGES[2])),
    "FractionalMaxPool3d": (lambda: nn.FractionalMaxPool3d(2, output_ratio=0.5), floats(*IMAGES[3])),
    **{f"Lazy{name}{d}d": (lambda name=name, d=d: getattr(nn, f"Lazy{name}{d}d")(3, 2), floats(*IMAGES[d]))
       for name in ("Conv", "ConvTranspose") for d in (1, 2, 3)},
    **{f"Lazy{name}{d}d": (lambda name=name, d=d: getattr(nn, f"Lazy{name}{d}d")(), floats(*IMAGES[d]))
       for name in ("BatchNorm", "InstanceNorm") for d in (1, 2, 3)},
    "LazyLinear": (lambda: nn.LazyLinear(3), floats(5, 4)),
    "ParameterList": (lambda: Holding(nn.ParameterList([torch.ones(4), torch.zeros(4)])), floats(5, 4)),
    "ParameterDict": (lambda: Holding(nn.ParameterDict({"a": torch.ones(4)})), floats(5, 4)),
    "Sequential": (lambda: nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3)), floats(5, 4)),
    "ModuleList": (lambda: Holding(nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])), floats(5, 4)),
    "ModuleDict": (lambda: Holding(nn.ModuleDict({"a": nn.Linear(4, 4)})), floats(5, 4)),
}  # fmt: skip
"""Every module that holds something or draws random numbers."""

ABSTRACT = {"Module", "Container", "RNNBase", "RNNCellBase", "DataParallel", "SyncBatchNorm", "Unflatten"}
"""What is a base of others, needs several devices, or only reshapes and takes a shape for that."""


class Holding(nn.Module):
    """Uses what a container holds."""

    def __init__(self, held: Any) -> None:
        super().__init__()
        self.held = held

    def forward(self, x: Tensor) -> Tensor:
        for one in self.held.values() if hasattr(self.held, "values") else self.held:
            x = one(x) if isinstance(one, nn.Module) else x * one + one
        return x


def test_every_module_of_torch_that_holds_something_is_in_the_table() -> None:
    for name, kind in vars(nn).items():
        if not (inspect.isclass(kind) and issubclass(kind, nn.Module)) or name in MODULES or name in ABSTRACT:
            continue
        assert not issubclass(kind, lazy.LazyModuleMixin), name
        needed = [p for p in list(inspect.signature(kind.__init__).parameters.values())[1:] if p.default is p.empty]
        given = [2 for p in needed if p.kind is p.POSITIONAL_OR_KEYWORD]
        made = kind() if issubclass(kind, loss._WeightedLoss) else kind(*given)
        assert not list(made.parameters()), name
        assert not list(made.buffers()), name


def numbers(value: Any) -> list[Tensor]:
    if isinstance(value, Tensor):
        return [value] if value.is_floating_point() and value.requires_grad else []
    return [tensor for part in value for tensor in numbers(part)] if isinstance(value, tuple | list) else []


def train(model: nn.Module, optimizer: torch.optim.Optimizer | None, inputs: Any, steps: int) -> list[Tensor]:
    """So many steps; what came out of them."""
    seen = []
    for _ in range(steps):
        output = model(*inputs())
        outputs = numbers(output)
        seen += [tensor.detach().clone() for tensor in outputs]
        if optimizer is not None and outputs:
            optimizer.zero_grad()
            sum(tensor.square().mean() for tensor in outputs).backward()
            optimizer.step()
        elif isinstance(output, Tensor):
            seen.append(output.clone())
    return seen


def held(model: nn.Module, optimizer: torch.optim.Optimizer | None) -> list[Tensor]:
    state = [v for each in (optimizer.state.values() if optimizer else ()) for v in each.values()]
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    tensors = [*model.state_dict().values(), *gradients, *(v for v in state if isinstance(v, Tensor))]
    return [tensor.detach().clone() for tensor in (*tensors, torch.get_rng_state())]


@pytest.mark.parametrize("kind", MODULES)
def test_undo_is_exact_on_every_module(kind: str) -> None:
    torch.manual_seed(0)
    make, inputs = MODULES[kind]
    model = make()
    with torch.no_grad():
        model(*inputs())  # lazy ones are made here
    parameters = list(model.parameters())
    optimizer = torch.optim.Adam(parameters, 0.05) if parameters else None
    run = Run([model], [optimizer] if optimizer else [], History())
    train(model, optimizer, inputs, 2)
    before, objects = held(model, optimizer), [id(p) for p in model.parameters()]
    state = State.capture(run)
    assert all(map(torch.equal, held(model, optimizer), before)), "keeping changes nothing"
    seen = train(model, optimizer, inputs, 3)
    model.eval()
    assert not all(map(torch.equal, held(model, optimizer), before))
    state.restore(run)
    assert all(map(torch.equal, held(model, optimizer), before))
    assert all(module.training for module in model.modules())
    assert [id(p) for p in model.parameters()] == objects
    assert all(map(torch.equal, train(model, optimizer, inputs, 3), seen)), "and training repeats itself"
