"""The losses of a stage's weights by value, for corpora with `by`, and the evaluations that measure a corpus."""

from collections.abc import Iterator, Mapping
from typing import Any

from retain.results.store.runs import Run, Store
from retain.sweeps.schema.section import value_name
from retain.sweeps.tree.data_facts import HeldoutValues
from retain.sweeps.tree.evaluation_runs import evaluation_of
from retain.sweeps.tree.heldout_splits import TUNE
from retain.sweeps.tree.tree import Stage, Tree


def values_of(tree: Tree, length: int) -> dict[str, HeldoutValues]:
    """The values of the corpora of a study with `by`, by the name of the corpus, at a sequence length."""
    return {name: values for (name, own), values in tree.values.items() if own == length}


def done_evaluations(
    stage: Stage,
    name: str,
    fingerprint: str,
    length: int,
    store: Store,
    average: float,
    values: HeldoutValues | None,
    preferences: Mapping[str, Any] | None = None,
) -> Iterator[Run]:
    """The done evaluations of a stage on a corpus: that with these values first, then that without any.

    preferences: as in `evaluation_of`.
    """
    for given in dict.fromkeys((values, None)):
        one = evaluation_of(stage, name, fingerprint, length, 0, average, given, preferences)
        run = store.run(one.key)
        if run.is_done():
            yield run


def losses_by_value(
    stage: Stage,
    names: Mapping[str, str],
    length: int,
    store: Store,
    values: Mapping[str, HeldoutValues],
    found: Mapping[str, Any] | None,
    average: float = 1.0,
) -> dict[str, dict[str, float | None]]:
    """The losses of a stage's weights by value (nats per token), as CORPUS[VALUE], of each corpus with values.

    names: the fingerprints of corpora by name. found: the content of losses.json of the stage, if it measures these weights.
    None for a loss that was not measured. Raises DamageError.
    """
    losses: dict[str, dict[str, float | None]] = {}
    for name, own in values.items():
        if name not in names:
            continue
        measured = _of_splits(found, own) if found else {}
        if not measured:
            for run in done_evaluations(stage, name, names[name], length, store, average, own):
                measured = measured or _of_splits(run.losses(), own)
        losses[name] = {value_name(name, value): measured.get(value) for value in own.names}
    return losses


def _of_splits(found: Mapping[str, Any], values: HeldoutValues) -> dict[str, float | None]:
    """The reported losses by value, of the content of a losses.json; empty if it has none of these values."""
    for split in found["splits"].values():
        by = split.get("by")
        if by and by["fingerprint"] == values.fingerprint and split.get("half") != TUNE:
            return {value: part["loss"] for value, part in by["values"].items()}
    return {}
