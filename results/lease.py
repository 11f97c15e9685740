"""Who trains a run: a lease that one process holds, and that another may take over once its owner is dead.

It relies on two operations that local file systems and NFS carry out atomically: `link` fails where the name exists,
and `rename` replaces. No file locks.
"""

import json
import os
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from sweeps.atomic import write_json

SILENCE_S = 600.0
"""A lease held on another host counts as dead once its heartbeat is this old, in seconds."""


@dataclass(frozen=True)
class Owner:
    """A process on a host; `started` tells it from a later process with the same number."""

    host: str
    pid: int
    started: str
    token: str

    def alive(self, heartbeat: float) -> bool:
        """Whether the process lives (same host) or was heard of lately (elsewhere); heartbeat: seconds of time()."""
        if self.host == socket.gethostname():
            return process_start(self.pid) == self.started
        return time.time() - heartbeat < SILENCE_S


@dataclass(frozen=True)
class Lease:
    """A held lease: `beat` while working, `release` at the end."""

    path: Path
    owner: Owner

    def held(self) -> bool:
        """Whether it is still ours."""
        return read_owner(self.path) == self.owner

    def beat(self) -> None:
        """Say that the owner lives."""
        os.utime(self.path)

    def release(self) -> None:
        if self.held():
            self.path.unlink(missing_ok=True)


def take_lease(path: Path) -> Lease | None:
    """The lease at `path` for this process, or None where a living process holds it."""
    owner = Owner(socket.gethostname(), os.getpid(), process_start(os.getpid()) or "", os.urandom(8).hex())
    beside = path.with_name(f".{path.name}.{owner.token}")
    write_json(beside, asdict(owner))
    try:
        for _ in range(2):
            try:
                os.link(beside, path)
                return Lease(path, owner)
            except FileExistsError:
                if not _clear_if_dead(path, beside):
                    return None
        return None
    finally:
        beside.unlink(missing_ok=True)


def read_owner(path: Path) -> Owner | None:
    """Who holds a lease; None where nobody does."""
    try:
        return Owner(**json.loads(path.read_text()))
    except FileNotFoundError:
        return None


def is_held(path: Path) -> bool:
    """Whether a living process holds the lease."""
    owner = read_owner(path)
    try:
        return owner is not None and owner.alive(path.stat().st_mtime)
    except FileNotFoundError:
        return False


def process_start(pid: int) -> str | None:
    """When a process of this host started, as the kernel writes it; None where it is gone."""
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


def _clear_if_dead(path: Path, claim: Path) -> bool:
    """Remove a dead owner's lease; True where the place may be free now.

    Only who links the file named after that very lease may remove it, so a slow second process cannot remove the lease
    that the first one has taken in the meantime.
    """
    owner = read_owner(path)
    if owner is None:
        return True
    try:
        if owner.alive(path.stat().st_mtime):
            return False
    except FileNotFoundError:
        return True
    ticket = path.with_name(f".{path.name}.{owner.token}.dead")
    try:
        os.link(claim, ticket)
    except FileExistsError:
        taker = read_owner(ticket)
        if taker is None or taker.alive(ticket.stat().st_mtime):
            return False
        ticket.unlink(missing_ok=True)
        return False
    if read_owner(path) == owner:
        path.unlink(missing_ok=True)
    ticket.unlink(missing_ok=True)
    return True
