"""Verbs that train, here or on SLURM, and that cancel or retry. Each imports what it needs when it is called."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

import retain
from retain.launchers.cli.options import (
    INTERRUPTED,
    RUNS,
    SOME_RUN_FAILED,
    AsJson,
    Overrides,
    SiteName,
    StorePath,
    StudyName,
    StudyOrRun,
    command,
)
from retain.sweeps.base.errors import MissingResourceError, StudyError

if TYPE_CHECKING:
    from retain.launchers.planning.opened_study import OpenedStudy


def data(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    check: Annotated[
        bool, typer.Option("--check", help="Only check whether ids, revisions and fields resolve; download nothing.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Fetch, tokenise and pack the corpora; later verbs need no network."""
    from retain.launchers.cli.views.plan import data_document, print_data
    from retain.launchers.console import print_json

    if check:
        return _check_data(study, overrides or (), as_json)
    document = data_document(_prepare(study, overrides or (), store))
    if as_json:
        print_json(document)
    else:
        print_data(document)
    return 0


def run(study: StudyName, overrides: Overrides = None, store: StorePath = RUNS, as_json: AsJson = False) -> int:
    """Train what is missing on this machine, with progress, then print the results."""
    from rich.console import Console

    from retain.launchers.cli.progress import reporting, watching
    from retain.launchers.cli.views.results import print_failures, print_results
    from retain.launchers.console import print_json

    console = Console(stderr=True, markup=False)
    try:
        found = retain.run(
            study, overrides or (), store, reporting=reporting, watching=lambda tree: watching(tree, console)
        )
    except KeyboardInterrupt:
        again = command("run", study, overrides, store)
        print(f"interrupted; finished stages and checkpoints are kept, and {again} resumes", file=sys.stderr)
        return INTERRUPTED
    if as_json:
        print_json(found)
    else:
        print_results(found, store)
    print_failures(found.failures)
    return SOME_RUN_FAILED if found.failures else 0


def submit(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    launcher: Annotated[
        str, typer.Option(help="slurm, or local: retain run on this machine, in the background.")
    ] = "slurm",
    site: SiteName = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print the scripts; submit nothing.")] = False,
    as_json: AsJson = False,
) -> None:
    """Hand what is missing to SLURM and return; no process of Retain has to stay alive."""
    from retain.launchers.cli.progress import reporting
    from retain.launchers.cli.views.submission import print_scripts, print_submission
    from retain.launchers.console import print_json
    from retain.launchers.jobs.resources import find_site
    from retain.launchers.jobs.submit import register_for_slurm
    from retain.launchers.local.launcher import start_detached
    from retain.launchers.planning.register import register

    if launcher not in ("slurm", "local"):
        raise StudyError(f"--launcher {launcher}: unknown; choose slurm or local")
    if launcher == "local":
        opened = _prepare(study, overrides or (), store)
        register(opened.tree, opened.file, opened.facts, opened.store)
        if not dry_run:
            print(start_detached(study, overrides or (), store))
        return
    if dry_run:
        chosen = find_site(site)
        opened = _prepare(study, overrides or (), store)
        resources = register_for_slurm(opened, chosen and chosen[1])
        print_scripts(opened, resources, chosen and chosen[0])
        return
    with reporting() as report:
        submission = retain.submit(study, overrides or (), store, site, report=report)
    if as_json:
        print_json(submission)
    else:
        print_submission(submission, command("retry", study, overrides, store))


def cancel(name: StudyOrRun, overrides: Overrides = None, store: StorePath = RUNS) -> None:
    """Cancel runs that have not ended; with a study, also its search."""
    from retain.launchers.jobs.branches import BY_KEY, WITH_STUDY, cancel_runs
    from retain.results.store.runs import Store
    from retain.sweeps.schema.read import is_study

    searched = is_study(name) and _cancel_search(name, overrides or (), store)
    reason = WITH_STUDY if is_study(name) else BY_KEY
    cancelled = cancel_runs(Store(store), _keys_of(name, overrides or (), store), reason)
    if cancelled or not searched:
        print(f"{len(cancelled)} runs cancelled; {command('retry', name, overrides, store)} resumes them")


def retry(name: StudyOrRun, overrides: Overrides = None, store: StorePath = RUNS, site: SiteName = None) -> None:
    """Retry runs that failed, were cancelled or were skipped; with SLURM, submit them.

    Runs of a STUDY get the resources that it asks for now; a RUN keeps its own.
    """
    from retain.launchers.cli.views.submission import print_submission
    from retain.launchers.jobs.branches import retry_runs
    from retain.launchers.jobs.resources import find_site
    from retain.launchers.jobs.submit import register_for_slurm, submit_runs
    from retain.launchers.planning.opened_study import open_study
    from retain.launchers.slurm.client import has_slurm
    from retain.results.store.runs import Store
    from retain.sweeps.schema.read import is_study

    keys = _keys_of(name, overrides or (), store)
    if has_slurm() and keys and is_study(name):
        chosen = find_site(site)
        register_for_slurm(open_study(name, overrides or (), store), chosen and chosen[1])
    again = retry_runs(Store(store), keys)
    if has_slurm():
        submission = submit_runs(Store(store), keys, name)
        print_submission(submission, command("retry", name, overrides, store))
    elif is_study(name):
        print(f"{len(again)} runs are planned again; {command('run', name, overrides, store)} trains them")
    else:
        print(f"{len(again)} runs are planned again; retain run trains them")


def drill(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    kills: Annotated[int, typer.Option(min=1, help="The number of kills.")] = 40,
    seed: Annotated[int, typer.Option(help="The seed of the random moments.")] = 0,
    launcher: Annotated[str, typer.Option(help="Where: local, or slurm.")] = "local",
    site: SiteName = None,
    as_json: AsJson = False,
) -> int:
    """Kill the runs of a small copy of the study at all kinds of moments; compare with an undisturbed twin."""
    from rich.console import Console

    from retain.launchers.checks.drill import drill_document, on_this_machine, run_drill
    from retain.launchers.checks.drill_slurm import on_slurm
    from retain.launchers.cli.progress import reporting, watching
    from retain.launchers.cli.views.checks import print_drill
    from retain.launchers.console import print_json
    from retain.launchers.jobs.resources import find_site
    from retain.launchers.local.devices import local_slots
    from retain.launchers.planning.opened_study import prepare_cut
    from retain.launchers.slurm.client import require_slurm

    if launcher not in ("local", "slurm"):
        raise StudyError(f"--launcher {launcher}: unknown; choose local or slurm")
    if launcher == "slurm":
        require_slurm()
    with reporting() as report:
        opened = prepare_cut(study, overrides or (), store, report)
    with watching(opened.tree, Console(stderr=True, markup=False)) as watch:
        if launcher == "slurm":
            chosen = find_site(site)
            place = on_slurm(opened, chosen and chosen[1], watch)
        else:
            place = on_this_machine(opened, local_slots(opened.file.study.execution), watch)
        result = run_drill(opened, place, kills, seed)
    if as_json:
        print_json(drill_document(opened.tree.study, result))
    else:
        print_drill(result)
    return SOME_RUN_FAILED if result.differences or len(result.kills) < kills else 0


def _cancel_search(study: str, overrides: Sequence[str], store: Path) -> bool:
    """Cancel the search of a study and its stages. Returns whether there was one."""
    from retain.results.store.runs import Store
    from retain.results.store.study_files import search_run
    from retain.sweeps.schema.read import read_study

    name = read_study(study, overrides).study.study
    run = search_run(Store(store), name)
    if not (run.folder / "stage.json").exists():
        return False
    from retain.launchers.search.request import read_request
    from retain.launchers.search.submission import cancel_search

    stages = cancel_search(Store(store), name)
    if stages is None:
        return False
    again = f"{command('search', study, overrides, store)} --launcher {read_request(run).launcher}"
    print(f"the search and {len(stages)} of its stages cancelled; {again} resumes them")
    return True


def _check_data(study: str, overrides: Sequence[str], as_json: bool) -> int:
    from retain.datamodules.corpora.check import check_sources
    from retain.launchers.cli.views.plan import checks_document, print_checks
    from retain.launchers.console import print_json
    from retain.sweeps.schema.read import read_study

    document = checks_document(study, list(check_sources(read_study(study, overrides))))
    if as_json:
        print_json(document)
    else:
        print_checks(document)
    return 0 if document["resolves"] else MissingResourceError.exit_code


def _prepare(study: str, overrides: Sequence[str], store: Path) -> "OpenedStudy":
    """The study with its data prepared, with progress on standard error."""
    from retain.launchers.cli.progress import reporting
    from retain.launchers.planning.opened_study import prepare_study

    with reporting() as report:
        return prepare_study(study, overrides, store, report)


def _keys_of(name: str, overrides: Sequence[str], store: Path) -> list[str]:
    """The keys of the registered runs of a study, or of a run and all runs below it, parents first."""
    from retain.launchers.jobs.branches import branch
    from retain.results.store.runs import existing_store
    from retain.sweeps.schema.read import is_study

    found = existing_store(store)
    if not is_study(name):
        return branch(found, found.find(name).key)
    from retain.launchers.planning.opened_study import open_study

    known = {run.key for run in found.runs()}
    return [key for key in open_study(name, overrides, store).tree.stages if key in known]
