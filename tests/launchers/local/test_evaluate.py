"""`evaluate` of a study: measures are runs of their own, which train nothing and change no stage key."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import retain
from retain.datamodules.order.stage_data import heldout_sequences
from retain.launchers.cli.app import main
from retain.launchers.planning.evaluations import with_evaluations
from retain.launchers.planning.opened_study import open_study
from retain.lightning_modules.models import load_model
from retain.results.store.runs import Store
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import read_study
from tests.retain import copied_runs, retain_here, train_here
from tests.studies import tiny_study, write_corpus

SMALL = {"grid": {}, "execution": {"accelerator": "cpu"}}
MEASURED = {"files": "extra.jsonl", "heldout": 0.2}


def study(folder: Path, **more: Any) -> str:
    path = tiny_study(folder, **{**SMALL, **more})
    (folder / "extra.jsonl").write_text(write_corpus(folder, "music").read_text().replace("| ", "river "))
    return str(path)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluate")


@pytest.fixture(scope="module")
def rows(folder: Path) -> list[dict[str, Any]]:
    """A finished study, to which a corpus was added that only `evaluate` names."""
    before = retain.run(study(folder), (), folder / "runs")
    name = study(
        folder, **{"corpora.extra": MEASURED, "evaluate": {"corpora": ["extra"], "at": ["posttrain", "finetune"]}}
    )
    attempts = {run.key: len(run.state().attempts) for run in Store(folder / "runs").runs()}
    after = retain.run(name, (), folder / "runs")
    assert not after.failures
    assert {key: len(Store(folder / "runs").run(key).state().attempts) for key in attempts} == attempts
    assert before.trials[0]["keys"] == after.trials[0]["keys"]
    return [before.trials[0], after.trials[0]]


def test_a_corpus_added_to_a_finished_study_is_measured_and_trains_nothing(
    rows: list[dict[str, Any]], folder: Path
) -> None:
    before, after = (row["losses"] for row in rows)
    assert before == {stage: {name: v for name, v in own.items() if name != "extra"} for stage, own in after.items()}
    assert "extra" not in after["pretrain"]
    assert 0 < after["posttrain"]["extra"] < 10
    assert after["finetune"]["extra"] != after["posttrain"]["extra"]
    assert retain.load(str(folder / "tiny.yaml"), folder / "runs")["posttrain/extra"][0] == after["posttrain"]["extra"]


def test_evaluations_are_runs_with_state_and_log(rows: list[dict[str, Any]], folder: Path) -> None:
    shown = [
        row for row in retain.status(str(folder / "tiny.yaml"), (), folder / "runs").runs if row.stage == "evaluate"
    ]
    assert [row.state for row in shown] == ["done", "done"]
    assert [row.axes["evaluate.at"] for row in shown] == ["posttrain", "finetune"]
    assert all(row.log and "held-out loss" in Path(row.log).read_text() for row in shown)
    assert "has no weights; pin a stage" in retain_here("pin", shown[0].key, "--store", folder / "runs", code=2).stderr
    assert main(["verify", str(folder / "tiny.yaml"), "--store", str(folder / "runs")]) == 0
    plan = retain.plan(str(folder / "tiny.yaml"), store=folder / "runs")
    assert (plan.evaluations.runs, plan.evaluations.to_measure, plan.totals.to_train) == (2, 0, 0)


def test_a_second_evaluate_measures_nothing(rows: list[dict[str, Any]], folder: Path) -> None:
    opened = open_study(str(folder / "tiny.yaml"), (), folder / "runs")
    attempts = {key: opened.store.run(key).state().attempts for key in with_evaluations(opened).stages}
    assert main(["evaluate", str(folder / "tiny.yaml"), "--store", str(folder / "runs")]) == 0
    assert {key: opened.store.run(key).state().attempts for key in attempts} == attempts


def test_the_weights_of_a_last_stage_are_kept_however_often_it_was_measured(
    rows: list[dict[str, Any]], folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["gc", "--weights", "--dry-run", "--json", "--store", str(folder / "runs")]) == 0
    waste = json.loads(capsys.readouterr().out)
    assert rows[0]["keys"]["pretrain"] in str(waste)
    assert rows[0]["keys"]["finetune"] not in str(waste)


def test_an_evaluation_gives_the_bits_that_training_measures(rows: list[dict[str, Any]], tmp_path: Path) -> None:
    """The blank of a matrix: a study without the third stage trained the first two, and did not measure its corpus."""
    whole, name = rows[0], study(tmp_path)
    train_here(Path(name), tmp_path / "runs", "finetune.corpus=general")
    found = retain.evaluate(name, (), tmp_path / "runs").trials[0]
    assert found["keys"] == whole["keys"]
    assert found["finetuning_loss"] is None  # nothing was trained
    for stage in ("pretrain", "posttrain"):
        assert found["losses"][stage] == whole["losses"][stage]
        assert found["losses"][stage]["chemistry"] is not None


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        (
            {"corpora": ["nosuch"]},
            "evaluate.corpora: unknown corpus 'nosuch'; the corpora are general, music, chemistry",
        ),
        ({"corpora": ["music"], "at": ["midtrain"]}, "evaluate.at: unknown stage 'midtrain'; the stages are pretrain,"),
        ({"corpora": []}, "evaluate: nothing is measured; name corpora, tasks or both, or remove evaluate"),
    ],
)
def test_a_wrong_evaluate_is_one_sentence(tmp_path: Path, asked: dict[str, Any], problem: str) -> None:
    with pytest.raises(StudyError) as error:
        read_study(study(tmp_path, evaluate=asked))
    assert problem in str(error.value)


def test_what_is_measured_is_no_axis(tmp_path: Path) -> None:
    with pytest.raises(StudyError, match=r"evaluate.at: what is measured is the same for all trials"):
        read_study(study(tmp_path, evaluate={"corpora": ["music"]}), ["evaluate.at=[[posttrain],[finetune]]"])


def test_an_average_measures_the_weights_between_start_and_end_of_the_last_stage_and_trains_nothing(
    rows: list[dict[str, Any]], folder: Path, tmp_path: Path
) -> None:
    """The study is trained already, without averages."""
    store = Store(copied_runs(folder / "runs", tmp_path / "runs"))
    name = study(tmp_path, grid={"finetune.average": [0, 0.5, 1]})
    results = retain.run(name, (), store.root)
    assert not results.failures
    start, middle, end = results.trials
    assert start["keys"] == middle["keys"] == end["keys"]
    assert len([run for run in store.runs() if "measure" not in run.spec()["recipe"]]) == 3
    assert start["retained_posttraining_loss"] == start["immediate_posttraining_loss"]
    assert start["retained_pretraining_loss"] == start["losses"]["posttrain"]["general"]
    assert start["finetuning_loss"] > middle["finetuning_loss"] > end["finetuning_loss"]
    one, two = (load_model(store.run(start["keys"][stage]).model) for stage in ("posttrain", "finetune"))
    with torch.no_grad():
        for before, after in zip(one.parameters(), two.parameters(), strict=True):
            after.copy_((before + after) / 2)
        sequences = heldout_sequences(store.root, store.run(start["keys"]["posttrain"]).spec()["recipe"]["corpus"])
        exact = two.eval()(input_ids=sequences, labels=sequences).loss.item()
    assert middle["retained_posttraining_loss"] == pytest.approx(exact, rel=1e-5)
    frame = retain.load(name, store.root)
    assert list(frame["finetune.average"]) == [0, 0.5, 1]
    assert list(frame["finetune/music"]) == [row["losses"]["finetune"]["music"] for row in results.trials]


@pytest.mark.parametrize(
    ("fields", "problem"),
    [
        ({"posttrain.average": 0.5}, "posttrain.average: finetune is the last stage, and only its weights can be"),
        ({"finetune.average": 1.5}, "finetune.average: "),
        (
            {"finetune.average": 0.5, "posttrain.early_stopping": {"every": 2, "patience": 2, "split": "tune"}},
            "finetune.average: averages are measured on whole held-out splits, and posttrain.early_stopping.split: tune",
        ),
        ({"finetune.anchor": {"l2sp": -1}}, "finetune.anchor.l2sp: "),
        ({"finetune.anchor": {"l2sp": 1}, "finetune.method": "lora"}, "anchor: l2sp pulls all weights, and LoRA"),
    ],
)
def test_a_wrong_average_or_anchor_is_one_sentence(tmp_path: Path, fields: dict[str, Any], problem: str) -> None:
    with pytest.raises(StudyError) as error:
        read_study(study(tmp_path, **fields))
    assert problem in str(error.value)
