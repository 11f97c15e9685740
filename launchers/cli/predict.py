"""The verb `probe`. It imports what it needs when it is called."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain.launchers.cli.options import (
    INTERRUPTED,
    RUNS,
    SOME_RUN_FAILED,
    AsJson,
    Overrides,
    StorePath,
    StudyName,
    command,
)
from retain.sweeps.base.errors import MissingResourceError

if TYPE_CHECKING:
    from retain.results.analysis.predictors import Correlation


def probe(
    study: StudyName,
    overrides: Overrides = None,
    share: Annotated[
        float, typer.Option(help="The length of the short fine-tunings, as a share of the budget.")
    ] = 0.02,
    train: Annotated[
        bool, typer.Option("--train", help="Also train the stages that are missing up to θ_post.")
    ] = False,
    store: StorePath = RUNS,
    as_json: AsJson = False,
) -> int:
    """Predict retention at θ_post without Stage 3; report how well each predictor ranks the true L_ret."""
    from rich.console import Console

    from retain.launchers.cli.progress import reporting, watching
    from retain.launchers.cli.views.results import print_failures
    from retain.launchers.console import print_json
    from retain.launchers.local.run import train_missing
    from retain.launchers.planning.opened_study import open_study, prepare_study
    from retain.launchers.retention_probe import predictions, short_probes
    from retain.results.analysis.predictors import correlations, predictors_document, save_predictors
    from retain.results.report.collect import failures

    if train:
        with reporting() as report:
            opened = prepare_study(study, overrides or (), store, report)
    else:
        opened = open_study(study, overrides or (), store)
    probes = short_probes(opened, share, train)
    try:
        states = train_missing(opened, probes.tree, lambda tree: watching(tree, Console(stderr=True, markup=False)))
        found = predictions(opened, probes, lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        again = command("probe", study, overrides, store)
        print(f"interrupted; finished stages and checkpoints are kept, and {again} resumes", file=sys.stderr)
        return INTERRUPTED
    for why, count in probes.left_out.items():
        print(f"{count} of {len(opened.tree.trials)} trials are left out: {why}", file=sys.stderr)
    scores = correlations(found)
    document = {"study": opened.tree.study, "share": share, **predictors_document(found, scores)}
    document["left_out"] = [{"reason": why, "trials": count} for why, count in probes.left_out.items()]
    place = save_predictors(opened.store.root, opened.tree.study, document) if found else None
    if as_json:
        print_json(document)
    else:
        _print(document, scores, place)
    failed = failures(probes.tree, states)
    print_failures(failed)
    if failed:
        return SOME_RUN_FAILED
    return MissingResourceError.exit_code if probes.lacks_weights else 0


def _print(document: Mapping[str, Any], scores: Sequence["Correlation"], place: Path | None) -> None:
    from retain.launchers.console import new_table, open_console, print_line
    from retain.results.analysis.predictors import PREDICTORS
    from retain.sweeps.tree.tree import axes_label

    console = open_console()
    table = new_table("within", "predictor", "rank correlation with L_ret", "95%", "trials", "θ_post", left=2)
    for score in scores:
        interval = "" if score.low is None else f"{score.low:+.2f} to {score.high:+.2f}"
        value = "" if score.correlation is None else f"{score.correlation:+.3f}"
        counts = (str(score.trials), str(score.starts))
        table.add_row(axes_label(dict(score.within)), PREDICTORS[score.predictor], value, interval, *counts)
    trials = document["trials"]
    known = sum(trial["retained_posttraining_loss"] is not None for trial in trials)
    if trials:
        console.print(table)
    print_line(
        console,
        f"{len(trials):,} trials probed with {document['share']:.1%} of the fine-tuning budget, {known:,} of them with a true "
        "L_ret to compare with; a correlation needs enough trials, and differences between them",
    )
    if place is not None:
        print_line(console, str(place))
