"""Stage keys: a hash over everything that decides a stage's weights, and over nothing else."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

FORMAT = 1
"""Part of every key; a deliberate change of what the recipes mean raises it."""

KEY_LENGTH = 20
"""Hexadecimal digits: 80 bits, so a million stages collide with a chance below 1e-12."""


def canonical(value: Any) -> str:
    """The one JSON text of a value: keys sorted, no spaces, floats at full precision.

    Raises TypeError or ValueError for anything without an exact text: NaN, infinities, objects, keys that are no text.
    """
    return json.dumps(_exact(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _exact(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if type(value) is str:
        value.encode()  # refuses lone surrogates
        return value
    if type(value) is int:
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{value} has no exact encoding in a stage key")
        return value + 0.0  # -0.0 becomes 0.0
    if isinstance(value, list | tuple):
        return [_exact(item) for item in value]
    if isinstance(value, Mapping):
        for name in value:
            if type(name) is not str:
                raise TypeError(f"{name!r} cannot name a field of a stage key")
        return {name: _exact(item) for name, item in value.items()}
    raise TypeError(f"{type(value).__name__} {value!r} has no exact encoding in a stage key")


def stage_key(stage: str, parent: str | None, recipe: str) -> str:
    """The key of a stage from its name, its parent's key and its canonical recipe."""
    return hashlib.sha256(payload_text(stage, parent, recipe).encode()).hexdigest()[:KEY_LENGTH]


def payload_text(stage: str, parent: str | None, recipe: str) -> str:
    """What a key is the hash of: the canonical text of {format, parent, recipe, stage}."""
    quoted = "null" if parent is None else f'"{parent}"'
    return f'{{"format":{FORMAT},"parent":{quoted},"recipe":{recipe},"stage":"{stage}"}}'
