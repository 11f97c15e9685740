"""Submitting one tree of stages to SLURM: Retain beside hydra-submitit-launcher and snakemake with its SLURM plugin.

    python -m benchmarks.submission [--peers-python PATH] [--write]

The tests' own SLURM runs on this machine with all its nodes down, so nothing starts and only the handing over is
measured, as on a cluster that is busy for hours. The tree has 10 pretrainings, 9 post-trainings of each and 10
fine-tunings of each of these: 900 trials. hydra-submitit knows no tree, so each of its jobs is a whole trial; in
snakemake each stage is a rule's job. The peers' jobs do nothing.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.planning import retain, watch
from benchmarks.report import circumstances, markdown_table, write_results
from benchmarks.synthetic_store import SHAPES, study_fields
from tests.slurm.cluster.cluster import Cluster, call, install, running, wait_until
from tests.studies import tiny_study

EXPOSURES, RATES, FINETUNINGS = SHAPES[1_000]
TRIALS = EXPOSURES * RATES * FINETUNINGS
STAGES = EXPOSURES * (1 + RATES * (1 + FINETUNINGS))
SETTLED_S = 30.0
"""A command that has queued nothing more for so long has queued what it can."""
LIMIT_S = 900.0
EVERY_S = 0.2
PACKAGES = ("retain", "submitit")
PEER_PACKAGES = ("hydra-core", "hydra-submitit-launcher", "snakemake", "snakemake-executor-plugin-slurm")

HYDRA_APP = """\
import hydra


@hydra.main(version_base=None, config_path=".", config_name="trial")
def trial(config):
    pass


trial()
"""
HYDRA_CONFIG = """\
exposure: 0
posttrain_lr: 0
finetune_lr: 0
hydra:
  launcher:
    timeout_min: 60
    cpus_per_task: 1
    partition: low
    array_parallelism: 64
"""
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
class Observed:
    """What a command handed to SLURM. Seconds since its start."""

    returned: float | None
    """None: it had not ended when it was stopped."""
    queued: float
    """Until the last job was in the queue."""
    jobs: int
    """Queued, tasks of arrays counted."""
    calls: int
    """Of sbatch."""


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.submission", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peers-python", type=Path, metavar="PATH", help="of an environment that has the peers")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/submission.md")
    options = parser.parse_args(arguments)
    install()
    versions = peer_versions(options.peers_python) if options.peers_python else {}
    head = circumstances(PACKAGES, f"peers: {', '.join(f'{name} {of}' for name, of in versions.items()) or 'none'}")
    # The sockets of SLURM's daemons have short paths.
    with tempfile.TemporaryDirectory(dir="/tmp", prefix="rs") as folder, running(Path(folder) / "s") as cluster:
        call(cluster, "scontrol", "update", f"nodename={','.join(cluster.nodes)}", "state=down", "reason=benchmark")
        rows: list[list[str]] = []
        own, note = ours(cluster, Path(folder) / "retain")
        rows.append(row("retain submit", own, STAGES, "no"))
        for name, package, measure, stages, alive in (
            ("hydra-submitit, one job a trial", PEER_PACKAGES[1], hydra, 3 * TRIALS, "yes, until all have ended"),
            ("snakemake, its slurm executor", PEER_PACKAGES[3], snakemake, STAGES, "yes, to queue what follows"),
        ):
            if package in versions:
                place = Path(folder) / package
                place.mkdir()
                try:
                    rows.append(row(name, measure(cluster, place, options.peers_python), stages, alive))
                except RuntimeError as error:
                    print(error, file=sys.stderr)
                    rows.append([name, "did not work here", *[""] * 5])
            else:
                rows.append([name, "not installed", *[""] * 5])
    columns = (
        "",
        "returns after, s",
        "last job queued after, s",
        "sbatch calls",
        "jobs queued",
        "stages trained in all",
        "a process must stay alive",
    )
    meaning = (
        f"{TRIALS:,} trials of {STAGES:,} stages. Snakemake queues a stage once those before it have ended; what is counted "
        "is what it has queued when nothing can end."
    )
    text = "\n\n".join(["# Submitting a tree", head, markdown_table(columns, rows), meaning, note]) + "\n"
    print(text, end="")
    if options.write:
        print(write_results("submission", text), file=sys.stderr)


def peer_versions(python: Path) -> dict[str, str]:
    """The versions of those peers that an environment has."""
    script = (
        "import importlib.metadata as found\n"
        f"for name in {PEER_PACKAGES!r}:\n"
        "    try: print(name, found.version(name))\n"
        "    except found.PackageNotFoundError: pass\n"
    )
    told = subprocess.run([str(python), "-c", script], capture_output=True, text=True, check=True).stdout
    return dict(line.split() for line in told.splitlines())


def ours(cluster: Cluster, folder: Path) -> tuple[Observed, str]:
    """`retain submit`, and how long `retain status` takes afterwards."""
    study = tiny_study(folder, study="submission", **study_fields(EXPOSURES, RATES, FINETUNINGS))
    where = [str(study), "--store", str(folder / "runs"), "--json"]
    watch([*retain(), "data", *where], cluster.environment)
    found = observe(cluster, folder, [*retain(), "submit", *where])
    looked = watch([*retain(), "status", *where], cluster.environment)
    clear(cluster)
    return found, f"`retain status` of the submitted study, its squeue included: {looked.seconds:.2f} s."


def hydra(cluster: Cluster, folder: Path, python: Path) -> Observed:
    """A sweep of one job a trial, as hydra-submitit-launcher's page has it."""
    (folder / "trial.py").write_text(HYDRA_APP)
    (folder / "trial.yaml").write_text(HYDRA_CONFIG)
    names = {"exposure": EXPOSURES, "posttrain_lr": RATES, "finetune_lr": FINETUNINGS}
    sweep = [f"{name}={','.join(map(str, range(count)))}" for name, count in names.items()]
    command = [str(python), "trial.py", "--multirun", "hydra/launcher=submitit_slurm", *sweep]
    try:
        return observe(cluster, folder, command)
    finally:
        clear(cluster)


def snakemake(cluster: Cluster, folder: Path, python: Path) -> Observed:
    """A workflow of three rules with as many jobs at a time as it likes."""
    shape = {"exposures": EXPOSURES, "rates": RATES, "finetunings": FINETUNINGS}
    (folder / "Snakefile").write_text(SNAKEFILE.format(**shape))
    command = [str(python), "-m", "snakemake", "--executor", "slurm", "--jobs", "10000"]
    command += [
        "--default-resources",
        "slurm_partition=low",
        f"slurm_account={cluster.user}",
        "runtime=60",
        "mem_mb=100",
    ]
    try:
        return observe(cluster, folder, command)
    finally:
        clear(cluster)


def observe(cluster: Cluster, folder: Path, command: Sequence[str]) -> Observed:
    """Run a command until it ends or queues nothing more; it is stopped then, with its children."""
    environment = counting(cluster, folder)
    begin, queued, jobs, returned = time.perf_counter(), 0.0, 0, None
    with (folder / "output.txt").open("wb") as output:
        child = subprocess.Popen(
            command, cwd=folder, env=environment, stdout=output, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            while returned is None:
                ended = child.poll() is not None
                now, found = time.perf_counter() - begin, len(queue(cluster))
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
        told = (folder / "output.txt").read_text(errors="replace")[-2000:]
        raise RuntimeError(f"{' '.join(command[:4])} ended with {child.returncode}, {jobs} jobs queued:\n{told}")
    calls = folder / "calls"
    return Observed(returned, min(queued, returned or queued), jobs, len(calls.read_text().splitlines()))


def counting(cluster: Cluster, folder: Path) -> Mapping[str, str]:
    """The environment of the cluster's user, in which every sbatch leaves a line in folder/calls."""
    place = folder / "bin"
    place.mkdir()
    path = cluster.environment["PATH"]
    real = next(Path(entry) / "sbatch" for entry in path.split(os.pathsep) if (Path(entry) / "sbatch").exists())
    (place / "sbatch").write_text(f'#!/bin/sh\necho sbatch >> "{folder}/calls"\nexec {real} "$@"\n')
    (place / "sbatch").chmod(0o755)
    return cluster.environment | {"PATH": f"{place}{os.pathsep}{path}"}


def queue(cluster: Cluster) -> list[str]:
    """The ids of all jobs and tasks of arrays in the queue."""
    return call(cluster, "squeue", "--noheader", "--array", "--format=%i").split()


def clear(cluster: Cluster) -> None:
    """Cancel all jobs."""
    call(cluster, "scancel", "--user", cluster.user)
    wait_until(lambda: not queue(cluster), "queue empty", 120)


def row(name: str, found: Observed, stages: int, alive: str) -> list[str]:
    returned = "-" if found.returned is None else f"{found.returned:.1f}"
    return [name, returned, f"{found.queued:.1f}", f"{found.calls:,}", f"{found.jobs:,}", f"{stages:,}", alive]


if __name__ == "__main__":
    main()
