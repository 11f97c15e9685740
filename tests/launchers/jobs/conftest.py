"""SLURM's commands, stood in for by shell scripts."""

import signal
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from retain.launchers.jobs.submissions import new_submission, write_submission
from retain.results.store.runs import Run, Store
from tests.results.runs import kinds, registered


@dataclass(frozen=True)
class Slurm:
    """SLURM's commands on PATH, which answer with what a test has written."""

    folder: Path

    def show(self, state: str, token: str = "") -> None:
        """Let squeue show job 7 in this state; empty: it has ended. token: that of the submission which its name tells."""
        self.command("squeue", f"echo '7|any-{token}|{state}|None'" if state else "true")

    def command(self, name: str, script: str) -> None:
        place = self.folder / name
        place.write_text(f'#!/bin/sh\necho "{name} $*" >> {self.folder}/calls\n{script}\n')
        place.chmod(0o755)

    def asked(self, command: str) -> list[str]:
        """The calls that begin with these words, oldest first."""
        place = self.folder / "calls"
        listed = place.read_text().splitlines() if place.exists() else []
        return [line for line in listed if line.startswith(command)]

    def calls(self, verb: str) -> list[str]:
        """The calls of scontrol with this verb."""
        return self.asked(f"scontrol {verb}")

    def silent(self, name: str, times: int, said: str, then: str) -> None:
        """Let a command fail some times with an error of SLURM's, and then do what a script does."""
        count = f'[ $(grep -c "^{name} " {self.folder}/calls) -gt {times} ]'
        self.command(name, f"if {count}; then {then}; else echo '{name} error: {said}' >&2; exit 1; fi")


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Slurm]:
    """Job 7, to which this process belongs, with one node."""
    found = Slurm(tmp_path / "bin")
    found.folder.mkdir()
    found.show("RUNNING")
    found.command("scontrol", "[ $1 != --oneliner ] || echo 'JobId=7 Partition=low NumNodes=1 ExcNodeList=(null)'")
    found.command("sinfo", "echo n1; echo n2")
    found.command("sacct", "true")
    monkeypatch.setenv("PATH", f"{found.folder}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    before = signal.getsignal(signal.SIGTERM)  # a job that requeues itself ignores TERM from then on
    yield found
    signal.signal(signal.SIGTERM, before)


@pytest.fixture
def pair(tmp_path: Path) -> tuple[Store, Run, Run]:
    """A store, a pretraining, and the post-training below it."""
    tree, store = registered(tmp_path / "runs")
    return store, kinds(tree, store, "pretrain")[0], kinds(tree, store, "posttrain")[0]


def submit(store: Store, *runs: Run, job: str = "7") -> str:
    """Queue runs as one job; returns the token of the submission."""
    submission = replace(new_submission([run.key for run in runs], pack=len(runs)), job_id=job)
    write_submission(store, submission)
    for run in runs:
        run.queue(submission.token)
    return submission.token
