"""`retain init`, `retain fields`, and what shells complete."""

import json
import os
import shutil
import subprocess
from pathlib import Path

import pytest

from retain.launchers.cli.app import main
from retain.launchers.cli.start import SCHEMA
from retain.results.report.study import question
from retain.sweeps.schema.read import read_study
from tests.results.runs import registered
from tests.retain import retain


@pytest.mark.parametrize("source", ["laptop", "figure2", "theory", "laptop-search"])
def test_a_new_study_is_the_old_one_under_its_name_with_a_schema_for_editors(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--from", source]) == 0
    made, old = read_study("mine.yaml"), read_study(source)
    assert made.study == old.study.model_copy(update={"study": "mine"})
    assert made.axes == old.axes
    first = (tmp_path / "mine.yaml").read_text().splitlines()[0]
    assert first == f"# yaml-language-server: $schema={SCHEMA}"
    assert "definitions" in json.loads((tmp_path / SCHEMA).read_text())
    assert question(made) == question(old), "the report would print what is meant for the author"


@pytest.mark.parametrize("short", ["checkpoint", "chat"])
def test_the_examples_are_copied_by_what_they_start_from(
    short: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["init", "mine", "--from", short]) == 0
    assert read_study("mine.yaml").study.model.hf == "HuggingFaceTB/SmolLM2-135M"


def test_no_file_is_ever_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.yaml").write_text("mine")
    (tmp_path / SCHEMA).write_text("older")
    assert main(["init", "mine.yaml"]) == 2
    assert "mine.yaml exists already, and init replaces no file; choose another NAME" in capsys.readouterr().err
    assert main(["init", "yours"]) == 0
    assert ((tmp_path / "mine.yaml").read_text(), (tmp_path / SCHEMA).read_text()) == ("mine", "older")
    assert main(["init", "../outside"]) == 2


def test_fields_explains_in_the_terminal_and_as_json(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fields", "execution.slurm.partition"]) == 0
    assert "The SLURM partition, or several separated by commas" in capsys.readouterr().out
    assert main(["fields", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert document["field"] is None
    assert {"study", "model", "execution"} <= {field["path"] for field in document["fields"]}
    assert main(["fields", "--schema"]) == 0
    assert json.loads(capsys.readouterr().out)["title"] == "A study of Retain"


def test_shells_complete_verbs_studies_files_fields_values_and_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def completed(folder: Path, *words: str) -> list[str]:
        """What bash would offer for the last of these words."""
        monkeypatch.chdir(folder)
        monkeypatch.setenv("_RETAIN_COMPLETE", "complete_bash")
        monkeypatch.setenv("COMP_WORDS", " ".join(words))
        monkeypatch.setenv("COMP_CWORD", str(len(words) - 1))
        with pytest.raises(SystemExit) as ended:
            main([])
        assert ended.value.code == 0
        return capsys.readouterr().out.split()

    monkeypatch.delenv("RETAIN_STORE", raising=False)
    tree, _ = registered(tmp_path / "runs")
    (tmp_path / "mine.yaml").write_text("study: mine\n")
    assert completed(tmp_path, "retain", "stat") == ["status"]
    assert completed(tmp_path, "retain", "run", "lapt")[:2] == ["laptop", "laptop-chat"]
    assert completed(tmp_path, "retain", "run", "mi") == ["mine.yaml", "midtraining"]
    assert "finetune.lr=" in completed(tmp_path, "retain", "run", "mine.yaml", "finetune.l")
    values = completed(tmp_path, "retain", "plan", "mine.yaml", "execution.accelerator=")
    assert values == [f"execution.accelerator={value}" for value in ("auto", "cpu", "gpu")]
    key = next(iter(tree.stages))
    assert completed(tmp_path, "retain", "logs", key[:4]) == [key[:8]]
    assert completed(tmp_path, "retain", "logs", "--store", str(tmp_path / "none"), key[:4]) == []
    assert completed(tmp_path, "retain", "fields", "execution.slurm.part") == ["execution.slurm.partition"]


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_each_shell_gets_a_script_that_it_can_read(shell: str, tmp_path: Path) -> None:
    named = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1"}  # otherwise the shell that runs these tests
    script = retain("--show-completion", shell, more=named).stdout
    assert f"_RETAIN_COMPLETE=complete_{shell}" in script
    if shutil.which(shell):
        subprocess.run([shell, "-n", "-c", script], check=True, env=dict(os.environ))


def test_bash_completion_is_installed_below_the_home_folder(tmp_path: Path) -> None:
    bash = {"_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION": "1", "HOME": str(tmp_path)}
    retain("--install-completion", "bash", more=bash)
    assert "retain.sh" in (tmp_path / ".bashrc").read_text()
