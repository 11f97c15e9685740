"""What a stage key is made of, and which fields split two stages."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Payload = Mapping[str, Any]
"""What a key is the hash of: format, stage, parent, recipe."""


@dataclass(frozen=True)
class Difference:
    """A field with two values; `absent` stands for a field that one side does not have."""

    field: str
    here: Any
    there: Any


ABSENT = "absent"


def path_fields(path: Sequence[Payload]) -> dict[str, Any]:
    """Every field that decides a stage's weights, its ancestors' included: `pretrain.lr` and so on, root first."""
    return {f"{payload['stage']}.{name}": value for payload in path for name, value in leaves(payload["recipe"], "")}


def differences(here: Sequence[Payload], there: Sequence[Payload]) -> list[Difference]:
    """The fields in which two paths of payloads differ, in the order of the first; equal paths have equal keys."""
    ours, theirs = path_fields(here), path_fields(there)
    fields = [*ours, *(name for name in theirs if name not in ours)]
    pairs = ((name, ours.get(name, ABSENT), theirs.get(name, ABSENT)) for name in fields)
    return [
        Difference(name, mine, other) for name, mine, other in pairs if mine != other or type(mine) is not type(other)
    ]


def nearest(
    here: Sequence[Payload], candidates: Mapping[str, Sequence[Payload]]
) -> tuple[str, list[Difference]] | None:
    """Of other paths, by key, the one with the fewest differences, and these; None where there is no other."""
    found = [(key, differences(here, path)) for key, path in candidates.items()]
    return min((pair for pair in found if pair[1]), key=lambda pair: (len(pair[1]), pair[0]), default=None)


def leaves(value: Any, prefix: str) -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by dotted path, below `prefix`."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
