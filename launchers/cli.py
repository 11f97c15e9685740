"""The command line. Each verb imports what it needs when it is called, so that `retain --help` answers at once."""

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sweeps.errors import MissingResourceError, RetainError, StudyError

if TYPE_CHECKING:
    from launchers.opened import OpenedStudy

SOME_RUN_FAILED = 1
INTERRUPTED = 130
"""128 + SIGINT, as shells have it."""

app = typer.Typer(
    help="What does a model still know after its next fine-tuning, and which upstream choices decide that?",
    epilog="Exit codes: 0 done, 1 some run failed, 2 wrong use or wrong study, 3 the environment lacks something.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

StudyName = Annotated[str, typer.Argument(metavar="STUDY", help="A study file, or the name of one in sweeps/studies.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH=VALUE]...", help="Overrides, for instance pretrain.exposure=0.5 or seed=[0,1,2]."),
]
RunKey = Annotated[str, typer.Argument(metavar="RUN", help="A stage key, or as much of its beginning as is unique.")]
StorePath = Annotated[Path, typer.Option("--store", envvar="RETAIN_STORE", help="The store of runs.")]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON document on standard output.")]
RUNS = Path("runs")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one verb and return its exit code; what a user can cure is one sentence on standard error."""
    try:
        return int(app(list(sys.argv[1:] if arguments is None else arguments), standalone_mode=False) or 0)
    except RetainError as error:
        print(f"retain: {error}", file=sys.stderr)
        return error.exit_code
    except typer.Exit as stop:
        return stop.exit_code
    except (typer.Abort, KeyboardInterrupt):
        return INTERRUPTED
    except BrokenPipeError:  # the reader, such as `head`, has seen enough
        sys.stderr.close()
        return 0
    except typer.TyperException as error:  # wrong use of a verb
        print(f"retain: {error.format_message().rstrip('.')}; see retain --help", file=sys.stderr)
        return StudyError.exit_code


@app.command()
def plan(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    device: Annotated[str, typer.Option(help="The GPU that the hours are of: A100, H100, H200 or L40S.")] = "H100",
    as_json: AsJson = False,
) -> None:
    """The tree: stages to train and already in the store, tokens, FLOPs, GPU-hours, disk, jobs."""
    from launchers.opened import open_study
    from launchers.views import plan_document, print_json, print_plan

    opened = open_study(study, overrides or (), store)
    document = plan_document(opened, device)
    if as_json:
        print_json(document)
    else:
        print_plan(opened, document, device)


@app.command()
def data(study: StudyName, overrides: Overrides = None, store: StorePath = RUNS, as_json: AsJson = False) -> None:
    """Fetch, tokenise and pack the corpora; later verbs need no network."""
    from launchers.views import data_document, print_data, print_json

    opened = _prepare(study, overrides or (), store)
    document = data_document(opened)
    if as_json:
        print_json(document)
    else:
        print_data(document)


@app.command()
def run(study: StudyName, overrides: Overrides = None, store: StorePath = RUNS, as_json: AsJson = False) -> int:
    """Train what is missing on this machine, with progress, then print the results."""
    from rich.console import Console

    from launchers.local import local_slots, train
    from launchers.progress import watching
    from launchers.register import register
    from launchers.views import print_failures
    from results.collect import check_starts

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
    _show_results(opened, as_json, csv=None)
    return SOME_RUN_FAILED if print_failures(opened.tree, states) else 0


@app.command()
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
    from launchers.views import print_json, print_status, watch_status
    from results.status import RunStatus, store_status, study_status
    from results.status import as_json as rows_as_json
    from results.store import Store

    tree = None
    if study is not None:
        from launchers.opened import open_study

        tree = open_study(study, overrides or (), store).tree

    def rows() -> list[RunStatus]:
        return store_status(Store(store)) if tree is None else study_status(tree, Store(store))

    if as_json:
        print_json({"study": tree and tree.study, "runs": rows_as_json(rows())})
    elif watch:
        watch_status(rows)
    else:
        print_status(rows())


@app.command()
def logs(
    run_key: RunKey,
    store: StorePath = RUNS,
    follow: Annotated[bool, typer.Option("-f", "--follow", help="Go on until the run ends.")] = False,
) -> None:
    """What a run has logged, over all its attempts."""
    from launchers.logs import follow_log
    from results.store import Store

    follow_log(Store(store).find(run_key), follow)


@app.command()
def results(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    csv: Annotated[Path | None, typer.Option(help="Write the rows to this file too.")] = None,
    as_json: AsJson = False,
) -> None:
    """One row per trial: the axes, the four losses, tokens, the stage keys; works on partial results."""
    from launchers.opened import open_study

    _show_results(open_study(study, overrides or (), store), as_json, csv)


@app.command()
def board(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study; without it, the whole store.")
    ] = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    port: Annotated[int, typer.Option(help="The port on localhost.")] = 6006,
) -> int:
    """TensorBoard over a study's runs, named by their axes, on localhost."""
    from launchers.board import link_runs, serve

    if study is None:
        return serve(store, port)
    from launchers.opened import open_study

    opened = open_study(study, overrides or (), store)
    return serve(link_runs(opened.tree, opened.store), port)


@app.command()
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
    from launchers.explain import why_document
    from launchers.opened import open_study
    from launchers.views import print_json, print_why

    others = [word for word in more or () if "=" not in word]
    if len(others) > 1:
        raise StudyError(f"why compares two keys at most; {len(others) + 1} are given")
    opened = open_study(study, [word for word in more or () if "=" in word], store)
    document = why_document(opened, key, others[0] if others else None)
    if as_json:
        print_json(document)
    else:
        print_why(document)


@app.command()
def export(
    run_key: RunKey,
    store: StorePath = RUNS,
    to: Annotated[
        Path | None, typer.Option(help="The folder to make; RUN's key in this folder where it is not given.")
    ] = None,
) -> None:
    """A Hugging Face folder that AutoModelForCausalLM.from_pretrained loads, with its tokeniser and a model card."""
    from launchers.export import export_run
    from results.store import Store

    chosen = Store(store).find(run_key)
    print(export_run(Store(store), chosen, to or Path(chosen.key)))


@app.command()
def verify(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study; without it, the whole store.")
    ] = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    as_json: AsJson = False,
) -> int:
    """Check every checksum and invariant of the store."""
    from launchers.verify import verify_store
    from launchers.views import print_json, print_problems
    from results.store import Store

    keys = None
    if study is not None:
        from launchers.opened import open_study

        keys = set(open_study(study, overrides or (), store).tree.stages)
    checked, problems = verify_store(Store(store), keys)
    if as_json:
        print_json({"study": study, "runs": checked, "problems": [vars(problem) for problem in problems]})
    else:
        print_problems(checked, problems)
    return SOME_RUN_FAILED if problems else 0


@app.command()
def gc(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study; without it, the whole store.")
    ] = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be freed.")] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also weights that no run of the store starts from any more.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Free what nothing needs: resumable states of done runs, and what dead processes left."""
    from launchers.views import print_json, print_waste, waste_document
    from results.collect import find_waste, free
    from results.store import Store

    keys = None
    if study is not None:
        from launchers.opened import open_study

        keys = set(open_study(study, overrides or (), store).tree.stages)
    found = find_waste(Store(store), keys, weights)
    document = waste_document(
        study, found, [None if dry_run else free(Store(store), waste) for waste in found], dry_run
    )
    if as_json:
        print_json(document)
    else:
        print_waste(document)
    return MissingResourceError.exit_code if document["kept"] else 0


@app.command()
def pin(
    run_key: RunKey,
    store: StorePath = RUNS,
    off: Annotated[bool, typer.Option("--off", help="Let gc --weights have them again.")] = False,
) -> None:
    """Keep a run's weights from gc --weights."""
    from results.collect import set_pin
    from results.store import Store

    chosen = Store(store).find(run_key)
    set_pin(chosen, not off)
    print(f"{chosen.key} is {'no longer pinned' if off else 'pinned'}")


@app.command()
def drill(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    kills: Annotated[int, typer.Option(min=1, help="How many kills to make.")] = 40,
    seed: Annotated[int, typer.Option(help="Of the random moments.")] = 0,
    as_json: AsJson = False,
) -> int:
    """Kill the runs of a small copy of the study at every kind of moment; compare with an undisturbed twin."""
    from rich.console import Console

    from launchers.drill import drill_document, run_drill
    from launchers.local import local_slots
    from launchers.opened import prepare_cut
    from launchers.progress import reporting, watching
    from launchers.views import print_drill, print_json

    with reporting() as report:
        opened = prepare_cut(study, overrides or (), store, report)
    slots = local_slots(opened.file.study.execution)
    with watching(opened.tree, Console(stderr=True, markup=False)) as watch:
        result = run_drill(opened, slots, kills, seed, watch)
    if as_json:
        print_json(drill_document(opened.tree.study, result))
    else:
        print_drill(result)
    return SOME_RUN_FAILED if result.differences or len(result.kills) < kills else 0


def _prepare(study: str, overrides: Sequence[str], store: Path) -> "OpenedStudy":
    """The study with its data prepared, with progress on standard error."""
    from launchers.opened import prepare_study
    from launchers.progress import reporting

    with reporting() as report:
        return prepare_study(study, overrides, store, report)


def _show_results(opened: "OpenedStudy", as_json: bool, csv: Path | None) -> None:
    from launchers.board import link_runs
    from launchers.views import print_json, print_results
    from results.figures import draw_losses
    from results.losses import csv_text, save_rows, trial_rows
    from sweeps.atomic import write_text

    tree, root = opened.tree, opened.store.root
    rows = trial_rows(tree, opened.store)
    if csv is not None:
        try:
            write_text(csv, csv_text(rows))
        except OSError as error:
            raise StudyError(f"--csv {csv}: cannot be written ({error.strerror}); choose another file") from None
    if as_json:
        print_json({"study": tree.study, "trials": rows})
        return
    made = []
    if any(state.state == "done" for state in opened.store.states(tree.stages).values()):
        made = [save_rows(root, tree.study, rows), *draw_losses(root, tree.study, rows), link_runs(tree, opened.store)]
    print_results(opened, rows, made)


if __name__ == "__main__":
    sys.exit(main())
