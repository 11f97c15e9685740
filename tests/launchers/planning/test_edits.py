"""An edit that trains what was trained again is seen before it does."""

import shutil
from pathlib import Path

import pytest
import yaml

from retain.results.store.runs import Store
from tests.retain import retain_here, retain_json, train_here
from tests.studies import linear_study

SAID = "of the stages to train were trained before with another recipe (posttrain.lr was 0.01 and is now 0.015"


def edit(study: Path, stage: str, **fields: object) -> None:
    content = yaml.safe_load(study.read_text())
    content[stage] |= fields
    study.write_text(yaml.safe_dump(content, sort_keys=False))


@pytest.fixture
def trained(tmp_path: Path) -> tuple[Path, Path]:
    """A study and its store, in which it is trained."""
    study, store = linear_study(tmp_path), tmp_path / "runs"
    train_here(study, store)
    return study, store


def test_plan_run_submit_and_results_say_which_field_differs_from_what_was_trained(trained: tuple[Path, Path]) -> None:
    study, store = trained
    edit(study, "posttrain", lr=0.015)
    (note,) = (note for note in retain_json("plan", study, "--store", store)["notes"] if SAID in note)
    assert note.startswith(f"{study.name}: 6 {SAID}")
    assert SAID in retain_here("results", study, "--store", store).stderr
    assert SAID in retain_here("submit", study, "--dry-run", "--store", store).stderr
    _, _, compare = note.removesuffix(" compares the two").rpartition("; retain ")
    compared = retain_json(*compare.split())["differences"]
    assert {"field": "posttrain.lr", "here": 0.015, "there": 0.01} in compared
    assert SAID in retain_here("run", study, "--store", store).stderr
    for verb in ("plan", "results", "run"):
        done = retain_here(verb, study, "--store", store)
        assert "another recipe" not in done.stdout + done.stderr


def test_a_report_on_an_edited_study_says_so_where_it_says_that_results_are_missing(trained: tuple[Path, Path]) -> None:
    study, store = trained
    edit(study, "posttrain", lr=0.015)
    done = retain_here("report", study, "--store", store)
    assert SAID in done.stderr
    page = Path(done.stdout.strip()).read_text()
    assert page.index("trials are missing.") < page.index(SAID) < page.index('<div class="answer">')
    assert "another recipe" not in retain_here("report", study, "posttrain.lr=0.015", "--store", store).stderr


def test_of_several_edits_the_one_that_was_trained_last_is_compared(trained: tuple[Path, Path]) -> None:
    study, store = trained
    edit(study, "posttrain", lr=0.02)
    train_here(study, store)
    edit(study, "posttrain", lr=0.015)
    assert "posttrain.lr was 0.02 and is now 0.015" in retain_here("results", study, "--store", store).stderr
    edit(study, "posttrain", lr=0.01)
    assert "another recipe" not in retain_here("results", study, "--store", store).stderr


def test_what_a_user_adds_or_overrides_is_no_edit_of_what_was_trained(trained: tuple[Path, Path]) -> None:
    study, store = trained
    assert "another recipe" not in retain_here("results", study, "posttrain.lr=0.015", "--store", store).stderr
    content = yaml.safe_load(study.read_text())
    content["grid"]["finetune.lr"].append(0.02)
    study.write_text(yaml.safe_dump(content))
    assert not [note for note in retain_json("plan", study, "--store", store)["notes"] if "another recipe" in note]
    content["study"] = "other"
    content["posttrain"]["lr"] = 0.015
    study.write_text(yaml.safe_dump(content))
    assert not [note for note in retain_json("plan", study, "--store", store)["notes"] if "another recipe" in note]


def test_what_is_above_a_run_that_is_gone_is_not_named_as_changed(trained: tuple[Path, Path]) -> None:
    study, store = trained
    for run in Store(store).runs():
        if run.spec()["stage"] == "pretrain":
            shutil.rmtree(run.folder)
    edit(study, "finetune", time=21)
    said = retain_here("results", study, "--store", store).stderr
    assert "(finetune.sequences was 4000 and is now 4200, finetune.steps was 4000 and is now 4200)" in said
    edit(study, "finetune", time=20)
    edit(study, "pretrain", time=21)
    assert "(of a stage above, whose run is gone)" in retain_here("results", study, "--store", store).stderr


def test_why_explains_a_stage_although_runs_that_others_were_trained_from_are_gone(trained: tuple[Path, Path]) -> None:
    study, store = trained
    (old, *_) = [run for run in Store(store).runs() if run.spec()["stage"] == "finetune"]
    (gone,) = [run for run in Store(store).runs() if run.key == Store(store).run(old.spec()["parent"]).spec()["parent"]]
    shutil.rmtree(gone.folder)
    edit(study, "pretrain", time=21)
    now = next(
        one["key"] for one in retain_json("plan", study, "--store", store)["stages"] if one["stage"] == "finetune"
    )
    assert retain_json("why", study, now, "--store", store)["fields"]["pretrain.steps"]
    said = retain_here("why", study, old.key, "--store", store, code=2).stderr
    assert f"{gone.key}: this run is gone from {store}" in said
