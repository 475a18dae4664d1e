"""What the run was given, as far as it can be known: facts for ``History.facts``."""

import platform
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy
import torch
from torch import nn

from trainmedic.history import Layer
from trainmedic.hooks.activations import ACTIVATIONS, is_leaf


def facts(
    models: Sequence[nn.Module],
    optimizers: Sequence[torch.optim.Optimizer],
    loss_fn: Callable[..., Any] | None,
    scheduler: Any,
    scaler: Any,
    total_steps: int | None,
) -> dict[str, Any]:
    """Plain facts of a run, with these keys; a key is absent where nothing is known.

    ``optimizer`` and ``optimizer_options`` (of the first group), ``optimizers`` (how many), ``models`` (how many),
    ``loss``, ``reduction``, ``scheduler``, ``precision``, ``loss_scaling``, ``parameters`` and ``trainable`` (counts of
    elements), ``devices``, ``versions``, ``total_steps``.
    """
    parameters = [parameter for model in models for parameter in model.parameters()]
    known: dict[str, Any] = {
        "optimizer": type(optimizers[0]).__name__,
        "optimizer_options": options(optimizers[0]),
        "optimizers": len(optimizers),
        "models": len(models),
        "parameters": sum(parameter.numel() for parameter in parameters),
        "trainable": sum(parameter.numel() for parameter in parameters if parameter.requires_grad),
        "precision": str(parameters[0].dtype).removeprefix("torch."),
        "loss_scaling": scaler is not None and bool(getattr(scaler, "is_enabled", lambda: True)()),
        "devices": sorted({str(parameter.device) for parameter in parameters}),
        "versions": {"python": platform.python_version(), "torch": torch.__version__, "numpy": numpy.__version__},
    }
    if loss_fn is not None:
        known["loss"] = getattr(loss_fn, "__name__", type(loss_fn).__name__)
        known["reduction"] = getattr(loss_fn, "reduction", "mean")
    if scheduler is not None:
        known["scheduler"] = type(scheduler).__name__
    if total_steps is not None:
        known["total_steps"] = total_steps
    return known


def options(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """The plain options of an optimizer's first parameter group."""
    group = optimizer.param_groups[0] if optimizer.param_groups else {}
    plain = {
        key: float(value) if isinstance(value, torch.Tensor) else value
        for key, value in group.items()
        if key != "params"
    }
    return {key: list(value) if isinstance(value, tuple) else value for key, value in plain.items()}


def prefixes(models: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    """Each model with the prefix of its layers' names: none for one model, ``0.``, ``1.`` ... for several."""
    for i, model in enumerate(models):
        yield ("" if len(models) == 1 else f"{i}."), model


def clean(name: str, model: nn.Module) -> str:
    """A name as the user knows it, without what wrappers (torch.compile, data parallelism) put into it."""
    name = name.replace("_orig_mod.", "").removesuffix("._orig_mod")
    wrapped = getattr(model, "_orig_mod", model)
    parallel = isinstance(wrapped, nn.parallel.DistributedDataParallel | nn.DataParallel)
    if not parallel:
        return name
    return "" if name == "module" else name.removeprefix("module.")


def anatomy(models: Sequence[nn.Module]) -> tuple[dict[str, Layer], dict[int, str], list[tuple[str, nn.Parameter]]]:
    """The table of layers before the first step, names of leaf modules by ``id``, and all parameters by name.

    A parameter that stands in several places has the name of its first one.
    """
    layers: dict[str, Layer] = {}
    known: set[int] = set()
    leaves: dict[int, str] = {}
    parameters: list[tuple[str, nn.Parameter]] = []
    for prefix, model in prefixes(models):
        for name, module in model.named_modules():
            full = (prefix + clean(name, model)).rstrip(".")
            if is_leaf(module):
                full = full or type(module).__name__
                leaves[id(module)] = full
                trainable = any(parameter.requires_grad for parameter in module.parameters())
                layers[full] = Layer(
                    full, type(module).__name__, trainable=trainable, activation=ACTIVATIONS.get(type(module))
                )
        for name, parameter in model.named_parameters():
            full = prefix + clean(name, model)
            if id(parameter) in known:
                continue
            known.add(id(parameter))
            parameters.append((full, parameter))
            layers[full] = Layer(full, "parameter", shape=tuple(parameter.shape), trainable=parameter.requires_grad)
    return layers, leaves, parameters
