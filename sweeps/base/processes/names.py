"""Names of processes: a machine, a process id (pid) and the start time of the process, as pids are reused."""

import contextlib
import functools
import hashlib
import os
import socket
from pathlib import Path

UNKNOWN = "unknown"
"""Stands for the start time of a running process that the system does not show."""


def process_name() -> str:
    """The name of this process, for `is_gone` and `is_here`; it is valid in file names."""
    return f"{_machine()}.{os.getpid()}.{process_start(os.getpid()) or UNKNOWN}"


def is_gone(name: str) -> bool:
    """Whether the process with this name has ended. False for a process on another machine, as its state is unknown."""
    pid, _, started = name.partition(".")[2].partition(".")
    return is_here(name) and pid.isdecimal() and is_alive(int(pid), started) is False


def is_alive(pid: int, started: str) -> bool | None:
    """Whether the process of this machine with this id and start time runs; None if its start time is hidden from us."""
    start = process_start(pid)
    if start is None or start == started:
        return start is not None
    return None if UNKNOWN in (start, started) else False


def is_here(name: str) -> bool:
    """Whether the process with this name runs, or ran, on this machine."""
    return name.partition(".")[0] == _machine()


def usable_cores() -> int:
    """The number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def slurm_job() -> str | None:
    """The id of this process's SLURM job as squeue shows it: 123, or 123_4 for a task of an array. None outside of SLURM."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def _machine() -> str:
    """A short digest of the host name and the boot of this machine."""
    return hashlib.sha256(f"{socket.gethostname()} {machine_id()}".encode()).hexdigest()[:12]


@functools.cache
def machine_id() -> str:
    """The boot id and the pid namespace of this machine; empty if the system provides neither."""
    parts = []
    with contextlib.suppress(OSError):
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    return " ".join(parts)


def process_start(pid: int) -> str | None:
    """The start time of a process on this machine, as the kernel prints it; None if the process has ended.

    UNKNOWN if the process runs, and the system has no /proc or hides the processes of other users there (hidepid).
    """
    try:
        with open(f"/proc/{pid}/stat", "rb", buffering=0) as stream:
            fields = stream.read().rpartition(b")")[2].decode().split()
        return None if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        pass
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return None
    except PermissionError:  # a process that may not be signalled is alive
        return UNKNOWN
    return None if Path("/proc/self").exists() else UNKNOWN
