"""``watch``: everything that a user hands over is looked at once, at the door, with one clear error each."""

import os
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from trainmedic.diagnose import Finding
from trainmedic.errors import UsageError, nearest
from trainmedic.hooks.probe import watched
from trainmedic.medic import Medic
from trainmedic.settings import Settings


def watch(
    model: nn.Module | Sequence[nn.Module],
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    *,
    loss_fn: Callable[..., Any] | None = None,
    step_fn: Callable[..., Any] | None = None,
    val_loader: Iterable[Any] | None = None,
    scheduler: Any = None,
    scaler: Any = None,
    total_steps: int | None = None,
    monitor: str = "validation/loss",
    mode: Literal["min", "max"] = "min",
    fix: Literal["off", "safe", "unsafe"] = "off",
    on_finding: Callable[[Finding], Any] | None = None,
    logdir: str | os.PathLike[str] | None = None,
    settings: Settings | Mapping[str, Any] | str | os.PathLike[str] | None = None,
    status: bool = False,
) -> Medic:
    """Watch the training of ``model`` by ``optimizer`` (or lists of each), from now until ``close()``.

    Args:
        model: the model, or several that are trained together.
        optimizer: its optimizer, or several; a step is one ``step()`` of the first.
        loss_fn: ``(output, target) -> loss``, a module or a function.
        step_fn: ``(model, batch) -> loss``, where the step is more than ``loss_fn(model(x), y)``.
        val_loader: validation batches, to judge what only validation can show.
        scheduler: the learning-rate scheduler, or a list of them.
        scaler: the gradient scaler of mixed precision.
        total_steps: how many steps the run will take, if that is known.
        monitor: the series that tells the best state of the model.
        mode: whether a smaller (``"min"``) or a larger (``"max"``) value of ``monitor`` is better.
        fix: which remedies may be applied: none, the safe ones, or the unsafe ones too.
        on_finding: called with each new finding; by default it is logged in one line.
        logdir: where the record, the report and TensorBoard files go; ``None`` writes nothing.
        settings: a ``Settings``, a dict or a TOML file; by default ``trainmedic.toml`` or ``[tool.trainmedic]`` in
            ``pyproject.toml`` of the working directory.
        status: whether to keep the last line of the terminal for the state of the run; elsewhere nothing is shown
            (in a notebook it is logged each minute).

    Raises:
        UsageError: for an argument that cannot be meant.

    """
    models = _several(model, nn.Module, "model", "a torch.nn.Module")
    optimizers = _several(optimizer, torch.optim.Optimizer, "optimizer", "a torch.optim.Optimizer")
    _check_parameters(models, optimizers)
    for member in filter(watched, optimizers):
        raise UsageError(
            f"the optimizer ({type(member).__name__}) is watched already: "
            "call close() on that medic first, or let it end with its `with` block"
        )
    for name, function in (("loss_fn", loss_fn), ("step_fn", step_fn), ("on_finding", on_finding)):
        if function is not None and not callable(function):
            raise UsageError(f"{name} must be callable, but got {type(function).__name__}")
    if val_loader is not None and not hasattr(val_loader, "__iter__"):
        raise UsageError(f"val_loader must be iterable, but got {type(val_loader).__name__}")
    schedulers = [] if scheduler is None else list(scheduler) if isinstance(scheduler, list | tuple) else [scheduler]
    for each in schedulers:
        _check_methods("scheduler", each, "step", "state_dict")
    if scaler is not None:
        _check_methods("scaler", scaler, "scale", "step", "update")
    if total_steps is not None and (
        isinstance(total_steps, bool) or not isinstance(total_steps, int) or total_steps < 1
    ):
        raise UsageError(f"total_steps must be a whole number from 1 on, but got {total_steps!r}")
    if not isinstance(monitor, str) or not monitor:
        raise UsageError(f"monitor must name a series, such as 'validation/loss', but got {monitor!r}")
    _check_choice("mode", mode, ("min", "max"))
    _check_choice("fix", fix, ("off", "safe", "unsafe"))
    if logdir is not None and not isinstance(logdir, str | os.PathLike):
        raise UsageError(f"logdir must be a path or None, but got {type(logdir).__name__}")
    return Medic(
        models=models,
        optimizers=optimizers,
        loss_fn=loss_fn,
        step_fn=step_fn,
        val_loader=val_loader,
        schedulers=schedulers,
        scaler=scaler,
        total_steps=total_steps,
        monitor=monitor,
        mode=mode,
        fix=fix,
        on_finding=on_finding,
        logdir=logdir,
        settings=Settings.load(settings),
        status=status,
    )


def _several(given: Any, kind: type, name: str, wanted: str) -> list[Any]:
    members = list(given) if isinstance(given, list | tuple) else [given]
    if not members:
        raise UsageError(f"{name} must be {wanted} or a list of them, but the list is empty")
    for member in members:
        if not isinstance(member, kind):
            raise UsageError(f"{name} must be {wanted} or a list of them, but got {type(member).__name__}")
    if len({id(member) for member in members}) < len(members):
        raise UsageError(f"{name}: the same one is given twice")
    return members


def _check_parameters(models: Sequence[nn.Module], optimizers: Sequence[torch.optim.Optimizer]) -> None:
    held = {
        id(parameter) for optimizer in optimizers for group in optimizer.param_groups for parameter in group["params"]
    }
    own: set[int] = set()
    for model in models:
        parameters = list(model.parameters())
        if not parameters:
            raise UsageError(
                f"model {type(model).__name__} has no parameters: there is nothing to train "
                "(are its layers kept in a plain list or dict? Use nn.ModuleList or nn.ModuleDict)"
            )
        if any(isinstance(parameter, nn.parameter.UninitializedParameter) for parameter in parameters):
            raise UsageError(
                f"model {type(model).__name__} has lazy layers whose weights are not made yet: "
                "run it once on a batch, model(x), before trainmedic.watch"
            )
        own |= {id(parameter) for parameter in parameters}
    if not held & own:
        raise UsageError(
            f"the optimizer ({type(optimizers[0]).__name__}) does not hold any of the model's parameters: "
            "it would train nothing. Make it after the model is in its final form: "
            f"torch.optim.{type(optimizers[0]).__name__}(model.parameters(), ...)"
        )


def _check_methods(name: str, thing: Any, *methods: str) -> None:
    missing = [method for method in methods if not callable(getattr(thing, method, None))]
    if missing:
        raise UsageError(f"{name} must have {', '.join(f'{m}()' for m in missing)}, but got {type(thing).__name__}")


def _check_choice(name: str, value: object, choices: Sequence[str]) -> None:
    if value not in choices:
        known = ", ".join(repr(choice) for choice in choices)
        raise UsageError(f"{name} must be one of {known}, but got {value!r}{nearest(str(value), choices)}")
