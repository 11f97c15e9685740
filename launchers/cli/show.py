"""Verbs that show what would be trained, what is trained, and what came out. Each imports what it needs when it is called."""

import os
import sys
from pathlib import Path
from typing import Annotated, Literal, NoReturn

import typer

import retain
from retain.launchers.cli.options import (
    RUNS,
    SOME_RUN_FAILED,
    AsJson,
    BlockOfSeeds,
    CsvPath,
    MaybeStudy,
    MostSeeds,
    Overrides,
    RunKey,
    StorePath,
    Studies,
    StudyName,
    UntilDecided,
    command,
    command_arguments,
    show,
    split_studies,
)
from retain.launchers.cli.streams import write_named
from retain.sweeps.base.errors import DamageError, MissingResourceError, StudyError, os_reason
from retain.sweeps.base.notices import notice
from retain.sweeps.base.units import counted


def plan(
    studies: Studies,
    store: StorePath = RUNS,
    device: Annotated[str, typer.Option(help="The GPU for totals.gpu_hours: A100, H100, H200 or L40S.")] = "H100",
    until: UntilDecided = None,
    most: MostSeeds = None,
    block: BlockOfSeeds = None,
    as_json: AsJson = False,
) -> None:
    """Show what a study would train, and what that costs.

    Counts stages to train and stages already in the store, tokens, FLOPs, GPU-hours, disk space and jobs. With --until decided,
    the counts are for the most seeds.
    """
    from retain.launchers.cli.views.plan import print_plan

    names, overrides = split_studies(studies, "plan")
    made = retain.plan(names, overrides, store, device, until=until, most=most, block=block)
    prepare = [command("data", one.name, overrides, store) for one in made.studies if one.provisional]
    show(made, as_json, lambda plan: print_plan(plan, prepare))


def power(
    study: StudyName,
    overrides: Overrides = None,
    pilot: Annotated[
        str | None,
        typer.Option(
            help="The study whose finished trials are the pilot; by default STUDY itself, as far as it is trained."
        ),
    ] = None,
    effect: Annotated[
        float | None,
        typer.Option(min=0, help="Assume this effect (nats, or squared nats) for every claim, instead of the pilot's."),
    ] = None,
    most: Annotated[int, typer.Option(min=2, max=100, help="The largest number of seeds to consider.")] = 20,
    store: StorePath = RUNS,
    device: Annotated[str, typer.Option(help="The GPU for the hours: A100, H100, H200 or L40S.")] = "H100",
    as_json: AsJson = False,
) -> None:
    """Plan how many seeds verdicts need, and what they cost.

    Takes the spread over seeds from a pilot: finished trials of the same store. Trains nothing.
    """
    from retain.launchers.cli.views.plan import print_power
    from retain.launchers.planning.power import plan_power

    show(plan_power(study, overrides or (), store, pilot, effect, most, device), as_json, print_power)


def overlap(study: StudyName, overrides: Overrides = None, store: StorePath = RUNS, as_json: AsJson = False) -> None:
    """Measure how similar the corpora of a study are.

    Prepares missing data, and trains nothing. Compares n-grams, small n-gram models and documents of every two corpora. A pair
    is measured once; the report plots L_ret against the result.
    """
    from retain.launchers.cli.progress import prepare
    from retain.launchers.cli.views.overlap import print_overlaps
    from retain.launchers.planning.overlaps import measure_overlaps

    opened = prepare(study, overrides or (), store)
    found = measure_overlaps(opened, lambda line: print(line, file=sys.stderr, flush=True))
    show(found, as_json, print_overlaps)


def status(
    study: MaybeStudy = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    state: Annotated[
        list[str] | None, typer.Option(help="Only runs in this state, such as failed; may be repeated.")
    ] = None,
    stage: Annotated[
        list[str] | None, typer.Option(help="Only runs of this stage, such as finetune; may be repeated.")
    ] = None,
    where: Annotated[
        list[str] | None, typer.Option(help="AXIS=VALUE: only runs with this value or case; may be repeated.")
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch", help="Keep showing the status until every run has ended, or none has begun for two minutes."
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show the state, attempts, progress and job of each run.

    Children are indented below their parents. A narrow terminal shows fewer columns; --json has everything.
    """
    from retain.launchers.cli.views.status import print_status, watch_status
    from retain.launchers.study_status import status_reader

    if watch and as_json:
        raise StudyError("--json: prints one document, and --watch a table; omit one of the two")
    read = status_reader(study, overrides or (), store, state or (), stage or (), where or ())
    if watch:
        watch_status(read)
    else:
        show(read(), as_json, print_status)


def logs(
    run_key: RunKey,
    store: StorePath = RUNS,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Follow the log until the run ends.")] = False,
) -> None:
    """Print the log of a run, over all its attempts.

    If the run has not begun, prints the output of its SLURM job.
    """
    from retain.launchers.cli.views.status import follow_log
    from retain.launchers.jobs.submissions import job_logs
    from retain.launchers.kinds import SEARCH
    from retain.results.store.runs import Store, existing_store

    run = existing_store(store).find(run_key)
    if os.path.lexists(run.log) and not run.log.is_file():
        raise DamageError(f"{run.log} is not a file; delete it")
    log = next((path for path in (run.log, *job_logs(Store(store), run)) if path.exists()), None)
    if log is None:
        state, again = run.state(), command("status", None, (), store)
        if state.attempts and run.spec()["stage"] == SEARCH.name:
            last = state.attempts[-1]
            where = f"prints in the terminal where it is started (last as process {last.pid} on {last.host})"
            raise StudyError(f"{run.key}: nothing is logged; a search on this machine {where}")
        raise StudyError(f"{run.key}: nothing is logged yet, the run is {state.state}; see {again}")
    follow_log(run, log, follow)


def results(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    csv: CsvPath = None,
    losses: Annotated[
        str | None,
        typer.Option(
            help="Show these losses instead of the paper's four: `all`, or a list such as L_ret, STAGE/CORPUS or "
            "STAGE/TASK/METRIC, separated by commas."
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Print one row per trial: axes, losses, tokens, stage keys.

    Works on partial results. The CSV and JSON have the losses of every stage on every corpus of the study.
    """
    from retain.launchers.cli.views.results import print_damage, print_results
    from retain.launchers.planning.key_report import tell_edit
    from retain.launchers.planning.opened_study import open_study
    from retain.results.analysis.loss_planes import SYMBOLS
    from retain.results.report.collect import collect_results
    from retain.results.store.loss_table import chosen_columns, csv_text

    if as_json and csv == Path("-"):
        raise StudyError("--csv -: with --json, standard output has the document; write the CSV to a file")
    opened = open_study(study, overrides or (), store)
    # What `retain run` and other readers keep in the study's folder is of the whole study.
    write: Literal["pictures", "nothing"] = "nothing" if overrides else "pictures"
    found = collect_results(opened.file, opened.tree, opened.store, write=write)
    symbols = {symbol: loss for loss, symbol in SYMBOLS.items()}
    columns = None if losses is None else chosen_columns(found.trials, losses, symbols)
    if csv is not None:
        write_named("--csv", csv, csv_text(found.trials))
    show(found, as_json, lambda found: print_results(found, store, columns))
    tell_edit(opened, overrides or ())
    return print_damage(found.failures)


def report(
    studies: Studies,
    store: StorePath = RUNS,
    overlay: Annotated[
        bool | None,
        typer.Option(
            "--overlay/--no-overlay",
            help="Show the paper's published curves; by default, only if the study's model has at least 100M parameters.",
        ),
    ] = None,
    plane: Annotated[
        list[str] | None,
        typer.Option(
            "--plane",
            help="Draw frontiers in this plane too: two losses or metrics, Y,X, such as finetune/arc_easy/acc,L_ft.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Write verdicts, figures and one HTML page.

    Works on partial results. The page opens offline. Several studies of one store are judged together; they may differ only in
    their axes.
    """
    from retain.launchers.cli.views.report import origin, report_document
    from retain.launchers.cli.views.results import print_damage
    from retain.launchers.study_report import report_studies

    names, overrides = split_studies(studies, "report")
    made_by = origin(command_arguments(None, [*names, *overrides], store))
    made = report_studies(names, overrides, store, made_by, overlay, plane or ())
    show(report_document(made) if as_json else {}, as_json, lambda _: print(made.page))
    return print_damage(made.failures)


def probe(
    study: StudyName,
    overrides: Overrides = None,
    share: Annotated[
        float, typer.Option(help="The length of the short fine-tunings, as a share of the fine-tuning budget.")
    ] = 0.02,
    train: Annotated[bool, typer.Option("--train", help="Also train missing stages, up to post-training.")] = False,
    store: StorePath = RUNS,
    as_json: AsJson = False,
) -> int:
    """Predict retention without full fine-tuning.

    Trains each post-trained model on a small share of the fine-tuning budget, and compares gradients. Reports how well each
    predictor ranks the true L_ret of the trials that have one.
    """
    from retain.launchers.cli.progress import prepare, watching
    from retain.launchers.cli.views.results import print_failures, print_predictors
    from retain.launchers.local.run import train_missing
    from retain.launchers.planning.opened_study import open_study
    from retain.launchers.retention_probe import predictions, short_probes
    from retain.results.analysis.predictors import correlations, predictors_document, save_predictors
    from retain.results.report.collect import failures

    opened = (prepare if train else open_study)(study, overrides or (), store)
    probes = short_probes(opened, share, train)
    states = train_missing(opened, probes.tree, watching)
    found = predictions(opened, probes, lambda line: print(line, file=sys.stderr, flush=True))
    for why, count in probes.left_out.items():
        total = counted(len(opened.tree.trials), "trial")
        print(f"left out: {count} of {total}: {why}", file=sys.stderr)
    document = {"study": opened.tree.study, "share": share, **predictors_document(found, correlations(found))}
    document["left_out"] = [{"reason": why, "trials": count} for why, count in probes.left_out.items()]
    saved = save_predictors(opened.store.root, opened.tree.study, document) if found else None
    show(document, as_json, lambda document: print_predictors(document, saved))
    failed = failures(probes.tree, states)
    print_failures(failed)
    if failed:
        return SOME_RUN_FAILED
    return MissingResourceError.exit_code if probes.lacks_weights else 0


def board(
    study: MaybeStudy = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    where: Annotated[
        list[str] | None,
        typer.Option(help="AXIS=VALUE: only trials with this value, in a view of their own; may be repeated."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(min=1, max=65_535, help="The port on localhost; by default 6006, or the next free one."),
    ] = None,
    every_run: Annotated[
        bool, typer.Option("--all", help="Show all runs; by default, only some of a study with more than 40.")
    ] = False,
    trials: Annotated[
        bool, typer.Option("--trials", help="Show a row for each trial with all its losses, instead of the stages.")
    ] = False,
) -> NoReturn:
    """Open TensorBoard on localhost.

    Shows runs named by their axes, hyperparameters, curves and figures.
    """
    from retain.results.store.runs import Store
    from retain.results.tensorboard.opening import MOST_RUNS, free_port, readable_filters
    from retain.results.tensorboard.trials import write_trials
    from retain.results.tensorboard.views import link_runs, serve, update_event_files

    if study is None:
        if where:
            raise StudyError(f"--where {where[0]}: filters need the axes of a study; name a study")
        if trials:
            raise StudyError("--trials: trials are those of a study; name a study")
        if store.is_dir():
            update_event_files(Store(store))
        serve(store, free_port(port))
    from retain.launchers.planning.opened_study import open_study

    opened, port = open_study(study, overrides or (), store), free_port(port)
    if not (where or every_run or trials) and (where := readable_filters(opened.tree)):
        notice(
            f"TensorBoard selects no run if there are more than {MOST_RUNS}, so it opens with those of {' '.join(where)}; "
            "see others with --where AXIS=VALUE, and all of them with --all"
        )
    try:
        make_view = write_trials if trials else link_runs
        view = make_view(opened.tree, opened.store, where or (), overrides=overrides or ())
    except OSError as error:
        place, whole = error.filename2 or error.filename, command("board", None, (), store)
        raise MissingResourceError(f"{place}: {os_reason(error)}; {whole} shows the whole store") from None
    serve(view, port)


def why(
    study: StudyName,
    key: Annotated[str, typer.Argument(metavar="KEY", help="A stage key of the study or the store, or its beginning.")],
    more: Annotated[
        list[str] | None,
        typer.Argument(metavar="KEY2|PATH=VALUE", help="A second key to compare with; overrides of the study."),
    ] = None,
    store: StorePath = RUNS,
    as_json: AsJson = False,
) -> None:
    """Explain a stage key, or the difference between two.

    Without a second key, compares the stage with the nearest run in the store.
    """
    from retain.launchers.cli.views.results import print_why
    from retain.launchers.planning.key_report import why_document
    from retain.launchers.planning.opened_study import open_study

    others = [word for word in more or () if "=" not in word]
    if len(others) > 1:
        raise StudyError(f"why compares at most two keys, and {len(others) + 1} are given")
    opened = open_study(study, [word for word in more or () if "=" in word], store)
    show(why_document(opened, key, others[0] if others else None), as_json, print_why)
