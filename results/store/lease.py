"""Who trains a run: a lease that one process holds, and that another may take over once its owner is dead.

The lease at `lease.json` is a row of claims, `lease.1.json`, `lease.2.json` and so on. The highest one counts: who made
it holds the lease, unless it is empty, which says that it was released. To take the lease is to make the claim with the
next number; whoever loses that race, or comes late with a number that has been passed, sees a higher claim and gives
way. The highest claim is never removed, so no number is ever in force twice.

What it relies on: `link` fails where the name exists (also on NFS), a process sees in the folder what it has put there,
and a modification time that is set can be read by others. No file locks, and no clock that two machines share. An NFS
client may show a folder as it was up to a minute ago, so a late owner there may notice that much later.

Whether an owner lives is told by its process where it runs on this machine: the same host name, the same boot, and the
same process numbers (containers on one machine may each have their own). Of another machine only silence tells, and a
watcher believes in it once it has itself seen the heartbeat stand still for long enough: see `Witness`.
"""

import errno
import json
import os
import re
import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.files import write_json
from retain.sweeps.base.processes import machine_id, process_start, slurm_job

SILENCE_S = 600.0
"""A lease held on another machine counts as dead once a watcher has seen no heartbeat for so many seconds."""
LOOKS = 10
"""Silence counts for a tenth of SILENCE_S between two looks at most: a store that hung, or a watcher that slept, is no
proof. A tenth is also enough where the scheduler says that the owner's job is gone."""
BEAT_NS = 2_000_000_000
"""A beat moves the modification time so far: the coarsest file systems keep times in steps of two seconds."""


@dataclass(frozen=True)
class Owner:
    """A process; `machine` tells apart machines of one name, `started` a later process with the same number."""

    host: str
    machine: str
    pid: int
    started: str
    token: str
    """Of this holding of the lease, unique."""
    job_id: str | None = None
    """Of SLURM."""

    def is_here(self) -> bool:
        """Whether it is or was a process of this machine."""
        return (self.host, self.machine) == (socket.gethostname(), machine_id())


@dataclass(frozen=True)
class Claim:
    """The highest claim on a lease as it was read; owner: None where it was released."""

    number: int
    owner: Owner | None
    heartbeat_ns: int
    """Not a time: a number that changes with every beat."""


@dataclass(frozen=True)
class Sight:
    """What a watcher last saw of a lease: the heartbeat, and for how many seconds it has stood still."""

    token: str
    heartbeat_ns: int
    looked_at: float
    silent_s: float


class Witness:
    """What one watcher, such as a launcher, has seen of the leases that other machines hold. It needs no clock but its
    own monotonic one; it is for one thread.

    job_is_gone: asks the scheduler about an owner: True where its job has ended, so a tenth of the silence is enough;
    False where it lives, so no silence is; None where it does not know. Called at every look; it must be quick.
    """

    def __init__(self, job_is_gone: Callable[[Owner], bool | None] | None = None, silence_s: float = SILENCE_S) -> None:
        self.job_is_gone, self.silence_s = job_is_gone, silence_s
        self._seen: dict[Path, Sight] = {}

    def believes_dead(self, path: Path, owner: Owner, heartbeat_ns: int) -> bool:
        """Look at a foreign lease once more."""
        now, before = time.monotonic(), self._seen.get(path)
        if before is None or (before.token, before.heartbeat_ns) != (owner.token, heartbeat_ns):
            silent_s = 0.0
        else:
            silent_s = before.silent_s + min(now - before.looked_at, self.silence_s / LOOKS)
        self._seen[path] = Sight(owner.token, heartbeat_ns, now, silent_s)
        gone = self.job_is_gone(owner) if self.job_is_gone else None
        return gone is not False and silent_s >= (self.silence_s / LOOKS if gone else self.silence_s)


@dataclass(frozen=True)
class Lease:
    """A held lease: `beat` while working, ask `held` before every write, `release` at the end."""

    path: Path
    number: int
    owner: Owner

    @property
    def file(self) -> Path:
        return _claim_file(self.path, self.number)

    def held(self) -> bool:
        """Whether it is still ours. Raises OSError where the store cannot be read at the moment."""
        claim = _highest(self.path)
        return claim is not None and claim.owner == self.owner

    def beat(self) -> None:
        """Say that the owner lives. Raises OSError where the store cannot be written at the moment."""
        try:
            beat = self.file.stat().st_mtime_ns + BEAT_NS
            os.utime(self.file, ns=(beat, beat))
        except OSError as error:
            if not _is_gone(error):
                raise

    def release(self) -> None:
        """Give it back, where it is still ours. Needs no room on the disk."""
        if not self.held():
            return
        try:
            os.truncate(self.file, 0)
        except OSError as error:
            if not _is_gone(error):
                raise


def take_lease(path: Path, witness: Witness | None = None) -> Lease | None:
    """The lease at `path` for this process, or None where another process holds it.

    The lease of a dead owner is taken over; without a witness, the lease of another machine is never believed dead.
    Raises MissingResourceError where the folder cannot be written.
    """
    claim = _highest(path)
    if claim is not None and _lives(path, claim, witness):
        return None
    owner = this_process()
    beside = path.with_name(f".{path.name}.{owner.pid}.{owner.token}")
    try:
        write_json(beside, asdict(owner))
        while True:
            lease = Lease(path, claim.number + 1 if claim else 1, owner)
            if _link(beside, lease.file):
                if lease.held():
                    _remove_below(path, lease.number)
                    return lease
                lease.file.unlink(missing_ok=True)
            claim = _highest(path)
            if claim is not None and claim.owner == owner:  # a link whose confirmation was lost
                return Lease(path, claim.number, owner)
            if claim is not None and _lives(path, claim, witness):
                return None
    except OSError as error:
        raise MissingResourceError(
            f"{path.parent}: cannot be written ({error.strerror}); free space with retain gc, or see who may write there"
        ) from error
    finally:
        beside.unlink(missing_ok=True)


def read_owner(path: Path) -> Owner | None:
    """Who holds a lease, dead or alive; None where nobody does."""
    claim = _highest(path)
    return claim.owner if claim else None


def is_held(path: Path, witness: Witness | None = None) -> bool:
    """Whether an owner that lives holds the lease; without a witness, one on another machine always does."""
    claim = _highest(path)
    return claim is not None and _lives(path, claim, witness)


def this_process() -> Owner:
    """This process as the owner of a new lease."""
    pid = os.getpid()
    return Owner(socket.gethostname(), machine_id(), pid, process_start(pid) or "", os.urandom(8).hex(), slurm_job())


def _lives(path: Path, claim: Claim, witness: Witness | None) -> bool:
    owner = claim.owner
    if owner is None:
        return False
    if owner.is_here():
        return process_start(owner.pid) == owner.started
    return witness is None or not witness.believes_dead(path, owner, claim.heartbeat_ns)


def _highest(path: Path) -> Claim | None:
    """The claim in force; None where there has been none."""
    while numbers := _numbers(path):
        file = _claim_file(path, numbers[-1])
        try:
            text = file.read_text()
            return Claim(numbers[-1], _owner(text) if text else None, file.stat().st_mtime_ns)
        except OSError as error:
            if not _is_gone(error):
                raise
            time.sleep(0.01)  # a higher claim has taken its place
    return None


def _owner(text: str) -> Owner:
    try:
        return Owner(**json.loads(text))
    except (ValueError, TypeError):
        return Owner("a host that cannot be read", "", 0, "", "", None)


def _numbers(path: Path) -> list[int]:
    """The numbers of all claims on a lease, ascending."""
    pattern = re.compile(rf"{re.escape(path.stem)}\.([0-9]+){re.escape(path.suffix)}")
    try:
        names = os.listdir(path.parent)
    except FileNotFoundError:
        return []
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)


def _claim_file(path: Path, number: int) -> Path:
    return path.with_name(f"{path.stem}.{number}{path.suffix}")


def _link(source: Path, target: Path) -> bool:
    try:
        os.link(source, target)
    except FileExistsError:
        return False
    return True


def _remove_below(path: Path, number: int) -> None:
    for lower in _numbers(path):
        if lower < number:
            _claim_file(path, lower).unlink(missing_ok=True)


def _is_gone(error: OSError) -> bool:
    return error.errno in (errno.ENOENT, errno.ESTALE)
