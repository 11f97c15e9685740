"""The verb that predicts retention without Stage 3. It imports what it needs when it is called."""

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain.launchers.cli.options import INTERRUPTED, RUNS, SOME_RUN_FAILED, AsJson, Overrides, StorePath, StudyName
from retain.sweeps.base.errors import MissingResourceError

if TYPE_CHECKING:
    from retain.launchers.planning.opened_study import OpenedStudy
    from retain.results.analysis.predictors import Correlation
    from retain.results.store.runs import State
    from retain.sweeps.tree.tree import Tree


def probe(
    study: StudyName,
    overrides: Overrides = None,
    share: Annotated[float, typer.Option(help="Of the fine-tuning budget: the length of the short ones.")] = 0.02,
    train: Annotated[bool, typer.Option("--train", help="Also train what is missing up to θ_post.")] = False,
    store: StorePath = RUNS,
    as_json: AsJson = False,
) -> int:
    """Predict retention at θ_post without Stage 3, and say how well each predictor ranks the true L_ret."""
    from retain.launchers.cli.progress import reporting
    from retain.launchers.cli.views import print_failures, print_json
    from retain.launchers.planning.opened_study import open_study, prepare_study
    from retain.launchers.retention_probe import predictions, short_probes
    from retain.results.analysis.predictors import correlations, predictors_document, save_predictors

    if train:
        with reporting() as report:
            opened = prepare_study(study, overrides or (), store, report)
    else:
        opened = open_study(study, overrides or (), store)
    probes = short_probes(opened, share, train)
    try:
        states = _train_short(opened, probes.tree)
        found = predictions(opened, probes, lambda line: print(line, file=sys.stderr, flush=True))
    except KeyboardInterrupt:
        print(f"interrupted: what is done is kept; retain probe {study} goes on from there", file=sys.stderr)
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
    if print_failures(probes.tree, states):
        return SOME_RUN_FAILED
    return MissingResourceError.exit_code if probes.lacks_weights else 0


def _train_short(opened: "OpenedStudy", tree: "Tree") -> Mapping[str, "State"]:
    """Train what of the short fine-tunings is missing, with progress; their last states."""
    from rich.console import Console

    from retain.launchers.cli.progress import watching
    from retain.launchers.local.launcher import local_slots, train
    from retain.launchers.planning.register import register
    from retain.results.store.garbage import check_starts

    states = opened.store.states(tree.stages)
    if all(state.state == "done" for state in states.values()):
        return states
    check_starts(opened.store, tree.stages, states)
    register(tree, opened.file, opened.facts, opened.store)
    with watching(tree, Console(stderr=True, markup=False)) as watch:
        return train(tree, opened.store, local_slots(opened.file.study.execution), watch)


def _print(document: Mapping[str, Any], scores: Sequence["Correlation"], place: Path | None) -> None:
    from rich.console import Console
    from rich.table import Table

    from retain.results.analysis.predictors import PREDICTORS
    from retain.sweeps.tree.tree import axes_label

    console = Console(markup=False)
    console = console if console.is_terminal else Console(width=240, markup=False)
    table = Table(box=None, pad_edge=False, header_style="bold")
    for name in ("within", "predictor", "rank correlation with L_ret", "95%", "trials", "θ_post"):
        table.add_column(name, justify="left" if name in ("within", "predictor") else "right")
    for score in scores:
        interval = "" if score.low is None else f"{score.low:+.2f} to {score.high:+.2f}"
        value = "" if score.correlation is None else f"{score.correlation:+.3f}"
        counts = (str(score.trials), str(score.starts))
        table.add_row(axes_label(dict(score.within)), PREDICTORS[score.predictor], value, interval, *counts)
    trials = document["trials"]
    known = sum(trial["retained_posttraining_loss"] is not None for trial in trials)
    if trials:
        console.print(table)
    console.print(
        f"{len(trials):,} trials probed with {document['share']:.1%} of the fine-tuning budget, "
        f"{known:,} of them with a true L_ret to compare with; no correlation where there are too few or no differences",
        highlight=False,
        soft_wrap=True,
    )
    if place is not None:
        console.print(str(place), highlight=False, soft_wrap=True)
