"""Verbs that show what would be trained, what is trained, and what came out. Each imports what it needs when it is called."""

from pathlib import Path
from typing import Annotated, NoReturn

import typer

import retain
from retain.launchers.cli.options import RUNS, AsJson, MaybeStudy, Overrides, RunKey, StorePath, StudyName, command
from retain.sweeps.base.errors import MissingResourceError, StudyError


def plan(
    studies: Annotated[
        list[str],
        typer.Argument(
            metavar="STUDY... [PATH=VALUE]...",
            help="One study, or several planned together with what they share; overrides apply to all of them.",
        ),
    ],
    store: StorePath = RUNS,
    device: Annotated[str, typer.Option(help="The GPU of totals.gpu_hours: A100, H100, H200 or L40S.")] = "H100",
    as_json: AsJson = False,
) -> None:
    """Show the tree: stages to train and already in the store, tokens, FLOPs, GPU-hours, disk, jobs."""
    from retain.launchers.cli.views.plan import print_plan
    from retain.launchers.console import print_json

    # A path may contain a `=`; an override is never the path of a file.
    overrides = [word for word in studies if "=" in word and not Path(word).is_file()]
    names = [word for word in studies if word not in overrides]
    if not names:
        raise StudyError("plan: name at least one study; overrides come after it")
    made = retain.plan(names, overrides, store, device)
    if as_json:
        print_json(made)
    else:
        print_plan(made, [command("data", one.name, overrides, store) for one in made.studies if one.provisional])


def status(
    study: MaybeStudy = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    watch: Annotated[bool, typer.Option("--watch", help="Show the status until everything has ended.")] = False,
    as_json: AsJson = False,
) -> None:
    """Show each run's state, attempts, progress, time left and job."""
    from retain.launchers.cli.views.status import print_status, watch_status
    from retain.launchers.console import print_json
    from retain.launchers.search.status import status_reader

    if watch:
        watch_status(status_reader(study, overrides or (), store))
    elif as_json:
        print_json(retain.status(study, overrides or (), store))
    else:
        print_status(retain.status(study, overrides or (), store))


def logs(
    run_key: RunKey,
    store: StorePath = RUNS,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Follow the log until the run ends.")] = False,
) -> None:
    """Print the log of a run, over all its attempts."""
    from retain.launchers.cli.views.status import follow_log
    from retain.results.store.runs import existing_store

    follow_log(existing_store(store).find(run_key), follow)


def results(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    csv: Annotated[Path | None, typer.Option(help="Also write the rows to this file.")] = None,
    as_json: AsJson = False,
) -> None:
    """Print one row per trial: axes, the four losses, tokens, stage keys; works on partial results."""
    from retain.launchers.cli.views.results import print_results
    from retain.launchers.console import print_json
    from retain.launchers.planning.opened_study import open_study
    from retain.results.report.collect import collect_results
    from retain.results.store.loss_table import csv_text
    from retain.sweeps.base.files import write_text

    opened = open_study(study, overrides or (), store)
    found = collect_results(opened.file, opened.tree, opened.store, view=False)
    if csv is not None:
        try:
            write_text(csv, csv_text(found.trials))
        except OSError as error:
            raise StudyError(f"--csv {csv}: cannot be written ({error.strerror}); choose another file") from None
    if as_json:
        print_json(found)
    else:
        print_results(found, store)


def board(
    study: MaybeStudy = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    where: Annotated[
        list[str] | None,
        typer.Option(help="AXIS=VALUE: only trials with this value, in a view of their own; may be repeated."),
    ] = None,
    port: Annotated[int, typer.Option(min=1, max=65_535, help="The port on localhost.")] = 6006,
) -> NoReturn:
    """Open TensorBoard on localhost: runs named by their axes, hyperparameters, charts and figures."""
    from retain.results.tensorboard.views import link_runs, serve

    if study is None:
        if where:
            raise StudyError(f"--where {where[0]}: filters need the axes of a study; name a study")
        serve(store, port)
    from retain.launchers.planning.opened_study import open_study

    opened = open_study(study, overrides or (), store)
    try:
        view = link_runs(opened.tree, opened.store, where or ())
    except PermissionError as error:
        raise MissingResourceError(
            f"{error.filename}: the folder of the study cannot be written; retain board without a study shows the whole store"
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
    """Explain a stage key; show the fields that differ from another key, or from the nearest run in the store."""
    from retain.launchers.cli.views.results import print_why
    from retain.launchers.console import print_json
    from retain.launchers.planning.key_report import why_document
    from retain.launchers.planning.opened_study import open_study

    others = [word for word in more or () if "=" not in word]
    if len(others) > 1:
        raise StudyError(f"why compares at most two keys, and {len(others) + 1} are given")
    opened = open_study(study, [word for word in more or () if "=" in word], store)
    document = why_document(opened, key, others[0] if others else None)
    if as_json:
        print_json(document)
    else:
        print_why(document)
