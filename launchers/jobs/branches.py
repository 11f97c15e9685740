"""Cancel, retry and skip branches: a run with all runs below it, or all runs of a study."""

from collections.abc import Collection, Mapping, Sequence

from retain.launchers.jobs.submissions import packed_with, still_live, submitted_jobs, unanswered_jobs
from retain.launchers.slurm.client import cancel_jobs, has_slurm, live_jobs, signal_job
from retain.launchers.stage.failures import DAMAGE
from retain.launchers.stage.signals import CANCEL_SIGNAL
from retain.results.store.readiness import blocked_by
from retain.results.store.runs import Run, Store
from retain.results.store.state import UNENDED
from retain.sweeps.base.errors import NO_ROOM, DamageError, MissingResourceError, os_cure, os_reason
from retain.sweeps.base.processes.many_writes import Count, each_written, uncounted
from retain.sweeps.base.units import counted

BY_KEY, WITH_STUDY = "by retain cancel", "with its study, by retain cancel"
"""The reasons of cancelled runs."""
MARKED = "marked"


def branch(store: Store, key: str) -> list[str]:
    """A run of the store and every run that needs it, directly or not, those that others need first."""
    below: dict[str, list[str]] = {}
    for run, needed in store.read_all(lambda run: run.needs()).items():
        for need in needed:
            below.setdefault(need, []).append(run)
    depth, found = {key: 0}, [key]
    for above in found:
        for run in below.get(above, ()):
            if depth.get(run, 0) <= depth[above]:
                depth[run] = depth[above] + 1
                found.append(run)
    return sorted(depth, key=lambda run: depth[run])


def cancel_runs(store: Store, keys: Sequence[str], reason: str = BY_KEY, count: Count = uncounted) -> list[str]:
    """Mark runs that have not ended as cancelled, and cancel their SLURM jobs; returns the keys of these runs.

    Among them are runs that were cancelled before and still have a job, as SLURM did not answer then. A job that has other runs
    of a pack to do continues with them. A local launcher sees what is cancelled, and stops it.
    Raises DamageError if the state of a run, or the record of its job, cannot be read, once all others are cancelled, and
    MissingResourceError if SLURM does not answer, or, once their jobs are cancelled, if marks could not be written, as on a
    full disk.
    """

    # 1. Mark the runs first, so that a job which starts now skips them.
    def mark(key: str) -> str | DamageError | OSError:
        run = store.run(key)
        try:
            before = run.state().state
            return MARKED if before in UNENDED and run.cancel(reason) else before
        except DamageError as error:
            return error
        except PermissionError:  # the runs, and so their jobs, are another user's
            raise
        except OSError as error:
            return error

    marks = list(zip(keys, each_written(mark, keys, count), strict=True))
    cancelled = [key for key, found in marks if found == MARKED]
    before = [store.run(key) for key, found in marks if found == "cancelled"]
    unmarked = {key: found for key, found in marks if isinstance(found, OSError)}
    damaged = [found for _, found in marks if isinstance(found, DamageError)]
    unread: dict[str, str] = {}
    recorded = submitted_jobs(store, map(store.run, [*cancelled, *unmarked]), unread)
    damaged += map(DamageError, unread.values())
    unsure = [*before, *(store.run(key) for key in cancelled if key not in recorded and key not in unread)]
    unsure = [run for run in unsure if run.state().submission is not None]
    # 2. Cancel the jobs that have nothing else to do. Signal those that have.
    jobs: dict[str, str] = {}
    if has_slurm():
        try:
            jobs = _live_jobs_of(store, recorded, unsure)
            _end_jobs(store, jobs, unmarked)
        except MissingResourceError as error:
            marked = f"{counted(len(cancelled), 'run')} marked as cancelled; cancelling again ends the jobs"
            raise MissingResourceError(f"{error} ({marked})") from error
    if damaged:
        raise DamageError(f"{damaged[0]} (cancelled: {counted(len(cancelled), 'run')})")
    if unmarked:
        first = next(iter(unmarked.values()))
        ended = ", but their SLURM jobs are cancelled where no other run shares them" if jobs else ""
        cure = "free space" if first.errno in NO_ROOM else os_cure(first, "check the file system")
        raise MissingResourceError(
            f"{os_reason(first)}: {len(unmarked)} of {counted(len(keys), 'run')} cannot be marked as cancelled{ended}; "
            f"{cure}, then cancel again"
        )
    done = {*cancelled, *jobs}
    return [key for key in keys if key in done]


def _live_jobs_of(store: Store, recorded: Mapping[str, str], unsure: Sequence[Run]) -> dict[str, str]:
    """The jobs by key that SLURM still has, of this user: others end their own, which see that their runs are cancelled.

    recorded: the jobs of runs that were cancelled just now. unsure: runs that were cancelled before, or whose sbatch has not
    answered.
    """
    if not recorded and not unsure:
        return {}
    live = live_jobs()
    left = {job_id: job for job_id, job in live.items() if job.state != "COMPLETING"}
    earlier = still_live(store, submitted_jobs(store, unsure, damaged={}), left)
    return still_live(store, recorded, live) | earlier | unanswered_jobs(store, unsure, left)


def _end_jobs(store: Store, jobs: Mapping[str, str], unmarked: Collection[str]) -> None:
    """Cancel the jobs of cancelled runs, by key; a job with other runs to do is told to leave the one that it does.

    unmarked: the keys of runs to cancel of whose cancellation their jobs cannot know.
    """
    packs = packed_with(store, map(store.run, jobs))
    shared = {key for key, others in packs.items() if any(other.key not in unmarked for other in others)}
    cancel_jobs(list(dict.fromkeys(job for key, job in jobs.items() if key not in shared)))
    for key in shared - set(unmarked):
        if store.run(key).is_running():
            signal_job(jobs[key], CANCEL_SIGNAL.name.removeprefix("SIG"))


def retry_runs(store: Store, keys: Sequence[str], count: Count = uncounted) -> list[str]:
    """Plan those of these runs again that failed, were cancelled or were skipped; returns their keys. Raises DamageError."""
    planned = each_written(lambda key: store.run(key).retry(), keys, count)
    return [key for key, again in zip(keys, planned, strict=True) if again]


def skip_blocked(store: Store, keys: Sequence[str]) -> list[str]:
    """Skip the runs (parents first) whose branch has ended above them, and plan skipped runs whose branch has not.

    Runs that failed because the store was damaged are planned again: the damage may be repaired. Running runs are not changed.
    Returns the keys of the skipped runs.
    """
    skipped = []
    for key in keys:
        run = store.run(key)
        state = run.state()
        if state.state == "failed" and state.attempts and state.attempts[-1].failure == DAMAGE:
            run.retry()
            state = run.state()
        if state.state not in ("planned", "queued", "skipped"):
            continue
        why = blocked_by(store, run)
        if why is not None:
            skipped.append(key)
            if (state.state, state.reason) != ("skipped", why):
                run.skip(why)
        elif state.state == "skipped":
            run.retry()
    return skipped
