"""Made-up trials whose losses after the last stage are known."""

from collections.abc import Mapping
from typing import Any

from retain.results.store.loss_table import Row


def row(axes: Mapping[str, Any], losses: Mapping[str, Mapping[str, float | None]], number: int = 0) -> Row:
    """A trial with these losses of each stage on each corpus; without the last one it is not finished."""
    done = all(loss is not None for loss in list(losses.values())[-1].values())
    return {
        "axes": dict(axes),
        "keys": {stage: f"{stage} {number}" for stage in losses},
        "immediate_posttraining_loss": None,
        "retained_posttraining_loss": None,
        "finetuning_loss": None,
        "retained_pretraining_loss": None,
        "tokens": 1 if done else None,
        "losses": {stage: dict(own) for stage, own in losses.items()},
    }


def without_losses(row: Row) -> Row:
    """A trial as before training."""
    losses = {stage: dict.fromkeys(own) for stage, own in row["losses"].items()}
    return {**row, "losses": losses, "tokens": None}
