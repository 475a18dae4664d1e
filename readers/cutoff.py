"""What is whole of a JSON text that was cut off: the values before the cut, with what was open closed behind them."""

import json
import re
from typing import Any

TOKEN = re.compile(r'"(?:[^"\\]|\\.)*+"|[\[\]{},]', re.DOTALL)
CLOSING = {"[": "]", "{": "}"}
DEEPEST = 1_000

_DECODER = json.JSONDecoder(parse_int=float)  # whole numbers of thousands of digits are refused as int


def before_the_cut(text: str) -> Any | None:
    """The JSON value that ``text`` begins, up to its last whole member; ``None`` where there is none.

    A number that ends where the text does is not taken: who knows how it went on.
    """
    open_ones: list[str] = []
    whole, closing = 0, ""
    for token in TOKEN.finditer(text):
        sign = token[0]
        if sign in CLOSING:
            open_ones.append(CLOSING[sign])
            if len(open_ones) > DEEPEST:
                return None
            if len(open_ones) == 1:
                whole, closing = token.end(), open_ones[0]
        elif sign == ",":
            whole, closing = token.start(), "".join(reversed(open_ones))
        elif sign in "]}":
            if not open_ones or open_ones.pop() != sign:
                break
            whole, closing = token.end(), "".join(reversed(open_ones))
            if not open_ones:
                break
    try:
        return _DECODER.decode(text[:whole] + closing) if whole else None
    except (ValueError, RecursionError):
        return None
