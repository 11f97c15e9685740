"""`retain report`: verdicts, figures and one page of a study, or of several studies of a store that are judged together."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from retain.launchers.planning.key_report import tell_edit
from retain.launchers.planning.opened_study import OpenedStudy, open_study
from retain.results.analysis.methods import has_claims
from retain.results.claims.judging import Verdict
from retain.results.claims.sequential import looks_in_words, verdicts_at_looks
from retain.results.figures.overlap.retention import overlap_figures
from retain.results.figures.paper import draw_paper_figures
from retain.results.figures.planes import draw_planes, named_planes
from retain.results.figures.sisters.drawn import draw_sister_figures
from retain.results.figures.style import DrawnFigure
from retain.results.figures.theory import theory_figures
from retain.results.report.collect import Failure, failures, readable_rows
from retain.results.report.page import write_report
from retain.results.report.provenance import Origin
from retain.results.report.study import parameter_count
from retain.results.report.together import common_looks, pooled_rows
from retain.results.store.loss_table import Row
from retain.results.store.runs import make_store
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.tree.evaluation_runs import asked_columns
from retain.sweeps.tree.merged import merged
from retain.sweeps.tree.tree import Tree

PAPER_SCALE = 100_000_000
"""Parameters from which on a study's losses lie on the same axes as the paper's."""


@dataclass(frozen=True)
class StudyReport:
    """What was written and found."""

    study: str
    """The names of the studies, joined by +."""
    page: Path
    rows: Sequence[Row]
    """The trials; those of several studies have an axis that tells the studies apart."""
    figures: Sequence[DrawnFigure]
    verdicts: Sequence[Verdict]
    failures: Sequence[Failure]
    """The stages that failed, were cancelled or are damaged."""


def report_studies(
    names: Sequence[str],
    overrides: Sequence[str],
    store: Path,
    origin: Origin,
    overlay: bool | None = None,
    planes: Sequence[str] = (),
) -> StudyReport:
    """Judge studies, draw their figures, and write their page, also from partial results.

    origin: what makes the page. overlay: whether to show the paper's published curves; None: if the model is of its scale.
    planes: further planes to draw frontiers in, each as `Y,X`. Raises StudyError for studies that cannot be judged together.
    """
    opened = [open_study(name, overrides, store) for name in names]
    make_store(store)
    tree = merged([one.tree for one in opened])
    read = [readable_rows(one.tree, one.store) for one in opened]
    own, states = [rows for rows, _ in read], {key: state for _, known in read for key, state in known.items()}
    drawn_planes = named_planes(planes, [row for rows in own for row in rows])
    if isinstance(opened[0].file.study, LinearStudy) and len(opened) == 1:
        rows = labelled = own[0]
        figures, verdicts, about_looks = (
            theory_figures(store, tree.study, rows, overrides),
            list[Verdict](),
            list[str](),
        )
    else:
        labelled = pooled_rows([one.file for one in opened], own)
        rows = own[0] if len(opened) == 1 else labelled
        figures = _figures(opened[0], tree, store, rows, labelled, overlay, overrides)
        verdicts, about_looks = _verdicts(opened, store, labelled)
    higher = {name for one in opened for name, is_higher in asked_columns(one.tree).items() if is_higher}
    figures += draw_planes(store, tree.study, labelled, drawn_planes, higher, overrides)
    parts = [(one.file, one.facts, each) for one, each in zip(opened, own, strict=True)]
    notes = [f"{note}." for one in opened if (note := tell_edit(one, overrides))]
    page = write_report(
        parts, tree, opened[0].store, rows, figures, verdicts, origin, overrides, about_looks, states, notes
    )
    return StudyReport(tree.study, page, rows, figures, verdicts, failures(tree, states))


def _figures(
    first: OpenedStudy,
    tree: Tree,
    store: Path,
    rows: Sequence[Row],
    labelled: Sequence[Row],
    overlay: bool | None,
    overrides: Sequence[str],
) -> list[DrawnFigure]:
    """The figures of studies of language models. labelled: the rows with their methods, by which studies are pooled."""
    assert not isinstance(first.file.study, LinearStudy), "pooled_rows refuses linear studies"
    paper_scale = parameter_count(first.file.study, first.facts) >= PAPER_SCALE
    shown = paper_scale if overlay is None else overlay
    return [
        *draw_paper_figures(store, tree.study, labelled, shown, paper_scale, overrides),
        *draw_sister_figures(store, tree.study, labelled, overrides),
        *overlap_figures(store, tree, rows, overrides),
    ]


def _verdicts(opened: Sequence[OpenedStudy], store: Path, labelled: Sequence[Row]) -> tuple[list[Verdict], list[str]]:
    """The verdicts on studies of language models, and sentences about the looks at them."""
    design = opened[0].file.study
    looks = common_looks([one.file for one in opened], store)
    found = verdicts_at_looks(labelled, design.allocation == "matched", looks) if has_claims(design) else []
    return found, looks_in_words(looks) if looks else []
