"""Objects of a kind that are alive, wherever they are held."""

import gc
from typing import Any, TypeVar

T = TypeVar("T")


def alive(kind: type[T]) -> list[T]:
    """All live instances of a class written in Python and of its subclasses: each refers to its class."""
    kinds = _with_subclasses(kind)
    return [thing for thing in gc.get_referrers(*kinds) if type(thing) in kinds]


def _with_subclasses(kind: type[Any]) -> set[type[Any]]:
    return {kind, *(each for below in kind.__subclasses__() for each in _with_subclasses(below))}
