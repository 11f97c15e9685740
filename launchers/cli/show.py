"""Verbs that show: what would be trained, what is trained, what came out. Each imports what it needs when it is called."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

from retain.launchers.cli.options import RUNS, AsJson, Overrides, RunKey, StorePath, StudyName
from retain.sweeps.base.errors import MissingResourceError, StudyError


def plan(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY... [PATH=VALUE]...",
            help="A study or several, planned together with what they share; overrides are of all of them.",
        ),
    ],
    store: StorePath = RUNS,
    device: Annotated[str, typer.Option(help="The GPU of totals.gpu_hours: A100, H100, H200 or L40S.")] = "H100",
    as_json: AsJson = False,
) -> None:
    """The tree: stages to train and already in the store, tokens, FLOPs, GPU-hours, disk, jobs."""
    from retain.launchers.cli.views import print_json
    from retain.launchers.planning.plan import open_plan, plan_document, print_plan

    # A path may hold a `=`, an override never begins like one.
    overrides = [word for word in studies if "=" in word and not Path(word).is_file()]
    names = [word for word in studies if word not in overrides]
    if not names:
        raise StudyError("plan: name at least one study; overrides come after it")
    opened = open_plan(names, overrides, store)
    document = plan_document(opened, device)
    if as_json:
        print_json(document)
    else:
        print_plan(opened, document)


def status(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study; without it, the whole store.")
    ] = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    watch: Annotated[bool, typer.Option("--watch", help="Keep showing it until all has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Each run's state, attempts, progress, time left, job id."""
    from retain.launchers.cli.views import Look, print_json, print_status, watch_status
    from retain.launchers.jobs.status import orphans, with_jobs
    from retain.launchers.search.jobs.status import search_documents
    from retain.launchers.slurm.client import has_slurm, live_jobs
    from retain.results.store.runs import existing_store
    from retain.results.store.status import as_json as rows_as_json
    from retain.results.store.status import store_status, study_status

    tree = None
    if study is None:
        opened = existing_store(store)
    else:
        from retain.launchers.planning.opened_study import open_study

        asked = open_study(study, overrides or (), store)
        tree, opened = asked.tree, asked.store

    def look() -> Look:
        found = store_status(opened) if tree is None else study_status(tree, opened)
        live = unanswered = None
        if (store / "submissions").is_dir() and has_slurm():
            try:
                live = live_jobs(everyone=True)
            except MissingResourceError as error:
                # A controller is away for a minute now and then, and a look goes on.
                unanswered = f"{error}; these are the states that the runs noted last, without their jobs"
        searches = search_documents(opened, tree.study if tree else None, live)
        if live is None:
            return Look(found, [], searches, unanswered)
        return Look(with_jobs(found, opened, live), orphans(opened, live), searches)

    if watch:
        watch_status(look)
        return
    seen = look()
    if as_json:
        print_json(
            {
                "study": tree and tree.study,
                "runs": rows_as_json(seen.rows),
                "orphans": [{"job_id": orphan.job_id, "key": orphan.key} for orphan in seen.orphans],
                "searches": seen.searches,
                "unanswered": seen.unanswered,
            }
        )
    else:
        print_status(seen)


def logs(
    run_key: RunKey,
    store: StorePath = RUNS,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
) -> None:
    """What a run has logged, over all its attempts."""
    from retain.launchers.cli.logs import follow_log
    from retain.results.store.runs import existing_store

    follow_log(existing_store(store).find(run_key), follow)


def results(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    csv: Annotated[Path | None, typer.Option(help="Write the rows to this file too.")] = None,
    as_json: AsJson = False,
) -> None:
    """One row per trial: the axes, the four losses, tokens, the stage keys; works on partial results."""
    from retain.launchers.cli.show_results import show_results
    from retain.launchers.planning.opened_study import open_study

    show_results(open_study(study, overrides or (), store), as_json, csv)


def board(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study; without it, the whole store.")
    ] = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    where: Annotated[
        list[str] | None,
        typer.Option(help="AXIS=VALUE: only trials with it, in a view of their own; several filters: all of them."),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="The port on localhost.")] = 6006,
) -> NoReturn:
    """TensorBoard on localhost: a study's runs named by their axes, its hyperparameters, charts and figures."""
    from retain.results.tensorboard.views import link_runs, serve

    if study is None:
        if where:
            raise StudyError(f"--where {where[0]}: a filter is over the axes of a study; name the study too")
        serve(store, port)
    from retain.launchers.planning.opened_study import open_study

    opened = open_study(study, overrides or (), store)
    try:
        view = link_runs(opened.tree, opened.store, where or ())
    except PermissionError as error:
        raise MissingResourceError(
            f"{error.filename}: the study's view cannot be written here; retain board without a study shows the whole store"
        ) from None
    serve(view, port)


def why(
    study: StudyName,
    key: Annotated[str, typer.Argument(metavar="KEY", help="A stage key of the study or the store, or its beginning.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="[KEY2] [PATH=VALUE]...", help="A second key to compare with; overrides of the study."),
    ] = None,
    store: StorePath = RUNS,
    as_json: AsJson = False,
) -> None:
    """What a stage key is made of; which fields split two stages, or split one from its nearest run in the store."""
    from retain.launchers.cli.views import print_json, print_why
    from retain.launchers.planning.key_report import why_document
    from retain.launchers.planning.opened_study import open_study

    others = [word for word in more or () if "=" not in word]
    if len(others) > 1:
        raise StudyError(f"why compares two keys at most; {len(others) + 1} are given")
    opened = open_study(study, [word for word in more or () if "=" in word], store)
    document = why_document(opened, key, others[0] if others else None)
    if as_json:
        print_json(document)
    else:
        print_why(document)
