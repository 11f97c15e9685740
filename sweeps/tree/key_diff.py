"""The fields that a stage key is made of, and the fields in which two stages differ."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Payload = Mapping[str, Any]
"""The content that a stage key hashes: format, stage (its kind), parent and recipe; and the `name` of a further stage."""


@dataclass(frozen=True)
class Difference:
    """A field whose values differ between two stages. ABSENT stands for a field that one stage does not have."""

    field: str
    here: Any
    there: Any


ABSENT = "absent"


def path_fields(path: Sequence[Payload]) -> dict[str, Any]:
    """All fields that decide a stage's weights, such as `pretrain.lr`, from the payloads of its path, root first."""
    return {f"{stage_name(payload)}.{name}": value for payload in path for name, value in leaves(payload["recipe"])}


def stage_name(payload: Payload) -> str:
    """The name of a stage: the user's for a further stage, the paper's for its three."""
    name: str = payload.get("name", payload["stage"])
    return name


def differences(here: Sequence[Payload], there: Sequence[Payload]) -> list[Difference]:
    """The fields in which two paths of payloads differ, in the order of the first path. Paths without any have equal keys."""
    ours, theirs = path_fields(here), path_fields(_named_as(here, there))
    fields = [*ours, *(name for name in theirs if name not in ours)]
    pairs = ((name, ours.get(name, ABSENT), theirs.get(name, ABSENT)) for name in fields)
    return [
        Difference(name, mine, other) for name, mine, other in pairs if mine != other or type(mine) is not type(other)
    ]


def _named_as(names: Sequence[Payload], path: Sequence[Payload]) -> list[Payload]:
    """A path whose further stages have the names of those at the same depth of another path: names make no difference."""
    same = [one["stage"] == other["stage"] for one, other in zip(path, names, strict=False)]
    return [
        {**payload, "name": stage_name(names[depth])} if depth < len(same) and same[depth] else payload
        for depth, payload in enumerate(path)
    ]


def nearest(
    here: Sequence[Payload], candidates: Mapping[str, Sequence[Payload]]
) -> tuple[str, list[Difference]] | None:
    """The key of the candidate path with the fewest differences, and the differences; None if there is no other path."""
    found = [(key, differences(here, path)) for key, path in candidates.items()]
    return min((pair for pair in found if pair[1]), key=lambda pair: (len(pair[1]), pair[0]), default=None)


def leaves(value: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values of nested mappings by dotted path, below `prefix`."""
    if isinstance(value, Mapping) and value:
        for name, inner in value.items():
            yield from leaves(inner, f"{prefix}.{name}" if prefix else str(name))
    else:
        yield prefix, value
