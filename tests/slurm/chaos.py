"""A study on a real SLURM with faults of every kind: nothing is lost or trained twice, and it ends in the bits of a calm run.

python -m tests.slurm.chaos [--faults N] [--seeds N]        (`make slurm-chaos`)
"""

import argparse
import itertools
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retain.results.store.runs import Store
from tests.retain import losses, retain, retain_json, start, train_here, weights
from tests.slurm.cluster.cluster import (
    Cluster,
    Site,
    call,
    kill_controller,
    kill_node,
    resume_nodes,
    running,
    start_controller,
    start_node,
    stop_controller,
)
from tests.slurm.cluster.jobs import queue, submit, wait_for_state
from tests.studies import tiny_study

SLOW: dict[str, Any] = {
    "model": {
        "layers": 4,
        "hidden": 96,
        "heads": 4,
        "kv_heads": 4,
        "mlp": 256,
        "vocabulary": 0,
        "tied": True,
        "context": 64,
    },
    "pretrain.dropout": 0.1,
    "posttrain.replay": 0.25,
    "posttrain.early_stopping": {"every": 6, "patience": 2},
    "execution": {
        "accelerator": "cpu",
        "micro_batch": 1,
        "save_steps": 4,
        "slurm": {"minutes": 10, "cpus": 1, "partition": "low"},
    },
}
"""Stages of some seconds each: time enough to be hit."""


@dataclass
class Chaos:
    """A study on a cluster, and the faults that were injected."""

    cluster: Cluster
    study: Path
    store: Path
    draw: random.Random
    injected: list[str] = field(default_factory=list)

    def retain(self, *arguments: str | Path, code: int | None = 0) -> subprocess.CompletedProcess[str]:
        return retain(*arguments, "--store", self.store, code=code, more=self.cluster.environment)

    def status(self) -> list[dict[str, Any]]:
        runs: list[dict[str, Any]] = retain_json(
            "status", self.study, "--store", self.store, more=self.cluster.environment
        )["runs"]
        return runs

    def running_job(self) -> str | None:
        """The id of a job that trains now."""
        jobs = [job for job, state in queue(self.cluster).items() if state == "RUNNING"]
        return self.draw.choice(jobs) if jobs else None


def preempt(chaos: Chaos) -> bool:
    """A job of the preempting partition takes every node for a moment."""
    if chaos.running_job() is None:
        return False
    other = submit(chaos.cluster, "sleep 1", "--partition=high", f"--nodes={len(chaos.cluster.nodes)}", "--exclusive")
    wait_for_state(chaos.cluster, other, "COMPLETED", seconds=90)
    return True


def send(name: str) -> Callable[[Chaos], bool]:
    """A signal to the processes of a job, as SLURM sends one before a time limit or a preemption."""

    def inject(chaos: Chaos) -> bool:
        job = chaos.running_job()
        if job is not None:
            call(chaos.cluster, "scancel", f"--signal={name}", job)
        return job is not None

    return inject


def requeue(chaos: Chaos) -> bool:
    """An operator puts a job back into the queue."""
    job = chaos.running_job()
    if job is None:
        return False
    subprocess.run(["scontrol", "requeue", job], env=os.environ | dict(chaos.cluster.environment), check=False)
    return True


def hold(chaos: Chaos) -> bool:
    """An operator holds a job for some seconds."""
    job = chaos.running_job()
    if job is None:
        return False
    environment = os.environ | dict(chaos.cluster.environment)
    subprocess.run(["scontrol", "requeuehold", job], env=environment, check=False)
    time.sleep(2)
    subprocess.run(["scontrol", "release", job], env=environment, check=False)
    return True


def kill_process(chaos: Chaos) -> bool:
    """A job's process dies without reporting, as when the kernel ends one that takes too much memory."""
    for run in Store(chaos.store).runs():
        state = run.state()
        if state.state == "running" and run.is_running():
            os.kill(state.attempts[-1].pid, signal.SIGKILL)
            return True
    return False


def node_death(chaos: Chaos) -> bool:
    """A node dies with all that runs on it."""
    node = chaos.draw.choice(list(chaos.cluster.nodes))
    kill_node(chaos.cluster, node)
    time.sleep(1)
    start_node(chaos.cluster, node)
    return True


def controller_restart(chaos: Chaos) -> bool:
    stop_controller(chaos.cluster)
    time.sleep(1)
    start_controller(chaos.cluster)
    return True


def controller_death(chaos: Chaos) -> bool:
    """The controller forgets its last seconds. Nothing is queued in them, as no launcher could know."""
    time.sleep(8)
    kill_controller(chaos.cluster)
    start_controller(chaos.cluster)
    return True


def submit_again(chaos: Chaos) -> bool:
    """An impatient user submits twice at the same time."""
    both = [start("submit", chaos.study, "--store", chaos.store, more=chaos.cluster.environment) for _ in range(2)]
    assert [process.wait(timeout=120) for process in both] == [0, 0]
    return True


def killed_submit(chaos: Chaos) -> bool:
    """A submit that is killed at a random moment, and repeated."""
    submitter = start("submit", chaos.study, "--store", chaos.store, more=chaos.cluster.environment)
    time.sleep(0.5 + chaos.draw.random())
    submitter.kill()
    submitter.wait()
    chaos.retain("submit", chaos.study)
    return True


FAULTS: Mapping[str, Callable[[Chaos], bool]] = {
    "preemption": preempt,
    "USR2": send("USR2"),
    "TERM": send("TERM"),
    "requeue": requeue,
    "hold": hold,
    "killed process": kill_process,
    "node death": node_death,
    "controller restart": controller_restart,
    "controller death": controller_death,
    "two submits": submit_again,
    "killed submit": killed_submit,
}


def unleash(chaos: Chaos, faults: list[str], seconds: float = 900) -> None:
    """Submit the study, inject the faults one after the other while it trains, and wait until all is done."""
    chaos.retain("submit", chaos.study)
    waiting, end = list(faults), time.monotonic() + seconds
    while unfinished := [run for run in chaos.status() if run["state"] != "done"]:
        assert time.monotonic() < end, f"not done: {unfinished}"
        bad = [run for run in unfinished if run["state"] in ("failed", "skipped", "cancelled")]
        assert not bad, bad
        # A controller that was killed may find jobs on a node that it has forgotten, and drain the node.
        resume_nodes(chaos.cluster, chaos.cluster.nodes)
        if not queue(chaos.cluster) or any("submit its study again" in (run["reason"] or "") for run in unfinished):
            # What a user would do: nothing is queued, or the status says so.
            chaos.retain("submit", chaos.study)
            chaos.injected.append("(submitted again)")
        if waiting and FAULTS[waiting[0]](chaos):
            chaos.injected.append(waiting.pop(0))
        time.sleep(chaos.draw.uniform(0.5, 2))


def assert_nothing_repeated(store: Store) -> None:
    """Each attempt resumed from a checkpoint of an earlier one, and each run was finished once."""
    for run in store.runs():
        attempts = run.state().attempts
        assert attempts[0].tokens_at_start == 0
        for earlier, later in itertools.pairwise(attempts):
            assert later.tokens_at_start <= earlier.tokens
            assert later.tokens_at_start >= earlier.tokens_at_start
            assert earlier.end is not None
            assert later.start >= earlier.start
        assert sum(attempt.cause == "finished" for attempt in attempts) == 1


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("--faults", type=int, default=22)
    parser.add_argument("--seeds", type=int, default=2, help="seeds of the study: ten stages each")
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="chaos") as name, running(Path(name) / "c", Site()) as cluster:
        grid = {"seed": list(range(chosen.seeds)), "pretrain.exposure": [0, 1], "finetune.lr": [5e-4, 1e-3, 2e-3]}
        study = tiny_study(Path(name) / "study", **SLOW, grid=grid)
        faults = [list(FAULTS)[index % len(FAULTS)] for index in range(chosen.faults)]
        chaos = Chaos(cluster, study, Path(name) / "runs", random.Random(0))
        began = time.monotonic()
        unleash(chaos, faults, seconds=3000)
        took = time.monotonic() - began
        train_here(study, Path(name) / "calm")
        same = weights(chaos.store) == weights(Path(name) / "calm") and losses(chaos.store) == losses(
            Path(name) / "calm"
        )
        assert_nothing_repeated(Store(chaos.store))
        runs = Store(chaos.store).runs()
        attempts = sum(len(run.state().attempts) for run in runs)
        for fault in (*FAULTS, "(submitted again)"):
            print(f"{fault:<20} {chaos.injected.count(fault)}")
        print(
            f"{len(runs)} stages, {attempts} attempts, {took:.0f} s, {'bit-identical' if same else 'NOT BIT-IDENTICAL'}"
        )
        return 0 if same else 1


if __name__ == "__main__":
    sys.exit(main())
