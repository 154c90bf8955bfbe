"""JSON as RFC 8259 has it, without the NaN and Infinity that Python would write."""

import json
import math
from typing import Any


def dumps(value: Any, *, indent: int | None = None) -> str:
    """A value as JSON; numbers that are not finite become null.

    Args:
      value: of dictionaries, lists, tuples, strings, numbers, booleans and None.
      indent: by so many spaces a level, a line an entry; None for one line.
    """
    return json.dumps(_finite(value), indent=indent, allow_nan=False)


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(each) for each in value]
    return value
