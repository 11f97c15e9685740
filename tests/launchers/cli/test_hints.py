"""A command that a message names runs as it is printed: with the study as the user wrote it, its overrides and its store."""

import html
import json
import os
import re
import shlex
import signal
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from retain.launchers.cli.options import command
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register
from retain.launchers.search.derived_studies import open_search
from retain.launchers.search.request import SearchRequest, register_search
from retain.results.store.runs import Run, Store
from retain.sweeps.schema.read import read_study
from tests.launchers.search.searches import THEORY, block, finish, searching
from tests.retain import retain_here, start
from tests.studies import tiny_study

SMALL = (*THEORY, "pretrain.exposure=[0, 0.95]", "seed=0")
SEARCH = block(axes={"pretrain.exposure": [0, 0.95]}, searcher="grid")
VERB = r"retain [a-z]+"
WITHOUT_SLURM = {"PATH": os.devnull}


@dataclass(frozen=True)
class Place:
    """A study file whose name is not that of the study, and a store that is not the default, both in a folder with a space."""

    study: Path
    store: Path

    def retain(self, verb: str, *arguments: str | Path, code: int = 0) -> str:
        """All that a verb prints."""
        return printed_by(verb, *arguments, "--store", self.store, code=code)


def printed_by(*arguments: str | Path, code: int = 0) -> str:
    """All that a command prints on a machine without SLURM."""
    done = retain_here(*arguments, code=code, more=WITHOUT_SLURM)
    return done.stdout + done.stderr


@pytest.fixture
def place(tmp_path: Path) -> Place:
    """The theory study as a file of the user's, and an empty store."""
    folder = tmp_path / "my studies"
    folder.mkdir()
    study = folder / "mine.yaml"
    study.write_text(read_study("theory").path.read_text(encoding="utf-8"), encoding="utf-8")
    return Place(study, folder / "runs")


def hints(text: str, *patterns: str) -> list[str]:
    """The commands that a text names, one for each pattern; the text must name no other command of Retain."""
    found = []
    for pattern in patterns:
        match = re.search(pattern, text)
        assert match is not None, f"{pattern} is not in\n{text}"
        found.append(match[1])
        text = text.replace(match[1], "", 1)
    assert not re.search(VERB, text), text
    return found


def run_as_printed(commands: Sequence[str]) -> str:
    """Run each command as a shell would, from this folder; return what the last one prints. All of them must succeed."""
    printed = ""
    for one in commands:
        program, *arguments = shlex.split(one)
        assert program == "retain"
        printed = printed_by(*arguments)
    return printed


def interrupted(place: Place) -> str:
    """What `retain run` prints when Ctrl-C stops it while it trains."""
    process = start("run", place.study, *SMALL, "--store", place.store, more=WITHOUT_SLURM)
    while process.poll() is None and not any(run.state().state == "running" for run in Store(place.store).runs()):
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=60)[1]
    assert process.returncode == 130, printed
    return printed


def test_a_plan_of_unprepared_studies_names_the_commands_that_prepare_them(tmp_path: Path) -> None:
    studies = []
    for name in ("one", "two"):
        made = tiny_study(tmp_path / f"my {name}")
        studies.append(made.rename(made.with_name(f"{name} file.yaml")))
    store, rates = tmp_path / "the runs", "finetune.lr=[5e-4, 2e-3]"
    text = printed_by("plan", *studies, rates, "--store", store)
    commands = hints(text, "provisional: (retain data .*one file.*)", "provisional: (retain data .*two file.*)")
    run_as_printed(commands)
    hints(printed_by("plan", *studies, rates, "--store", store))


def test_an_interrupted_cancel_names_the_command_that_does_the_rest(
    place: Place, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = prepare_study(str(place.study), SMALL, place.store)
    register(opened.tree, opened.file, opened.facts, opened.store)
    cancel, last = Run.cancel, opened.store.run(list(opened.tree.stages)[-1])

    def interrupted_at_the_last(run: Run, reason: str) -> bool:
        if run == last:
            raise KeyboardInterrupt
        return cancel(run, reason)

    with monkeypatch.context() as patch:
        patch.setattr(Run, "cancel", interrupted_at_the_last)
        printed = place.retain("cancel", place.study, *SMALL, code=130)
    assert last.state().state == "planned"
    run_as_printed(hints(printed, "changed already, and (retain cancel .*) does the rest"))
    assert {run.state().state for run in opened.store.runs()} == {"cancelled"}


def test_an_interrupted_run_names_the_command_that_resumes_it(place: Place) -> None:
    commands = hints(interrupted(place), "kept, and (retain run .*) resumes")
    assert str(place.study) in shlex.split(commands[0])
    assert "L_ret" in run_as_printed(commands)
    assert {run.state().state for run in Store(place.store).runs()} == {"done"}


def test_cancel_names_retry_and_retry_names_run(place: Place) -> None:
    interrupted(place)
    cancelled = place.retain("cancel", place.study, *SMALL)
    planned = run_as_printed(hints(cancelled, r"cancelled; (retain retry .*) resumes them"))
    place.retain("cancel", place.study, *SMALL)
    left = place.retain("run", place.study, *SMALL, code=1)
    planned = run_as_printed(re.findall(r"(retain retry .*) plans the cancelled runs again", left))
    run_as_printed(hints(planned, r"planned again; (retain run .*) trains them"))
    assert {run.state().state for run in Store(place.store).runs()} == {"done"}


def test_a_run_that_is_cancelled_by_its_key_is_retried_by_its_key(place: Place) -> None:
    interrupted(place)
    key = next(run.key for run in Store(place.store).runs() if run.state().state == "planned")
    cancelled = place.retain("cancel", key[:12])
    hints(run_as_printed(hints(cancelled, r"cancelled; (retain retry .*) resumes them")))


def test_retry_tells_scripts_which_runs_it_has_planned_again(place: Place) -> None:
    interrupted(place)
    place.retain("cancel", place.study, *SMALL)
    cancelled = [run.key for run in Store(place.store).runs() if run.state().state == "cancelled"]
    document = json.loads(place.retain("retry", place.study, *SMALL, "--json"))
    assert sorted(document["planned_again"]) == sorted(cancelled)
    assert document["submission"] is None


def test_retry_says_what_it_has_planned_where_slurm_does_not_answer(place: Place, tmp_path: Path) -> None:
    interrupted(place)
    place.retain("cancel", place.study, *SMALL)
    for name in ("sbatch", "squeue"):
        (tmp_path / name).write_text("#!/bin/sh\necho 'could not establish a configuration source' >&2; exit 1\n")
        (tmp_path / name).chmod(0o755)
    cancelled = [run for run in Store(place.store).runs() if run.state().state == "cancelled"]
    path = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    said = retain_here("retry", place.study, *SMALL, "--store", place.store, code=3, more=path).stderr
    assert "finds no cluster" in said
    assert f"({len(cancelled)} runs are planned again, not submitted)" in said
    assert {run.state().state for run in cancelled} == {"planned"}
    assert (
        "planned again"
        not in retain_here("retry", place.study, *SMALL, "--store", place.store, code=3, more=path).stderr
    )


def test_a_run_without_a_log_names_the_status_of_its_store(place: Place) -> None:
    interrupted(place)
    key = next(run.key for run in Store(place.store).runs() if not run.log.exists())
    (hint,) = hints(place.retain("logs", key, code=2), r"see (retain status .*)")
    assert key[:8] in run_as_printed([hint])


def test_results_and_status_with_a_failed_run_name_no_command(place: Place) -> None:
    failing = ("pretrain.lr=3", "seed=0", "pretrain.exposure=0.9")
    for verb, code in (("run", 1), ("status", 0), ("results", 0)):
        text = place.retain(verb, place.study, *failing, code=code)
        assert ("diverged" in text) == (verb != "results")
        hints(text)


def test_results_of_a_searched_study_and_its_cancelled_search_name_what_continues(place: Place) -> None:
    study = str(place.study)
    search = searching(study, place.store, *THEORY, SEARCH)
    finish(search)
    search.save()
    results = place.retain("results", place.study, *SMALL)
    points = run_as_printed(hints(results, r"the points that a search has tried: (retain results .*)"))
    assert "point" in points
    searched = open_search(study, [*THEORY, SEARCH], place.store, None)
    register_search(searched, SearchRequest("ray", "1Mtokens", "H100"))
    cancelled = place.retain("cancel", place.study, *THEORY, SEARCH)
    (hint,) = hints(cancelled, r"cancelled; (retain search .*) resumes them")
    assert {"--launcher=ray", "--budget=1Mtokens"} < set(shlex.split(hint))
    run_as_printed([hint])


@pytest.mark.slow
def test_the_page_of_a_study_names_the_commands_that_made_it(place: Place) -> None:
    page = Path(place.retain("report", place.study, *SMALL).strip())
    text = html.unescape(page.read_text(encoding="utf-8"))
    commands = re.findall(rf"{VERB} [^<\n]*mine.yaml[^<\n]*", text)
    assert [one.split()[1] for one in commands] == ["run", "report"]
    run_as_printed(commands)


def test_the_name_of_the_study_in_these_tests_is_not_that_of_its_file(place: Place) -> None:
    assert yaml.safe_load(place.study.read_text())["study"] == "theory" != place.study.stem


def test_a_command_leaves_out_only_the_default_store(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RETAIN_STORE", raising=False)
    assert command("run", "mine.yaml", ["seed=[0, 1]"], Path("runs")) == "retain run mine.yaml 'seed=[0, 1]'"
    monkeypatch.setenv("RETAIN_STORE", "other")
    assert command("status", None, (), Path("other")) == "retain status"
    assert command("status", None, (), Path("runs")) == "retain status --store runs"
