"""Why losses of trained stages are missing in a loss table."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from retain.results.store.runs import Store
from retain.sweeps.base.units import counted
from retain.sweeps.schema.section import value_name, without_value


def blank_reasons(rows: Sequence[Mapping[str, Any]], store: Store) -> list[str]:
    """Why losses of trained stages are blank in these rows: one sentence for each column. Raises DamageError."""
    blank: dict[tuple[str, str], dict[str, None]] = {}
    for row in rows:
        for stage, losses in row.get("losses", {}).items():
            if any(loss is not None for loss in losses.values()):  # the stage is trained
                for corpus in _blank(losses):
                    blank.setdefault((stage, corpus), {})[row["keys"][stage]] = None
    return [
        f"{stage}/{corpus} is blank for {counted(len(keys), 'trained run')}: {_trainer(store, keys)}, and no losses on "
        f"{corpus} were measured then; retain evaluate measures them"
        for (stage, corpus), keys in blank.items()
    ]


def _blank(losses: Mapping[str, float | None]) -> Iterator[str]:
    """The corpora without a loss in a row of the matrix, and as CORPUS[...] those without any loss by value."""
    parts: dict[str, list[float | None]] = {}
    for name, loss in losses.items():
        if (corpus := without_value(name)) != name:
            parts.setdefault(corpus, []).append(loss)
        elif loss is None:
            yield name
    for corpus, found in parts.items():
        if losses[corpus] is not None and all(loss is None for loss in found):
            yield value_name(corpus, "...")


def _trainer(store: Store, keys: Iterable[str]) -> str:
    """Who has trained runs, as the beginning of a sentence."""
    studies = sorted({store.run(key).spec()["study"] for key in keys})
    return f"{', '.join(studies)} trained {'it' if len(list(keys)) == 1 else 'them'}"
