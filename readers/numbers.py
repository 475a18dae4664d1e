"""Numbers as logs write them."""

from collections.abc import Mapping
from typing import Any

DEEPEST = 16
MOST_NUMBERS = 20_000


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
    _collect(record, "", 0, numbers)
    return numbers


def _collect(record: Mapping[str, Any], prefix: str, depth: int, numbers: dict[str, float]) -> None:
    for key, value in record.items():
        if len(numbers) >= MOST_NUMBERS:
            return
        if isinstance(value, dict):
            if depth < DEEPEST:
                _collect(value, f"{prefix}{key}/", depth + 1, numbers)
            continue
        number = value if type(value) is float else json_number(value)
        if number is not None:
            numbers[prefix + str(key)] = number
