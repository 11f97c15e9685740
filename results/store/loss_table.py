"""The loss table: one row per trial, with empty cells for what is not trained yet."""

import csv
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, get_args

from retain.results.store.runs import Run, Store
from retain.results.store.state import State, damaged_state
from retain.results.store.study_files import TRIALS, read_trials, study_folder
from retain.sweeps.base.errors import DamageError
from retain.sweeps.base.files import write_json, write_text
from retain.sweeps.schema.search_space import Loss
from retain.sweeps.schema.section import FURTHER, STAGE_KINDS, stage_kind
from retain.sweeps.tree.key_diff import stage_name
from retain.sweeps.tree.tree import Tree

if TYPE_CHECKING:
    import pandas

LOSSES: tuple[str, ...] = get_args(Loss)
Row = dict[str, Any]


ROLES = {"pretrain": "pretraining", "posttrain": "posttraining", "finetune": "finetuning"}


def heldout_role(stage: str) -> str:
    """The name of the held-out split of a stage's corpus: that of a further stage has the stage's name."""
    return ROLES.get(stage, stage)


def four_losses(
    path: Sequence[Mapping[str, Any] | None], stages: Sequence[str] | None = None, finetuning: str = "finetuning"
) -> dict[str, float | None]:
    """The paper's four losses (Section 3; nats per token) from the held-out losses along a path, root first.

    stages: the names of the stages of the path; without them, the path ends with fine-tuning. L_im is measured after
    `posttrain`, or without it after the stage before `finetune`; L_ret, L_ft and L_pre after the last stage. finetuning: the
    split of L_ft. A loss that is missing, or that the stages do not have, is None.
    """
    after = len(path) - 2
    if stages is not None:
        after = stages.index("posttrain") if "posttrain" in stages else -1
        if "posttrain" not in stages and "finetune" in stages:
            after = stages.index("finetune") - 1
    immediate = path[after] if after >= 0 else None
    leaf = path[-1]

    def loss_on(split: str, losses: Mapping[str, Any] | None) -> float | None:
        return float(losses[split]["loss"]) if losses and split in losses else None

    return {
        "immediate_posttraining_loss": loss_on("posttraining", immediate),
        "retained_posttraining_loss": loss_on("posttraining", leaf) if immediate and after < len(path) - 1 else None,
        "finetuning_loss": loss_on(finetuning, leaf),
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
        keys = {**dict.fromkeys(STAGE_KINDS), **dict(zip(trial.stages, trial.chain, strict=True))}
        splits = [losses["splits"] if losses else None for losses in path]
        trained = [name for name, key in zip(trial.stages, trial.chain, strict=True) if key is not None]
        role = _finetuning_role(trained, store.run(trial.leaf)) if path[-1] else "finetuning"
        rows.append({"axes": trial.axes, "keys": keys, **four_losses(splits, trained, role), "tokens": tokens})
    return rows


def _finetuning_role(stages: Sequence[str], leaf: Run) -> str:
    """The held-out split of L_ft: that of `finetune`, or of a further stage that ends a chain with `finetune`."""
    if "finetune" in stages and stage_kind(stages[-1]) == FURTHER:
        return stage_name(leaf.spec())  # the name that the study had which trained it
    return "finetuning"


def start_of_finetuning(row: Row) -> str:
    """What is equal for the trials whose fine-tunings start from the same weights: the keys of the other stages."""
    return str([key for name, key in row["keys"].items() if name != "finetune"])


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
