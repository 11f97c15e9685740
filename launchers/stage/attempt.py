"""One attempt at one run of any kind: take the lease, let the kind work, record how the attempt ended."""

import contextlib
import functools
import importlib
import os
import sys
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.launchers.kinds import kind_of
from retain.launchers.stage.failures import BUG, DISK, classify
from retain.launchers.stage.heartbeat import heartbeat
from retain.launchers.stage.log import BUSY, FAILED, NO_ROOM, STOPPED
from retain.launchers.stage.rank_failures import agree_on_failure, described_failure
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import CANCEL_SIGNAL, AttemptStopped, StopRequest
from retain.results.store.lease import Lease, holder, wait_for_lease, why_lost
from retain.results.store.readiness import written_state
from retain.results.store.runs import Run, Store
from retain.results.store.state import Progress
from retain.sweeps.base.errors import DamageError, RetainError, StageFailedError
from retain.sweeps.base.files import sync_folder
from retain.sweeps.base.redaction import redacted

LEASE_PATIENCE_S = 3.0
"""How long to wait for the lease. Launchers and `retain gc` hold it only for moments."""


class RunBusyError(RetainError):
    """Another process has this run."""


@dataclass(frozen=True)
class AttemptContext:
    """What an attempt works with. The attempt calls `begin` once, `report` while it works, and `finish` at the end."""

    store: Store
    run: Run
    ranks: Ranks
    lease: Lease | None
    """Held by rank 0."""
    stop: StopRequest
    runs: int = 1
    """The expected number of runs of a pack that this process does, this one included."""

    @functools.cached_property
    def spec(self) -> dict[str, Any]:
        """The run's stage.json."""
        return self.run.spec()

    def begin(self, tokens: int = 0, device: str | None = None) -> None:
        """Record the beginning of the attempt, which resumes at `tokens`. For rank 0.

        device: the name of the GPUs. Raises AttemptStopped if the run was cancelled, StageFailedError as `check_lease` does.
        """
        self.check_lease()
        if not self.run.begin(os.getpid(), tokens, self.ranks.world, device):
            raise AttemptStopped(CANCEL_SIGNAL.name)

    def may_write(self) -> bool:
        """Whether no other process has taken over the run. Always true on ranks other than 0, which hold no lease."""
        return self.lease is None or self.lease.held()

    def check_lease(self) -> None:
        """Raise StageFailedError if another process has taken over the run, as while this process or its file system hung."""
        if not self.may_write():
            raise StageFailedError(f"{why_lost(self.run.lease)}; this process writes nothing more")

    def report(self, progress: Progress) -> None:
        """Report progress, unless another process has taken over the run. A full disk only fails what the run must write."""
        with contextlib.suppress(OSError):
            if self.may_write():
                self.run.report(progress)

    def finish(
        self, model: Path | None, results: Mapping[str, Any], keep_checkpoints: bool = False, place: str = "model"
    ) -> None:
        """Make the run done; see `Run.finish`. For rank 0. Raises StageFailedError if another process has the run."""
        if model is not None:
            sync_folder(model)  # takes long, so the lease is checked afterwards
        self.check_lease()
        self.run.finish(model, results, keep_checkpoints, place)


def make_attempt(store: Store, key: str, ranks: Ranks, stop: StopRequest, runs: int = 1) -> None:
    """Make one attempt at a run whose needed runs are done; return at once if the run is done already.

    runs: as in `attempt_code`. Raises StageFailedError, with the run failed; AttemptStopped, with the run planned;
    RunBusyError if another process has the run; MissingResourceError if its state or its lease cannot be read or written.
    """
    run = store.run(key)
    if run.is_done():
        return
    # 1. Only one process works on a run: rank 0 holds the lease, and a thread shows that it is alive.
    lease = _take_lease(run) if ranks.is_first else None
    try:
        # 2. The kind does the work.
        with heartbeat(lease, lambda: _stop_if_cancelled(run, stop)):
            context = AttemptContext(store, run, ranks, lease, stop, runs)
            importlib.import_module(kind_of(context.spec).module).attempt(context)
    except AttemptStopped as stopped:
        # 3a. Stopped by a signal: the run becomes planned. A cancelled run stays cancelled.
        if lease is not None and lease.held():
            run.stop(str(stopped))
        raise
    except Exception as error:
        # 3b. Failed: the ranks agree on one cause, and rank 0 records it.
        own, described = described_failure(error)
        if not isinstance(error, RetainError) and own != DISK:
            with contextlib.suppress(OSError):
                print(redacted(traceback.format_exc()), file=sys.stderr)
        failure, reason = agree_on_failure(run.folder, ranks, own, described)
        if stop.signal is not None and failure == BUG:
            # The signal also ended child processes such as compilers, which is no failure of the run.
            if lease is not None and lease.held():
                run.stop(stop.signal)
            raise AttemptStopped(stop.signal) from error
        try:
            if lease is not None and lease.held():
                run.fail(reason, failure)
        except OSError as unwritten:
            failure = DISK if classify(unwritten) == DISK else failure
        except DamageError as unreadable:
            reason = str(unreadable)
        raise StageFailedError(reason, failure) from error
    finally:
        if lease:
            lease.release()


def attempt_code(store: Store, key: str, ranks: Ranks, stop: StopRequest, runs: int = 1) -> tuple[int, str]:
    """Make one attempt at a run; returns the exit code (0: done) and a line for the log.

    runs: the expected number of runs of a pack that this process does, this one included.
    """
    try:
        make_attempt(store, key, ranks, stop, runs)
    except StageFailedError as error:
        return (NO_ROOM if error.failure == DISK else FAILED), f"failed: {error}"
    except AttemptStopped as stopped:
        return STOPPED, f"stopped by {stopped}; the run can be resumed"
    except RunBusyError as busy:
        return BUSY, str(busy)
    except RetainError as error:  # the state itself cannot be read, or the lease cannot be written
        return (NO_ROOM if classify(error) == DISK else FAILED), f"failed: {error}"
    return 0, "done"


def _stop_if_cancelled(run: Run, stop: StopRequest) -> None:
    """Request a stop once the run is cancelled: no signal comes if SLURM does not answer, or if the job is another user's."""
    if written_state(run).state == "cancelled":
        stop.cancel()


def _take_lease(run: Run) -> Lease:
    lease = wait_for_lease(run.lease, None, lambda owner: LEASE_PATIENCE_S, every_s=0.1)
    if lease is None:
        raise RunBusyError(f"{run.key}: {holder(run.lease)} is training this run; wait for it, or stop it")
    if run.is_done():  # the process that held the lease has just finished the run
        lease.release()
        raise RunBusyError(f"{run.key}: another process has finished this run")
    return lease
