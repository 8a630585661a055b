"""A digest of the arguments of a call, by which equal arguments are recognised."""

import hashlib
import json
from typing import Any


def digest_of(stored: str) -> str:
    """64 hexadecimal digits of arguments as `encode` writes them: the same for equal ones, in whatever order names and
    the entries of dicts were given. 1, 1.0 and True are not equal here: they are stored as different values."""
    return hashlib.sha256(json.dumps(_in_order(json.loads(stored)), sort_keys=True).encode()).hexdigest()


def _in_order(value: Any) -> Any:
    """The entries of dicts that are written as pairs sorted; a set is written in order already."""
    if isinstance(value, list):
        return [_in_order(one) for one in value]
    if not isinstance(value, dict):
        return value
    inner = {name: _in_order(one) for name, one in value.items()}
    if inner.get("$") == "dict":
        inner["v"] = sorted(inner["v"], key=lambda pair: json.dumps(pair, sort_keys=True))
    return inner
