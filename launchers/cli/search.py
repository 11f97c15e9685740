"""The verb `search`: a study's search space instead of its grid. It imports what it needs when it is called."""

import contextlib
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain.launchers.cli.options import (
    INTERRUPTED,
    RUNS,
    SOME_RUN_FAILED,
    AsJson,
    Overrides,
    SiteName,
    StorePath,
    StudyName,
)
from retain.sweeps.base.errors import MissingResourceError, StudyError

if TYPE_CHECKING:
    from retain.launchers.search.budget import Budget

LAUNCHERS = ("ray", "slurm", "slurm-ray")


def search(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    trials: Annotated[int | None, typer.Option(min=1, help="Points to try at most, in all starts together.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="What all starts together may spend: tokens or GPU-hours, 5Mtokens or 200gpuh.")
    ] = None,
    searcher: Annotated[str | None, typer.Option(help="random, grid, tpe or nsga2.")] = None,
    launcher: Annotated[
        str,
        typer.Option(
            help="Where: ray, here; slurm, each stage a job; slurm-ray, in one allocation. Those two return at once."
        ),
    ] = "ray",
    address: Annotated[
        str | None, typer.Option(help="Of a running Ray cluster; without it, ray is one of this machine's own.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Of the allocation of slurm-ray.")] = 1,
    site: SiteName = None,
    device: Annotated[str, typer.Option(help="The GPU that a budget of hours is planned for.")] = "H100",
    as_json: AsJson = False,
) -> int:
    """Search the study's `search:` space instead of its grid, and recommend a recipe; started again, it goes on."""
    from retain.launchers.search.budget import parse_budget
    from retain.sweeps.tree.throughput import check_device

    if launcher not in LAUNCHERS:
        raise StudyError(f"--launcher {launcher}: not known; it is {', '.join(LAUNCHERS[:-1])} or {LAUNCHERS[-1]}")
    if address is not None and launcher != "ray":
        raise StudyError(f"--address {address}: is of a Ray that runs already; leave it out, or --launcher {launcher}")
    if nodes > 1 and launcher != "slurm-ray":
        raise StudyError(f"--nodes {nodes}: is of the allocation of --launcher slurm-ray; leave it out")
    chosen = [
        f"search.{name}={value}" for name, value in (("trials", trials), ("searcher", searcher)) if value is not None
    ]
    words = [*(overrides or ()), *chosen]
    check_device(device)
    limit = parse_budget(budget, device) if budget is not None else None
    if launcher == "ray":
        return _search_here(study, words, store, limit, address, as_json)
    return _search_on_slurm(study, words, store, budget, device, launcher, nodes, site, as_json)


def _search_here(
    study: str,
    words: Sequence[str],
    store: Path,
    limit: "Budget | None",
    address: str | None,
    as_json: bool,
) -> int:
    from retain.launchers.cli.progress import reporting
    from retain.launchers.cli.views import print_json
    from retain.launchers.search.budget import refuse_hours_on_cpus
    from retain.launchers.search.console import print_summary
    from retain.launchers.search.derived_studies import open_search
    from retain.launchers.search.ray.tune import Cluster, train_with_tune
    from retain.launchers.search.session import conclude, run_search

    unread = open_search(study, words, store, None)
    cluster = Cluster(address, unread.file.study.execution)
    parallel = cluster.parallel()  # refused before any data is prepared
    refuse_hours_on_cpus(limit, cluster.execution, cluster.has_gpus())
    _refuse_search_job(unread.store.root, unread.name)
    with reporting() as report:
        searched = open_search(study, words, store, report)
    scratch = searched.folder / "tune"
    try:
        finished = run_search(
            searched, limit, parallel, lambda search: train_with_tune(search, searched.store, cluster, scratch)
        )
    except KeyboardInterrupt:
        print(f"interrupted: what is done is kept; retain search {study} goes on from there", file=sys.stderr)
        return INTERRUPTED
    document = conclude(finished, searched)
    if as_json:
        print_json(document)
    else:
        print_summary(document)
    return SOME_RUN_FAILED if any(point["state"] == "failed" for point in document["points"]) else 0


def _search_on_slurm(
    study: str,
    words: Sequence[str],
    store: Path,
    budget: str | None,
    device: str,
    launcher: str,
    nodes: int,
    site: str | None,
    as_json: bool,
) -> int:
    from retain.launchers.cli.progress import reporting
    from retain.launchers.cli.views import print_json
    from retain.launchers.jobs.resources import find_site
    from retain.launchers.search.derived_studies import open_search
    from retain.launchers.search.jobs.submit import check_job, new_search_job, submit_search
    from retain.launchers.slurm.client import require_slurm

    require_slurm()
    chosen = find_site(site)
    unread = open_search(study, words, store, None)
    wanted = new_search_job(unread, launcher, nodes, budget, device, chosen and chosen[1])
    check_job(unread, wanted)  # refused before any data is prepared
    with reporting() as report:
        searched = open_search(study, words, store, report)
    job, new = submit_search(searched, wanted)
    document = {
        "study": job.study,
        "launcher": job.launcher,
        "nodes": job.nodes,
        "job_id": job.job_id,
        "submitted": new,
        "log": str(searched.folder / "search.log"),
    }
    if as_json:
        print_json(document)
    else:
        _print_submission(document, study, store)
    return 0


def _print_submission(document: dict[str, Any], study: str, store: Path) -> None:
    job = f"job {document['job_id']} ({document['launcher']})"
    if document["submitted"]:
        print(f"search of {document['study']}: submitted as {job}")
    else:
        print(
            f"search of {document['study']}: {job} is queued or runs already, as it was asked for then; nothing submitted"
        )
    print(f"log: {document['log']}")
    print(f"look in: retain status {study} --store {store}; end it: retain cancel {study} --store {store}")


def _refuse_search_job(root: Path, study: str) -> None:
    """Raise StudyError where a SLURM job searches the study, or is to; where SLURM does not answer, the lease tells."""
    from retain.launchers.search.jobs.record import read_end, read_search_job
    from retain.launchers.slurm.client import has_slurm
    from retain.results.store.runs import Store

    known = read_search_job(Store(root), study)
    if known is None or read_end(known.files(Store(root))) is not None or not has_slurm():
        return
    from retain.launchers.search.jobs.submit import queued_job

    with contextlib.suppress(MissingResourceError):
        if (job := queued_job(known)) is not None:
            raise StudyError(f"{study}: SLURM's job {job.job_id} searches this study; retain cancel {study} ends it")
