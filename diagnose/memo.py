"""While one history is judged, what several rules ask of it is worked out once."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps
from typing import Any, ParamSpec, TypeVar
from weakref import WeakKeyDictionary

from trainmedic.history import History

P = ParamSpec("P")
T = TypeVar("T")
_known: WeakKeyDictionary[History, dict[Any, Any]] = WeakKeyDictionary()


@contextmanager
def remembering(history: History) -> Iterator[None]:
    """Within it ``history`` does not change, and answers of :func:`remembered` functions are kept."""
    _known[history] = {}
    try:
        yield
    finally:
        _known.pop(history, None)


def remembered(function: Callable[P, T]) -> Callable[P, T]:
    """A function of a history, its first argument, and of hashable values.

    What it returns is shared: nobody may change it.
    """

    @wraps(function)
    def answer(*args: P.args, **kwargs: P.kwargs) -> T:
        history, *others = args
        known = _known.get(history) if isinstance(history, History) else None
        if known is None:
            return function(*args, **kwargs)
        key = (function, *others, *kwargs.items())
        if key not in known:
            known[key] = function(*args, **kwargs)
        return known[key]  # type: ignore[no-any-return]

    return answer
