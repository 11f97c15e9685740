"""The verb `search`. It imports what it needs when it is called."""

import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

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
    command,
)
from retain.sweeps.base.errors import RetainError, StageFailedError, StudyError

if TYPE_CHECKING:
    from retain.launchers.search.request import SearchRequest


def search(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    trials: Annotated[int | None, typer.Option(min=1, help="The most points to try, over all starts.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="What all starts may spend: tokens or GPU-hours, such as 5Mtokens or 200gpuh.")
    ] = None,
    searcher: Annotated[str | None, typer.Option(help="random, grid, tpe or nsga2.")] = None,
    launcher: Annotated[
        str,
        typer.Option(
            help="ray: here; slurm: each stage a job; slurm-ray: in one allocation. The last two return at once."
        ),
    ] = "ray",
    address: Annotated[
        str | None, typer.Option(help="The address of a running Ray cluster; by default a local one is started.")
    ] = None,
    nodes: Annotated[int, typer.Option(min=1, help="The number of nodes of slurm-ray.")] = 1,
    site: SiteName = None,
    device: Annotated[str, typer.Option(help="The GPU that a budget of hours is planned for.")] = "H100",
    as_json: AsJson = False,
) -> int:
    """Search the study's `search:` space instead of its grid, and recommend a recipe; started again, it continues."""
    from retain.launchers.search.request import LAUNCHERS, SearchRequest
    from retain.sweeps.tree.throughput import check_device

    if launcher not in LAUNCHERS:
        raise StudyError(f"--launcher {launcher}: unknown; choose {', '.join(LAUNCHERS[:-1])} or {LAUNCHERS[-1]}")
    if address is not None and launcher != "ray":
        raise StudyError(
            f"--address {address}: only valid with --launcher ray, for a running Ray cluster; omit one of the two"
        )
    if nodes > 1 and launcher != "slurm-ray":
        raise StudyError(f"--nodes {nodes}: applies only to --launcher slurm-ray; omit it")
    chosen = [
        f"search.{name}={value}" for name, value in (("trials", trials), ("searcher", searcher)) if value is not None
    ]
    words = [*(overrides or ()), *chosen]
    check_device(device)
    request = SearchRequest(launcher, budget, device, nodes, address)
    if launcher == "ray":
        return _search_here(study, words, store, request, as_json)
    return _search_on_slurm(study, words, store, request, site, as_json)


def _search_here(study: str, words: Sequence[str], store: Path, request: "SearchRequest", as_json: bool) -> int:
    from retain.launchers.cli.progress import reporting
    from retain.launchers.console import print_json
    from retain.launchers.search.console import print_summary
    from retain.launchers.search.derived_studies import open_search
    from retain.launchers.search.request import register_search
    from retain.launchers.search.submission import check_request
    from retain.launchers.stage.attempt import make_attempt
    from retain.launchers.stage.ranks import Ranks
    from retain.launchers.stage.signals import AttemptStopped, StopRequest
    from retain.results.store.study_files import SUMMARY
    from retain.sweeps.base.files import read_json

    check_request(open_search(study, words, store, None), request)  # raises before any data is prepared
    with reporting() as report:
        searched = open_search(study, words, store, report)
    run, stop = register_search(searched, request), StopRequest()
    stop.install()
    try:
        make_attempt(searched.store, run.key, Ranks(), stop)
    except AttemptStopped:
        again = command("search", study, words, store)
        print(f"interrupted; finished stages and checkpoints are kept, and {again} resumes", file=sys.stderr)
        return INTERRUPTED
    except StageFailedError as failed:
        cause = failed.__cause__
        while isinstance(cause, StageFailedError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise (cause if isinstance(cause, RetainError) else failed) from None
    document = read_json(searched.folder / SUMMARY)
    if as_json:
        print_json(document)
    else:
        print_summary(document)
    return SOME_RUN_FAILED if any(point["state"] == "failed" for point in document["points"]) else 0


def _search_on_slurm(
    study: str, words: Sequence[str], store: Path, request: "SearchRequest", site: str | None, as_json: bool
) -> int:
    from retain.launchers.cli.progress import reporting
    from retain.launchers.console import print_json
    from retain.launchers.jobs.resources import find_site
    from retain.launchers.search.derived_studies import open_search
    from retain.launchers.search.submission import check_request, queued_job, submit_search
    from retain.launchers.slurm.client import require_slurm

    require_slurm()
    if (chosen := find_site(site)) is not None:
        request = replace(request, site=chosen[1].model_dump(exclude_unset=True, mode="json"))
    unprepared = open_search(study, words, store, None)
    if queued_job(unprepared.store, unprepared.run) is None:
        check_request(unprepared, request)  # raises before any data is prepared
    with reporting() as report:
        searched = open_search(study, words, store, report)
    job_id, new = submit_search(searched, request)
    document = {
        "study": searched.name,
        "launcher": request.launcher,
        "nodes": request.nodes,
        "job_id": job_id,
        "submitted": new,
        "log": str(searched.run.log),
    }
    if as_json:
        print_json(document)
        return 0
    what = "submitted as" if new else "is queued or running already, as it was requested then:"
    print(f"search of {searched.name}: {what} job {job_id} ({request.launcher})")
    print(f"log: {searched.run.log}")
    print(f"status: {command('status', study, (), store)}; cancel: {command('cancel', study, (), store)}")
    return 0
