"""`retain doctor --probe`: a tiny job in each partition reports what its nodes can do."""

import json
import os
import re
import shlex
import shutil
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from retain.launchers.checks.finding import MISSING, NOTE, OK, Finding
from retain.launchers.slurm.client import Job, ask, cancel_jobs, live_jobs
from retain.launchers.slurm.partitions import Partition
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.execution import SiteOptions

PATIENCE_PROBE_S = 120.0
"""How long all probes together may take, the time in the queue included."""
LATE_FILE_S = 65.0
"""How long after a job's end its report may stay invisible, on a file system that caches folders."""
NO_STORE, NO_PYTHON, NOT_WRITABLE, BAD_PYTHON = 41, 42, 43, 44
CURES = {
    NO_STORE: "does not see the store's folder {folder}; choose a --store on a file system that all nodes share",
    NO_PYTHON: "does not see {python}; install Retain where all nodes see it, or load it with the site's setup lines",
    NOT_WRITABLE: "cannot write into the store's folder {folder}; choose another --store",
    BAD_PYTHON: "cannot run {python}; see whether the site's setup lines must load libraries",
}
REPORTER = """
import importlib.util, json, os, platform, shutil, socket, sys
tools = [name for name in ("sbatch", "scontrol", "squeue") if not shutil.which(name)]
packages = [name for name in ("lightning", "submitit", "torch") if not importlib.util.find_spec(name)]
report = {"host": socket.gethostname(), "python": platform.python_version(), "no_tools": tools, "no_packages": packages}
with open(sys.argv[1] + ".part", "w") as file:
    json.dump(report, file)
os.rename(sys.argv[1] + ".part", sys.argv[1])
"""


@dataclass(frozen=True)
class ProbeReport:
    """The result of one partition's job."""

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
    """Submit a job of a few seconds to every partition that is up, or to those that the site's profile names.

    folder: an existing folder of the store's file system. Waits at most `patience_s`, then cancels the jobs that still wait,
    and removes what the probes have written. Raises MissingResourceError if SLURM does not answer.
    """
    named = site.partition.split(",") if site and site.partition else None
    chosen = [part.name for part in partitions if (part.name in named if named else part.state == "UP")]
    trial = folder / f".doctor.{uuid4().hex[:12]}"
    trial.mkdir()
    try:
        (trial / "report.py").write_text(REPORTER)
        return _run([_Probe(name, trial, site) for name in chosen], trial, patience_s)
    finally:
        shutil.rmtree(trial, ignore_errors=True)


def _run(probes: Sequence["_Probe"], trial: Path, patience_s: float) -> list[ProbeReport]:
    """Submit every probe, wait until each has a result, and cancel the jobs that still wait."""
    try:
        for probe in probes:
            probe.submit()
        deadline = time.monotonic() + patience_s
        pause_s = 0.2
        while waiting := [probe for probe in probes if probe.result is None]:
            live = live_jobs([probe.job_id for probe in waiting if probe.job_id])
            written = os.listdir(trial)
            for probe in waiting:
                job = live.get(probe.job_id or "")
                if f"{probe.partition}.json" in written:
                    probe.read_report()
                elif job is None:
                    probe.see_end()
                elif time.monotonic() > deadline:
                    probe.give_up(job, patience_s)
            time.sleep(pause_s := min(2.0, pause_s * 1.3))
    finally:
        unfinished = [probe for probe in probes if probe.result is None or probe.result.outcome == "waiting"]
        cancel_jobs([probe.job_id for probe in unfinished if probe.job_id])
    return [probe.result for probe in probes if probe.result]


class _Probe:
    """The job of one partition."""

    def __init__(self, partition: str, folder: Path, site: SiteOptions | None) -> None:
        self.partition, self.folder, self.site = partition, folder, site
        self.report = folder / f"{partition}.json"
        self.began = time.monotonic()
        self.ended: float | None = None
        """When SLURM was first seen to have finished with the job."""
        self.job_id: str | None = None
        """None if sbatch refused the job."""
        self.result: ProbeReport | None = None

    def submit(self) -> None:
        self.began = time.monotonic()
        script = self.folder / f"{self.partition}.sh"
        script.write_text(self._script())
        try:
            self.job_id = ask(["sbatch", "--parsable", *self._options(), str(script)]).strip().split(";")[0]
        except MissingResourceError as error:
            self._finish("refused", f"sbatch refuses a job there: {str(error).removeprefix('SLURM: ')}")

    def _options(self) -> list[str]:
        options = [f"--job-name={self.folder.name.removeprefix('.')}", f"--partition={self.partition}", "--time=2"]
        options += ["--ntasks=1", "--nodes=1", "--output=/dev/null", "--no-requeue"]
        if self.site is not None:
            own = {name: getattr(self.site, name) for name in ("account", "qos", "constraint", "exclude")}
            own["gres"] = self.site.gres and self.site.gres.replace("{gpus}", "1")
            options += [f"--{name}={value}" for name, value in own.items() if value]
        return options

    def _script(self) -> str:
        folder, python = shlex.quote(str(self.folder)), shlex.quote(sys.executable)
        variables = self.site.environment.items() if self.site else ()
        lines = [
            "#!/bin/bash",
            *(f"export {variable}={shlex.quote(str(value))}" for variable, value in variables),
            *(self.site.setup if self.site else ()),
            f"test -d {folder} || exit {NO_STORE}",
            f"touch {folder}/written.{shlex.quote(self.partition)} || exit {NOT_WRITABLE}",
            f"test -x {python} || exit {NO_PYTHON}",
            f"{python} {folder}/report.py {shlex.quote(str(self.report))} || exit {BAD_PYTHON}",
        ]
        return "\n".join(lines) + "\n"

    def read_report(self) -> None:
        """Finish with what the node has reported."""
        report = json.loads(self.report.read_text())
        outcome, what = "failed", f"{report['host']} sees the store, writes into it and runs Python {report['python']}"
        if packages := ", ".join(report["no_packages"]):
            what += f", which does not find {packages}; install Retain where all nodes see it"
        elif tools := ", ".join(report["no_tools"]):
            what += f", but has no {tools}, so its jobs cannot requeue themselves; ask the site"
        else:
            outcome = "passed"
        self._finish(outcome, what, report["host"], report["python"], not report["no_tools"])

    def see_end(self) -> None:
        """Finish a job that ended without a report, unless the report may only be late."""
        self.ended = self.ended or time.monotonic()
        try:
            job = ask(["scontrol", "--oneliner", "show", "job", self.job_id or ""])
        except MissingResourceError:
            job = ""  # SLURM has forgotten the job
        ending = re.search(r"ExitCode=(\d+):(\d+)", job)
        code = int(ending[1]) or int(ending[2]) if ending else 0
        node = re.search(r"\bNodeList=(\S+)", job)
        where = node[1] if node and node[1] != "(null)" else "the node"
        store = self.folder.parent
        if code in CURES:
            self._finish("failed", f"{where} {CURES[code].format(folder=store, python=sys.executable)}")
        elif code:
            what = f"the job ended with code {code} on {where}; see whether the site's setup lines work there"
            self._finish("failed", what)
        elif time.monotonic() > self.ended + LATE_FILE_S:
            self._finish("failed", f"the job on {where} left no report in {store}; do all nodes see it?")

    def give_up(self, job: Job, patience_s: float) -> None:
        """Finish a job that has not started in time."""
        reason = f"{job.state.lower()}{f', {job.reason}' if job.reason else ''}"
        self._finish("waiting", f"had not reported after {patience_s:g} s ({reason}); it is cancelled, try again later")

    def _finish(
        self, outcome: str, detail: str, host: str | None = None, python: str | None = None, sbatch: bool | None = None
    ) -> None:
        seconds = round(time.monotonic() - self.began, 1)
        self.result = ProbeReport(self.partition, outcome, host, python, sbatch, seconds, detail)


def probe_findings(reports: Sequence[ProbeReport]) -> list[Finding]:
    """One line for each partition. A refusal or a full queue counts as missing only if no partition accepted a job."""
    if not reports:
        return [Finding("probe", MISSING, "no partition is up, so no job can be sent")]
    all_refused = all(report.outcome == "refused" for report in reports)
    levels = {"passed": OK, "waiting": NOTE, "refused": MISSING if all_refused else NOTE, "failed": MISSING}
    return [
        Finding(f"probe {report.partition}", levels[report.outcome], f"{report.detail} ({report.seconds:g} s)")
        for report in reports
    ]
