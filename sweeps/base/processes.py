"""Which process is meant: a machine, a process number, and when that process started."""

import functools
import hashlib
import os
import socket
from pathlib import Path


def process_name() -> str:
    """A file name's worth of who this process is, that `is_gone` reads."""
    return f"{_here()}.{os.getpid()}.{process_start(os.getpid()) or 'unknown'}"


def is_gone(name: str) -> bool:
    """Whether a process that gave its `process_name` is known to have ended; False for one of another machine."""
    pid, _, started = name.partition(".")[2].partition(".")
    return is_here(name) and pid.isdecimal() and process_start(int(pid)) != started


def is_here(name: str) -> bool:
    """Whether a process that gave its `process_name` is or was one of this machine."""
    return name.partition(".")[0] == _here()


def slurm_job() -> str | None:
    """The id of the SLURM job that this process belongs to, as squeue shows it: 123, or 123_4 for a task of an array."""
    if array := os.environ.get("SLURM_ARRAY_JOB_ID"):
        return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}"
    return os.environ.get("SLURM_JOB_ID")


def _here() -> str:
    return hashlib.sha256(f"{socket.gethostname()} {machine_id()}".encode()).hexdigest()[:12]


@functools.cache
def machine_id() -> str:
    """The boot of this machine and the name space of its process numbers; empty where the system tells neither."""
    parts = []
    try:
        parts.append(Path("/proc/sys/kernel/random/boot_id").read_text().strip())
        parts.append(os.readlink("/proc/self/ns/pid"))
    except OSError:
        pass
    return " ".join(parts)


def process_start(pid: int) -> str | None:
    """When a process of this machine started, as the kernel writes it; None where it is gone."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (FileNotFoundError, ProcessLookupError):
        if Path("/proc/self").exists():
            return None
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "unknown"
