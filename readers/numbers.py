"""Numbers as logs write them."""

from collections.abc import Iterator, Mapping
from typing import Any

DEEPEST = 16
MOST_NUMBERS = 20_000
WORDS = frozenset({"nan", "inf", "+inf", "-inf", "infinity", "+infinity", "-infinity"})


def number_of(text: str) -> float | None:
    """The number that a text is, ``None`` where it is none. Python's ``1_000`` is none: nobody else writes that."""
    try:
        return float(text) if "_" not in text else None
    except ValueError:
        return None


def json_number(value: Any) -> float | None:
    """The number in a JSON value; strings hold one where a tool wrote numbers, or NaN as valid JSON, as text."""
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        return None
    try:
        return number_of(value.strip()) if isinstance(value, str) else float(value)
    except OverflowError:
        return None


def numbers_in(record: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of a record of any nesting, by path: ``{"a": {"b": 1}}`` gives ``a/b``. Lists are left out."""
    numbers: dict[str, float] = {}
    for name, value in _leaves(record, "", 0):
        number = json_number(value)
        if number is not None and len(numbers) < MOST_NUMBERS:
            numbers[name] = number
    return numbers


def _leaves(record: Mapping[str, Any], prefix: str, depth: int) -> Iterator[tuple[str, Any]]:
    for key, value in record.items():
        if not isinstance(value, Mapping):
            yield f"{prefix}{key}", value
        elif depth < DEEPEST:
            yield from _leaves(value, f"{prefix}{key}/", depth + 1)
