"""Giving a live module something more: its class is exchanged, so that names, keys and identity stay as they are."""

import functools
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from trainmedic.remedies.remedy import Undo


class Graft(nn.Module):
    """What is mixed into the class of one live module, in front of it; ``parts`` are the names that it adds to it.

    The module stays what it is: an instance of its class, under its name, with its keys. Copies and pickles carry the
    graft: the mixed class is made anew where they are read.
    """

    parts: ClassVar[tuple[str, ...]] = ()

    def __reduce_ex__(self, protocol: Any) -> Any:
        state = self.__getstate__()  # type: ignore[no-untyped-call]
        return _hollow, (plain(type(self)), grafts(type(self))), state

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
        """A state of the time before the graft still loads: what the graft added stays as it is, or as ``without``."""
        own = {key: value for key, value in self.state_dict().items() if key.partition(".")[0] in self._added()}
        if own and not any(prefix + key in state_dict for key in own):
            state_dict.update({prefix + key: self._without(key, value) for key, value in own.items()})
        super()._load_from_state_dict(state_dict, prefix, *args)

    def _added(self) -> set[str]:
        return {name for mixin in grafts(type(self)) for name in mixin.parts}

    def _without(self, key: str, value: Tensor) -> Tensor:
        """What stands for a part of a graft in a state that has none."""
        return value.detach().clone()


def _hollow(kind: type[nn.Module], mixed_in: tuple[type[Graft], ...]) -> nn.Module:
    made = _mixed(kind, mixed_in)
    return made.__new__(made)


def _mixed(kind: Any, mixed_in: tuple[type[Graft], ...]) -> type[nn.Module]:
    """``kind`` with grafts in front, the last one first; it bears the name of ``kind``, and is made once."""
    mixin: Any
    for mixin in mixed_in:
        kind = _mix(mixin, kind)
    made: type[nn.Module] = kind
    return made


@functools.cache
def _mix(mixin: Any, kind: Any) -> Any:
    return type(kind.__name__, (mixin, kind), {"__module__": kind.__module__, "__qualname__": kind.__qualname__})


def grafts(kind: type[nn.Module]) -> tuple[type[Graft], ...]:
    """What is mixed into a class, the first graft first."""
    found = []
    while len(kind.__bases__) == 2 and issubclass(kind.__bases__[0], Graft):
        found.append(kind.__bases__[0])
        kind = kind.__bases__[1]
    return tuple(reversed(found))


def plain(kind: type[nn.Module]) -> type[nn.Module]:
    """A class without what was mixed into it."""
    while len(kind.__bases__) == 2 and issubclass(kind.__bases__[0], Graft):
        kind = kind.__bases__[1]
    return kind


def has_graft(module: nn.Module, mixin: type[Graft]) -> bool:
    """Whether a module carries a graft."""
    return isinstance(module, mixin)


def graft(module: nn.Module, mixin: type[Graft], parts: Mapping[str, Any]) -> None:
    """Mix ``mixin`` into one module and give it ``parts``: modules, parameters, buffers (tensors) and plain values."""
    module.__class__ = _mixed(plain(type(module)), (*grafts(type(module)), mixin))
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            module.add_module(name, part)
        elif isinstance(part, nn.Parameter):
            module.register_parameter(name, part)
        elif isinstance(part, Tensor):
            module.register_buffer(name, part)
        else:
            vars(module)[name] = part


def grafted(module: nn.Module, mixin: type[Graft], parts: Mapping[str, Any]) -> Undo:
    """``graft``, whole or not at all; gives the inverse."""
    try:
        graft(module, mixin, parts)
    except BaseException:
        ungraft(module, mixin)
        raise
    return lambda: ungraft(module, mixin)


def ungraft(module: nn.Module, mixin: type[Graft]) -> None:
    """Make a module what it was before ``graft``; does nothing where it carries none."""
    if not has_graft(module, mixin):
        return
    module.__class__ = _mixed(plain(type(module)), tuple(each for each in grafts(type(module)) if each is not mixin))
    for name in mixin.parts:
        for home in (module._modules, module._parameters, module._buffers, vars(module)):
            home.pop(name, None)


def new_parameters(parts: Mapping[str, Any]) -> dict[str, nn.Parameter]:
    """The parameters among the parts of a graft, by the names that they get below the module."""
    named: dict[str, nn.Parameter] = {}
    for name, part in parts.items():
        if isinstance(part, nn.Module):
            named |= {f"{name}.{below}": parameter for below, parameter in part.named_parameters()}
        elif isinstance(part, nn.Parameter):
            named[name] = part
    return named


def home_of(
    parameter: Tensor | None, optimizers: Sequence[torch.optim.Optimizer]
) -> tuple[torch.optim.Optimizer, dict[str, Any]] | None:
    """The optimizer and the group that hold a parameter."""
    for optimizer in optimizers:
        for group in optimizer.param_groups:
            if any(member is parameter for member in group["params"]):
                return optimizer, group
    return None


def join(group: dict[str, Any], named: Mapping[str, nn.Parameter]) -> None:
    """Add parameters to a group in place, which schedulers and others hold on to."""
    group["params"].extend(named.values())
    if "param_names" in group:
        group["param_names"].extend(named)


def leave(optimizer: torch.optim.Optimizer, parameters: Iterable[nn.Parameter]) -> None:
    """Take parameters out of an optimizer's groups, with their names and their state."""
    leaving = list(parameters)
    gone = {id(parameter) for parameter in leaving}
    for group in optimizer.param_groups:  # loading a state replaces them
        stay = [i for i, parameter in enumerate(group["params"]) if id(parameter) not in gone]
        if "param_names" in group:
            group["param_names"][:] = [name for i, name in enumerate(group["param_names"]) if i in stay]
        group["params"][:] = [group["params"][i] for i in stay]
    for parameter in leaving:
        optimizer.state.pop(parameter, None)
