"""Stage keys: hashes of everything that decides a stage's weights, and of nothing else."""

import hashlib
import json
import math
from collections.abc import Mapping
from typing import Any

FORMAT = 1
"""Part of every key. Raise it when the meaning of recipes changes deliberately."""

CARRY = '"start":{"optimizer":"carry"}'
"""A part of the canonical recipe of every stage that continues with its parent's AdamW, and of no other."""

HELDOUT_LOSS, TASK = "heldout_loss", "task"
"""What the recipe of an evaluation says that it measures: a loss, or the metrics of a task."""

KEY_LENGTH = 20
"""The length of a key in hexadecimal digits: 80 bits, so that a million stages collide with a probability below 1e-12."""


def canonical(value: Any) -> str:
    """The canonical JSON text of a value: keys sorted, no spaces, floats at full precision.

    Raises TypeError or ValueError for values without an exact text: NaN, infinities, objects, and keys that are not text.
    """
    return json.dumps(_exact(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def _exact(value: Any) -> Any:
    if value is None or type(value) in (bool, int):
        return value
    if type(value) is str:
        value.encode()  # raises for lone surrogates
        return value
    if type(value) is float:
        if not math.isfinite(value):
            raise ValueError(f"{value} cannot be encoded exactly in a stage key")
        return value + 0.0  # -0.0 becomes 0.0
    if isinstance(value, list | tuple):
        return [_exact(item) for item in value]
    if isinstance(value, Mapping):
        for name in value:
            if type(name) is not str:
                raise TypeError(f"{name!r} cannot be the name of a field in a stage key")
        return {name: _exact(item) for name, item in value.items()}
    raise TypeError(f"{type(value).__name__} {value!r} cannot be encoded exactly in a stage key")


def stage_key(stage: str, parent: str | None, recipe: str) -> str:
    """The key of a stage, from its kind (`section.stage_kind`), its parent's key and its canonical recipe."""
    return hashlib.sha256(payload_text(stage, parent, recipe).encode()).hexdigest()[:KEY_LENGTH]


def payload_text(stage: str, parent: str | None, recipe: str) -> str:
    """The text that a stage key hashes: the canonical JSON of {format, parent, recipe, stage}."""
    quoted = "null" if parent is None else f'"{parent}"'
    return f'{{"format":{FORMAT},"parent":{quoted},"recipe":{recipe},"stage":"{stage}"}}'
