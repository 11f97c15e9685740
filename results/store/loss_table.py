"""The loss table: one row per trial, with empty cells for what is not trained yet."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from retain.results.store.runs import Store
from retain.results.store.state import State, damaged_state
from retain.results.store.study_files import TRIALS, read_trials, study_folder
from retain.sweeps.base.errors import DamageError
from retain.sweeps.base.files import write_json, write_text
from retain.sweeps.schema.search_space import Loss
from retain.sweeps.tree.tree import STAGES, Tree

if TYPE_CHECKING:
    import pandas

LOSSES: tuple[str, ...] = get_args(Loss)
Row = dict[str, Any]


def four_losses(path: Sequence[Mapping[str, Any] | None]) -> dict[str, float | None]:
    """The paper's four losses (Section 3; nats per token) from the held-out losses along a path, root first.

    L_im is measured after the last stage before fine-tuning, the others after the leaf. A loss that is missing is None.
    """
    *before, leaf = path
    last = before[-1] if before else None

    def loss_on(split: str, losses: Mapping[str, Any] | None) -> float | None:
        return float(losses[split]["loss"]) if losses and split in losses else None

    return {
        "immediate_posttraining_loss": loss_on("posttraining", last),
        "retained_posttraining_loss": loss_on("posttraining", leaf) if last else None,
        "finetuning_loss": loss_on("finetuning", leaf),
        "retained_pretraining_loss": loss_on("pretraining", leaf),
    }


def trial_rows(
    tree: Tree, store: Store, states: Mapping[str, State] | None = None, damaged: dict[str, State] | None = None
) -> list[Row]:
    """One row per trial: axes, keys, the four losses (nats per token) and the tokens trained on its path; None if not trained.

    states: the states of all stages, if they have been read already. damaged: the runs whose losses cannot be read are entered
    here, and their losses are missing; None: the first raises DamageError.
    """
    states = store.states(tree.stages) if states is None else states
    done = {}
    for key in tree.stages:
        try:
            if states[key].state == "done":
                done[key] = store.run(key).losses()
        except DamageError as error:
            if damaged is None:
                raise
            damaged[key] = damaged_state(error)
    rows = []
    for trial in tree.trials:
        path = [done.get(key) for key in trial.path]
        tokens = sum(losses["trained_tokens"] for losses in path if losses) if all(path) else None
        keys = {stage: getattr(trial, stage) for stage in STAGES}
        splits = [losses["splits"] if losses else None for losses in path]
        rows.append({"axes": trial.axes, "keys": keys, **four_losses(splits), "tokens": tokens})
    return rows


def save_rows(store: Path, study: str, rows: Sequence[Row]) -> Path:
    """Write a study's rows as trials.json, which `retain.load` reads, and as losses.csv. Returns the path of losses.csv."""
    folder = study_folder(store, study)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / TRIALS, list(rows))
    write_text(folder / "losses.csv", csv_text(rows))
    return folder / "losses.csv"


def read_rows(store: Path, study: str) -> list[Row]:
    """The rows that `save_rows` kept last for a study.

    Raises FileNotFoundError, which names the studies that have some; DamageError.
    """
    path = study_folder(store, study) / TRIALS
    try:
        return read_trials(path)
    except FileNotFoundError:
        known = sorted(place.parent.name for place in study_folder(store, "").glob(f"*/{TRIALS}"))
        cure = "name the study's file, or run the study"
        raise FileNotFoundError(f"{path}: not found (there are {', '.join(known) or 'none'}); {cure}") from None


def csv_text(rows: Sequence[Row]) -> str:
    """The rows as comma-separated values, a column for each axis, loss and key."""
    flat = [flat_row(row) for row in rows]
    text = io.StringIO()
    axes = {name: None for row in rows for name in row["axes"]}
    columns = [*axes, *(name for name in flat[0] if name not in axes)] if flat else []
    writer = csv.DictWriter(text, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def flat_row(row: Row) -> Row:
    """A row without nesting: axes, losses, tokens, then the keys as `pretrain_key` and so on."""
    keys = {f"{stage}_key": key for stage, key in row["keys"].items()}
    return {**row["axes"], **{name: row[name] for name in LOSSES}, "tokens": row["tokens"], **keys}


def frame_of(rows: Sequence[Row]) -> "pandas.DataFrame":
    """The rows as a pandas frame; missing losses are NaN."""
    import pandas

    frame = pandas.DataFrame([flat_row(row) for row in rows])
    return frame.astype(dict.fromkeys((*LOSSES, "tokens"), float))
