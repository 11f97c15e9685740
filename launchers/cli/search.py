"""The verb `search`. It imports what it needs when it is called."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from retain.launchers.cli.options import (
    RUNS,
    SOME_RUN_FAILED,
    AsJson,
    Overrides,
    SiteName,
    StorePath,
    StudyName,
    check_site,
    command,
    show,
)
from retain.sweeps.base.errors import MissingResourceError, RetainError, StageFailedError, StudyError

if TYPE_CHECKING:
    from retain.launchers.search.derived_studies import SearchedStudy
    from retain.launchers.search.request import SearchRequest

DASHBOARD = ("aiohttp_cors", "colorful", "opencensus", "prometheus_client")
"""Packages of Ray's dashboard that Ray itself does not need."""


def search(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    trials: Annotated[
        int | None, typer.Option(min=1, help="The largest number of points to try, over all starts.")
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(help="The budget of all starts together, in tokens or GPU-hours, such as 5Mtokens or 200gpuh."),
    ] = None,
    searcher: Annotated[str | None, typer.Option(help="random, grid, tpe or nsga2.")] = None,
    launcher: Annotated[
        Literal["ray", "slurm", "slurm-ray"],
        typer.Option(
            help="ray: train here; slurm: one job per stage; slurm-ray: one allocation. The last two return at once."
        ),
    ] = "ray",
    address: Annotated[
        str | None, typer.Option(help="The address of a running Ray cluster; by default a local one is started.")
    ] = None,
    dashboard: Annotated[
        bool, typer.Option("--dashboard", help="Show Ray's dashboard, on localhost; needs ray[default].")
    ] = False,
    nodes: Annotated[int, typer.Option(min=1, help="The number of nodes for slurm-ray.")] = 1,
    site: SiteName = None,
    device: Annotated[str, typer.Option(help="The GPU that a budget of hours is planned for.")] = "H100",
    as_json: AsJson = False,
) -> int:
    """Search the study's `search:` space and recommend a recipe.

    The space replaces the study's grid. A search that is started again continues.
    """
    from retain.launchers.cli.views.submission import print_search
    from retain.launchers.search.request import SearchRequest
    from retain.sweeps.base.extras import is_installed, require_extra
    from retain.sweeps.tree.throughput import check_device

    require_extra("search", ("ray", "optuna"), "retain search")
    if address is not None and launcher != "ray":
        raise StudyError(
            f"--address {address}: only valid with --launcher ray, for a running Ray cluster; omit one of the two"
        )
    if nodes > 1 and launcher != "slurm-ray":
        raise StudyError(f"--nodes {nodes}: applies only to --launcher slurm-ray; omit it")
    if launcher == "ray":
        check_site(site, launcher)
    if dashboard and (launcher != "ray" or address is not None):
        raise StudyError("--dashboard: only valid for the Ray that --launcher ray starts here; omit it")
    if dashboard and not all(map(is_installed, DASHBOARD)):
        raise MissingResourceError("--dashboard: Ray lacks its dashboard; run pip install 'ray[default]'")
    check_device(device)
    options = {"trials": trials, "searcher": searcher}
    words = [*(overrides or ()), *(f"search.{name}={value}" for name, value in options.items() if value is not None)]
    request = SearchRequest(launcher, budget, device, nodes, address, dashboard)
    if launcher == "ray":
        return _search_here(study, words, store, request, as_json)
    document = _submit(study, words, store, request, site)
    hints = "; ".join(f"{verb}: {command(verb, study, overrides, store)}" for verb in ("status", "cancel"))
    show(document, as_json, lambda document: print_search(document, hints))
    return 0


def cancel_its_search(study: str, overrides: Sequence[str], store: Path) -> bool:
    """Cancel the search of a study and its stages. Returns whether there was one."""
    from retain.results.store.runs import SPEC, Store
    from retain.results.store.study_files import search_run
    from retain.sweeps.schema.read import read_study

    name = read_study(study, overrides).study.study
    run = search_run(Store(store), name)
    if not (run.folder / SPEC).exists():
        return False
    from retain.launchers.search.request import read_request
    from retain.launchers.search.submission import cancel_search

    stages = cancel_search(Store(store), name)
    if stages is None:
        return False
    request = read_request(run)
    options = [f"--launcher={request.launcher}", *([f"--budget={request.budget}"] if request.budget else [])]
    options += [f"--nodes={request.nodes}"] if request.nodes > 1 else []
    options += [f"--address={request.address}"] if request.address else []
    again = command("search", study, [*overrides, *options], store)
    print(f"the search and {len(stages)} of its stages cancelled; {again} resumes them")
    return True


def _search_here(study: str, words: Sequence[str], store: Path, request: "SearchRequest", as_json: bool) -> int:
    """Search until the trials or the budget are used up. Raises KeyboardInterrupt once everything is saved."""
    from retain.launchers.search.console import print_summary
    from retain.launchers.search.request import register_search
    from retain.launchers.search.submission import searched_by
    from retain.launchers.stage.attempt import RunBusyError, make_attempt
    from retain.launchers.stage.ranks import Ranks
    from retain.launchers.stage.signals import AttemptStopped, StopRequest
    from retain.results.store.study_files import SUMMARY, read_summary

    searched = _prepared(study, words, store, request)
    run, stop = register_search(searched, request), StopRequest()
    stop.install()
    try:
        make_attempt(searched.store, run.key, Ranks(), stop)
    except AttemptStopped:
        raise KeyboardInterrupt from None
    except RunBusyError as busy:  # another search was started at the same time
        raise busy if run.is_done() else StudyError(searched_by(searched)) from None
    except StageFailedError as failed:
        # The error that the user can fix is the innermost cause.
        cause: BaseException | None = failed
        while isinstance(cause, StageFailedError) and cause.__cause__ is not None:
            cause = cause.__cause__
        raise (cause if isinstance(cause, RetainError) else failed) from None
    document = read_summary(run.folder / SUMMARY)
    show(document, as_json, print_summary)
    return SOME_RUN_FAILED if any(point["state"] == "failed" for point in document["points"]) else 0


def _submit(
    study: str, words: Sequence[str], store: Path, request: "SearchRequest", site: str | None
) -> dict[str, Any]:
    """Submit the search; the document of `retain search --launcher slurm --json`."""
    from retain.launchers.jobs.resources import find_site
    from retain.launchers.search.submission import submit_search
    from retain.launchers.slurm.client import require_slurm

    require_slurm()
    if (chosen := find_site(site)) is not None:
        request = replace(request, site=chosen[1].model_dump(exclude_unset=True, mode="json"))
    searched = _prepared(study, words, store, request)
    job_id, new = submit_search(searched, request)
    return {
        "study": searched.name,
        "launcher": request.launcher,
        "nodes": request.nodes,
        "job_id": job_id,
        "submitted": new,
        "log": str(searched.run.log),
    }


def _prepared(study: str, words: Sequence[str], store: Path, request: "SearchRequest") -> "SearchedStudy":
    """The study with its data prepared, after the checks of the request. A search that has a job already is not checked."""
    from retain.launchers.cli.progress import reporting
    from retain.launchers.search.derived_studies import open_search
    from retain.launchers.search.submission import check_request, queued_job

    searched = open_search(study, words, store, None)
    if request.launcher == "ray" or queued_job(searched.store, searched.run) is None:
        check_request(searched, request)
    with reporting() as report:
        return open_search(study, words, store, report)
