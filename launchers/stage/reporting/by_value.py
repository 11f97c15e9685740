"""The losses on a held-out split as losses.json has them: of the whole split, and by value for a corpus with `by`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from retain.datamodules.corpora.values.labels import read_labels
from retain.datamodules.order.stage_data import heldout_labels
from retain.lightning_modules.objective import HeldoutLoss


@dataclass(frozen=True)
class SplitLabels:
    """The value of each token of a held-out split."""

    fingerprint: str
    """That of the values in the store."""
    values: tuple[str, ...]
    numbers: torch.Tensor
    """The number of the value of each token: uint8 [sequences, length]."""


def split_labels(store: Path, corpus: str, fingerprint: str | None, half: str | None = None) -> SplitLabels | None:
    """The labels of a held-out split, or of a half of it; None without a fingerprint of values. Raises DamageError."""
    if fingerprint is None:
        return None
    labels = read_labels(store, fingerprint)
    return SplitLabels(fingerprint, labels.values, heldout_labels(store, corpus, labels, half))


def loss_fields(found: HeldoutLoss, labels: SplitLabels | None) -> dict[str, Any]:
    """The loss on a split in nats per token, with the number of tokens, and the same for each value.

    A value without a predicted token in the split has no loss.
    """
    fields: dict[str, Any] = {"loss": found.loss, "tokens": found.tokens}
    if labels is None:
        return fields
    known = dict(zip(labels.values, found.by_value, strict=False))  # the last values may have no token in a half
    parts = {value: known.get(value, (0.0, 0)) for value in labels.values}
    values = {
        value: {"loss": total / count if count else None, "tokens": count} for value, (total, count) in parts.items()
    }
    return fields | {"by": {"fingerprint": labels.fingerprint, "values": values}}
