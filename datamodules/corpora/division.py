"""How the documents of a corpus are divided into training and held-out split."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

from retain.datamodules.corpora.responses.marked import Document


@dataclass(frozen=True)
class Division:
    """How documents are divided into training and held-out split."""

    heldout: float
    """The share of documents in the held-out split."""
    withheld: float
    """The largest held-out share of the study's corpora. Documents within it are in no training split, so that no corpus trains
    on what another one holds out."""
    own: Iterable[Document] = ()
    """The documents of a held-out split that the corpus brings along."""
    others: Collection[int] = ()
    """The hashes of documents that corpora of the study hold out in such splits: none of them is in the training split."""
