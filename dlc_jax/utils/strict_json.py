"""JSON that conforms to RFC 8259: without NaN and Infinity, which Python writes by default."""

import json
import math
from typing import Any


def dumps(value: Any, *, indent: int | None = None) -> str:
    """Serializes a value to JSON; numbers that are not finite become null.

    Args:
      value: Nested dictionaries, lists, tuples, strings, numbers, booleans and None.
      indent: Number of spaces per level; None for a single line.

    Example:
      >>> dumps({"loss": float("nan")})
      '{"loss": null}'
    """
    return json.dumps(_replace_nonfinite(value), indent=indent, allow_nan=False)


def _replace_nonfinite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _replace_nonfinite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_replace_nonfinite(item) for item in value]
    return value
