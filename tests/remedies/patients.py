"""Small trainings under way, with everything that may hold on to them: a parameter list, an average, a scheduler."""

import copy
import random
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from trainmedic.diagnose import Finding, Severity
from trainmedic.history import History
from trainmedic.hooks.probe import Probe
from trainmedic.hooks.schedule import Schedule
from trainmedic.remedies._state import State
from trainmedic.remedies.run import Run


def perceptron(bias: bool = True) -> nn.Module:
    """Three linear layers with rectifiers; two units of the first rectifier are dead where there is a bias."""
    model = nn.Sequential(
        nn.Linear(6, 8, bias), nn.ReLU(), nn.Linear(8, 8, bias), nn.ReLU(), nn.Linear(8, 3, bias)
    )  # fmt: skip
    if bias:
        model[0].bias.data[:2] = -100.0
    return model


class Bag(nn.Module):
    """An embedding with sparse gradients under frozen layers: all that SparseAdam can train."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(10, 6, sparse=True)
        self.rest = perceptron().requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.rest(self.embedding((x[:, 0].abs() * 9).long() % 10))


OPTIMIZERS: dict[str, Callable[[nn.Module], torch.optim.Optimizer]] = {
    "ASGD": lambda m: torch.optim.ASGD(m.parameters(), lr=0.01),
    "Adadelta": lambda m: torch.optim.Adadelta(m.parameters(), lr=0.1),
    "Adafactor": lambda m: torch.optim.Adafactor(m.parameters(), lr=0.01),
    "Adagrad": lambda m: torch.optim.Adagrad(m.parameters(), lr=0.01),
    "Adam": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, amsgrad=True),
    "Adam fused": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, fused=True),
    "Adam foreach": lambda m: torch.optim.Adam(m.parameters(), lr=0.01, foreach=True),
    "Adam tensor": lambda m: torch.optim.Adam(
        [{"params": list(m.parameters())[:2]}, {"params": list(m.parameters())[2:]}], lr=torch.tensor(0.01)
    ),
    "AdamW": lambda m: torch.optim.AdamW(m.named_parameters(), lr=0.01),
    "Adamax": lambda m: torch.optim.Adamax(m.parameters(), lr=0.01),
    "LBFGS": lambda m: torch.optim.LBFGS(m.parameters(), lr=0.1, max_iter=3),
    "Muon": lambda m: torch.optim.Muon(m.parameters(), lr=0.01),
    "NAdam": lambda m: torch.optim.NAdam(m.parameters(), lr=0.01),
    "RAdam": lambda m: torch.optim.RAdam(m.parameters(), lr=0.01),
    "RMSprop": lambda m: torch.optim.RMSprop(m.parameters(), lr=0.01, momentum=0.9, centered=True),
    "Rprop": lambda m: torch.optim.Rprop(m.parameters(), lr=0.01),
    "SGD": lambda m: torch.optim.SGD(m.parameters(), lr=0.05, momentum=0.9, nesterov=True),
    "SparseAdam": lambda m: torch.optim.SparseAdam(m.embedding.parameters(), lr=0.01),
}
"""Every optimizer that torch ships, a test checks that, and some in other dress."""


@dataclass
class Patient:
    """A training under way, and the run as remedies see it."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    scheduler: Any
    average: AveragedModel
    parameters: list[nn.Parameter]
    run: Run
    probe: Probe
    shape: tuple[int, ...] = (6,)
    batches: Any = field(default_factory=lambda: torch.Generator().manual_seed(1))

    def step(self) -> Tensor:
        """One step of a training loop as users write it."""
        x = torch.randn(16, *self.shape, generator=self.batches)
        y = torch.randint(0, 3, (16,), generator=self.batches)

        def closure() -> Tensor:
            self.optimizer.zero_grad()
            loss = F.cross_entropy(self.model(x), y)
            loss.backward()
            return loss

        if isinstance(self.optimizer, torch.optim.LBFGS):
            loss = self.optimizer.step(closure)
        else:
            loss = closure()
            if not isinstance(self.optimizer, torch.optim.SparseAdam):
                nn.utils.clip_grad_norm_(self.parameters, 100.0)
            for guard in self.run.guards:
                guard(self.optimizer)
            self.optimizer.step()
            for guard in self.run.guards:
                getattr(guard, "after", lambda _: None)(self.optimizer)
        self.average.update_parameters(self.model)
        if self.scheduler is not None:
            plateau = isinstance(self.scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau)
            self.scheduler.step(*([float(loss.detach())] if plateau else []))
        self.run.step += 1
        return loss.detach()


def patient(
    optimizer: str = "Adam",
    model: Callable[[], nn.Module] | None = None,
    *,
    shape: tuple[int, ...] = (6,),
    schedule: Callable[[torch.optim.Optimizer], Any] | None = None,
    steps: int = 5,
) -> Patient:
    """A model after a few steps, whose healthy and best states were kept on the way."""
    torch.manual_seed(0)
    made = model() if model else Bag() if optimizer == "SparseAdam" else perceptron(bias=optimizer != "Muon")
    of = OPTIMIZERS[optimizer](made)
    scheduler = (schedule or (lambda o: torch.optim.lr_scheduler.CosineAnnealingLR(o, 50)))(of)
    history = History()
    probe = Probe(
        [made],
        [of],
        schedule=Schedule(),
        on_snapshot=history.record,
        on_step=lambda step: None,
        on_error=_raise,
        dead_after=32,
    )
    history.architecture = probe.architecture
    run = Run([made], [of], history, schedulers=[scheduler] if scheduler else [], step=-1)
    run.dead_units = probe.activations.dead_units
    average = AveragedModel(made, use_buffers=True)
    sick = Patient(made, of, scheduler, average, list(made.parameters()), run, probe, shape)
    probe.attach()
    for i in range(steps):
        history.add("train/loss", i, float(sick.step()))
        history.add("validation/loss", i, abs(i - 2) + 1.0)
        if i == 1:
            run.healthy = State.capture(run)
        if i == 2:
            run.best = State.capture(run)
    kept = probe.activations._silence.copy()  # detaching forgets them
    probe.detach()
    probe.activations._silence.update(kept)
    return sick


def _raise(part: str, error: Exception) -> None:
    raise error


def finding(name: str, *where: str, step: int = 3) -> Finding:
    """A finding as a rule makes it."""
    return Finding(
        id="f1", code="TM000", name=name, severity=Severity.ERROR, step=step, detected_at=step, where=where, message="."
    )


def photograph(sick: Patient) -> dict[str, Any]:
    """Everything that training moves, copied by hand, and which objects hold it."""
    model, optimizer = sick.model, sick.optimizer
    return copy.deepcopy(
        {
            "kinds": [(name, _kind(module), module.training) for name, module in model.named_modules()],
            "values": [(name, _data(_own(module))) for name, module in model.named_modules()],
            "criterion": None if sick.run.loss_fn is None else (_kind(sick.run.loss_fn), _data(_own(sick.run.loss_fn))),
            "stepper": (type(optimizer), sorted(vars(optimizer)), _data(optimizer.defaults)),
            "ids": [(name, id(p), p.requires_grad) for name, p in model.named_parameters()],
            "tensors": [(name, t.detach()) for name, t in [*model.named_parameters(), *model.named_buffers()]],
            "gradients": [None if p.grad is None else p.grad.detach() for p in model.parameters()],
            "groups": [{**group, "params": list(map(id, group["params"]))} for group in optimizer.param_groups],
            "optimizer": {id(p): _data(state) for p, state in optimizer.state.items()},
            "scheduler": _data(vars(sick.scheduler)) if sick.scheduler is not None else None,
            "average": [(_kind(m), list(m.state_dict().items())) for m in sick.average.modules()],
            "random": (random.getstate(), np.random.get_state(), torch.get_rng_state()),
            "run": (list(map(id, sick.run.guards)), sick.run.stop_requested, sick.run.step),
        }
    )  # fmt: skip


def _kind(thing: Any) -> list[str]:
    """The classes that an object is made of: a mixed one bears the name of the plain one."""
    return [f"{kind.__module__}.{kind.__qualname__}" for kind in type(thing).__mro__]


def _own(module: Any) -> dict[str, Any]:
    """Plain attributes of a module, and which buffers it has."""
    values = {key: value for key, value in vars(module).items() if not key.startswith("_")}
    return {**values, "buffers": sorted(getattr(module, "_buffers", ()))}


def _data(value: Any) -> Any:
    """Containers of plain values and tensors; of other objects only which they are."""
    if isinstance(value, dict):
        return {str(key): _data(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_data(inner) for inner in value]
    return value if isinstance(value, Tensor | int | float | str | None) else repr(type(value))


def same(one: Any, other: Any) -> bool:
    """Equality bit for bit, through containers."""
    if isinstance(one, Tensor):
        return isinstance(other, Tensor) and one.dtype == other.dtype and bool(_bits_equal(one, other))
    if isinstance(one, np.ndarray):
        return bool(np.array_equal(one, other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    return bool(one == other)


def _bits_equal(one: Tensor, other: Tensor) -> bool:
    one, other = one.to_dense(), other.to_dense()
    return torch.equal(one, other) or (one.shape == other.shape and torch.equal(one.nan_to_num(7), other.nan_to_num(7)))


def different(one: dict[str, Any], other: dict[str, Any]) -> list[str]:
    """Parts of two photographs that are not the same."""
    return [key for key in one if not same(one[key], other[key])]
