"""What `retain run`, `retain results`, `retain probe` and `retain why` print."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.text import Text

from retain.launchers.cli.options import command
from retain.launchers.console import MOST_ROWS, new_table, open_console, print_line
from retain.results.analysis.loss_planes import SYMBOLS
from retain.results.analysis.predictors import FEWEST, FEWEST_STARTS, PREDICTORS
from retain.results.claims.sequential import looks_sentence
from retain.results.report.collect import Failure, Results, missing_results
from retain.results.store.loss_table import loss_at, loss_columns, named_losses
from retain.results.store.state import DAMAGED
from retain.results.store.study_files import POINTS_STUDY, study_folder
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.units import counted, format_size
from retain.sweeps.base.yaml_text import cell
from retain.sweeps.schema.section import PAIR_MEASURES, is_metric, without_value
from retain.sweeps.tree.tree import axes_label


def print_results(results: Results, store: Path, columns: Sequence[str] | None = None) -> None:
    """Print a row for each trial, also of partial results, and the paths of what was written with them.

    columns: the losses to show, as `chosen_columns` finds them; None: those of the paper's four that the chain has, or, if
    that is at most one, all of the matrix.
    """
    rows = results.trials
    four = named_losses(rows)
    named = four if columns is None and len(four) > 1 else ()
    shown = list(columns or named or loss_columns(rows))
    titles = [SYMBOLS.get(name, name) for name in shown]
    table = new_table(*results.axes, *titles, "tokens", left=len(results.axes))
    for row in rows[:MOST_ROWS]:
        losses = ("" if (loss := loss_at(row, name)) is None else f"{loss:.4f}" for name in shown)
        tokens = "" if row["tokens"] is None else format_size(row["tokens"])
        table.add_row(*(cell(row["axes"].get(name, "")) for name in results.axes), *losses, tokens)
    console = open_console()
    console.print(table)
    if any(name in SYMBOLS for name in shown):
        console.print(f"{results.loss_unit}: after post-training (im), and after fine-tuning (ret, ft, pre)")
    if not all(name in SYMBOLS for name in shown):
        console.print(f"{results.loss_unit}: STAGE/CORPUS is the loss after STAGE on CORPUS")
        if any(without_value(name) != name for name in shown):
            console.print("STAGE/CORPUS[VALUE] is the loss on the documents of CORPUS whose field `by` has this VALUE")
        metrics = {name for name in shown if is_metric(name)}
        of_pairs = {name for name in metrics if name.rpartition("/")[2] in PAIR_MEASURES}
        if of_pairs:
            console.print(
                "pairs: STAGE/CORPUS/METRIC is the metric after STAGE on held-out pairs: DPO loss and margin in nats"
            )
        if metrics - of_pairs:
            console.print("metrics of tasks: STAGE/TASK/METRIC is the metric after STAGE on TASK")
        for reason in results.blanks:
            print_line(console, reason)
    if missing := missing_results(rows, results.failures):
        print_line(console, missing)
    if len(rows) > MOST_ROWS:
        tables = [path for path in results.files if path.endswith(".csv")]
        where = f"in {tables[0]}" if tables else "with --csv or --json"
        print_line(console, f"{counted(len(rows) - MOST_ROWS, 'more trial')} {where}")
    for path in results.files:
        print_line(console, path)
    if results.looks:
        print_line(console, looks_sentence(results.looks))
    if (points := study_folder(store, results.study) / POINTS_STUDY).exists():
        print_line(console, f"the points that a search has tried: {command('results', str(points), None, store)}")


def print_failures(failures: Sequence[Failure]) -> None:
    """Print on standard error which stages failed and why, and how many stages they block."""
    console = Console(stderr=True, markup=False)
    for failure in failures:
        print_line(console, failure.sentence)


def print_damage(failed: Sequence[Failure]) -> int:
    """`print_failures` of those that are damaged. Returns the exit code of a verb that has shown the rest."""
    damaged = [failure for failure in failed if failure.state == DAMAGED]
    print_failures(damaged)
    return MissingResourceError.exit_code if damaged else 0


def print_predictors(document: Mapping[str, Any], saved: Path | None) -> None:
    """Print a row for each correlation, the number of trials, and the path of the saved document."""
    console = open_console()
    table = new_table(
        "within", "predictor", "rank correlation with L_ret", "95%", "trials", "post-trained models", left=2
    )
    for row in document["correlations"]:
        interval = "" if row["low"] is None else f"{row['low']:+.2f} to {row['high']:+.2f}"
        value = "" if row["correlation"] is None else f"{row['correlation']:+.3f}"
        counts = (str(row["trials"]), str(row["starts"]))
        table.add_row(axes_label(row["within"]), PREDICTORS[row["predictor"]], value, interval, *counts)
    trials = document["trials"]
    known = sum(trial["retained_posttraining_loss"] is not None for trial in trials)
    if trials:
        console.print(table)
    print_line(
        console,
        f"{counted(len(trials), 'trial')} probed with {document['share'] * 100:.3g}% of the fine-tuning budget, "
        f"{known:,} of them with a true L_ret to compare with; a correlation needs {FEWEST} trials that differ, "
        f"and its interval {FEWEST_STARTS} post-trained models",
    )
    if saved is not None:
        print_line(console, str(saved))


def print_why(document: Mapping[str, Any]) -> None:
    """Print the fields behind a key, and the differences asked for."""
    console = open_console()
    console.print(Text(f"{document['stage']} {document['key']}", style="bold"))
    table = new_table("field", "value", left=2)
    for name, value in document["fields"].items():
        table.add_row(name, cell(value))
    console.print(table)
    other = document["compared_with"]
    if other is None:
        console.print("there is no other run of this stage in the store or the study to compare with")
    elif not document["differences"]:
        console.print(f"{other} is the same stage")
    else:
        table = new_table("field", document["key"][:8], other[:8], left=3)
        for difference in document["differences"]:
            table.add_row(difference["field"], cell(difference["here"]), cell(difference["there"]))
        console.print(f"differs from {other} in", highlight=False)
        console.print(table)
