"""``Run``: the live run as remedies see it."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from trainmedic.history import History

if TYPE_CHECKING:
    import torch

    from trainmedic.remedies._rehearsal import Rehearsal
    from trainmedic.remedies._state import State
    from trainmedic.remedies._store import Store

Guard = Callable[["torch.optim.Optimizer"], "bool | None"]
"""Called right before a step of a watched optimizer, after the user's own clipping; may touch gradients only.

Returns True if it rejected the step: such steps stay out of the statistics. If it has a method ``after(optimizer)``,
that is called when the step is over: what a guard changed for the step alone it puts back there.
"""


@dataclass
class Run:
    """What a remedy may look at, and what it may change.

    Models, optimizers, schedulers and scaler are the user's own live objects. ``guards`` are called before every
    optimizer step. ``healthy`` is the last state in which nothing was wrong, ``best`` the one with the best monitored
    value; both are ``None`` until there is one. With ``advising`` a proposal is only shown, never applied: it may name
    a state that was not kept. ``dead_units`` gives, by the name of a rectifier, which of its units are dead.
    ``store`` gives saved states their memory; without one they lie on the devices of what they are copies of.
    ``rehearsal`` takes steps on kept batches that leave no trace, for acts that have to measure: see its docstring.
    """

    models: Sequence["torch.nn.Module"]
    optimizers: Sequence["torch.optim.Optimizer"]
    history: History
    schedulers: Sequence[Any] = ()
    scaler: Any = None
    loss_fn: Callable[..., Any] | None = None
    step: int = 0
    guards: list[Guard] = field(default_factory=list)
    healthy: "State | None" = None
    best: "State | None" = None
    stop_requested: bool = False
    advising: bool = False
    rehearsal: "Rehearsal | None" = None
    store: "Store | None" = None
    dead_units: Callable[[str], "torch.Tensor | None"] | None = None

    def parameters(self) -> Iterator[tuple[str, "torch.nn.Parameter"]]:
        """All parameters by the names that the history uses."""
        for prefix, model in self.named_models():
            for name, parameter in model.named_parameters():
                yield prefix + name, parameter

    def modules(self) -> Iterator[tuple[str, "torch.nn.Module"]]:
        """All modules by the names that the history uses."""
        for prefix, model in self.named_models():
            for name, module in model.named_modules():
                yield (prefix + name).rstrip("."), module

    def named_models(self) -> Iterator[tuple[str, "torch.nn.Module"]]:
        """Each model with the prefix of its names: empty for one model, ``0.``, ``1.`` ... for several."""
        for i, model in enumerate(self.models):
            yield ("" if len(self.models) == 1 else f"{i}."), model

    def learning_rates(self) -> list[float]:
        """The rate of every parameter group of every optimizer, in order."""
        return [float(group["lr"]) for optimizer in self.optimizers for group in optimizer.param_groups]
