"""The matrix of losses: every stage's weights on every corpus of the study, from real tiny runs."""

import csv
import itertools
import json
from pathlib import Path

import pytest
import torch

import retain
from retain.datamodules.order.stage_data import heldout_sequences
from retain.launchers.planning.opened_study import open_study
from retain.lightning_modules.models import load_model
from retain.lightning_modules.objective import heldout_loss
from retain.results.store.runs import Store
from retain.sweeps.schema.section import LOSSES, STAGE_KINDS
from tests.conftest import Trained
from tests.retain import retain_here as command
from tests.retain import retain_json, train_here
from tests.studies import WORDS, tiny_study

COLUMNS = [f"{stage}/{corpus}" for stage, corpus in itertools.product(STAGE_KINDS, WORDS)]
FOUR = dict(zip(LOSSES, ("posttrain/music", "finetune/music", "finetune/chemistry", "finetune/general"), strict=True))


def test_every_trial_has_the_loss_of_each_stage_on_each_corpus_and_the_four_are_entries(trained: Trained) -> None:
    document = retain_json("results", trained.study, "--store", trained.store)
    assert document["blanks"] == []
    assert len(document["trials"]) == 4
    for row in document["trials"]:
        assert {stage: list(losses) for stage, losses in row["losses"].items()} == {
            key: list(WORDS) for key in STAGE_KINDS
        }
        assert all(loss > 0 for losses in row["losses"].values() for loss in losses.values())
        for name, column in FOUR.items():
            stage, corpus = column.split("/")
            assert row[name] == row["losses"][stage][corpus]


def test_each_entry_is_the_loss_of_that_model_on_that_heldout_split(trained: Trained) -> None:
    tree = open_study(str(trained.study), (), trained.store).tree
    row = retain_json("results", trained.study, "--store", trained.store)["trials"][0]
    for stage, key in row["keys"].items():
        model = load_model(Store(trained.store).run(key).model)
        for name in WORDS:
            sequences = heldout_sequences(trained.store, tree.corpora[name, 32])
            measured = heldout_loss(model, sequences, torch.device("cpu"), bf16=False).loss
            assert row["losses"][stage][name] == pytest.approx(measured, rel=1e-5), (stage, name)


def test_the_frame_and_the_csv_have_a_column_for_every_entry(trained: Trained, tmp_path: Path) -> None:
    frame = retain.load(str(trained.study), trained.store)
    assert [column for column in frame if "/" in column] == COLUMNS
    assert all(frame[column].dtype == float and not frame[column].isna().any() for column in COLUMNS)
    for name, column in FOUR.items():
        assert frame[name].tolist() == frame[column].tolist()
    command("results", trained.study, "--store", trained.store, "--csv", tmp_path / "rows.csv")
    with (tmp_path / "rows.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert [float(row["pretrain/chemistry"]) for row in rows] == frame["pretrain/chemistry"].tolist()


def test_results_shows_the_losses_that_are_asked_for(trained: Trained) -> None:
    wide = {"COLUMNS": "250"}
    printed = command("results", trained.study, "--store", trained.store, "--losses", "all", more=wide).stdout
    assert [column in printed for column in COLUMNS] == [True] * 9
    assert "L_im" not in printed
    asked = "posttrain/general, retained_posttraining_loss"
    printed = command("results", trained.study, "--store", trained.store, "--losses", asked, more=wide).stdout
    by_symbol = command(
        "results", trained.study, "--store", trained.store, "--losses", "posttrain/general,L_ret", more=wide
    )
    assert by_symbol.stdout == printed
    assert "  L_ret" in printed
    assert "after post-training (im), and after fine-tuning (ret" in printed
    row = retain_json("results", trained.study, "--store", trained.store)["trials"][0]
    assert f"{row['losses']['posttrain']['general']:.4f}" in printed
    assert f"{row['retained_posttraining_loss']:.4f}" in printed
    assert "finetune/general" not in printed
    said = command("results", trained.study, "--store", trained.store, "--losses", "posttrain/code", code=2).stderr
    assert (
        "--losses: unknown loss 'posttrain/code' (did you mean posttrain/music?); the losses of this study are" in said
    )


@pytest.mark.slow
def test_a_run_that_another_study_trained_has_a_blank_with_its_reason(tmp_path: Path) -> None:
    first = tiny_study(tmp_path / "study", study="first", grid={})
    second = tiny_study(tmp_path / "study", study="second", grid={})
    train_here(first, tmp_path / "runs", "finetune.corpus=general")
    before = {path: path.read_bytes() for path in (tmp_path / "runs").glob("*/losses.json")}
    train_here(second, tmp_path / "runs")
    assert all(path.read_bytes() == content for path, content in before.items()), "nothing is evaluated again"
    document = retain_json("results", second, "--store", tmp_path / "runs")
    (row,) = document["trials"]
    blank = [(stage, name) for stage, losses in row["losses"].items() for name, loss in losses.items() if loss is None]
    assert blank == [("pretrain", "chemistry"), ("posttrain", "chemistry")]
    assert [row[name] is None for name in LOSSES] == [False] * 4
    assert document["blanks"] == [
        f"{stage}/chemistry is blank for 1 trained run: first trained it, and no losses on chemistry were measured then; "
        "retain evaluate measures them"
        for stage in ("pretrain", "posttrain")
    ]
    printed = command(
        "results", second, "--store", tmp_path / "runs", "--losses", "pretrain/chemistry", more={"COLUMNS": "200"}
    ).stdout
    assert document["blanks"][0] in printed
    frame = retain.load(str(second), tmp_path / "runs")
    assert frame["pretrain/chemistry"].isna().all()
    assert json.loads((tmp_path / "runs" / row["keys"]["finetune"] / "losses.json").read_text())["splits"].keys() == {
        "pretraining",
        "posttraining",
        "finetuning",
    }


def test_every_trial_names_the_corpora_of_its_losses(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, grid={"finetune.corpus": ["chemistry", "music"]})
    rows = retain_json("results", study, "--store", tmp_path / "runs")["trials"]
    roles = {"pretraining": "general", "posttraining": "music"}
    assert [row["corpora"] for row in rows] == [roles | {"finetuning": name} for name in ("chemistry", "music")]
