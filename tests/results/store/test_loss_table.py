"""The loss table: what its numbers are, and what it shows for stages that are not trained yet."""

import csv
import json
import math
from dataclasses import replace
from pathlib import Path

import pytest

import retain
from retain.launchers.planning.register import register
from retain.results.store.loss_table import (
    Row,
    csv_text,
    finished_trials,
    four_losses,
    frame_of,
    loss_columns,
    named_losses,
    read_rows,
    save_rows,
    trial_rows,
)
from retain.results.store.runs import Store
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.section import LOSSES
from retain.sweeps.tree.tree import Tree, expand
from tests.results.runs import finish, finish_all, kinds, put_state, registered, write_model
from tests.studies import WORDS, made_up_facts
from tests.sweeps.tree.test_chains import chain_fields

TUNED = {"every": 5, "patience": 3, "split": "tune"}


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Tree, Store]:
    return registered(tmp_path / "runs")


def splits(**losses: float) -> dict[str, dict[str, float]]:
    return {split: {"loss": loss, "tokens": 10} for split, loss in losses.items()}


def test_the_four_losses_are_those_of_the_paper() -> None:
    path = [
        splits(pretraining=4.0, posttraining=5.0),
        splits(pretraining=4.5, posttraining=1.0),
        splits(pretraining=4.7, posttraining=2.0, finetuning=3.0),
    ]
    assert four_losses(path) == {
        "immediate_posttraining_loss": 1.0,
        "retained_posttraining_loss": 2.0,
        "finetuning_loss": 3.0,
        "retained_pretraining_loss": 4.7,
    }


def test_without_a_posttraining_stage_the_immediate_loss_is_measured_after_pretraining() -> None:
    path = [splits(pretraining=4.0, posttraining=5.0), splits(pretraining=4.7, posttraining=5.5, finetuning=3.0)]
    losses = four_losses(path)
    assert (losses["immediate_posttraining_loss"], losses["retained_posttraining_loss"]) == (5.0, 5.5)


@pytest.mark.parametrize(
    ("trained", "present"),
    [
        (0, set()),
        (1, set()),
        (2, {"immediate_posttraining_loss"}),
        (3, set(LOSSES)),
    ],
)
def test_losses_of_untrained_stages_are_missing_and_have_no_substitute(trained: int, present: set[str]) -> None:
    whole = [
        splits(pretraining=4.0, posttraining=5.0),
        splits(pretraining=4.5, posttraining=1.0),
        splits(pretraining=4.7, posttraining=2.0, finetuning=3.0),
    ]
    losses = four_losses([stage if index < trained else None for index, stage in enumerate(whole)])
    assert {name for name, loss in losses.items() if loss is not None} == present


def test_each_trial_has_a_row_with_its_axes_keys_losses_and_tokens(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    for number, key in enumerate(tree.stages):
        finish(store.run(key), loss=float(10 * number))
    order = list(tree.stages)
    rows = trial_rows(tree, store)
    assert [row["axes"] for row in rows] == [
        {"pretrain.exposure": exposure, "finetune.lr": rate} for exposure in (0, 1) for rate in (5e-4, 2e-3)
    ]
    for row, trial in zip(rows, tree.trials, strict=True):
        assert tuple(row["keys"].values()) == trial.path
        assert row["tokens"] == 3 * 64
        post, leaf = 10.0 * order.index(trial.path[1]), 10.0 * order.index(trial.key("finetune"))
        # `finish` numbers the splits of a leaf: finetuning, posttraining, pretraining.
        assert row["immediate_posttraining_loss"] == post
        assert [row[name] for name in LOSSES[1:]] == [leaf + 1, leaf, leaf + 2]


def test_partial_results_have_a_row_for_every_trial(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store, lambda stage: stage != "finetune")
    leaf = kinds(tree, store, "finetune")[2]
    finish(leaf)
    rows = trial_rows(tree, store)
    assert len(rows) == 4
    assert all(row["immediate_posttraining_loss"] is not None for row in rows)
    complete = [row for row in rows if row["finetuning_loss"] is not None]
    assert [row["keys"]["finetune"] for row in complete] == [leaf.key]
    assert [row["tokens"] for row in rows].count(None) == 3


def test_the_losses_of_a_failed_run_count_as_missing_even_if_they_were_written(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    run = kinds(tree, store, "finetune")[0]
    put_state(run, replace(run.state(), state="failed", reason="why"))
    assert trial_rows(tree, store)[0]["finetuning_loss"] is None


def test_the_csv_has_the_rows_with_empty_cells_for_missing_losses(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store, lambda stage: stage != "finetune")
    finish(kinds(tree, store, "finetune")[0], loss=1 / 3)
    rows = trial_rows(tree, store)
    path = save_rows(store.root, tree.study, rows)
    with path.open(newline="") as stream:
        table = list(csv.DictReader(stream))
    assert list(table[0]) == [
        *("pretrain.exposure", "finetune.lr"),
        *LOSSES,
        *("tokens", "pretrain_key", "posttrain_key", "finetune_key"),
        *(f"{stage}/{corpus}" for stage in ("pretrain", "posttrain", "finetune") for corpus in WORDS),
    ]
    assert float(table[0]["finetuning_loss"]) == 1 / 3
    assert [cells["finetuning_loss"] for cells in table[1:]] == [""] * 3
    assert [cells["finetune_key"] for cells in table] == [trial.key("finetune") for trial in tree.trials]
    assert csv_text([]) == "\n"


def test_load_returns_a_frame_with_nan_for_missing_losses(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store, lambda stage: stage == "pretrain")
    save_rows(store.root, tree.study, trial_rows(tree, store))
    frame = retain.load("tiny", str(store.root))
    assert len(frame) == 4
    assert all(frame[name].isna().all() and frame[name].dtype == float for name in (*LOSSES, "tokens"))
    finish_all(tree, store, lambda stage: stage != "pretrain")
    save_rows(store.root, tree.study, trial_rows(tree, store))
    frame = retain.load("tiny", str(store.root))
    assert not frame[list(LOSSES)].isna().any().any()
    assert frame["pretrain.exposure"].tolist() == [0, 0, 1, 1]
    assert math.isclose(frame.groupby("pretrain.exposure")["finetuning_loss"].mean()[1], 1.0)


def test_load_of_an_unknown_study_names_the_missing_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"studies/unknown/trials\.json"):
        retain.load("unknown", str(tmp_path))


def test_saved_rows_are_read_back_exactly(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    rows = trial_rows(tree, store)
    save_rows(store.root, tree.study, rows)
    assert read_rows(store.root, tree.study) == json.loads(json.dumps(rows))
    assert len(frame_of(rows)) == 4


def test_saved_rows_state_their_format_and_the_bare_list_of_earlier_versions_is_still_read(
    planned: tuple[Tree, Store],
) -> None:
    tree, store = planned
    finish_all(tree, store)
    save_rows(store.root, tree.study, trial_rows(tree, store))
    path = store.root / "studies" / tree.study / "trials.json"
    document = json.loads(path.read_text())
    assert list(document) == ["format", "trials"]
    assert document["format"] == 1
    rows = read_rows(store.root, tree.study)
    path.write_text(json.dumps(document["trials"]))
    assert read_rows(store.root, tree.study) == rows == document["trials"]


def test_a_loss_is_found_by_the_tokens_of_its_corpus_and_never_by_a_name(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    renamed = {("prose", 32): "general-32", ("music", 32): "other music", ("chemistry", 32): "chemistry-32"}
    also = '{"mixed": "other music", '
    stages = {key: replace(one, recipe=one.recipe.replace("{", also, 1)) for key, one in tree.stages.items()}
    row = trial_rows(replace(tree, corpora=renamed, stages=stages), store)[0]
    assert row["losses"]["finetune"]["prose"] == row["retained_pretraining_loss"]
    assert row["losses"]["finetune"]["music"] is None
    assert row["losses"]["finetune"]["chemistry"] == row["finetuning_loss"]


def test_a_loss_on_the_half_that_early_stopping_selects_on_is_never_reported(tmp_path: Path) -> None:
    tree, store = registered(tmp_path / "runs", **{"posttrain.early_stopping": TUNED, "grid": {}})
    for key in tree.stages:
        run = store.run(key)
        run.begin(1)
        spec = run.spec()
        splits = {
            role: {"loss": 9.0 if role.endswith("-tune") else 1.0, "tokens": 10, "corpus": corpus}
            | ({"half": spec["halves"][role]} if role in spec.get("halves", {}) else {})
            for role, corpus in spec["evaluation"].items()
        }
        losses = {"splits": splits, "steps": 1, "trained_tokens": 64}
        run.finish(write_model(run.folder / "model.partial"), {"losses.json": losses})
    posttrain, finetune = (kinds(tree, store, stage)[0] for stage in ("posttrain", "finetune"))
    assert set(posttrain.losses()["splits"]) == {"pretraining", "posttraining", "posttraining-tune"}
    assert posttrain.spec()["halves"] == {"posttraining": "report", "posttraining-tune": "tune"}
    assert finetune.spec()["halves"] == {"posttraining": "report"}
    (row,) = trial_rows(tree, store)
    assert {loss for losses in row["losses"].values() for loss in losses.values()} == {1.0, None}
    assert row["losses"]["posttrain"]["music"] == row["immediate_posttraining_loss"] == 1.0


def test_rows_from_before_the_matrix_are_still_read(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    rows = [{name: value for name, value in row.items() if name != "losses"} for row in trial_rows(tree, store)]
    save_rows(store.root, tree.study, rows)
    assert read_rows(store.root, tree.study) == json.loads(json.dumps(rows))
    assert len(frame_of(read_rows(store.root, tree.study))) == 4


def test_a_run_that_is_registered_again_before_it_is_done_is_evaluated_on_the_corpora_of_both_studies(
    planned: tuple[Tree, Store],
) -> None:
    tree, store = planned
    run = store.run(tree.trials[0].path[0])
    spec = run.spec()
    assert spec["others"] == {"music": "music-32", "chemistry": "chemistry-32"}
    again = spec | {"others": {"music": "other music", "code": "code-32", "tunes": "music-32"}}
    store.register(run.key, again)
    both = {**spec["others"], "music-other mu": "other music", "code": "code-32"}
    assert run.spec()["others"] == both
    finish(run)
    store.register(run.key, spec | {"others": {"law": "law-32"}})
    assert run.spec()["others"] == both, "the losses of a done run are what they are"


@pytest.mark.parametrize(
    "chain",
    [
        "pretrain posttrain finetune",
        "pretrain midtrain posttrain finetune",
        "pretrain posttrain finetune finetune2",
        "posttrain finetune",
        "pretrain posttrain",
        "pretrain finetune",
        "base midtrain",
    ],
)
def test_the_named_losses_of_a_chain_are_those_that_its_finished_trials_have(chain: str, tmp_path: Path) -> None:
    """Tables and figures are chosen by them before anything is trained, and show no column that stays empty."""
    file = check_study(chain_fields(*chain.split()), tmp_path / "tiny.yaml")
    facts, store = made_up_facts(file), Store(tmp_path)
    tree = expand(file, facts)
    register(tree, file, facts, store)
    planned = named_losses(trial_rows(tree, store))
    assert finished_trials(trial_rows(tree, store)) == []
    finish_all(tree, store)
    rows = trial_rows(tree, store)
    assert planned == named_losses(rows) == tuple(name for name in LOSSES if rows[0][name] is not None)
    assert finished_trials(rows) == rows


def test_a_stage_that_some_trials_leave_out_has_its_columns_where_the_chain_has_it() -> None:
    def row(*chain: str) -> Row:
        losses = {stage: {"general": 1.0} for stage in chain}
        return {"axes": {}, **dict.fromkeys(LOSSES), "tokens": 1, "keys": dict.fromkeys(chain, "key"), "losses": losses}

    rows = [row("pretrain", "finetune"), row("pretrain", "midtrain", "finetune")]
    columns = ["pretrain/general", "midtrain/general", "finetune/general"]
    assert loss_columns(rows) == columns
    header = csv_text(rows).splitlines()[0].split(",")
    assert [name for name in header if "/" in name] == columns
    assert [name for name in header if name.endswith("_key")] == ["pretrain_key", "midtrain_key", "finetune_key"]
