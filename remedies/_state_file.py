"""A ``State`` in a file: plain state dicts, which anybody can load by hand, written whole or not at all."""

import os
import pickle
from collections import OrderedDict
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.parameter import is_lazy

from trainmedic.errors import UnreadableError, UsageError
from trainmedic.remedies._containers import Held
from trainmedic.remedies._state import CLOCKS, Part, State, Stepper, has_extra
from trainmedic.remedies._tensors import Kept
from trainmedic.remedies.run import Run

EXTRA = "_extra_state"
"""The last part of the key under which ``state_dict`` holds a module's extra state."""

VERSION = 1

TORN = (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError, pickle.UnpicklingError)
"""What ``torch.load`` raises for files that are torn, or not its own."""

PLAIN = (bool, int, float, complex, str, bytes, torch.dtype, torch.device, type(None))
"""Types, beside tensors and containers, that are read without pickle."""

Home = Callable[[Any], "torch.device | None"]
"""The device of a tensor in an optimizer's state by its name; ``None``: where it is."""


# -- writing -----------------------------------------------------------------------------------------------------


def write(state: State, path: str | os.PathLike[str]) -> None:
    """Write ``state``; see ``State.save``."""
    host = {key: _whole(kept).cpu() for home in (state.clocked, state.learnt) for key, kept in home.items()}

    def kept(tensor: Tensor) -> Tensor:
        return host[id(tensor)] if id(tensor) in host else tensor.detach().cpu()

    content = {
        "version": VERSION,
        "step": state.step,
        "models": [_model_dict(places, kept) for places in state.models],
        "optimizers": [_optimizer_dict(stepper, kept) for stepper in state.steppers],
    }
    _replace(Path(path), content)


def _whole(kept: Kept) -> Tensor:
    """The copy in the tensor's own shape: of an expanded tensor each element was kept once."""
    return kept.copy if kept.copy.shape == kept.live.shape else kept.copy.expand(kept.live.shape)


def _replace(path: Path, content: Any) -> None:
    """Beside the file first: whoever kills the writer finds the older file whole."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with part.open("wb") as file:
            torch.save(content, file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(part, path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


def _keys(places: Iterable[tuple[str, Part]]) -> Iterator[tuple[str, Any]]:
    """Each key of a model's ``state_dict``, in its order, with the tensor, or the part whose extra state it is."""
    for name, part in places:
        prefix = f"{name}." if name else ""
        persistent = {key: buffer for key, buffer in part.buffers.items() if key not in part.transient}
        for key, tensor in (*part.parameters.items(), *persistent.items()):
            if tensor is not None:
                yield prefix + key, tensor
        if has_extra(part.module):
            yield prefix + EXTRA, part


def _model_dict(places: list[tuple[str, Part]], kept: Callable[[Tensor], Tensor]) -> Any:
    """As the model's own ``state_dict`` was, with the versions that ``load_state_dict`` asks for."""
    values = {key: value.extra if isinstance(value, Part) else value for key, value in _keys(places)}
    content: Any = OrderedDict(_portable_items(values, kept))
    content._metadata = OrderedDict((name, {"version": part.module._version}) for name, part in places)
    return content


def _optimizer_dict(stepper: Stepper, kept: Callable[[Tensor], Tensor]) -> dict[str, Any]:
    """As the optimizer's own ``state_dict`` was."""
    numbers = _numbers(stepper)
    state = {numbers.get(id(key), key): value for key, value in stepper.state.items()}
    groups = [
        {**_portable(options, kept), "params": [numbers[id(member)] for member in members]}
        for options, members in zip(stepper.options, stepper.members, strict=True)
    ]
    known = {key: value for key, value in state.items() if isinstance(key, int | str)}
    return {"state": _portable(known, kept), "param_groups": groups}


def _numbers(stepper: Stepper) -> dict[int, int]:
    """Parameters' numbers by their id, counted through all groups as ``Optimizer.state_dict`` does."""
    numbers: dict[int, int] = {}
    for i, member in enumerate(member for group in stepper.members for member in group):
        numbers.setdefault(id(member), i)
    return numbers


class Unportable(TypeError):
    """A value that a file read without pickle cannot hold."""


def _portable(value: Any, kept: Callable[[Tensor], Tensor]) -> Any:
    """Containers, frozen or not, as plain ones with the kept values; raises ``Unportable`` for what is no data."""
    if isinstance(value, Held):
        value = value.items
    if isinstance(value, Tensor) and not is_lazy(value):
        return kept(value)
    if isinstance(value, Mapping):
        return dict(_portable_items(value, kept))
    if isinstance(value, list | tuple | set):
        kind = next(kind for kind in (list, tuple, set) if isinstance(value, kind))
        return kind(_portable(inner, kept) for inner in value)
    if isinstance(value, np.ndarray) and value.dtype.kind in "biufc":
        return torch.from_numpy(value.copy())
    if isinstance(value, np.generic):
        return _portable(value.item(), kept)
    if type(value) not in PLAIN:
        raise Unportable(type(value).__name__)
    return value


def _portable_items(items: Mapping[Any, Any], kept: Callable[[Tensor], Tensor]) -> Iterator[tuple[Any, Any]]:
    """Entries that no file may hold are left out."""
    for key, value in items.items():
        try:
            yield _portable(key, kept), _portable(value, kept)
        except Unportable:
            continue


# -- reading -----------------------------------------------------------------------------------------------------


@torch.inference_mode(False)
@torch.no_grad()
def read(path: str | os.PathLike[str], run: Run) -> State:
    """The state in a file, for ``run``; see ``State.load``."""
    content = _content(path)
    state = State.capture(run)
    state.step = content["step"]
    try:
        _check(len(content["models"]) == len(state.models), "run: it holds another number of models")
        _check(len(content["optimizers"]) == len(state.steppers), "run: it holds another number of optimizers")
        for places, saved in zip(state.models, content["models"], strict=True):
            _take_model(state, places, saved)
        for stepper, saved in zip(state.steppers, content["optimizers"], strict=True):
            _take_optimizer(state, stepper, saved)
    except UsageError as error:
        raise UsageError(f"{path}: does not fit the {error}") from error
    except (TypeError, AttributeError, LookupError, ValueError) as error:
        raise UnreadableError(f"{path}: a broken saved state: {type(error).__name__}: {error}") from error
    return state


def _content(path: str | os.PathLike[str]) -> dict[str, Any]:
    try:
        file = open(path, "rb")  # noqa: SIM115 - closed below; only its opening fails for reasons outside of the file
    except OSError as error:
        raise UnreadableError(f"{path}: cannot be read: {error.strerror or error}") from error
    try:
        with file:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except TORN as error:
        raise UnreadableError(f"{path}: not a saved state, or a broken one") from error
    if not isinstance(content, dict) or content.get("version") != VERSION:
        raise UnreadableError(f"{path}: not a saved state of version {VERSION}")
    lists = all(isinstance(content.get(key), list) for key in ("models", "optimizers"))
    if not lists or not isinstance(content.get("step"), int):
        raise UnreadableError(f"{path}: not a saved state, or a broken one")
    return content


def _check(fine: bool, otherwise: str) -> None:
    if not fine:
        raise UsageError(otherwise)


def _take_model(state: State, places: Iterable[tuple[str, Part]], saved: Mapping[str, Any]) -> None:
    expected = dict(_keys(places))
    optional = {key for key, place in expected.items() if isinstance(place, Part)}
    odd = sorted((expected.keys() ^ saved.keys()) - optional)
    if odd:
        raise UsageError(f"model: {odd[0]} is only in one of them ({len(odd)} such keys in all)")
    for key, place in expected.items():
        if isinstance(place, Part):
            place.extra = saved.get(key, place.extra)
        else:
            _take_tensor(state, key, place, saved[key])


def _take_tensor(state: State, key: str, live: Tensor, value: Any) -> None:
    kept = state.learnt.get(id(live))
    _check(kept is not None, f"model: {key} is not initialised yet; run one batch first")
    _check(isinstance(value, Tensor) and value.shape == live.shape, f"model: {key} has another shape")
    assert kept is not None
    kept.copy = value.to(live.device, live.dtype, copy=True)
    for dimension, size in enumerate(kept.copy.shape):
        if live.layout is torch.strided and live.stride(dimension) == 0 and size > 1:
            kept.copy = kept.copy.narrow(dimension, 0, 1)


def _take_optimizer(state: State, stepper: Stepper, saved: Mapping[str, Any]) -> None:
    groups = saved["param_groups"]
    sizes = [len(group["params"]) for group in groups]
    _check(sizes == [len(members) for members in stepper.members], "optimizer: its groups have other sizes")
    numbers = _numbers(stepper)
    leaves = {numbers[id(member)]: member for members in stepper.members for member in members}
    adopt = Adoption(state)
    before, stepper.state = stepper.state, {}
    for number, values in saved["state"].items():
        key = leaves.get(number, number)
        stepper.state[key] = adopt(values, before.get(key), _home(key, stepper))
    for options, group in zip(stepper.options, groups, strict=True):
        for name in (name for name in group if name != "params"):
            adopt.clock = name in CLOCKS
            options[name] = adopt(group[name], options.get(name), lambda _: None)


def _home(key: Any, stepper: Stepper) -> Home:
    """Tensors of a parameter's state belong where it is, but for step counts, which mostly are on the host."""
    if not isinstance(key, Tensor):
        return lambda _: None
    own = zip(stepper.options, stepper.members, strict=True)
    options = next(options for options, members in own if any(member is key for member in members))
    counts = bool(options.get("capturable") or options.get("fused"))
    return lambda name: key.device if name != "step" or counts else None


class Adoption:
    """Turns values from a file into frozen ones; their tensors become live ones of the state."""

    def __init__(self, state: State) -> None:
        self._state = state
        self.clock = False

    def __call__(self, value: Any, now: Any, home: Home, name: Any = None) -> Any:
        """The frozen form of ``value``, in the tensors and dicts of ``now`` as far as they fit."""
        before = now.items if isinstance(now, Held) else now
        if isinstance(value, Tensor):
            return self._tensor(value, before, home(name))
        if isinstance(value, dict):
            inside = before if isinstance(before, dict) else {}
            live = now.live if isinstance(now, Held) and isinstance(before, dict) else {}
            return Held(live, {key: self(inner, inside.get(key), home, key) for key, inner in value.items()})
        if isinstance(value, list):
            return Held([], [self(inner, None, home, name) for inner in value])
        if isinstance(value, tuple):
            return tuple(self(inner, None, home, name) for inner in value)
        return value

    def _tensor(self, value: Tensor, now: Any, home: "torch.device | None") -> Tensor:
        fits = isinstance(now, Tensor) and now.shape == value.shape and now.dtype == value.dtype
        live: Tensor = now if fits else value.to(home or value.device, copy=True)
        where = self._state.clocked if self.clock else self._state.learnt
        where[id(live)] = Kept(live, value.to(live.device, copy=True), judged=not self.clock)
        return live
