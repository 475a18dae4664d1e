"""``State``: everything that training moves, kept exactly and put back into the same tensors."""

import os
import random
import tempfile
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from trainmedic.remedies.run import Run

CLOCKS = ("lr", "initial_lr", "max_lr", "min_lr", "momentum", "betas")
"""Options of a parameter group that schedulers move: they go on when only weights are put back."""


@dataclass
class Kept:
    """One tensor and a copy of what it held."""

    live: Tensor
    copy: Tensor


@dataclass
class State:
    """Parameters, buffers, gradients, modes, extra state and options of all watched models, optimizers, schedulers and
    the scaler, and all random number generators, as they were after ``step``.

    Kept on the same devices. ``load_state_dict`` alone would not do: it casts the float32 momentum of a bfloat16
    parameter, and it puts new tensors where others hold on to the old ones.
    """

    step: int
    tensors: list[Kept] = field(default_factory=list)
    gradients: list[tuple[Tensor, Tensor | None, Tensor | None]] = field(default_factory=list)
    modes: list[tuple[nn.Module, bool]] = field(default_factory=list)
    trainable: list[tuple[nn.Parameter, bool]] = field(default_factory=list)
    buffers: list[tuple[nn.Module, str, Tensor | None]] = field(default_factory=list)
    extra: list[tuple[nn.Module, Any]] = field(default_factory=list)
    optimizers: list[tuple[torch.optim.Optimizer, dict[Any, Any], list[dict[str, Any]]]] = field(default_factory=list)
    clocks: list[tuple[Any, dict[str, Any]]] = field(default_factory=list)
    generators: dict[str, Any] = field(default_factory=dict)

    # -- keeping -------------------------------------------------------------------------------------------------

    @classmethod
    @torch.no_grad()
    def capture(cls, run: Run, *, into: "State | None" = None) -> "State":
        """Keep the present state of ``run``; the memory of ``into``, an older state, is used again. Changes nothing."""
        state = cls(run.step)
        spare = {id(kept.live): kept.copy for kept in into.tensors} if into is not None else {}
        seen: set[int] = set()

        def keep(tensor: Tensor) -> Tensor:
            if id(tensor) not in seen:
                seen.add(id(tensor))
                state.tensors.append(Kept(tensor, _copied(tensor, spare.get(id(tensor)))))
            return tensor

        for model in run.models:
            for module in model.modules():
                state._keep_module(module, keep)
        for optimizer in run.optimizers:
            groups = [{**_plain(group, _cloned), "params": list(group["params"])} for group in optimizer.param_groups]
            states = {parameter: _plain(values, keep) for parameter, values in optimizer.state.items()}
            state.optimizers.append((optimizer, states, groups))
        for thing in (*run.schedulers, *([run.scaler] if run.scaler is not None else [])):
            state.clocks.append((thing, _plain(_own(thing), _cloned)))
        state.generators = _generators()
        return state

    def _keep_module(self, module: nn.Module, keep: Callable[[Tensor], Tensor]) -> None:
        self.modes.append((module, module.training))
        for parameter in module._parameters.values():
            if parameter is not None:
                keep(parameter)
                gradient = parameter.grad
                self.gradients.append((parameter, gradient, None if gradient is None else gradient.detach().clone()))
                self.trainable.append((parameter, parameter.requires_grad))
        for name, buffer in module._buffers.items():
            self.buffers.append((module, name, buffer if buffer is None else keep(buffer)))
        if type(module).get_extra_state is not nn.Module.get_extra_state:
            self.extra.append((module, _plain(module.get_extra_state(), _cloned)))

    def finite(self) -> bool:
        """Whether every kept floating-point tensor is finite."""
        return all(bool(torch.isfinite(kept.copy).all()) for kept in self.tensors if kept.copy.is_floating_point())

    # -- putting back --------------------------------------------------------------------------------------------

    @torch.no_grad()
    def restore(self, run: Run, *, clocks: bool = True) -> None:
        """Put everything back, into the same tensors; what was added to models since is left alone.

        Without ``clocks`` only what training has learnt is put back: weights, buffers, gradients and the optimizers'
        state. Schedulers and the rates they set, the loss scale, modes and random numbers go on.
        """
        _copy_back(self.tensors)
        for module, name, buffer in self.buffers:
            if name in module._buffers:
                module._buffers[name] = buffer
        for parameter, gradient, copy in self.gradients:
            if gradient is not None and copy is not None:
                gradient.copy_(copy)
            parameter.grad = gradient
        for module, extra in self.extra:
            module.set_extra_state(_plain(extra, _cloned))
        for optimizer, states, groups in self.optimizers:
            _restore_optimizer(optimizer, states, groups, clocks=clocks)
        if not clocks:
            return
        for module, mode in self.modes:
            module.training = mode
        for parameter, trains in self.trainable:
            parameter.requires_grad_(trains)
        for thing, own in self.clocks:
            _restore_own(thing, own)
        _restore_generators(self.generators)

    # -- files ---------------------------------------------------------------------------------------------------

    def save(self, path: str | os.PathLike[str], run: Run) -> None:
        """Write models and optimizers as state dicts, whole or not at all; read with ``torch.load(weights_only=True)``.

        The file holds ``{"step", "models": [state_dict, ...], "optimizers": [state_dict, ...]}``.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        copies = {id(kept.live): kept.copy for kept in self.tensors}

        def kept(tensor: Tensor) -> Tensor:
            return copies.get(id(tensor), tensor)

        content = {
            "step": self.step,
            "models": [{key: kept(value) for key, value in _live_state_dict(model).items()} for model in run.models],
            "optimizers": [self._optimizer_dict(states, groups, kept) for _, states, groups in self.optimizers],
        }
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=path.name, suffix=".part")
        os.close(handle)
        try:
            torch.save(content, temporary)
            os.replace(temporary, path)
        except BaseException:
            Path(temporary).unlink(missing_ok=True)
            raise

    def _optimizer_dict(
        self, states: Mapping[Any, Any], groups: Iterable[Mapping[str, Any]], kept: Callable[[Tensor], Tensor]
    ) -> dict[str, Any]:
        """An optimizer's kept state in the shape of its own ``state_dict``: parameters by their number."""
        numbers: dict[int, int] = {}
        packed = []
        for group in groups:
            for parameter in group["params"]:
                numbers.setdefault(id(parameter), len(numbers))
            options = {key: _plain(value, kept) for key, value in group.items() if key != "params"}
            packed.append({**options, "params": [numbers[id(parameter)] for parameter in group["params"]]})
        state = {numbers[id(p)]: _plain(values, kept) for p, values in states.items() if id(p) in numbers}
        return {"state": state, "param_groups": packed}


def _live_state_dict(model: nn.Module) -> dict[str, Any]:
    """A state dict that holds the live tensors themselves."""
    return {key: value for key, value in model.state_dict(keep_vars=True).items() if isinstance(value, Tensor)}


def _copied(tensor: Tensor, spare: Tensor | None) -> Tensor:
    source = tensor.detach()
    if spare is not None and spare.shape == source.shape and spare.dtype == source.dtype and not source.is_sparse:
        return spare.copy_(source)
    return source.clone()


def _cloned(tensor: Tensor) -> Tensor:
    return tensor.detach().clone()


def _plain(value: Any, tensor: Callable[[Tensor], Tensor]) -> Any:
    """A copy of nested containers, with ``tensor`` applied to the tensors in them."""
    if isinstance(value, Tensor):
        return tensor(value)
    if isinstance(value, dict):
        return {key: inner if key == "params" else _plain(inner, tensor) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner, tensor) for inner in value]
    if type(value) is tuple:
        return tuple(_plain(inner, tensor) for inner in value)
    return value


def _copy_back(tensors: Iterable[Kept]) -> None:
    """Into the same tensors, with one kernel for all of a kind."""
    groups: dict[tuple[torch.device, torch.dtype], list[Kept]] = {}
    for kept in tensors:
        if kept.live.shape != kept.copy.shape:
            kept.live.set_(kept.copy.clone())  # type: ignore[call-overload]
        else:
            groups.setdefault((kept.live.device, kept.live.dtype), []).append(kept)
    for members in groups.values():
        torch._foreach_copy_([kept.live.detach() for kept in members], [kept.copy for kept in members])


def _restore_optimizer(
    optimizer: torch.optim.Optimizer, states: Mapping[Any, Any], groups: Iterable[Mapping[str, Any]], *, clocks: bool
) -> None:
    """Containers are made anew around the kept tensors, whose values are back already.

    Parameters that joined a group since the state was kept stay in it, with their state.
    """
    known = {id(parameter) for group in groups for parameter in group["params"]}
    for parameter in list(optimizer.state):
        if parameter not in states and id(parameter) in known:
            del optimizer.state[parameter]
    for parameter, values in states.items():
        live = optimizer.state[parameter]
        kept = _plain(values, lambda tensor: tensor)
        for key in [key for key in live if key not in kept]:
            del live[key]
        live.update(kept)
    for live, kept in zip(optimizer.param_groups, groups, strict=False):
        _restore_group(live, kept, clocks=clocks)


def _restore_group(live: dict[str, Any], kept: Mapping[str, Any], *, clocks: bool) -> None:
    own = {id(parameter) for parameter in kept["params"]}
    if clocks:
        live["params"][:] = [*kept["params"], *(p for p in live["params"] if id(p) not in own)]
    for key in [key for key in live if key not in kept and (clocks or key not in CLOCKS)]:
        del live[key]
    for key, value in kept.items():
        if key == "params" or (not clocks and key in CLOCKS):
            continue
        if isinstance(value, Tensor) and isinstance(live.get(key), Tensor):
            live[key].copy_(value)
        else:
            live[key] = _plain(value, _cloned)


def _own(thing: Any) -> dict[str, Any]:
    """What a scheduler or scaler keeps, without what it refers to (the optimizer, wrapped functions)."""
    return {key: value for key, value in vars(thing).items() if _is_data(value)}


def _is_data(value: Any) -> bool:
    if isinstance(value, dict):
        return all(map(_is_data, value.values()))
    if isinstance(value, list | tuple):
        return all(map(_is_data, value))
    return value is None or isinstance(value, Tensor | bool | int | float | str)


def _restore_own(thing: Any, own: Mapping[str, Any]) -> None:
    for key in [key for key, value in vars(thing).items() if key not in own and _is_data(value)]:
        delattr(thing, key)
    for key, value in own.items():
        live = vars(thing).get(key)
        if isinstance(live, Tensor) and isinstance(value, Tensor) and live.shape == value.shape:
            live.copy_(value)
        else:
            setattr(thing, key, _plain(value, _cloned))


def _generators() -> dict[str, Any]:
    """The state of every random number generator: Python's, NumPy's, torch's, and each used device's."""
    kept: dict[str, Any] = {"python": random.getstate(), "numpy": np.random.get_state(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
        kept["cuda"] = torch.cuda.get_rng_state_all()
    return kept


def _restore_generators(kept: Mapping[str, Any]) -> None:
    random.setstate(kept["python"])
    np.random.set_state(kept["numpy"])
    torch.set_rng_state(kept["torch"])
    if "cuda" in kept:
        torch.cuda.set_rng_state_all(kept["cuda"])
