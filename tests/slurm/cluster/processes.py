"""The processes of one cluster, found by the SLURM_CONF that every one of them was started with."""

import os
import signal
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

DAEMONS = frozenset({"munged", "mariadbd", "slurmdbd", "slurmctld", "slurmscriptd", "slurmd", "slurmstepd"})


@dataclass(frozen=True)
class Process:
    """A daemon of a cluster or a process of one of its jobs, and the node it is on ("" for the cluster's own)."""

    pid: int
    name: str
    node: str

    @property
    def is_daemon(self) -> bool:
        return self.name in DAEMONS


Choice = Callable[[Process], bool]


def processes(folder: Path, choice: Choice = lambda _: True) -> list[Process]:
    """The living daemons and job processes of the cluster in this folder; a shell that merely talks to it is neither."""
    return [process for process in _processes(folder) if choice(process)]


def _processes(folder: Path) -> Iterator[Process]:
    for entry in os.scandir("/proc"):
        if not entry.name.isdigit():
            continue
        try:
            # A zombie's is empty: what ended but was not collected yet is not found.
            lines = Path(entry.path, "environ").read_bytes().split(b"\0")
            name = Path(entry.path, "comm").read_text().strip()
        except OSError:
            continue
        environment = dict(line.decode(errors="replace").partition("=")[::2] for line in lines)
        conf = Path(environment.get("SLURM_CONF", "/"))
        if conf.parent != folder:
            continue
        if name in DAEMONS:
            yield Process(int(entry.name), name, "" if conf.stem == "slurm" else conf.stem)
        elif "SLURM_JOB_ID" in environment:
            yield Process(int(entry.name), name, environment.get("SLURMD_NODENAME", ""))


def send(signal_number: int, found: list[Process]) -> None:
    """Send a signal to those that still live."""
    for process in found:
        try:
            os.kill(process.pid, signal_number)
        except ProcessLookupError:
            continue


def kill(folder: Path, choice: Choice) -> None:
    """Kill the chosen processes until none is left, those that they start meanwhile too."""
    deadline = time.monotonic() + 20
    while left := processes(folder, choice):
        if time.monotonic() > deadline:
            raise TimeoutError(f"processes outlive KILL: {left}")
        send(signal.SIGKILL, left)
        time.sleep(0.02)


def kill_as_one(folder: Path, choice: Choice = lambda _: True) -> None:
    """Kill daemons and jobs so that none can report the end of another: slurmd, then its step daemons, then the rest."""
    kill(folder, lambda process: process.name == "slurmd" and choice(process))
    kill(folder, lambda process: process.name == "slurmstepd" and choice(process))
    kill(folder, choice)
