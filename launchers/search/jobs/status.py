"""What `retain status` says of searches that SLURM runs."""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from retain.launchers.search.jobs.record import BY_CANCEL, LOG, SearchJob, is_cancelled, read_end, search_jobs
from retain.launchers.slurm.client import Job
from retain.results.store.loss_table import study_folder
from retain.results.store.runs import Store
from retain.results.store.study_files import HISTORY
from retain.sweeps.base.files import read_json


def search_documents(store: Store, study: str | None, live: Mapping[str, Job] | None) -> list[dict[str, Any]]:
    """The search jobs of a study, or of all, with their states; live: SLURM's jobs, None where none answers here."""
    return [_document(store, asked, live) for asked in search_jobs(store, study)]


def search_sentence(document: Mapping[str, Any]) -> str:
    """`search of tiny: job 12 (slurm) is running; 3 done, 2 running; log: ...`."""
    why = f" ({document['reason']})" if document["reason"] else ""
    points = ", ".join(f"{count} {state}" for state, count in document["points"].items())
    job = f"job {document['job_id'] or 'without an answer of sbatch'} ({document['launcher']})"
    return (
        f"search of {document['study']}: {job} is {document['state']}{why}; "
        f"points: {points or 'none yet'}; log: {document['log']}"
    )


def _document(store: Store, asked: SearchJob, live: Mapping[str, Job] | None) -> dict[str, Any]:
    state, reason = _state(store, asked, live)
    folder = study_folder(store.root, asked.study)
    return {
        "study": asked.study,
        "launcher": asked.launcher,
        "job_id": asked.job_id,
        "state": state,
        "reason": reason,
        "points": _points(store, asked.study),
        "log": str(folder / LOG),
    }


def _state(store: Store, asked: SearchJob, live: Mapping[str, Job] | None) -> tuple[str, str | None]:
    job = asked.found_in(live or {})
    if job is not None and job.counts:
        return ("queued" if job.waits else "running"), job.reason or None
    if (end := read_end(asked.files(store))) is not None:
        return end
    if is_cancelled(asked.files(store)):
        return "cancelled", BY_CANCEL
    if job is not None:
        return "running", "it ends, or goes back to the queue"
    if live is None:
        return "unknown", "there is no SLURM on this machine, or it does not answer"
    return "gone", f"retain search {asked.study} --launcher {asked.launcher} goes on"


def _points(store: Store, study: str) -> dict[str, int]:
    """How many points of a search are in each state, as it was last told."""
    try:
        history = read_json(study_folder(store.root, study) / HISTORY)
    except FileNotFoundError:
        return {}
    return dict(Counter(point["state"] for point in history["points"]))
