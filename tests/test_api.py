"""The functions of the package `retain`, called from a user's own script."""

import json
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

import retain
from retain.results.store.state import State
from retain.sweeps.base.errors import StudyError
from tests.retain import environment, retain_json
from tests.studies import linear_study, tiny_study

SCRIPT = """
import retain
results = retain.run("linear.yaml", store="runs")
print(len(results.trials), results.failures)
print([run.state for run in retain.status("linear.yaml", store="runs").runs])
print(sorted(retain.load("linear", store="runs")["retained_posttraining_loss"]))
"""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder, with modules of their own that have the names of Retain's folders."""
    folder = tmp_path_factory.mktemp("mine")
    linear_study(folder)
    for name in ("results", "sweeps", "launchers"):
        (folder / f"{name}.py").write_text("raise ImportError('this is the module of the user')\n")
    (folder / "script.py").write_text(SCRIPT)
    return folder


@pytest.fixture(scope="module")
def printed(folder: Path) -> list[str]:
    """What a script without `if __name__ == "__main__"` prints."""
    done = subprocess.run(
        [sys.executable, "script.py"], cwd=folder, env=environment(), capture_output=True, text=True, check=True
    )
    return done.stdout.splitlines()


def test_a_plain_script_trains_a_study_and_reads_its_results(printed: list[str], folder: Path) -> None:
    assert printed[0] == "4 []"
    assert printed[1] == str(["done"] * 8)
    rows = json.loads((folder / "runs" / "studies" / "linear" / "trials.json").read_text())["trials"]
    assert printed[2] == str(sorted(row["retained_posttraining_loss"] for row in rows))


def test_plan_status_and_run_return_what_the_command_line_prints(printed: list[str], folder: Path) -> None:
    study, store = str(folder / "linear.yaml"), folder / "runs"
    plan = retain.plan(study, store=store)
    assert plan.totals.to_train == 0
    assert retain_json("plan", study, "--store", store)["totals"]["stages"] == plan.totals.stages
    status = retain_json("status", study, "--store", store)
    assert [run["key"] for run in status["runs"]] == [run.key for run in retain.status(study, store=store).runs]
    results = retain.run(study, store=store)
    document = retain_json("run", study, "--store", store)
    assert document == {name: getattr(results, name) for name in document}


def test_a_failed_stage_is_in_the_results_with_its_cause(tmp_path: Path) -> None:
    study = linear_study(tmp_path, **{"posttrain.lr": 5, "posttrain.time": 500, "grid": {}})
    (failure,) = retain.run(str(study), store=tmp_path / "runs").failures
    assert (failure.stage, failure.state, failure.blocked) == ("posttrain", State(state="failed").state, 1)
    assert str(failure.reason).startswith("diverged")


def test_several_studies_are_planned_together_and_share_stages(tmp_path: Path) -> None:
    one = linear_study(tmp_path)
    other = linear_study(tmp_path, study="other", **{"finetune.lr": 0.02, "grid": {"pretrain.exposure": [0, 1]}})
    plan = retain.plan([str(one), str(other)], store=tmp_path / "runs")
    assert [study.study for study in plan.studies] == ["linear", "other"]
    assert plan.totals.stages == 8 + 2


def test_the_store_is_taken_from_the_environment(
    printed: list[str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RETAIN_STORE", str(folder / "runs"))
    assert len(retain.load("linear")) == 4


def test_submit_names_what_is_missing_without_slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(Exception, match="sbatch and squeue are not on PATH"):
        retain.submit(str(linear_study(tmp_path)), store=tmp_path / "runs")


def test_overlap_returns_what_the_command_prints(tmp_path: Path) -> None:
    study, store = str(tiny_study(tmp_path, grid={})), tmp_path / "runs"
    found = retain.overlap(study, store=store)
    assert len(found.pairs) == 3
    assert retain_json("overlap", study, "--store", store) == json.loads(json.dumps(asdict(found)))


def test_one_override_may_be_given_by_itself(tmp_path: Path) -> None:
    study = linear_study(tmp_path)
    for given in ("finetune.lr=0.01", ["finetune.lr=0.01"]):
        assert retain.plan(study, given, tmp_path / "runs").totals.trials == 2
        assert len(retain.status(str(study), given, tmp_path / "runs").runs) == 6


def test_arguments_in_a_wrong_place_are_named_in_a_sentence(tmp_path: Path) -> None:
    study = str(linear_study(tmp_path))
    for call, sentence in (
        (lambda: retain.load(study, ["seed=[0,1]"]), r"store: expected a folder .*; give overrides as overrides="),  # type: ignore[arg-type]
        (lambda: retain.plan([]), "plan: name at least one study"),
        (lambda: retain.plan(study, until="never"), "--until never: unknown value; write decided"),  # type: ignore[arg-type]
    ):
        with pytest.raises(StudyError, match=sentence):
            call()
