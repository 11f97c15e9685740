"""Packs of fine-tunings on a real SLURM: one job trains several runs."""

import os
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from retain.results.store.lease import take_lease
from retain.results.store.runs import Run, Store
from retain.results.store.state import STOPPED
from tests.launchers.stage.saving.test_interrupted_evaluations import long_study
from tests.launchers.stage.tasks.local_tasks import write_tasks
from tests.results.runs import put_state
from tests.retain import retain, retain_json, train_here, weights
from tests.slurm.cluster.cluster import Cluster, call, wait_until
from tests.slurm.cluster.jobs import queue
from tests.studies import SECOND, linear_study, tiny_study, write_corpus

pytestmark = pytest.mark.slurm
RATES = [0.005, 0.01, 0.02]
STUDY: dict[str, Any] = {
    "finetune.time": 2 * 0.01 * SECOND,
    "grid": {"pretrain.exposure": [1], "finetune.lr": RATES},
    "execution": {
        "accelerator": "cpu",
        "slurm": {"minutes": 10, "cpus": 1, "partition": "low"},
        "stages": {"finetune": {"pack": 4}},
    },
}
"""Fine-tunings of one to four seconds."""


@pytest.fixture(scope="module")
def calm(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The store of the study as the local launcher trains it, each stage in a process of its own."""
    folder = tmp_path_factory.mktemp("calm")
    train_here(linear_study(folder / "study", **STUDY), folder / "runs", "execution.stages={}")
    return folder / "runs"


class Packed:
    """A study whose fine-tunings are not trained yet."""

    def __init__(self, cluster: Cluster, calm: Path, folder: Path, rates: list[float]) -> None:
        self.cluster, self.store = cluster, Store(folder / "runs")
        self.study = linear_study(folder / "study", **(STUDY | {"grid": STUDY["grid"] | {"finetune.lr": rates}}))
        shutil.copytree(calm, self.store.root, ignore=shutil.ignore_patterns("studies"))
        for run in self.store.runs():
            if run.spec()["stage"] == "finetune":
                shutil.rmtree(run.folder)

    def retain(self, *arguments: str | Path) -> None:
        retain(*arguments, "--store", self.store.root, more=self.cluster.environment)

    def jobs(self) -> dict[str, str | None]:
        """The job of each fine-tuning, as `retain status` prints it."""
        rows = retain_json("status", self.study, "--store", self.store.root, more=self.cluster.environment)["runs"]
        return {row["key"]: row["job_id"] for row in rows if row["stage"] == "finetune"}

    def finetuning(self, rate: float) -> Run:
        runs = [run for run in self.store.runs() if run.spec()["stage"] == "finetune"]
        return next(run for run in runs if run.spec()["recipe"]["lr"] == rate)

    def wait_for_the_end(self) -> None:
        wait_until(lambda: not queue(self.cluster), "queue empty", 300)


def in_training(run: Run) -> bool:
    state = run.state()
    return state.state == "running" and state.progress.tokens > 0


@contextmanager
def paused(run: Run) -> Iterator[None]:
    """Halt the process that trains this run, so that it is not done before what the block does to it is done."""
    pid = run.state().attempts[-1].pid
    os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        os.kill(pid, signal.SIGCONT)


def test_a_preempted_pack_resumes_and_a_run_that_fails_stops_no_other(
    slurm: Cluster, calm: Path, tmp_path: Path
) -> None:
    rates = [0.02, 5, 0.005, 0.01]
    packed = Packed(slurm, calm, tmp_path, rates)
    packed.retain("submit", packed.study)
    assert len(queue(slurm)) == 1
    (job,) = queue(slurm)
    assert set(packed.jobs().values()) == {job}
    third = packed.finetuning(0.005)
    wait_until(lambda: in_training(third), "the third to be trained", 300)
    with paused(third):
        call(slurm, "scancel", "--signal=USR2", job)
    packed.wait_for_the_end()
    states = {rate: packed.finetuning(rate).state() for rate in rates}
    assert [state.state for state in states.values()] == ["done", "failed", "done", "done"]
    assert [len(state.attempts) for state in states.values()] == [1, 1, 2, 1]
    assert {state.job_ids for state in states.values()} == {(job,)}
    assert states[5].attempts[-1].failure == "diverged"
    assert weights(packed.store.root) == weights(calm)


def test_a_damaged_run_of_a_pack_stops_no_other(slurm: Cluster, calm: Path, tmp_path: Path) -> None:
    packed = Packed(slurm, calm, tmp_path, RATES)
    packed.retain("submit", packed.study)
    first, damaged, last = (packed.finetuning(rate) for rate in RATES)
    wait_until(lambda: in_training(first), "the first to be trained", 300)
    key = damaged.key
    (damaged.folder / "state.json").write_text("{")
    packed.wait_for_the_end()
    assert (first.state().state, last.state().state) == ("done", "done")
    rows = retain_json("status", packed.study, "--store", packed.store.root, more=slurm.environment)["runs"]
    assert {row["key"]: row["state"] for row in rows if row["stage"] == "finetune"}[key] == "damaged"
    retain("verify", "--store", packed.store.root, code=1)


def test_a_run_that_another_process_trains_delays_no_other_of_its_pack(
    slurm: Cluster, calm: Path, tmp_path: Path
) -> None:
    packed = Packed(slurm, calm, tmp_path, RATES)
    packed.retain("submit", packed.study, "execution.slurm.extra={hold: true}")
    first = packed.finetuning(RATES[0])
    lease = take_lease(first.lease)
    assert lease is not None
    state = replace(first.state(), state="running")
    put_state(first, state)
    call(slurm, "scontrol", "release", *queue(slurm))
    others = [packed.finetuning(rate) for rate in RATES[1:]]
    wait_until(lambda: all(run.is_done() for run in others), "the others to be done")
    wait_until(lambda: "RUNNING" not in queue(slurm).values(), "the job to go back to the queue")
    assert (first.state(), len(queue(slurm))) == (state, 1)
    lease.release()
    packed.retain("cancel", packed.study)
    packed.wait_for_the_end()


def test_runs_of_a_pack_are_cancelled_alone_and_retried(slurm: Cluster, calm: Path, tmp_path: Path) -> None:
    packed = Packed(slurm, calm, tmp_path, RATES)
    packed.retain("submit", packed.study)
    first, last = packed.finetuning(RATES[0]), packed.finetuning(RATES[-1])
    wait_until(lambda: in_training(first), "the first to be trained", 300)
    with paused(first):
        packed.retain("cancel", first.key)
        packed.retain("cancel", last.key)
    packed.wait_for_the_end()
    states = [packed.finetuning(rate).state() for rate in RATES]
    assert [state.state for state in states] == ["cancelled", "done", "cancelled"]
    assert [len(state.attempts) for state in states] == [1, 1, 0]
    assert all(state.state in STOPPED or state.attempts[-1].cause == "finished" for state in states)
    packed.retain("retry", packed.study)
    assert len(queue(slurm)) == 1
    packed.wait_for_the_end()
    assert weights(packed.store.root) == weights(calm)


@pytest.mark.slow
def test_a_submitted_study_ends_with_its_evaluations_measured_several_to_a_job(slurm: Cluster, tmp_path: Path) -> None:
    """On a corpus, on a task and at an average, in the numbers that `retain run` measures."""
    folder = tmp_path / "study"
    write_tasks(folder)
    (folder / "extra.jsonl").write_text(write_corpus(folder, "music").read_text().replace("| ", "river "))
    study = tiny_study(
        folder,
        grid={"finetune.lr": [5e-4, 2e-3], "finetune.average": [0.5, 1]},
        execution={"accelerator": "cpu", "slurm": {"minutes": 10, "cpus": 1, "partition": "low"}},
        evaluate={"corpora": ["extra"], "tasks": {"rain": {"path": "tasks"}}, "at": ["posttrain", "finetune"]},
        **{"corpora.extra": {"files": "extra.jsonl"}},
    )
    calm = [*retain_json("run", study, "--store", tmp_path / "here")["trials"]]
    where = [study, "--store", tmp_path / "runs"]
    submitted = retain_json("submit", *where, more=slurm.environment)
    assert [(job["stage"], len(job["keys"])) for job in submitted["jobs"]] == [
        ("pretrain", 1),
        ("posttrain", 1),
        ("finetune", 2),
        ("evaluate", 14),
        ("evaluate", 2),
    ]
    jobs = {job["stage"]: job["job_id"] for job in submitted["jobs"][:3]}
    waits = [{job.partition("_")[0] for job in one["after"]} for one in submitted["jobs"][3:]]
    # Averages need the start of the last stage too.
    assert waits == [{jobs["finetune"], jobs["posttrain"]}, {jobs["posttrain"]}]
    again = retain_json("submit", *where, more=slurm.environment)
    assert (again["jobs"], again["queued_already"] + again["done_already"]) == ([], 20)
    wait_until(lambda: not queue(slurm), "queue empty", 300)
    runs = retain_json("status", *where, more=slurm.environment)["runs"]
    assert {run["state"] for run in runs} == {"done"}
    assert retain_json("results", *where)["trials"] == calm
    (damaged,) = [
        run["key"] for run in runs if run["stage"] == "evaluate" and run["axes"]["evaluate.at"] == "posttrain"
    ][:1]
    shutil.rmtree(tmp_path / "runs" / damaged)
    last = retain_json("submit", *where, more=slurm.environment)
    assert [(job["stage"], job["keys"], job["after"]) for job in last["jobs"]] == [("evaluate", [damaged], [])]
    wait_until(lambda: not queue(slurm), "queue empty", 120)
    assert retain_json("results", *where)["trials"] == calm


@pytest.mark.slow
def test_a_preempted_evaluation_continues_with_the_answers_that_it_has_saved(slurm: Cluster, tmp_path: Path) -> None:
    study, store = long_study(tmp_path / "study"), tmp_path / "runs"
    calm = retain_json("run", study, "--store", tmp_path / "here")["trials"]
    options = "execution.slurm={minutes: 10, cpus: 1, partition: low}"
    retain("submit", study, options, "--store", store, more=slurm.environment)
    saved: list[Path] = []
    wait_until(lambda: saved.extend(store.glob("*/checkpoint/answers.json")) or saved, "answers to be saved", 300)
    run = Run(saved[0].parents[1])
    call(slurm, "scancel", "--signal=USR2", run.state().job_ids[-1])
    wait_until(lambda: not queue(slurm), "queue empty", 300)
    first, second = run.state().attempts
    assert (first.cause, second.cause) == ("SIGUSR2", "finished")
    assert first.tokens == second.tokens_at_start > 0
    assert retain_json("results", study, options, "--store", store)["trials"] == calm
