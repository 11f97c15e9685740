"""Who trains a run: a lease that one process holds, and that another process may take over once its owner is dead.

The lease at `lease.json` is a row of claims: `lease.1.json`, `lease.2.json` and so on. The highest claim counts. The process
that made it holds the lease; an empty claim says that the lease was released. To take the lease, a process makes the claim
with the next number. A process that loses this race, or that comes late with a number already passed, sees a higher claim and
gives way. The highest claim is never removed, so no number is ever in force twice.

Assumptions about the file system: `link` fails if the name exists (also on NFS), a process sees the files that it has itself
created, and a modification time that one process sets can be read by others. Neither file locks nor a clock that two machines
share are needed. An NFS client may show a folder as it was up to a minute ago, so an owner there may notice a takeover that
much later.

Whether an owner is alive is decided by its process if it runs on this machine: same host name, same boot, same process
numbers (each container on a machine may have its own). For an owner on another machine, or one that the system hides or whose
claim cannot be read, only silence decides: a watcher counts it as dead once it has itself seen no heartbeat for long enough;
see `LivenessChecker`.
"""

import contextlib
import errno
import functools
import os
import re
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

from retain.sweeps.base.documents import parsed, read_bytes_and_status, write_document
from retain.sweeps.base.errors import DamageError
from retain.sweeps.base.files import writing
from retain.sweeps.base.processes.names import is_alive, machine_id, process_start, slurm_job

SILENCE_S = 600.0
"""Seconds without a heartbeat after which an owner on another machine counts as dead."""
POLLS = 10
"""Between two polls, at most a tenth of SILENCE_S counts as silence: a hung store, or a watcher that slept, proves nothing.
A tenth of SILENCE_S is enough if the scheduler says that the owner's job has ended."""
BEAT_NS = 2_000_000_000
"""A heartbeat moves the modification time by this much: the coarsest file systems keep times in steps of two seconds."""


@dataclass(frozen=True)
class Owner:
    """A process. `machine` tells machines of one name apart, `started` a later process with the same number."""

    host: str
    machine: str
    pid: int
    started: str
    token: str
    """Unique for each time a process takes a lease."""
    job_id: str | None = None
    """The owner's SLURM job."""

    def is_here(self) -> bool:
        """Whether the owner is, or was, a process of this machine."""
        return (self.host, self.machine) == (socket.gethostname(), machine_id())


UNREADABLE = Owner("", "", 0, "", "")
"""The owner of a claim that is damaged or may not be read."""


@dataclass(frozen=True)
class Claim:
    """The highest claim on a lease, as it was read."""

    number: int
    owner: Owner | None
    """None if the lease was released."""
    heartbeat_ns: int
    """Not a time: a number that changes with every heartbeat."""


@dataclass(frozen=True)
class Sight:
    """What a watcher last saw of a lease: the heartbeat, and for how many seconds it has not changed."""

    token: str
    heartbeat_ns: int
    polled_at: float
    silent_s: float


class LivenessChecker:
    """Decides whether owners on other machines are alive, from what one watcher (such as a launcher) has seen.

    It uses only the watcher's own monotonic clock, and is for one thread.

    job_has_ended: asks the scheduler about an owner. True if its job has ended, so a tenth of the silence is enough; False if
    the job is alive, so no silence is; None if unknown. It is called at every poll, so it must be quick.
    """

    def __init__(
        self, job_has_ended: Callable[[Owner], bool | None] | None = None, silence_s: float = SILENCE_S
    ) -> None:
        self.job_has_ended, self.silence_s = job_has_ended, silence_s
        self._seen: dict[Path, Sight] = {}

    def is_dead(self, path: Path, owner: Owner, heartbeat_ns: int) -> bool:
        """Whether an owner on another machine is dead, as this poll of its lease and the polls before it show."""
        # 1. Silence grows from poll to poll, and starts at zero after a heartbeat or a change of owner.
        now, before = time.monotonic(), self._seen.get(path)
        if before is None or (before.token, before.heartbeat_ns) != (owner.token, heartbeat_ns):
            silent_s = 0.0
        else:
            silent_s = before.silent_s + min(now - before.polled_at, self.silence_s / POLLS)
        self._seen[path] = Sight(owner.token, heartbeat_ns, now, silent_s)
        # 2. The scheduler decides how much silence is enough.
        ended = self.job_has_ended(owner) if self.job_has_ended else None
        return ended is not False and silent_s >= (self.silence_s / POLLS if ended else self.silence_s)


@dataclass(frozen=True)
class Lease:
    """A lease that this process took: `beat` while working, ask `held` before every write, `release` at the end."""

    path: Path
    number: int
    owner: Owner

    @property
    def file(self) -> Path:
        return _claim_file(self.path, self.number)

    def held(self) -> bool:
        """Whether this process still holds the lease. Raises OSError if the store cannot be read at the moment."""
        claim = _highest_claim(self.path)
        # A claim that cannot be read at the moment is still this process's, as another one's has a higher number.
        return claim is not None and claim.number == self.number and claim.owner in (self.owner, UNREADABLE)

    def beat(self) -> None:
        """Show that the owner is alive. Raises OSError if the store cannot be written at the moment."""
        try:
            beat = self.file.stat().st_mtime_ns + BEAT_NS
            os.utime(self.file, ns=(beat, beat))
        except OSError as error:
            if not _is_gone(error):
                raise

    def release(self) -> None:
        """Give the lease back if this process still holds it. Works on a full disk: the claim is emptied, not replaced."""
        if not self.held():
            return
        try:
            os.truncate(self.file, 0)
        except OSError as error:
            if not _is_gone(error):
                raise


def take_lease(path: Path, liveness: LivenessChecker | None = None) -> Lease | None:
    """Take the lease at `path` for this process; None if another process holds it.

    The lease of a dead owner is taken over. Without `liveness`, an owner on another machine always counts as alive.
    Raises MissingResourceError if the folder cannot be written.
    """
    path = path.absolute()  # the process may change its folder while its heartbeats go on, as for the start of Ray
    claim = _highest_claim(path)
    if claim is not None and _is_alive(path, claim, liveness):
        return None
    owner = this_process()
    beside = path.with_name(f".{path.name}.{owner.pid}.{owner.token}")
    try:
        with writing(str(path.parent), "choose another store"):
            # 1. Write the claim beside its place, so that it appears whole.
            write_document(beside, asdict(owner))
            while True:
                # 2. Take the next number by a link. Only one process succeeds: link fails if the name exists.
                lease = Lease(path, claim.number + 1 if claim else 1, owner)
                if _link(beside, lease.file):
                    # 3. Check that no process which saw a newer listing of the folder has made a higher claim meanwhile.
                    if lease.held():
                        _remove_below(path, lease.number)
                        return lease
                    lease.file.unlink(missing_ok=True)
                # 4. The race was lost: give way to an owner that is alive, or steal the lease of a dead one with the
                # next number.
                claim = _highest_claim(path)
                if claim is not None and claim.owner == owner:
                    # The link was made, but its confirmation was lost (NFS).
                    return Lease(path, claim.number, owner)
                if claim is not None and _is_alive(path, claim, liveness):
                    return None
    finally:
        beside.unlink(missing_ok=True)


@contextlib.contextmanager
def try_lease(path: Path, liveness: LivenessChecker | None = None) -> Iterator[bool]:
    """Hold the lease at `path` during the block; yields False if another process holds it. Raises as `take_lease` does."""
    lease = take_lease(path, liveness)
    try:
        yield lease is not None
    finally:
        if lease is not None:
            lease.release()


def wait_for_lease(
    path: Path,
    liveness: LivenessChecker | None,
    patience: Callable[[Owner | None], float],
    poll: Callable[[Owner | None], None] = lambda owner: None,
    every_s: float = 0.2,
) -> Lease | None:
    """Take the lease at `path` once its owner releases it or dies; None if it is still held after `patience` seconds.

    patience: seconds to wait in all for this owner. poll: called with the owner before each pause, for instance to print it;
    an exception from it ends the waiting. Raises MissingResourceError as `take_lease` does.
    """
    began = time.monotonic()
    while (lease := take_lease(path, liveness)) is None:
        owner = read_owner(path)
        if time.monotonic() - began > patience(owner):
            return None
        poll(owner)
        time.sleep(every_s)
    return lease


def read_owner(path: Path) -> Owner | None:
    """The owner of a lease, dead or alive; None if nobody holds it."""
    claim = _highest_claim(path)
    return claim.owner if claim else None


def holder(path: Path) -> str:
    """Who holds a lease, as the subject of a sentence."""
    owner = read_owner(path)
    return "another process" if owner is None or owner == UNREADABLE else _in_words(owner)


def held_by(path: Path) -> str:
    """Who holds a lease, and how long others wait for it, as a clause."""
    claim = _highest_claim(path)
    if claim is None or claim.owner is None:
        return "its owner is releasing the lease"
    owner, silence = claim.owner, f"or shows no sign of life for {SILENCE_S / 60:.0f} minutes"
    if owner == UNREADABLE:
        return (
            f"{_claim_file(path, claim.number)} cannot be read, so its owner is unknown: waiting until the owner ends "
            f"{silence}; if no process works on it, delete this file"
        )
    sentence = f"{_in_words(owner)} holds the lease: waiting until that process ends"
    return sentence if owner.is_here() else f"{sentence} {silence}"


def _in_words(owner: Owner) -> str:
    where = "this machine" if owner.is_here() else owner.host
    return f"process {owner.pid} on {where}{f' (job {owner.job_id})' if owner.job_id else ''}"


def why_lost(path: Path) -> str:
    """Why the process that held a lease holds it no longer, as a clause."""
    folder = path.parent
    return f"another process has taken over {folder}" if folder.is_dir() else f"{folder} was moved or deleted"


def claim_problem(path: Path) -> str | None:
    """What is wrong with the highest claim on a lease, and the cure; None if nothing is."""
    claim = _highest_claim(path)
    if claim is None or claim.owner != UNREADABLE:
        return None
    return f"{_claim_file(path, claim.number)} cannot be read; if no process works on this, delete the file"


def is_held(path: Path, liveness: LivenessChecker | None = None) -> bool:
    """Whether a living owner holds the lease. Without `liveness`, an owner on another machine always counts as alive."""
    claim = _highest_claim(path)
    return claim is not None and _is_alive(path, claim, liveness)


def this_process() -> Owner:
    """This process as the owner of a new lease."""
    pid = os.getpid()
    return Owner(socket.gethostname(), machine_id(), pid, process_start(pid) or "", os.urandom(8).hex(), slurm_job())


def _is_alive(path: Path, claim: Claim, liveness: LivenessChecker | None) -> bool:
    owner = claim.owner
    if owner is None:
        return False
    alive = is_alive(owner.pid, owner.started) if owner.is_here() else None
    if alive is not None:
        return alive
    return liveness is None or not liveness.is_dead(path, owner, claim.heartbeat_ns)


def _highest_claim(path: Path) -> Claim | None:
    """The highest claim, which counts; None if there has been none."""
    while numbers := _numbers(path):
        file = _claim_file(path, numbers[-1])
        try:
            owner, heartbeat_ns = _read_claim(file)
            return Claim(numbers[-1], owner, heartbeat_ns)
        except OSError as error:
            if not _is_gone(error):
                raise
            time.sleep(0.01)  # a higher claim has taken its place
    return None


def _read_claim(file: Path) -> tuple[Owner | None, int]:
    """The owner of a claim, None if it is empty, so released; and its heartbeat. Raises OSError if the claim is gone."""
    try:
        content, status = read_bytes_and_status(file, "")
        owner = parsed(content, Owner, file, "") if content else None
        return owner, status.st_mtime_ns
    except DamageError as error:
        if isinstance(error.__cause__, OSError) and _is_gone(error.__cause__):
            raise error.__cause__ from None
        return UNREADABLE, file.lstat().st_mtime_ns


def _numbers(path: Path) -> list[int]:
    """The numbers of all claims on a lease, ascending."""
    pattern = _claims_of(path.stem, path.suffix)
    try:
        names = os.listdir(path.parent)
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(int(match[1]) for match in map(pattern.fullmatch, names) if match)


@functools.cache
def _claims_of(stem: str, suffix: str) -> re.Pattern[str]:
    return re.compile(rf"{re.escape(stem)}\.([0-9]+){re.escape(suffix)}")


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
            with contextlib.suppress(OSError):  # only the highest claim counts
                _claim_file(path, lower).unlink()


def _is_gone(error: OSError) -> bool:
    return error.errno in (errno.ENOENT, errno.ESTALE)
