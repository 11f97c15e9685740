"""`retain doctor --probe`: a tiny job in each partition tells what its nodes can do."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from retain.launchers.checks.finding import MISSING, NOTE, OK, Finding
from retain.launchers.slurm.client import PATIENCE_S, ask, cancel_jobs, live_jobs
from retain.launchers.slurm.partitions import Partition
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.execution import SiteOptions

PATIENCE_PROBE_S = 120.0
"""How long all probes together may take, waiting in the queue included."""
LATE_FILE_S = 65.0
"""How long after a job's end its report may stay out of sight, on a file system that caches folders."""
NO_STORE, NO_PYTHON, NOT_WRITABLE, BAD_PYTHON = 41, 42, 43, 44
CURES = {
    NO_STORE: "does not see the store's folder {folder}; choose a --store on a file system that all nodes share",
    NO_PYTHON: "does not see {python}; install Retain where all nodes see it, or load it by the site's setup lines",
    NOT_WRITABLE: "cannot write into the store's folder {folder}; choose another --store",
    BAD_PYTHON: "cannot run {python}; see whether the site's setup lines must load libraries",
}
REPORTER = """
import importlib.util, json, os, platform, shutil, socket, sys
tools = [name for name in ("sbatch", "scontrol", "squeue") if shutil.which(name)]
packages = [name for name in ("torch", "lightning", "submitit") if importlib.util.find_spec(name)]
report = {"host": socket.gethostname(), "python": platform.python_version(), "tools": tools, "packages": packages}
with open(sys.argv[1] + ".part", "w") as file:
    json.dump(report, file)
os.rename(sys.argv[1] + ".part", sys.argv[1])
"""


@dataclass(frozen=True)
class ProbeReport:
    """What became of one partition's job."""

    partition: str
    outcome: str
    """passed, failed, waiting (it had not started in time), or refused."""
    host: str | None
    python: str | None
    sbatch: bool | None
    """Whether the node can submit and requeue jobs."""
    seconds: float
    """From sbatch to the report."""
    detail: str
    """One sentence."""


def probe_partitions(
    partitions: Sequence[Partition], folder: Path, site: SiteOptions | None, patience_s: float = PATIENCE_PROBE_S
) -> list[ProbeReport]:
    """Submit a job of a few seconds to every partition that is up (those of the site's profile, where it names some).

    folder: an existing folder of the store's file system. Waits `patience_s` at most, then takes back what still waits;
    removes what it has written. Raises MissingResourceError where SLURM does not answer.
    """
    named = site.partition.split(",") if site and site.partition else None
    chosen = [part for part in partitions if (part.name in named if named else part.state == "UP")]
    trial = folder / f".doctor.{uuid4().hex[:12]}"
    trial.mkdir()
    try:
        (trial / "report.py").write_text(REPORTER)
        return _Probes(trial, site).run([part.name for part in chosen], patience_s)
    finally:
        shutil.rmtree(trial, ignore_errors=True)


class _Probes:
    def __init__(self, folder: Path, site: SiteOptions | None) -> None:
        self.folder, self.site = folder, site
        self.began: dict[str, float] = {}
        self.jobs: dict[str, str] = {}
        self.done: dict[str, ProbeReport] = {}

    def run(self, partitions: Sequence[str], patience_s: float) -> list[ProbeReport]:
        try:
            for name in partitions:
                self._submit(name)
            deadline = time.monotonic() + patience_s
            ended: dict[str, float] = {}
            pause_s = 0.2
            while waiting := [name for name in self.jobs if name not in self.done]:
                live = live_jobs(self.jobs.values())
                written = os.listdir(self.folder)
                for name in waiting:
                    if f"{name}.json" in written:
                        self._passed(name)
                    elif self.jobs[name] not in live:
                        ended.setdefault(name, time.monotonic())
                        code = self._exit_code(name)
                        if code or time.monotonic() > ended[name] + LATE_FILE_S:
                            self._failed(name, code)
                    elif time.monotonic() > deadline:
                        job = live[self.jobs[name]]
                        reason = f"{job.state.lower()}{f', {job.reason}' if job.reason else ''}"
                        what = f"had not reported after {patience_s:g} s ({reason}); it is taken back, try again later"
                        self._enter(name, "waiting", what)
                time.sleep(pause_s := min(2.0, pause_s * 1.3))
        finally:
            if left := [job for name, job in self.jobs.items() if self._is_left(name)]:
                cancel_jobs(left)
        return [self.done[name] for name in partitions]

    def _is_left(self, name: str) -> bool:
        return name not in self.done or self.done[name].outcome == "waiting"

    def _submit(self, name: str) -> None:
        self.began[name] = time.monotonic()
        try:
            done = subprocess.run(
                ["sbatch", "--parsable", *self._options(name)],
                input=self._script(name),
                capture_output=True,
                text=True,
                timeout=PATIENCE_S,
                check=False,
            )
        except subprocess.TimeoutExpired:
            raise MissingResourceError(f"SLURM: sbatch has not answered in {PATIENCE_S:g} s; try again later") from None
        if done.returncode:
            reason = " ".join(done.stderr.split()).removeprefix("sbatch: error: ")[:200]
            self._enter(name, "refused", f"sbatch refuses a job there: {reason}")
        else:
            self.jobs[name] = done.stdout.strip().split(";")[0]

    def _options(self, name: str) -> list[str]:
        options = [f"--job-name={self.folder.name.removeprefix('.')}", f"--partition={name}", "--time=2"]
        options += ["--ntasks=1", "--nodes=1", "--output=/dev/null", "--no-requeue"]
        if self.site is not None:
            words = {word: getattr(self.site, word) for word in ("account", "qos", "constraint", "exclude")}
            words["gres"] = self.site.gres and self.site.gres.replace("{gpus}", "1")
            options += [f"--{word}={value}" for word, value in words.items() if value]
        return options

    def _script(self, name: str) -> str:
        folder, python = shlex.quote(str(self.folder)), shlex.quote(sys.executable)
        report = shlex.quote(str(self.folder / f"{name}.json"))
        variables = self.site.environment.items() if self.site else ()
        lines = [
            "#!/bin/bash",
            *(f"export {variable}={shlex.quote(str(value))}" for variable, value in variables),
            *(self.site.setup if self.site else ()),
            f"test -d {folder} || exit {NO_STORE}",
            f"touch {folder}/written.{shlex.quote(name)} || exit {NOT_WRITABLE}",
            f"test -x {python} || exit {NO_PYTHON}",
            f"{python} {folder}/report.py {report} || exit {BAD_PYTHON}",
        ]
        return "\n".join(lines) + "\n"

    def _passed(self, name: str) -> None:
        report = json.loads((self.folder / f"{name}.json").read_text())
        tools = {"sbatch", "scontrol", "squeue"} - set(report["tools"])
        packages = {"torch", "lightning", "submitit"} - set(report["packages"])
        sees = f"{report['host']} sees the store, writes into it and runs Python {report['python']}"
        if packages:
            lack = f"{sees}, which finds no {', '.join(sorted(packages))}; install Retain where all nodes see it"
            self._enter(name, "failed", lack, report)
        elif tools:
            lack = f"{sees}, but has no {', '.join(sorted(tools))}: jobs could not requeue themselves; ask the site"
            self._enter(name, "failed", lack, report)
        else:
            self._enter(name, "passed", sees, report)

    def _failed(self, name: str, code: int) -> None:
        where = self._host(name) or "the node"
        if code in CURES:
            what = f"{where} {CURES[code].format(folder=self.folder.parent, python=sys.executable)}"
        elif code:
            what = f"the job ended with code {code} on {where}; see whether the site's setup lines work there"
        else:
            what = f"the job on {where} left no report in {self.folder.parent}; do all nodes see it?"
        self._enter(name, "failed", what)

    def _enter(self, name: str, outcome: str, detail: str, report: dict[str, Any] | None = None) -> None:
        told = report or {}
        seconds = round(time.monotonic() - self.began[name], 1)
        can = None if report is None else {"sbatch", "scontrol", "squeue"} <= set(told["tools"])
        self.done[name] = ProbeReport(name, outcome, told.get("host"), told.get("python"), can, seconds, detail)

    def _exit_code(self, name: str) -> int:
        """A finished job's code; 0 where SLURM has forgotten it, or not noted it yet."""
        found = re.search(r"ExitCode=(\d+):(\d+)", self._job(name))
        return int(found[1]) or int(found[2]) if found else 0

    def _host(self, name: str) -> str | None:
        found = re.search(r"\bNodeList=(\S+)", self._job(name))
        return found[1] if found and found[1] != "(null)" else None

    def _job(self, name: str) -> str:
        try:
            return ask(["scontrol", "--oneliner", "show", "job", self.jobs[name]])
        except MissingResourceError:
            return ""


def probe_findings(reports: Sequence[ProbeReport], site: SiteOptions | None) -> list[Finding]:
    """One line a partition. A refusal or a full queue is missing only where no partition took a job."""
    if not reports:
        return [Finding("probe", MISSING, "no partition is up that a job could be sent to")]
    none_passed = not any(report.outcome == "passed" for report in reports)
    refused = all(report.outcome == "refused" for report in reports)
    found = []
    for report in reports:
        level = OK if report.outcome == "passed" else NOTE
        if report.outcome == "failed" or (refused and none_passed):
            level = MISSING
        found.append(Finding(f"probe {report.partition}", level, f"{report.detail} ({report.seconds:g} s)"))
    return found
