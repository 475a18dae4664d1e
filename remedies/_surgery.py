"""Changing a live model in place: the user's names stay the live objects, and no key of its state_dict changes."""

import gc
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from trainmedic.remedies._alive import alive
from trainmedic.remedies._layers import NORM, units_of
from trainmedic.remedies.remedy import Refused, Undo
from trainmedic.remedies.run import Run

JOINABLE = (
    "ASGD",
    "Adadelta",
    "Adafactor",
    "Adagrad",
    "Adam",
    "AdamW",
    "Adamax",
    "NAdam",
    "RAdam",
    "RMSprop",
    "Rprop",
    "SGD",
)
"""Torch's optimizers that make a parameter's state when it first gets a gradient: a new one can join at any time.

Not among them: LBFGS, whose state runs over all parameters at once, Muon, which takes matrices, and SparseAdam.
"""


class _Normed(nn.Module):
    """A layer whose output is normalised per unit before it is handed on.

    An instance's class is exchanged for a subclass of its own, so that names, keys, ``isinstance``, copies and pickles
    stay as they are.
    """

    medic_norm: _BatchNorm

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        output: Tensor = super().forward(*args, **kwargs)
        if isinstance(self, nn.Linear):  # units last, whatever comes before: (N, C), (N, T, C), (C)
            return _normalised(self.medic_norm, output.reshape(-1, output.shape[-1])).reshape(output.shape)
        dimensions = len(self.kernel_size) + 2  # type: ignore[arg-type]
        if output.ndim < dimensions:  # a single sample without its batch dimension
            return _normalised(self.medic_norm, output.unsqueeze(0)).squeeze(0)
        return _normalised(self.medic_norm, output)

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A state of the time before the norm still loads: the norm is then one that, in evaluation, does nothing."""
        own = f"{prefix}{NORM}."
        if not any(key.startswith(own) for key in state_dict):
            norm = self.medic_norm
            for name, value in norm.state_dict().items():
                neutral = {"weight": 1.0, "running_var": 1 - norm.eps}.get(name, 0.0)
                state_dict[own + name] = torch.full_like(value, neutral)
        super()._load_from_state_dict(state_dict, prefix, *args)


def _normalised(norm: _BatchNorm, output: Tensor) -> Tensor:
    """``output`` (N, C, ...) through ``norm``; one value per unit has no variance: then the running one stands in."""
    if norm.training and output.numel() <= norm.num_features:
        return F.batch_norm(output, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    normed: Tensor = norm(output)
    return normed


class NormedLinear(_Normed, nn.Linear):
    """A linear layer with a batch norm."""


class NormedConv1d(_Normed, nn.Conv1d):
    """A convolution with a batch norm."""


class NormedConv2d(_Normed, nn.Conv2d):
    """A convolution with a batch norm."""


class NormedConv3d(_Normed, nn.Conv3d):
    """A convolution with a batch norm."""


class NormedConvTranspose1d(_Normed, nn.ConvTranspose1d):
    """A transposed convolution with a batch norm."""


class NormedConvTranspose2d(_Normed, nn.ConvTranspose2d):
    """A transposed convolution with a batch norm."""


class NormedConvTranspose3d(_Normed, nn.ConvTranspose3d):
    """A transposed convolution with a batch norm."""


NORMED: dict[type[nn.Module], tuple[type[_Normed], type[_BatchNorm]]] = {
    nn.Linear: (NormedLinear, nn.BatchNorm1d),
    nn.Conv1d: (NormedConv1d, nn.BatchNorm1d),
    nn.Conv2d: (NormedConv2d, nn.BatchNorm2d),
    nn.Conv3d: (NormedConv3d, nn.BatchNorm3d),
    nn.ConvTranspose1d: (NormedConvTranspose1d, nn.BatchNorm1d),
    nn.ConvTranspose2d: (NormedConvTranspose2d, nn.BatchNorm2d),
    nn.ConvTranspose3d: (NormedConvTranspose3d, nn.BatchNorm3d),
}


def check_models(run: Run) -> None:
    """Raise ``Refused`` where modules cannot be changed in place safely."""
    for _, module in run.modules():
        kind = type(module).__name__
        if kind == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            raise Refused("the model is compiled; build the norms into it before torch.compile")
        if isinstance(module, torch.jit.ScriptModule):
            raise Refused("the model is scripted by torch.jit; build the norms into it before")
    check_alone(run)


def check_alone(run: Run) -> None:
    """Raise ``Refused`` where several processes hold the same model: each would make a change of its own."""
    for _, module in run.modules():
        names = [kind.__name__ for kind in type(module).__mro__]
        wrapper = next((name for name in names if name == "DistributedDataParallel" or "FSDP" in name), None)
        wrapper = wrapper or next((name for name in names if name == "FullyShardedDataParallel"), None)
        if wrapper:
            raise Refused(f"the model is wrapped in {wrapper}: its processes must all hold the same parameters")
    distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
    if distributed and torch.distributed.get_world_size() > 1:
        raise Refused("several processes train together: they must all hold the same parameters")


def check_copies(run: Run) -> None:
    """Raise ``Refused`` where a copy that nobody trains is alive: an average or a target network kept by hand.

    Those are kept in step parameter by parameter, or by their state dict, and would fail at a model that has more.
    """
    if _kept_copies(run):
        gc.collect()  # models of earlier runs may only wait to be collected
        if _kept_copies(run):
            raise Refused("a copy of the model is alive, perhaps an average of it: it would no longer match")


def _kept_copies(run: Run) -> bool:
    """Whether there is a model of the same class and layout that is neither watched nor held by any optimizer."""
    ours = {id(module) for model in run.models for module in model.modules()}
    ours |= {id(module) for model in run.models for average in averaged_copies(model) for module in average.modules()}
    trained = {id(p) for optimizer in alive(torch.optim.Optimizer) for g in optimizer.param_groups for p in g["params"]}
    return any(
        id(other) not in ours
        and _layout(other) == _layout(model)
        and not any(id(parameter) in trained for parameter in other.parameters())
        for model in run.models
        for other in alive(type(model))
        if type(other) is type(model)
    )


def check_optimizers(run: Run) -> None:
    """Raise ``Refused`` where new parameters cannot join an optimizer."""
    for optimizer in run.optimizers:
        kind = type(optimizer)
        if kind.__module__.split(".")[:2] != ["torch", "optim"] or kind.__name__ not in JOINABLE:
            raise Refused(f"new parameters cannot join {kind.__name__} while it runs")


def check_layer(name: str, layer: nn.Module, run: Run, *, places: int) -> None:
    """Raise ``Refused`` where this one layer cannot be given a norm."""
    if places > 1:
        raise Refused(f"{name} stands in several places of the model, which would share one norm")
    if "forward" in vars(layer):
        raise Refused(f"the forward method of {name} was replaced on the instance: a norm would be passed by")
    if run.optimizers and _home(layer, run.optimizers) is None:
        raise Refused(f"no watched optimizer holds the weight of {name}: a norm after it would not train")


def add_norms(run: Run, names: Sequence[str], live: dict[str, nn.Module]) -> Undo:
    """Give each named layer a batch norm, in averaged copies of its model too; all of them or none."""
    undos: list[Undo] = []
    normed: list[tuple[nn.Module, str]] = []

    def undo() -> None:
        made = [a.module.get_submodule(path) for model, path in normed for a in averaged_copies(model)]
        for layer in made:  # averages that were made since carry the norm too
            _strip(layer)
        normed.clear()  # whoever holds on to this function holds no model
        while undos:
            undos.pop()()

    def add(layer: nn.Module, path: str, optimizers: Sequence[torch.optim.Optimizer]) -> None:
        undos.append(_add_norm(layer, path, optimizers))

    copies = {id(model): averaged_copies(model) for model in run.models}
    try:
        for prefix, model in run.named_models():
            path_of = {id(module): path for path, module in model.named_modules()}
            for name in names:
                path = path_of.get(id(live[name]))
                if path is None or not name.startswith(prefix):
                    continue
                add(live[name], path, run.optimizers)
                normed.append((model, path))
                for copy in copies[id(model)]:  # an average pairs parameters by position: it needs the same ones
                    add(copy.module.get_submodule(path), path, ())
    except BaseException:
        undo()
        raise
    return undo


def _add_norm(layer: nn.Module, path: str, optimizers: Sequence[torch.optim.Optimizer]) -> Undo:
    """Give one layer a batch norm, whose parameters join the group that holds the layer's weight."""
    original = type(layer)
    normed, kind = NORMED[original]
    weight = layer.weight
    assert isinstance(weight, Tensor)
    norm = kind(units_of(layer), device=weight.device, dtype=weight.dtype)
    norm.train(layer.training)
    home = _home(layer, optimizers)
    added = dict(norm.named_parameters())

    def undo() -> None:
        _strip(layer)
        if home is not None:
            _leave(*home, list(added.values()))

    try:
        layer.__class__ = normed
        layer.add_module(NORM, norm)
        if home is not None:
            home[1]["params"].extend(added.values())
            if "param_names" in home[1]:
                home[1]["param_names"].extend(f"{path}.{NORM}.{name}" for name in added)
    except BaseException:
        undo()
        raise
    return undo


def _strip(layer: nn.Module) -> None:
    """Make a layer a plain one again."""
    original = next((plain for plain, (normed, _) in NORMED.items() if type(layer) is normed), None)
    if original is not None:
        layer.__class__ = original
        layer._modules.pop(NORM, None)


def _home(
    layer: nn.Module, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[torch.optim.Optimizer, dict[str, Any]] | None:
    """The optimizer and the group that hold a layer's weight."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(parameter is layer.weight for parameter in group["params"]):
                return optimizer, group
    return None


def _leave(optimizer: torch.optim.Optimizer, group: dict[str, Any], parameters: list[nn.Parameter]) -> None:
    """Take parameters out of an optimizer's group, with their names and their state."""
    gone = {id(parameter) for parameter in parameters}
    stay = [i for i, parameter in enumerate(group["params"]) if id(parameter) not in gone]
    if "param_names" in group:
        group["param_names"][:] = [name for i, name in enumerate(group["param_names"]) if i in stay]
    group["params"][:] = [group["params"][i] for i in stay]
    for parameter in parameters:
        optimizer.state.pop(parameter, None)


def averaged_copies(model: nn.Module) -> list[AveragedModel]:
    """Averages of ``model`` that are alive: of its class, with parameters of the same names and shapes."""
    return [
        average
        for average in alive(AveragedModel)
        if type(average.module) is type(model) and _layout(average.module) == _layout(model)
    ]


def _layout(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, parameter.shape) for name, parameter in module.named_parameters()]
