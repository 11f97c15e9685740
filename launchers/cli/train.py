"""Verbs that train: here or on SLURM, and that stop or take up again. Each imports what it needs when it is called."""

import sys
from collections.abc import Sequence
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
)
from retain.sweeps.base.errors import MissingResourceError, StudyError

if TYPE_CHECKING:
    from retain.launchers.planning.opened_study import OpenedStudy


def data(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    check: Annotated[
        bool, typer.Option("--check", help="Only ask whether each id, revision and field resolves; fetch nothing.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Fetch, tokenise and pack the corpora; later verbs need no network."""
    from retain.launchers.cli.views import data_document, print_data, print_json

    if check:
        return _check_data(study, overrides or (), as_json)
    opened = _prepare(study, overrides or (), store)
    document = data_document(opened)
    if as_json:
        print_json(document)
    else:
        print_data(document)
    return 0


def run(study: StudyName, overrides: Overrides = None, store: StorePath = RUNS, as_json: AsJson = False) -> int:
    """Train what is missing on this machine, with progress, then print the results."""
    from rich.console import Console

    from retain.launchers.cli.progress import watching
    from retain.launchers.cli.show_results import show_results
    from retain.launchers.cli.views import print_failures
    from retain.launchers.local.launcher import local_slots, train
    from retain.launchers.planning.register import register
    from retain.results.store.garbage import check_starts
    from retain.sweeps.schema.read import read_study

    execution = read_study(study, overrides or ()).study.execution
    if execution.accelerator == "gpu":
        local_slots(execution)  # refused before any data is prepared
    opened = _prepare(study, overrides or (), store)
    states = opened.store.states(opened.tree.stages)
    check_starts(opened.store, opened.tree.stages, states)
    if any(state.state != "done" for state in states.values()):
        slots = local_slots(opened.file.study.execution)
        register(opened.tree, opened.file, opened.facts, opened.store)
        try:
            with watching(opened.tree, Console(stderr=True, markup=False)) as watch:
                states = train(opened.tree, opened.store, slots, watch)
        except KeyboardInterrupt:
            print(f"interrupted: what is done is kept; retain run {study} goes on from there", file=sys.stderr)
            return INTERRUPTED
    show_results(opened, as_json, csv=None, view=True)
    return SOME_RUN_FAILED if print_failures(opened.tree, states) else 0


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
    """Hand what is missing to SLURM and return; nothing of Retain stays alive."""
    from retain.launchers.cli.views import print_json, print_scripts, print_submitted, submitted_document
    from retain.launchers.jobs.resources import as_executions, find_site, slurm_resources
    from retain.launchers.jobs.submit import start_detached, submit_runs
    from retain.launchers.planning.register import register
    from retain.launchers.slurm.client import require_slurm

    if launcher not in ("slurm", "local"):
        raise StudyError(f"--launcher {launcher}: not known; it is slurm or local")
    if launcher == "slurm" and not dry_run:
        require_slurm()
    chosen = find_site(site) if launcher == "slurm" else None
    opened = _prepare(study, overrides or (), store)
    if launcher == "local":
        register(opened.tree, opened.file, opened.facts, opened.store)
        if not dry_run:
            print(start_detached(study, overrides or (), store))
        return
    resources = slurm_resources(opened.tree, opened.file, opened.store, chosen and chosen[1])
    register(opened.tree, opened.file, opened.facts, opened.store, as_executions(resources))
    if dry_run:
        print_scripts(opened, resources, chosen and chosen[0])
    else:
        result = submit_runs(opened.store, list(opened.tree.stages))
        if as_json:
            print_json(submitted_document(opened.tree.study, result))
        else:
            print_submitted(opened.tree.study, result)


def cancel(
    name: Annotated[str, typer.Argument(metavar="STUDY|RUN", help="A study, or a run with all that lies below it.")],
    overrides: Overrides = None,
    store: StorePath = RUNS,
) -> None:
    """Take runs back from SLURM that have not ended; of a study that is searched, its search too."""
    from retain.launchers.jobs.branches import BY_KEY, WITH_STUDY, cancel_runs
    from retain.results.store.runs import Store
    from retain.sweeps.schema.read import is_study

    searched = is_study(name) and _cancel_search(name, overrides or (), store)
    reason = WITH_STUDY if is_study(name) else BY_KEY
    cancelled = cancel_runs(Store(store), _keys_of(name, overrides or (), store), reason)
    if cancelled or not searched:
        print(f"{len(cancelled)} runs cancelled; retain retry {name} takes them up again")


def retry(
    name: Annotated[str, typer.Argument(metavar="STUDY|RUN", help="A study, or a run with all that lies below it.")],
    overrides: Overrides = None,
    store: StorePath = RUNS,
    site: SiteName = None,
) -> None:
    """Take runs up again that failed, were cancelled or skipped; on SLURM they are submitted.

    Those of a STUDY ask for what it says now; a RUN asks for what it did.
    """
    from retain.launchers.cli.views import print_submitted
    from retain.launchers.jobs.branches import plan_again
    from retain.launchers.jobs.submit import submit_runs
    from retain.launchers.slurm.client import has_slurm
    from retain.results.store.runs import Store
    from retain.sweeps.schema.read import is_study

    keys = _keys_of(name, overrides or (), store)
    if has_slurm() and keys and is_study(name):
        _register_again(name, overrides or (), store, site)
    again = plan_again(Store(store), keys)
    if has_slurm():
        print_submitted(name, submit_runs(Store(store), keys))
    else:
        print(f"{len(again)} runs are planned again; retain run trains them")


def drill(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    kills: Annotated[int, typer.Option(min=1, help="How many kills to make.")] = 40,
    seed: Annotated[int, typer.Option(help="Of the random moments.")] = 0,
    launcher: Annotated[str, typer.Option(help="Where: local, or slurm.")] = "local",
    site: SiteName = None,
    as_json: AsJson = False,
) -> int:
    """Kill the runs of a small copy of the study at every kind of moment; compare with an undisturbed twin."""
    from rich.console import Console

    from retain.launchers.checks.drill import drill_document, here, run_drill
    from retain.launchers.checks.drill_slurm import on_slurm
    from retain.launchers.cli.progress import reporting, watching
    from retain.launchers.cli.views import print_drill, print_json
    from retain.launchers.jobs.resources import find_site
    from retain.launchers.local.launcher import local_slots
    from retain.launchers.planning.opened_study import prepare_cut
    from retain.launchers.slurm.client import require_slurm

    if launcher not in ("local", "slurm"):
        raise StudyError(f"--launcher {launcher}: not known; it is local or slurm")
    if launcher == "slurm":
        require_slurm()
    with reporting() as report:
        opened = prepare_cut(study, overrides or (), store, report)
    with watching(opened.tree, Console(stderr=True, markup=False)) as watch:
        if launcher == "slurm":
            chosen = find_site(site)
            place = on_slurm(opened, chosen and chosen[1], watch)
        else:
            place = here(opened, local_slots(opened.file.study.execution), watch)
        result = run_drill(opened, place, kills, seed)
    if as_json:
        print_json(drill_document(opened.tree.study, result))
    else:
        print_drill(result)
    return SOME_RUN_FAILED if result.differences or len(result.kills) < kills else 0


def _cancel_search(study: str, overrides: Sequence[str], store: Path) -> bool:
    """End the SLURM job that searches a study, and take its stages back with it; whether there was one."""
    from retain.launchers.search.jobs.record import read_search_job
    from retain.launchers.slurm.client import has_slurm
    from retain.results.store.runs import Store
    from retain.sweeps.schema.read import read_study

    searched = read_search_job(Store(store), read_study(study, overrides).study.study)
    if searched is None or not has_slurm():
        return False
    from retain.launchers.search.jobs.submit import cancel_search

    taken = cancel_search(Store(store), searched)
    if taken is None:
        return False
    print(
        f"the search and {len(taken)} of its stages cancelled; "
        f"retain search {study} --launcher {searched.launcher} takes them up again"
    )
    return True


def _check_data(study: str, overrides: Sequence[str], as_json: bool) -> int:
    from retain.datamodules.corpora.check import check_sources
    from retain.launchers.cli.views import print_json
    from retain.launchers.planning.plan import checks_document, print_checks
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


def _register_again(study: str, overrides: Sequence[str], store: Path, site: str | None) -> None:
    """Bring what a study's stages ask of SLURM up to what the study and the site's profile say now."""
    from retain.launchers.jobs.resources import as_executions, find_site, slurm_resources
    from retain.launchers.planning.opened_study import open_study
    from retain.launchers.planning.register import register

    chosen = find_site(site)
    opened = open_study(study, overrides, store)
    resources = slurm_resources(opened.tree, opened.file, opened.store, chosen and chosen[1])
    register(opened.tree, opened.file, opened.facts, opened.store, as_executions(resources))


def _keys_of(name: str, overrides: Sequence[str], store: Path) -> list[str]:
    """The registered stage keys of a study, or of a run and all below it, parents first."""
    from retain.launchers.jobs.branches import branch
    from retain.results.store.runs import existing_store
    from retain.sweeps.schema.read import is_study

    found = existing_store(store)
    if not is_study(name):
        return branch(found, found.find(name).key)
    from retain.launchers.planning.opened_study import open_study

    known = {run.key for run in found.runs()}
    return [key for key in open_study(name, overrides, store).tree.stages if key in known]
