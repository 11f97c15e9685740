"""The values of the held-out documents of a packed corpus, in the store:

    <store>/values/<fingerprint>.json     the values, and how many tokens in a row have each

They are no part of the packed corpus, whose fingerprint enters stage keys: a corpus that was packed before its study had `by`
gets them by reading its held-out documents again.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from retain.datamodules.corpora.prepared import CURE
from retain.datamodules.corpora.sources import ReadSource, Source, corpus_definition, corpus_source, digest, read_note
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError, RetainError
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.data_facts import HeldoutValues

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

VALUES = "values"
"""The folder of the store."""
MOST_VALUES = 64
"""The most values of a field: each is a column of every result."""


class _Saved(TypedDict):
    """The content of a file of values."""

    corpus: str
    by: str
    values: list[str]
    runs: list[list[int]]


@dataclass(frozen=True)
class Labels:
    """Which value each token of a held-out split has."""

    corpus: str
    """The fingerprint of the packed corpus."""
    by: str
    """The name of the field."""
    values: tuple[str, ...]
    """The values, sorted."""
    runs: tuple[tuple[int, int], ...]
    """The number of a value and the number of tokens in a row that have it, from the first token of the split to its last."""

    @property
    def fingerprint(self) -> str:
        """The digest of all fields."""
        return digest(_fields(self))

    @property
    def facts(self) -> HeldoutValues:
        return HeldoutValues(self.fingerprint, self.values)

    def of_tokens(self, sequences: int, length: int) -> "npt.NDArray[np.uint8]":
        """The number of the value of each token: [sequences, length]."""
        import numpy as np

        numbers, counts = np.array(self.runs, np.int64).reshape(-1, 2).T
        return np.repeat(numbers.astype(np.uint8), counts)[: sequences * length].reshape(sequences, length)


def labels_of(corpus: str, by: str, values: Sequence[str], tokens: Sequence[int]) -> Labels:
    """The labels of documents, given the value of each and its number of tokens."""
    names = tuple(sorted(set(values)))
    number = {name: index for index, name in enumerate(names)}
    runs: list[tuple[int, int]] = []
    for value, count in zip(values, tokens, strict=True):
        before = runs.pop() if runs and runs[-1][0] == number[value] else (number[value], 0)
        runs.append((number[value], before[1] + count))
    return Labels(corpus, by, names, tuple(runs))


def write_labels(store: Path, labels: Labels) -> None:
    """Write labels into the store."""
    path = _path(store, labels.fingerprint)
    path.parent.mkdir(parents=True, exist_ok=True)
    write_document(path, _fields(labels))


def read_labels(store: Path, fingerprint: str) -> Labels:
    """The labels with this fingerprint. Raises DamageError if the store lacks them, or they are others."""
    path = _path(store, fingerprint)
    try:
        saved = read_document(path, _Saved, CURE)
    except FileNotFoundError:
        raise DamageError(f"{path} is missing; {CURE}") from None
    runs = tuple((run[0], run[1]) for run in saved["runs"] if len(run) == 2)
    found = Labels(saved["corpus"], saved["by"], tuple(saved["values"]), runs)
    if found.fingerprint != fingerprint:
        raise DamageError(f"{path} is damaged (its fingerprint does not match); delete it, and {CURE}")
    return found


def labels_problem(path: Path) -> str | None:
    """What is wrong with a file of values of a store, and the cure; None if nothing is."""
    try:
        read_labels(path.parents[1], path.stem)
    except RetainError as error:
        return str(error)
    return None


def known_values(
    file: StudyFile,
    store: Path,
    name: str,
    length: int,
    tokenizer: str,
    fingerprint: str,
    last: bool = False,
    read: ReadSource | None = None,
) -> HeldoutValues | None:
    """The values of a packed corpus with this fingerprint; None without `by`, or while they are not prepared.

    last: whether those that were prepared last will do, if the source has changed or is gone. read: as in `corpus_source`.
    """
    if not file.study.corpora[name].by:
        return None
    sources = [partial(values_source, file, name, length, tokenizer, read)] + [
        partial(values_definition, file, name, length)
    ] * last
    for source in sources:
        try:
            if (note := read_note(store, source())) is not None:
                labels = read_labels(store, note.fingerprint)
                if labels.corpus == fingerprint:
                    return labels.facts
        except DamageError:
            continue
        except RetainError:
            if not last:
                raise
    return None


def values_source(file: StudyFile, name: str, length: int, tokenizer: str, read: ReadSource | None = None) -> Source:
    """The source of the values of a packed corpus; `read` as in `corpus_source`. Raises StudyError, MissingResourceError."""
    return {**corpus_source(file, name, length, tokenizer, read), "by": file.study.corpora[name].by}


def values_definition(file: StudyFile, name: str, length: int) -> Source:
    """The definition of the values of a packed corpus."""
    return {**corpus_definition(file, name, length), "by": file.study.corpora[name].by}


def _path(store: Path, fingerprint: str) -> Path:
    return store / VALUES / f"{fingerprint}.json"


def _fields(labels: Labels) -> dict[str, object]:
    runs = [list(run) for run in labels.runs]
    return {"corpus": labels.corpus, "by": labels.by, "values": list(labels.values), "runs": runs}
