"""Submitting one tree of stages to SLURM: Retain, hydra-submitit-launcher, and snakemake with its SLURM plugin.

    python -m benchmarks.submission [--peers-python PATH] [--write]

The tests' own SLURM runs on this machine with all its nodes down. Nothing starts, as on a cluster that is busy for hours,
so only handing over the jobs is measured. The tree has 10 pretrainings, 9 post-trainings of each and 10 fine-tunings of each
of these: 900 trials. hydra-submitit knows no tree, so each of its jobs is a whole trial; in snakemake each stage is the job
of a rule. The peers' jobs do nothing.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.harness import RETAIN, Option, Page, Peers, markdown_table, run_benchmark, run_child
from benchmarks.made_up import SHAPES, study_fields
from tests.slurm.cluster.cluster import Cluster, call, install, running, wait_until
from tests.studies import tiny_study

SETTLED_S = 30.0
"""A command that has queued nothing more for so long has queued what it can."""
LIMIT_S = 900.0
EVERY_S = 0.2
COLUMNS = (
    "", "returns after, s", "last job queued after, s", "sbatch calls", "jobs queued", "stages trained in all",
    "a process must stay alive",
)  # fmt: skip
HYDRA_APP = """\
import hydra


@hydra.main(version_base=None, config_path=".", config_name="trial")
def trial(config):
    pass


trial()
"""
HYDRA_LAUNCHER = {"timeout_min": 60, "cpus_per_task": 1, "partition": "low", "array_parallelism": 64}
SNAKEFILE = """\
E, P, F = range({exposures}), range({rates}), range({finetunings})

rule all:
    input: expand("finetune/{{e}}-{{p}}-{{f}}", e=E, p=P, f=F)

rule pretrain:
    output: "pretrain/{{e}}"
    shell: "touch {{output}}"

rule posttrain:
    input: "pretrain/{{e}}"
    output: "posttrain/{{e}}-{{p}}"
    shell: "touch {{output}}"

rule finetune:
    input: "posttrain/{{e}}-{{p}}"
    output: "finetune/{{e}}-{{p}}-{{f}}"
    shell: "touch {{output}}"
"""


@dataclass(frozen=True)
class Shape:
    """How many exposures, post-training rates of each and fine-tuning rates of each of these."""

    exposures: int
    rates: int
    finetunings: int

    @property
    def trials(self) -> int:
        return self.exposures * self.rates * self.finetunings

    @property
    def stages(self) -> int:
        return self.exposures * (1 + self.rates) + self.trials


@dataclass(frozen=True)
class Peer:
    """Another tool that submits the tree."""

    name: str
    packages: Sequence[str]
    prepare: Callable[[Cluster, Path, Shape, str], Sequence[str]]
    """Write what the tool needs into an empty folder; return the command that submits, for an interpreter."""
    trained: Callable[[Shape], int]
    """The stages that its jobs train in all."""
    stays: str
    """Whether one of its processes must stay alive."""


def hydra(cluster: Cluster, folder: Path, shape: Shape, python: str) -> Sequence[str]:
    """A sweep with one job for each trial, as the page of hydra-submitit-launcher shows it."""
    (folder / "trial.py").write_text(HYDRA_APP)
    names = {"exposure": shape.exposures, "posttrain_lr": shape.rates, "finetune_lr": shape.finetunings}
    config = dict.fromkeys(names, 0) | {"hydra": {"launcher": HYDRA_LAUNCHER}}
    (folder / "trial.yaml").write_text(json.dumps(config))  # JSON is YAML
    sweep = [f"{name}={','.join(map(str, range(count)))}" for name, count in names.items()]
    return [python, "trial.py", "--multirun", "hydra/launcher=submitit_slurm", *sweep]


def snakemake(cluster: Cluster, folder: Path, shape: Shape, python: str) -> Sequence[str]:
    """A workflow of three rules, with no limit on its jobs."""
    (folder / "Snakefile").write_text(SNAKEFILE.format(**vars(shape)))
    resources = ["slurm_partition=low", f"slurm_account={cluster.user}", "runtime=60", "mem_mb=100"]
    command = [python, "-m", "snakemake", "--executor", "slurm", "--jobs", "10000"]
    return [*command, "--default-resources", *resources]


PEERS = (
    Peer(
        "hydra-submitit, one job for each trial",
        ("hydra-core", "hydra-submitit-launcher"),
        hydra,
        lambda shape: 3 * shape.trials,
        "yes, until all have ended",
    ),
    Peer(
        "snakemake, its slurm executor",
        ("snakemake", "snakemake-executor-plugin-slurm"),
        snakemake,
        lambda shape: shape.stages,
        "yes, to queue what follows",
    ),
)


def measure(options: argparse.Namespace) -> Page:
    """Retain, then each peer that is installed."""
    install()
    shape, peers = Shape(*SHAPES[options.runs]), Peers(options.peers_python)
    # The sockets of SLURM's daemons need short paths.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rs") as short, running(Path(short) / "s") as cluster:
        call(cluster, "scontrol", "update", f"nodename={','.join(cluster.nodes)}", "state=down", "reason=benchmark")
        own = options.folder / "retain"
        study = tiny_study(own, study="submission", **study_fields(*SHAPES[options.runs]))
        where = [str(study), "--store", str(own / "runs"), "--json"]
        run_child([*RETAIN, "data", *where], cluster.environment)
        rows = [["retain submit", *observe(cluster, own, [*RETAIN, "submit", *where]), f"{shape.stages:,}", "no"]]
        status = run_child([*RETAIN, "status", *where], cluster.environment)
        for peer in PEERS:
            if (python := peers.interpreter(peer.name, peer.packages)) is None:
                rows.append([peer.name, "not installed"])
                continue
            place = options.folder / peer.packages[0]
            place.mkdir()
            try:
                found = observe(cluster, place, peer.prepare(cluster, place, shape, python))
                rows.append([peer.name, *found, f"{peer.trained(shape):,}", peer.stays])
            except RuntimeError as error:
                peers.note_failure(peer.name, str(error))
                rows.append([peer.name, "did not work here"])
    return Page(
        peers.notes,
        [
            markdown_table(COLUMNS, rows),
            f"{shape.trials:,} trials of {shape.stages:,} stages. Snakemake queues a stage once the stages before it have "
            "ended. Nothing can end here, so its jobs are those that it has queued until then.",
            f"`retain status` of the submitted study, with its squeue: {status.seconds:.2f} s.",
        ],
    )


def observe(cluster: Cluster, folder: Path, command: Sequence[str]) -> list[str]:
    """Run a command until it ends or queues nothing more; it is stopped then, with its children.

    Returns the seconds until it returned (- if it was stopped) and until its last job was queued, the calls of sbatch, and the
    jobs queued, tasks of arrays counted. Raises RuntimeError if the command failed.
    """
    call(cluster, "scancel", "--user", cluster.user)
    wait_until(lambda: not _queued_jobs(cluster), "queue empty", 120)
    environment = _counting_calls(cluster, folder)
    begin, queued, jobs, returned = time.perf_counter(), 0.0, 0, None
    with (folder / "output.txt").open("wb") as output:
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while returned is None:
                ended = child.poll() is not None
                now, found = time.perf_counter() - begin, _queued_jobs(cluster)
                if found > jobs:
                    jobs, queued = found, now
                returned = now if ended else None
                if now > LIMIT_S or (jobs and now > queued + SETTLED_S):
                    break
                time.sleep(EVERY_S)
        finally:
            if child.poll() is None:
                os.killpg(child.pid, signal.SIGKILL)
            child.wait()
    if not jobs or (returned is not None and child.returncode):
        printed = (folder / "output.txt").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command[:4])} ended with {child.returncode}, {jobs} jobs queued:\n{printed}")
    calls = len((folder / "calls").read_text().splitlines())
    shown = "-" if returned is None else f"{returned:.1f}"
    return [shown, f"{min(queued, returned or queued):.1f}", f"{calls:,}", f"{jobs:,}"]


def _counting_calls(cluster: Cluster, folder: Path) -> Mapping[str, str]:
    """The environment of the cluster's user, in which every sbatch adds a line to folder/calls."""
    wrapper = folder / "bin" / "sbatch"
    wrapper.parent.mkdir()
    path = cluster.environment["PATH"]
    wrapper.write_text(f'#!/bin/sh\necho sbatch >> "{folder}/calls"\nexec {shutil.which("sbatch", path=path)} "$@"\n')
    wrapper.chmod(0o755)
    return cluster.environment | {"PATH": f"{wrapper.parent}{os.pathsep}{path}"}


def _queued_jobs(cluster: Cluster) -> int:
    """The number of jobs and tasks of arrays in the queue."""
    return len(call(cluster, "squeue", "--noheader", "--array", "--format=%i").split())


if __name__ == "__main__":
    run_benchmark(
        measure,
        "Submitting a tree",
        ("retain-lm", "submitit"),
        Option("runs", 1_000, 100, "stages of the tree", int, list(SHAPES)),
        Option("peers_python", None, None, "an interpreter that has hydra-submitit-launcher and snakemake"),
    )
