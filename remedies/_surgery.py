"""Changing a live model in place: the user's names stay the live objects, and no key of its state_dict changes."""

import gc
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim.swa_utils import AveragedModel

from trainmedic.remedies._alive import alive
from trainmedic.remedies._first import features_of
from trainmedic.remedies._graft import Graft, graft, has_graft, home_of, join, leave, new_parameters, plain, ungraft
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


class Normed(Graft):
    """A layer whose output is normalised per unit before it is handed on."""

    parts: ClassVar[tuple[str, ...]] = (NORM,)
    medic_norm: _BatchNorm

    def forward(self, *args: Any, **kwargs: Any) -> Tensor:
        return self._norm(super().forward(*args, **kwargs))

    def _norm(self, values: Tensor) -> Tensor:
        if isinstance(self, nn.Linear):  # units last, whatever comes before: (N, C), (N, T, C), (C)
            return _normalised(self.medic_norm, values.reshape(-1, values.shape[-1])).reshape(values.shape)
        dimensions = len(self.kernel_size) + 2  # type: ignore[arg-type]
        if values.ndim < dimensions:  # a single sample without its batch dimension
            return _normalised(self.medic_norm, values.unsqueeze(0)).squeeze(0)
        return _normalised(self.medic_norm, values)

    def _without(self, key: str, value: Tensor) -> Tensor:
        """The norm is then one that, in evaluation, does nothing."""
        home, _, name = key.partition(".")
        if home != NORM:
            return super()._without(key, value)
        neutral = {"weight": 1.0, "running_var": 1 - self.medic_norm.eps}.get(name, 0.0)
        return torch.full_like(value, neutral)


class NormedInput(Normed):
    """A layer that normalises per unit what it takes."""

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        layer: Any = super(Normed, self)  # the layer itself
        output: Tensor = layer.forward(self._norm(input), *args, **kwargs)
        return output


def _normalised(norm: _BatchNorm, output: Tensor) -> Tensor:
    """``output`` (N, C, ...) through ``norm``; one value per unit has no variance: then the running one stands in."""
    if norm.training and output.numel() <= norm.num_features:
        return F.batch_norm(output, norm.running_mean, norm.running_var, norm.weight, norm.bias, False, 0.0, norm.eps)
    normed: Tensor = norm(output)
    return normed


NORM_OF: dict[type[nn.Module], type[_BatchNorm]] = {
    nn.Linear: nn.BatchNorm1d,
    nn.Conv1d: nn.BatchNorm1d,
    nn.Conv2d: nn.BatchNorm2d,
    nn.Conv3d: nn.BatchNorm3d,
    nn.ConvTranspose1d: nn.BatchNorm1d,
    nn.ConvTranspose2d: nn.BatchNorm2d,
    nn.ConvTranspose3d: nn.BatchNorm3d,
}
"""The layers that can be given a norm, and of which kind it is."""


def check_models(run: Run) -> None:
    """Raise ``Refused`` where modules cannot be changed in place safely."""
    for _, module in run.modules():
        kind = type(module).__name__
        if kind == "OptimizedModule" or getattr(module, "_compiled_call_impl", None) is not None:
            raise Refused("the model is compiled; change it before torch.compile")
        if isinstance(module, torch.jit.ScriptModule):
            raise Refused("the model is scripted by torch.jit; change it before")
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
        for other in alive(plain(type(model)))
        if plain(type(other)) is plain(type(model))
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
    if run.optimizers and home_of(layer._parameters.get("weight"), run.optimizers) is None:
        raise Refused(f"no watched optimizer holds the weight of {name}: a norm after it would not train")


def norm_for(layer: nn.Module, *, before: bool = False) -> _BatchNorm:
    """A new norm for what a layer puts out, or for what it takes."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    units = features_of(layer) if before else units_of(layer)
    norm = NORM_OF[plain(type(layer))](units, device=weight.device, dtype=weight.dtype)
    return norm.train(layer.training)


Parts = Callable[[nn.Module], Mapping[str, Any]]
"""Makes the parts of a graft for one module; called once for each module that gets it."""


def graft_all(run: Run, names: Iterable[str], live: Mapping[str, nn.Module], mixin: type[Graft], parts: Parts) -> Undo:
    """Give each named module a graft, in averaged copies of its model too; all of them or none.

    New parameters join the group that holds the module's first parameter.
    """
    undos: list[Undo] = []
    grafted: list[tuple[nn.Module, str]] = []

    def undo() -> None:
        made = [a.module.get_submodule(path) for model, path in grafted for a in averaged_copies(model)]
        for module in made:  # averages that were made since carry it too
            ungraft(module, mixin)
        grafted.clear()  # whoever holds on to this function holds no model
        while undos:
            undos.pop()()

    copies = {id(model): averaged_copies(model) for model in run.models}
    wanted = list(names)
    try:
        for prefix, model in run.named_models():
            path_of = {id(module): path for path, module in model.named_modules()}
            for name in wanted:
                path = path_of.get(id(live[name]))
                if path is None or not name.startswith(prefix):
                    continue
                _graft_one(live[name], path, mixin, parts, run.optimizers, undos)
                grafted.append((model, path))
                for copy in copies[id(model)]:  # an average pairs parameters by position: it needs the same ones
                    twin = copy.module.get_submodule(path)
                    if not has_graft(twin, mixin):  # or it is another run's
                        _graft_one(twin, path, mixin, parts, (), undos)
    except BaseException:
        undo()
        raise
    return undo


def _graft_one(
    module: nn.Module,
    path: str,
    mixin: type[Graft],
    parts: Parts,
    optimizers: Sequence[torch.optim.Optimizer],
    undos: list[Undo],
) -> None:
    beside = next(module.parameters(), None)
    made = parts(module)
    undos.append(lambda: ungraft(module, mixin))
    graft(module, mixin, made)
    home = home_of(beside, optimizers)
    if home is not None:
        optimizer, group = home
        new = {f"{path}.{name}": parameter for name, parameter in new_parameters(made).items()}
        undos.append(lambda: leave(optimizer, new.values()))
        join(group, new)


def averaged_copies(model: nn.Module) -> list[AveragedModel]:
    """Averages of ``model`` that are alive: of its class, with parameters of the same names and shapes."""
    return [
        average
        for average in alive(AveragedModel)
        if plain(type(average.module)) is plain(type(model)) and _layout(average.module) == _layout(model)
    ]


def _layout(module: nn.Module) -> list[tuple[str, torch.Size]]:
    return [(name, parameter.shape) for name, parameter in module.named_parameters()]
