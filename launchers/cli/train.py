"""Verbs that train, here or on SLURM, and that cancel or retry. Each imports what it needs when it is called."""

import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Literal

import typer

import retain
from retain.launchers.cli.options import (
    RUNS,
    SOME_RUN_FAILED,
    AsJson,
    BlockOfSeeds,
    MostSeeds,
    Overrides,
    SiteName,
    StorePath,
    StudyName,
    StudyOrRun,
    UntilDecided,
    at_most_one,
    check_site,
    command,
    show,
)
from retain.launchers.cli.search import cancel_its_search
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.base.units import counted

AGAIN = ("run is planned again", "runs are planned again")


def data(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    check: Annotated[
        bool, typer.Option("--check", help="Only check whether ids, revisions and fields resolve; download nothing.")
    ] = False,
    download_only: Annotated[
        bool,
        typer.Option(
            "--download-only",
            help="Only download what the study reads from the hub; machines without internet can do the rest.",
        ),
    ] = False,
    launcher: Annotated[
        Literal["local", "slurm"],
        typer.Option(help="Where large corpora are prepared: on all cores of this machine, or by jobs."),
    ] = "local",
    site: SiteName = None,
    corpus: Annotated[
        str | None,
        typer.Option("--show", help="Show the first packed sequences of this corpus, and which tokens are predicted."),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Fetch, tokenise and pack the corpora.

    Later verbs need no network.
    """
    from retain.datamodules.corpora.check import check_sources
    from retain.launchers.cli.progress import prepare
    from retain.launchers.cli.views.plan import checks_document, data_document, print_checks, print_data
    from retain.sweeps.schema.read import read_study

    by_jobs = launcher == "slurm"
    at_most_one({"--check": check, "--download-only": download_only, "--show": corpus, "--launcher slurm": by_jobs})
    if not by_jobs:
        check_site(site, launcher)
    if check:
        document = checks_document(study, list(check_sources(read_study(study, overrides or ()))))
        show(document, as_json, print_checks)
        return 0 if document["resolves"] else MissingResourceError.exit_code
    if corpus is not None:
        from retain.launchers.cli.views.sequences import print_sequences, sequences_document

        known = read_study(study, overrides or ()).study.corpora
        if corpus not in known:
            raise StudyError(f"--show {corpus}: unknown corpus; the corpora are {', '.join(known) or 'none'}")
        show(sequences_document(prepare(study, overrides or (), store), corpus), as_json, print_sequences)
        return 0
    if download_only:
        return _download(study, overrides or (), store, as_json)
    if by_jobs:
        _submit_data(study, overrides or (), store, site, as_json)
    else:
        show(data_document(prepare(study, overrides or (), store)), as_json, print_data)
    return 0


def _download(study: str, overrides: Sequence[str], store: Path, as_json: bool) -> int:
    """Fetch what a study reads from the hub, with a line for each file; print what is there."""
    from retain.datamodules.corpora.prepare import download_sources
    from retain.launchers.cli.views.downloads import downloads_document, print_downloads, say
    from retain.results.store.runs import make_store
    from retain.sweeps.schema.read import read_study

    file = read_study(study, overrides)
    found = download_sources(file, make_store(store).root, say)
    show(downloads_document(file.study.study, found), as_json, print_downloads)
    return 0


def _submit_data(study: str, overrides: Sequence[str], store: Path, site: str | None, as_json: bool) -> None:
    """Prepare what is small, and submit the rest; print what is prepared or submitted."""
    from retain.launchers.cli.progress import reporting
    from retain.launchers.cli.views.plan import data_document, print_data
    from retain.launchers.cli.views.submission import print_submission
    from retain.launchers.jobs.submit import submit_data

    with reporting() as report:
        opened, submitted = submit_data(study, overrides, store, site, report)
    if not opened.tree.provisional:
        show(data_document(opened), as_json, print_data)
        return
    retry, cancel, watch = (command(verb, study, overrides, store) for verb in ("retry", "cancel", "status"))
    show(submitted, as_json, lambda submitted: print_submission(submitted, retry, cancel, f"{watch} --watch"))


def run(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    until: UntilDecided = None,
    most: MostSeeds = None,
    block: BlockOfSeeds = None,
    as_json: AsJson = False,
) -> int:
    """Train what is missing on this machine and print results.

    After an interruption, run the same command again: it resumes bit-exactly. With --until decided, the seeds are fixed before
    training, and a later call continues with them.
    """
    from retain.launchers.cli.progress import reporting, watching
    from retain.launchers.cli.views.results import print_failures, print_results

    found = retain.run(
        study, overrides or (), store, until=until, most=most, block=block, reporting=reporting, watching=watching
    )
    show(found, as_json, lambda found: print_results(found, store))
    if until and not as_json:
        print(f"verdicts with intervals that count all looks: {command('report', study, overrides, store)}")
    print_failures(found.failures)
    if any(failure.state == "cancelled" for failure in found.failures):
        print(f"{command('retry', study, overrides, store)} plans the cancelled runs again", file=sys.stderr)
    return SOME_RUN_FAILED if found.failures else 0


def evaluate(study: StudyName, overrides: Overrides = None, store: StorePath = RUNS, as_json: AsJson = False) -> int:
    """Measure trained stages on this machine, without training.

    Measures the corpora and tasks in the study's `evaluate`, and losses that are blank because another study trained the stage.
    """
    from retain.launchers.cli.progress import reporting, watching
    from retain.launchers.cli.views.results import print_failures, print_results
    from retain.results.store.loss_table import loss_columns

    found = retain.evaluate(study, overrides or (), store, reporting=reporting, watching=watching)
    show(found, as_json, lambda found: print_results(found, store, loss_columns(found.trials)))
    print_failures(found.failures)
    return SOME_RUN_FAILED if found.failures else 0


def submit(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    launcher: Annotated[
        Literal["slurm", "local"], typer.Option(help="slurm, or local: train on this machine, in the background.")
    ] = "slurm",
    site: SiteName = None,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run",
            help="Print the first script of each stage, and what differs in the others; write and submit nothing.",
        ),
    ] = False,
    until: Annotated[str | None, typer.Option("--until", hidden=True)] = None,
    most: Annotated[str | None, typer.Option("--most", hidden=True)] = None,
    block: Annotated[str | None, typer.Option("--block", hidden=True)] = None,
    as_json: AsJson = False,
) -> None:
    """Submit what is missing to SLURM, and return.

    No process of Retain has to keep running: jobs requeue themselves, and submit runs that had to wait.
    """
    if until or most or block:
        raise StudyError(
            "submit: --until decided is an option of run alone, because a submitted job cannot add seeds to the study; submit "
            "fixed seeds, as in seed=[0,1,2], or call retain run in a job of your own"
        )
    if launcher == "local":
        check_site(site, launcher)
    if as_json and (dry_run or launcher == "local"):
        given = "--dry-run" if dry_run else "--launcher local"
        raise StudyError(
            f"--json: submit prints a document of submitted jobs, and {given} submits none; omit one of the two"
        )
    if dry_run:
        _print_dry_run(study, overrides or (), store, launcher, site)
    elif launcher == "local":
        from retain.launchers.cli.progress import prepare
        from retain.launchers.local.launcher import start_detached
        from retain.launchers.planning.register import register

        opened = prepare(study, overrides or (), store)
        register(opened.tree, opened.file, opened.facts, opened.store)
        print(start_detached(study, overrides or (), store))
    else:
        from retain.launchers.cli.progress import reporting
        from retain.launchers.cli.views.submission import print_submission

        with reporting() as report:
            submission = retain.submit(study, overrides or (), store, site, report=report)
        retry, cancel, watch = (command(verb, study, overrides, store) for verb in ("retry", "cancel", "status"))
        show(submission, as_json, lambda submission: print_submission(submission, retry, cancel, f"{watch} --watch"))


def _print_dry_run(study: str, overrides: Sequence[str], store: Path, launcher: str, site: str | None) -> None:
    """Print what `submit` would do; write and submit nothing."""
    from retain.launchers.cli.views.submission import print_local_start, print_scripts
    from retain.launchers.jobs.resources import find_site, slurm_resources
    from retain.launchers.planning.evaluations import with_evaluations
    from retain.launchers.planning.key_report import tell_edit
    from retain.launchers.planning.opened_study import open_study
    from retain.results.store.index.states import shown_states

    opened = open_study(study, overrides, store, remember=False)
    if opened.tree.provisional:
        prepare_data = command("data", study, overrides, store)
        print(f"# the data is not prepared, so keys and walltimes are provisional: {prepare_data}")
    tell_edit(opened, overrides)
    if launcher == "local":
        print_local_start(opened, command("run", study, overrides, store))
        return
    chosen = find_site(site)
    tree = with_evaluations(opened)
    asked = {key: one for key, one in tree.stages.items() if key not in opened.tree.stages}
    states = shown_states(opened.store, tree.stages)
    resources = slurm_resources(
        opened.tree, opened.file, opened.store, chosen and chosen[1], evaluations=asked, states=states
    )
    print_scripts(opened, tree, states, resources, chosen and chosen[0])


def cancel(name: StudyOrRun, overrides: Overrides = None, store: StorePath = RUNS) -> None:
    """Cancel runs that have not ended.

    With a study, also cancels its search. `retry` and `search` resume what was cancelled.
    """
    from retain.launchers.cli.progress import counting
    from retain.launchers.jobs.branches import BY_KEY, WITH_STUDY, cancel_runs
    from retain.results.store.runs import Store
    from retain.sweeps.schema.read import is_study

    searched, refused = False, None
    try:
        searched = is_study(name) and cancel_its_search(name, overrides or (), store)
    except MissingResourceError as error:  # the runs of the study are cancelled all the same
        refused = error
    keys = _keys_of(name, overrides or (), store)
    with counting("cancelling runs") as count:
        cancelled = cancel_runs(Store(store), keys, WITH_STUDY if is_study(name) else BY_KEY, count)
    if refused:
        raise refused
    if cancelled:
        print(f"{counted(len(cancelled), 'run')} cancelled; {command('retry', name, overrides, store)} resumes them")
    elif not searched:
        print("0 runs cancelled: none was waiting, queued or running")


def retry(
    name: StudyOrRun,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    site: SiteName = None,
    as_json: AsJson = False,
) -> None:
    """Retry runs that failed, were cancelled or were skipped.

    With SLURM, they are submitted again: a STUDY with the resources that it asks for now, a RUN with those that it had.
    """
    from retain.launchers.cli.progress import counting
    from retain.launchers.cli.views.submission import print_submission
    from retain.launchers.jobs.branches import retry_runs
    from retain.launchers.jobs.resources import find_site
    from retain.launchers.jobs.submit import register_for_slurm, submit_runs
    from retain.launchers.planning.opened_study import open_study
    from retain.launchers.slurm.client import has_slurm
    from retain.launchers.stage.on_end import renew_launches
    from retain.results.store.runs import Store
    from retain.sweeps.schema.read import is_study

    if site is not None and not (is_study(name) and has_slurm()):
        raise StudyError(f"--site {site}: a site's profile is for the jobs of a study, and needs SLURM; omit it")
    keys = _keys_of(name, overrides or (), store)
    if has_slurm() and keys and is_study(name):
        chosen, opened = find_site(site), open_study(name, overrides or (), store)
        if not opened.tree.provisional:
            register_for_slurm(opened, chosen and chosen[1])
    with counting("planning runs again", not as_json) as count:
        again = retry_runs(Store(store), keys, count)
    submission = None
    if has_slurm():
        renew_launches(Store(store), again)
        try:
            with counting("submitting arrays of jobs", not as_json) as count:
                submission = submit_runs(Store(store), keys, name, count)
        except MissingResourceError as error:
            if not again:
                raise
            raise MissingResourceError(f"{error} ({counted(len(again), *AGAIN)}, not submitted)") from None

    def print_retried(_: object) -> None:
        if submission:
            print_submission(submission, command("retry", name, overrides, store))
        elif is_study(name):
            print(f"{counted(len(again), *AGAIN)}; {command('run', name, overrides, store)} trains them")
        else:
            print(f"{counted(len(again), *AGAIN)}; run their study to train them")

    submitted = None if submission is None else asdict(submission)
    show({"study": name, "planned_again": again, "submission": submitted}, as_json, print_retried)


def drill(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    kills: Annotated[int, typer.Option(min=1, help="The number of kills.")] = 40,
    seed: Annotated[int, typer.Option(help="The seed of the random moments of the kills.")] = 0,
    launcher: Annotated[
        Literal["local", "slurm"], typer.Option(help="Where to train: on this machine, or as jobs.")
    ] = "local",
    site: SiteName = None,
    as_json: AsJson = False,
) -> int:
    """Kill runs at random, and compare with uninterrupted ones.

    Trains a small copy of the study twice. Both must end with the same weights, losses and curves.
    """
    from retain.launchers.checks.drill import on_this_machine, run_drill
    from retain.launchers.checks.drill_slurm import on_slurm
    from retain.launchers.cli.progress import reporting, watching
    from retain.launchers.cli.views.checks import print_drill
    from retain.launchers.planning.opened_study import prepare_cut
    from retain.launchers.slurm.client import require_slurm

    if launcher == "slurm":
        require_slurm()
    else:
        check_site(site, launcher)
    with reporting() as report:
        opened = prepare_cut(study, overrides or (), store, report)
    with watching(opened.tree, opened.store) as watch:
        train_tree = on_slurm(opened, site, watch) if launcher == "slurm" else on_this_machine(opened, watch)
        result = run_drill(opened, train_tree, kills, seed)
    show(result, as_json, print_drill)
    return SOME_RUN_FAILED if result.differences or result.kills < kills else 0


def _keys_of(name: str, overrides: Sequence[str], store: Path) -> list[str]:
    """The keys of the registered runs of a study, or of a run and all runs below it, parents first."""
    from retain.launchers.jobs.branches import branch
    from retain.results.store.runs import existing_store
    from retain.sweeps.schema.read import is_study

    found = existing_store(store)
    if not is_study(name):
        run = found.find(name)
        if overrides:
            raise StudyError(f"{overrides[0]}: overrides change a study, and {name} is a run; omit it")
        return branch(found, run.key)
    from retain.launchers.planning.evaluations import with_evaluations
    from retain.launchers.planning.opened_study import open_study
    from retain.results.store.study_files import preparation_keys

    tree = with_evaluations(open_study(name, overrides, store))
    known = {run.key for run in found.runs()}
    preparing = preparation_keys(found, tree.study) if tree.provisional else []
    return [*preparing, *(key for key in tree.stages if key in known)]
