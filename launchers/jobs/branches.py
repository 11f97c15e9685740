"""Taking back and taking up again: cancel and retry, of a study, or of a run with all that lies below it."""

from collections.abc import Sequence
from dataclasses import replace

from retain.launchers.jobs.submissions import packed_with, submitted_job
from retain.launchers.slurm.client import cancel_jobs, has_slurm, signal_job
from retain.launchers.stage.signals import CANCEL_SIGNAL
from retain.results.store.runs import Run, Store

BY_KEY, WITH_STUDY = "by retain cancel", "with its study, by retain cancel"
"""Why a run was cancelled."""
ENDED_BADLY = ("failed", "cancelled", "skipped")


def branch(store: Store, key: str) -> list[str]:
    """A run of the store and every run below it, parents first."""
    parents = {run.key: run.spec()["parent"] for run in store.runs()}
    found = [key]
    for above in found:
        found += [below for below, parent in parents.items() if parent == above]
    return found


def cancel_runs(store: Store, keys: Sequence[str], reason: str = BY_KEY) -> list[str]:
    """Mark runs that have not ended as cancelled, and take their jobs back from SLURM; returns their keys.

    Marked first: a job that starts meanwhile sees it. A job that has others to train, of the same pack, goes on with them.
    A stage that trains on this machine is stopped by Ctrl-C instead.
    """
    cancelled: list[str] = []
    jobs: dict[str, str] = {}
    for key in keys:
        run = store.run(key)
        state = run.state()
        if state.state in ("queued", "running", "planned"):
            if job := submitted_job(store, run):
                jobs[key] = job
            run.save_state(replace(state, state="cancelled", reason=reason))
            cancelled.append(key)
    if jobs and has_slurm():
        shared = {key for key in jobs if any(_goes_on(other) for other in packed_with(store, store.run(key)))}
        cancel_jobs(list(dict.fromkeys(job for key, job in jobs.items() if key not in shared)))
        for key in shared:
            if store.run(key).is_running():
                signal_job(jobs[key], CANCEL_SIGNAL.name.removeprefix("SIG"))
    return cancelled


def _goes_on(run: Run) -> bool:
    return run.state().state in ("queued", "running", "planned")


def plan_again(store: Store, keys: Sequence[str]) -> list[str]:
    """Make runs that failed, were cancelled or skipped planned again; returns their keys."""
    found = [key for key in keys if store.run(key).state().state in ENDED_BADLY]
    for key in found:
        run = store.run(key)
        state = run.state()
        run.adapt(None)
        forgiven = len(state.attempts)
        run.save_state(replace(state, state="planned", reason=None, submission=None, forgiven=forgiven))
    return found


def ended_above(store: Store, run: Run) -> str | None:
    """The sentence that says which ancestor ended this run's branch and why; None where its parent may still be done."""
    key = run.spec()["parent"]
    if key is None:
        return None
    parent = store.run(key)
    state, kind = parent.state(), parent.spec()["stage"]
    if state.state == "skipped":
        return state.reason or f"{kind} {key[:8]} was skipped"
    if state.state not in ENDED_BADLY:
        return None
    verb = "failed" if state.state == "failed" else "was cancelled"
    return f"{kind} {key[:8]} {verb}{f': {state.reason}' if state.reason else ''}"


def settle_descendants(store: Store, keys: Sequence[str]) -> list[str]:
    """Skip those of these runs, parents first, whose branch has ended above them; plan skipped ones whose has not.

    Runs that are training stay as they are. Returns the keys of the skipped.
    """
    skipped = []
    for key in keys:
        run = store.run(key)
        state = run.state()
        if state.state not in ("planned", "queued", "skipped"):
            continue
        why = ended_above(store, run)
        if why is not None:
            skipped.append(key)
            if (state.state, state.reason) != ("skipped", why):
                run.save_state(replace(state, state="skipped", reason=why))
        elif state.state == "skipped":
            run.save_state(replace(state, state="planned", reason=None, submission=None))
    return skipped
