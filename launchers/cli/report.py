"""The verb `report`: verdicts, figures and one HTML page. It imports what it needs when it is called."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retain.launchers.cli.options import RUNS, AsJson, Overrides, StorePath, StudyName

if TYPE_CHECKING:
    from retain.results.analysis.effects import Effect
    from retain.results.claims.judging import Verdict
    from retain.results.report.provenance import Origin

PAPER_SCALE = 100_000_000
"""Parameters from which on a study's losses lie on the same axes as the paper's."""


def report(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    overlay: Annotated[
        bool | None,
        typer.Option(
            "--overlay/--no-overlay",
            help="Show the paper's published curves. Without it, where the study is of the paper's scale.",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Verdicts, figures and one HTML page that opens offline; works on partial results."""
    from retain.launchers.console import print_json
    from retain.launchers.planning.opened_study import open_study
    from retain.results.analysis.methods import METHOD_FIELDS, with_fixed
    from retain.results.analysis.recipe_comparison import frontier_contrasts
    from retain.results.claims.verdicts import verdicts
    from retain.results.figures.paper import draw_paper_figures
    from retain.results.figures.theory import theory_figures
    from retain.results.report.page import write_report
    from retain.results.report.study import parameter_count
    from retain.results.store.loss_table import save_rows, trial_rows
    from retain.results.store.runs import make_store
    from retain.sweeps.schema.axes import get_field
    from retain.sweeps.schema.linear import LinearStudy

    opened = open_study(study, overrides or (), store)
    make_store(store)
    tree, file = opened.tree, opened.file
    rows = trial_rows(tree, opened.store)
    save_rows(store, tree.study, rows)
    paper_scale = parameter_count(file.study, opened.facts) >= PAPER_SCALE
    shown = paper_scale if overlay is None else overlay
    if isinstance(file.study, LinearStudy):
        figures, found = theory_figures(store, tree.study, rows), []
    else:
        told = with_fixed(rows, {path: get_field(file.study, path) for path in METHOD_FIELDS})
        figures = draw_paper_figures(store, tree.study, told, shown, paper_scale)
        found = verdicts(told, matched=file.study.allocation == "matched")
    origin = _origin(study, overrides or ())
    page = write_report(file, opened.facts, tree, opened.store, rows, figures, found, origin)
    if as_json:
        missing = sum(row["retained_posttraining_loss"] is None for row in rows)
        print_json(
            {
                "study": tree.study,
                "report": str(page),
                "trials": len(rows),
                "missing": missing,
                "figures": [
                    {"name": one.name, "caption": one.caption, "png": str(one.png), "svg": str(one.svg)}
                    | {"data": str(one.data), "trials": one.trials, "missing": one.missing}
                    for one in figures
                ],
                "verdicts": [_verdict_document(verdict) for verdict in found],
                "recipes": [
                    {"plane": one.plane.name, "other": one.other, "checkpoints": one.checkpoints}
                    | {"hypervolume_gain": _effect_document(one.gain), "gap": _effect_document(one.gap)}
                    for one in frontier_contrasts(rows)
                ],
            }
        )
    else:
        print(page)


def _verdict_document(verdict: "Verdict") -> dict[str, Any]:
    effects = [{"label": label} | _effect_document(effect) for label, effect in verdict.evidence]
    names = ("claim", "sentence", "outcome", "note")
    return {name: getattr(verdict, name) for name in names} | {"effects": effects}


def _effect_document(effect: "Effect") -> dict[str, Any]:
    """An effect without NaN, which JSON has no word for."""
    import math

    numbers = {name: getattr(effect, name) for name in ("mean", "low", "high")}
    return {"seeds": effect.seeds} | {name: value if math.isfinite(value) else None for name, value in numbers.items()}


def _origin(study: str, overrides: Sequence[str]) -> "Origin":
    """The command, versions, commit and kind of machine of this page."""
    import importlib.metadata
    import os
    import platform
    import shlex
    import time

    from retain.launchers.planning.register import PACKAGES
    from retain.results.report.provenance import Origin

    versions = {name: importlib.metadata.version(name) for name in (*PACKAGES, "matplotlib")}
    versions["python"] = platform.python_version()
    machine = f"{platform.system()} on {platform.machine()}, {os.cpu_count()} CPU cores"
    return Origin(shlex.join([study, *overrides]), versions, _commit(), machine, time.time())


def _commit() -> str | None:
    """The git commit of this code and whether it was changed since; None where it lies in no repository of its own."""
    import subprocess

    root = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(root), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True, timeout=20).stdout.strip()

    try:
        if Path(git("rev-parse", "--show-toplevel")) != root:
            return None
        changed = git("status", "--porcelain", "--untracked-files=no")
        return f"commit {git('rev-parse', 'HEAD')}{', with changes that are not committed' if changed else ''}"
    except (OSError, subprocess.SubprocessError):
        return None
