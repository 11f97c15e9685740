"""The loss table: one row per trial, with empty cells for what is not trained yet."""

import csv
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from retain.results.store.measured.pairs import measures_on_pairs
from retain.results.store.measured.tasks import Measured, trial_measures
from retain.results.store.measured.values import done_evaluations, losses_by_value, values_of
from retain.results.store.runs import Run, Store
from retain.results.store.state import State, StateSummary, damaged_state
from retain.results.store.study_files import TRIALS, read_trials, study_folder
from retain.sweeps.base.documents import write_document
from retain.sweeps.base.errors import DamageError, StudyError
from retain.sweeps.base.files import write_text
from retain.sweeps.schema.section import (
    FURTHER,
    GROUNDWORK,
    LOSSES,
    STAGE_KINDS,
    in_one_order,
    loss_name,
    stage_kind,
    unknown_loss,
    value_name,
)
from retain.sweeps.tree.cost import parameters_by_root
from retain.sweeps.tree.data_facts import HeldoutValues
from retain.sweeps.tree.evaluation_runs import (
    asked_evaluations,
    corpora_after,
    evaluation_of,
    measures_of_pairs,
    preferences_by_stage,
)
from retain.sweeps.tree.heldout_splits import PREFERENCES, TUNE, corpora_by_role, role_of
from retain.sweeps.tree.key_diff import stage_name
from retain.sweeps.tree.tree import Stage, Tree

if TYPE_CHECKING:
    import pandas

Row = dict[str, Any]


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
    tree: Tree, store: Store, states: Mapping[str, StateSummary] | None = None, damaged: dict[str, State] | None = None
) -> list[Row]:
    """One row per trial: axes, keys, losses (nats per token) and the tokens trained on its path; None if not trained.

    `losses` is the loss of each stage's weights on each corpus of the study; the paper's four are entries of it, on the corpora
    that `corpora` names by role. `measures` are the metrics on tasks, as TASK/METRIC, if the study has tasks, and on pairs, as
    CORPUS/METRIC, after stages with DPO.

    states: the states of all stages, if they have been read already. damaged: the runs whose losses cannot be read are entered
    here, and their losses are missing; None: the first raises DamageError.
    """
    states = store.states(tree.stages) if states is None else states
    corpora, done = corpora_after(tree), dict[str, Mapping[str, Any]]()
    matrix: dict[str, dict[str, float | None]] = {}
    for key in (key for key, stage in tree.stages.items() if stage.stage not in GROUNDWORK):
        try:
            if states[key].state == "done":
                done[key] = store.run(key).losses()
            matrix[key] = stage_losses(tree.stages[key], corpora, done.get(key), store, tree)
        except DamageError as error:
            if damaged is None:
                raise
            damaged[key] = damaged_state(error)
    measures: Measured = {}
    pairs, preferences = measures_of_pairs(tree), preferences_by_stage(tree)
    sizes, roles = parameters_by_root(tree), corpora_by_role(tree)
    rows = []
    for trial in tree.trials:
        path = [done.get(key) for key in trial.path]
        own = {tree.stages[key].stage: matrix.get(key, {}) for key in trial.path}
        trained = [name for name, key in zip(trial.names, trial.keys, strict=True) if key is not None]
        leaf = tree.stages[trial.leaf]
        try:
            if trial.average != 1 and path[-1]:
                of_pairs = preferences.get(leaf.key, {})
                path[-1], own[leaf.stage] = _averaged(leaf, trial.average, corpora, path[-1], store, tree, of_pairs)
            role = _finetuning_role(trained, store.run(leaf.key)) if path[-1] else "finetuning"
        except DamageError as error:
            if damaged is None:
                raise
            damaged[leaf.key] = damaged_state(error)
            path[-1], own[leaf.stage], role = None, {}, "finetuning"
        tokens = sum(losses["trained_tokens"] for losses in path if losses) if all(path) else None
        keys = {**dict.fromkeys(STAGE_KINDS), **dict(zip(trial.names, trial.keys, strict=True))}
        splits = [losses["splits"] if losses else None for losses in path]
        row: Row = {"axes": trial.axes, "keys": keys, **four_losses(splits, trained, role), "tokens": tokens}
        row |= {"losses": own, "corpora": roles[leaf.key]}
        if sizes:
            row["parameters"] = sizes[trial.path[0]]
        if pairs or any(tree.tasks.values()):
            on_tasks = trial_measures(tree, trial, store, measures, damaged)
            row["measures"] = {
                name: on_tasks[name] | measures_on_pairs(pairs.get(key, {}), found)
                for name, key, found in zip(on_tasks, trial.path, path, strict=True)
            }
        rows.append(row)
    return rows


def _averaged(
    leaf: Stage,
    average: float,
    corpora: Mapping[tuple[str, int], Mapping[str, str]],
    found: Mapping[str, Any],
    store: Store,
    tree: Tree,
    pairs: Mapping[str, Mapping[str, Any]],
) -> tuple[dict[str, Any], dict[str, float | None]]:
    """The losses of averaged weights of a done stage, as losses.json has them and by the name of the corpus.

    found: the stage's own losses.json. pairs: the entry of `preferences_by_stage` for the stage. What is not measured yet is
    missing in the former and None in the latter. Raises DamageError.
    """
    length = json.loads(leaf.recipe)["sequence_length"]
    names, values = corpora[leaf.stage, length], values_of(tree, length)
    losses, preferences = _evaluated(leaf, names, length, store, values, average, pairs)
    by_corpus = {names[name]: loss for name, loss in losses.items()}
    of_role = store.run(leaf.key).spec()["evaluation"]
    splits = {role: {"loss": by_corpus[of_role[role]]} for role in found["splits"] if of_role.get(role) in by_corpus}
    parts = losses_by_value(leaf, names, length, store, values, None, average)
    return {**found, "splits": splits, PREFERENCES: preferences}, _with_parts(
        {name: losses.get(name) for name in names}, parts
    )


def _with_parts(
    losses: Mapping[str, float | None], parts: Mapping[str, Mapping[str, float | None]]
) -> dict[str, float | None]:
    """Losses by corpus, each followed by those by value."""
    found: dict[str, float | None] = {}
    for name, loss in losses.items():
        found |= {name: loss, **parts.get(name, {})}
    return found


def _evaluated(
    stage: Stage,
    names: Mapping[str, str],
    length: int,
    store: Store,
    values: Mapping[str, HeldoutValues],
    average: float = 1.0,
    pairs: Mapping[str, Mapping[str, Any]] | None = None,
) -> tuple[dict[str, float], dict[str, Any]]:
    """What evaluation runs below a stage have measured: losses by the name of the corpus, and on pairs by its fingerprint.

    names: the fingerprint of each corpus. pairs: as in `_averaged`. Raises DamageError.
    """
    found: dict[str, float] = {}
    preferences: dict[str, Any] = {}
    for name, fingerprint in names.items():
        asked = values.get(name), (pairs or {}).get(fingerprint)
        if run := next(done_evaluations(stage, name, fingerprint, length, store, average, *asked), None):
            losses = run.losses()
            found[name] = measured_losses(losses, run)[fingerprint]
            preferences |= losses.get(PREFERENCES, {})
    return found, preferences


def _finetuning_role(stages: Sequence[str], leaf: Run) -> str:
    """The held-out split of L_ft: that of `finetune`, or of a further stage that ends a chain with `finetune`."""
    if "finetune" in stages and stage_kind(stages[-1]) == FURTHER:
        return stage_name(leaf.spec())  # the name that the study had which trained it
    return "finetuning"


def named_losses(rows: Sequence[Row]) -> tuple[str, ...]:
    """Those of the paper's four losses that the chains of these trials have; all of them for rows without a matrix."""
    found: set[str] = set()
    for chain in {chain_of(row) for row in rows} or {STAGE_KINDS}:
        every = {role_of(stage): {"loss": 0.0} for stage in chain}
        last = chain[-1] if "finetune" in chain and stage_kind(chain[-1]) == FURTHER else "finetuning"
        four = four_losses([every] * len(chain), chain, last)
        found |= {name for name, loss in four.items() if loss is not None}
    return tuple(name for name in LOSSES if name in found)


def finished_trials(rows: Sequence[Row]) -> list[Row]:
    """The trials with a result: L_ret if their chain has it, or else all that it trains."""
    if LOSSES[1] in named_losses(rows):
        return [row for row in rows if row[LOSSES[1]] is not None]
    return [row for row in rows if row["tokens"] is not None]


def chain_of(row: Row) -> tuple[str, ...]:
    """The stages that a trial trains, in their order; rows from before the matrix are of the paper's chain."""
    return tuple(row.get("losses") or STAGE_KINDS)


def stages_after_posttraining(chain: Sequence[str]) -> tuple[str, ...]:
    """The stages of a chain that come after the weights whose loss is L_im: those that can only forget."""
    chain = tuple(chain)
    if "posttrain" in chain:
        return chain[chain.index("posttrain") + 1 :]
    return chain[chain.index("finetune") :] if "finetune" in chain else ()


def start_of_finetuning(row: Row) -> str:
    """A value that trials share if their fine-tunings start from the same weights: the keys of the stages before."""
    later = stages_after_posttraining(chain_of(row))
    return str([key for name, key in row["keys"].items() if name not in later])


def stage_losses(
    stage: Stage,
    corpora: Mapping[tuple[str, int], Mapping[str, str]],
    found: Mapping[str, Any] | None,
    store: Store,
    tree: Tree,
) -> dict[str, float | None]:
    """A row of the matrix: the losses of a stage's weights (nats per token) on the corpora of the study, by name; with `by`
    also those by value, as CORPUS[VALUE].

    corpora: as `corpora_after` finds them. found: the content of losses.json; None if the stage is not trained. A corpus that
    neither the run nor an evaluation run measured, or only the half that early stopping selects on, is None. A linear stage
    has no corpora: its losses are by role. Raises DamageError.
    """
    if not corpora:
        return {role: split["loss"] for role, split in (found or {}).get("splits", {}).items()}
    # Reading ten thousand recipes takes a while.
    lengths = {length for _, length in corpora}
    length = lengths.pop() if len(lengths) == 1 else json.loads(stage.recipe)["sequence_length"]
    names = corpora.get((stage.stage, length), {})
    measured = measured_losses(found, store.run(stage.key)) if found else {}
    losses = {name: measured.get(corpus) for name, corpus in names.items()}
    blank = {name: names[name] for name, loss in losses.items() if loss is None and found}
    values = values_of(tree, length)
    parts = losses_by_value(stage, names, length, store, values, found)
    return _with_parts(losses | _evaluated(stage, blank, length, store, values)[0], parts)


def missing_evaluations(
    tree: Tree, store: Store, heldout: Mapping[tuple[str, int], int], blanks: bool = False
) -> dict[str, Stage]:
    """The evaluations, by key, that `evaluate` asks for or, with `blanks`, that fill the matrix, and that are not done.

    heldout: the tokens of the held-out splits, by corpus and sequence length. Only done stages have blanks. Raises DamageError.
    """
    asked = asked_evaluations(tree, heldout)
    if blanks and tree.corpora:
        corpora = corpora_after(tree)
        for stage in tree.stages.values():
            run = store.run(stage.key)
            if stage.stage in GROUNDWORK or not run.is_done():
                continue
            length = json.loads(stage.recipe)["sequence_length"]
            losses = stage_losses(stage, corpora, run.losses(), store, tree)
            for name, fingerprint in corpora[stage.stage, length].items():
                values, tokens = tree.values.get((name, length)), heldout.get((name, length), 0)
                parts = [losses[value_name(name, value)] for value in values.names] if values else []
                if losses[name] is None or (parts and all(loss is None for loss in parts)):
                    one = evaluation_of(stage, name, fingerprint, length, tokens, values=values)
                    asked.setdefault(one.key, one)
    return {key: one for key, one in asked.items() if not store.run(key).is_done()}


def measured_losses(found: Mapping[str, Any], run: Run) -> dict[str, float]:
    """The reported losses of a done run (nats per token), by the fingerprint of the corpus. Raises DamageError."""
    by_role: Mapping[str, Any] = {}
    if not all("corpus" in split for split in found["splits"].values()):  # a run from before losses.json said it
        by_role = run.spec()["evaluation"]
    return {
        split.get("corpus") or by_role[role]: float(split["loss"])
        for role, split in found["splits"].items()
        if split.get("half") != TUNE and ("corpus" in split or role in by_role)
    }


def loss_columns(rows: Sequence[Row]) -> list[str]:
    """The columns of the matrix of these rows by stage: as STAGE/CORPUS, and what tasks measure as STAGE/TASK/METRIC."""
    return list(
        dict.fromkeys(
            loss_name(stage, name)
            for stage in in_one_order(row.get("losses", ()) for row in rows)
            for part in ("losses", "measures")
            for row in rows
            for name in row.get(part, {}).get(stage, {})
        )
    )


def loss_at(row: Row, column: str) -> float | None:
    """The value of a row in a column: a loss of the paper's four, STAGE/CORPUS or STAGE/TASK/METRIC; None if missing."""
    if column in LOSSES:
        return cast(float | None, row[column])
    stage, _, name = column.partition("/")
    part = "losses" if name in row.get("losses", {}).get(stage, {}) else "measures"
    return cast(float | None, row.get(part, {}).get(stage, {}).get(name))


def chosen_columns(rows: Sequence[Row], asked: str, symbols: Mapping[str, str]) -> list[str]:
    """The columns that a user asks for: `all` of the matrix, or names separated by commas. Raises StudyError.

    symbols: the loss that each of the paper's symbols stands for.
    """
    known, four = loss_columns(rows), named_losses(rows)
    if asked == "all":
        return known
    # A comma in the brackets of a value separates no names.
    given = (name.strip() for name in re.split(r",(?![^\[]*\])", asked))
    names = [symbols.get(name, name) for name in given if name]
    if unknown := [name for name in names if name not in (*known, *four)]:
        title = {loss: symbol for symbol, loss in symbols.items()}
        there = [*(title.get(name, name) for name in four), *known]
        raise StudyError(f"--losses: {unknown_loss(title.get(unknown[0], unknown[0]), there)}; or write all")
    if not names:
        raise StudyError("--losses: no loss is named; write all, or STAGE/CORPUS, separated by commas")
    return names


def save_rows(store: Path, study: str, rows: Sequence[Row]) -> Path:
    """Write a study's rows as trials.json, which `retain.load` reads, and as losses.csv. Returns the path of losses.csv."""
    folder = study_folder(store, study)
    folder.mkdir(parents=True, exist_ok=True)
    write_document(folder / TRIALS, {"trials": list(rows)})
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
    others = dict.fromkeys(name for row in sorted(flat, key=len, reverse=True) for name in row if name not in axes)
    writer = csv.DictWriter(text, [*axes, *others], lineterminator="\n")
    writer.writeheader()
    writer.writerows(flat)
    return text.getvalue()


def flat_row(row: Row) -> Row:
    """A row without nesting: axes, the four losses, tokens, keys as `pretrain_key` and so on, all of `loss_columns`."""
    keys = {f"{stage}_key": key for stage, key in row["keys"].items()}
    matrix = {column: loss_at(row, column) for column in loss_columns([row])}
    return {**row["axes"], **{name: row[name] for name in LOSSES}, "tokens": row["tokens"], **keys, **matrix}


def frame_of(rows: Sequence[Row]) -> "pandas.DataFrame":
    """The rows as a pandas frame; missing losses are NaN."""
    import pandas

    frame = pandas.DataFrame([flat_row(row) for row in rows])
    return frame.astype(dict.fromkeys((*LOSSES, "tokens", *loss_columns(rows)), float))
