"""`retain report`: one self-contained HTML page about a study, from complete or partial results."""

import html
import re
from collections.abc import Sequence
from pathlib import Path

from retain.results.analysis.loss_planes import L_RET
from retain.results.claims.judging import Verdict
from retain.results.figures.style import DrawnFigure, missing_trials
from retain.results.report.cells import DASH, Cell, Rows, Table, table
from retain.results.report.deviations import deviations, summary
from retain.results.report.provenance import Origin, interruptions, provenance_table
from retain.results.report.recipes import recipe_tables
from retain.results.report.search import search_part
from retain.results.report.stages import cost_sentences, stage_table, tree_of
from retain.results.report.study import (
    GENERAL_QUESTION,
    budgets,
    corpora,
    loss_table,
    overview,
    parameter_count,
    question,
)
from retain.results.store.loss_table import Row
from retain.results.store.runs import Store
from retain.results.store.study_files import study_folder
from retain.sweeps.base.files import write_text
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.tree import Tree

FOLDER = Path(__file__).parent
MOST_OPEN_ROWS = 200
"""A loss table with more rows is collapsed."""
MOST_OPEN_STAGES = 60
"""The branches of a tree with more stages are collapsed."""


def write_report(
    file: StudyFile,
    facts: Facts,
    tree: Tree,
    store: Store,
    rows: Sequence[Row],
    figures: Sequence[DrawnFigure],
    verdicts: Sequence[Verdict],
    origin: Origin,
    overrides: Sequence[str] = (),
) -> Path:
    """Write report.html into the folder of `study_folder` and return its path."""
    import jinja2

    states = store.states(tree.stages)
    choices = deviations(file, parameter_count(file.study, facts))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.j2").render(
        study=tree.study,
        question=question(file) or [GENERAL_QUESTION],
        partial=_partial_sentences(tree, rows),
        overview=overview(file, facts, rows),
        corpora=corpora(file, facts),
        budgets=budgets(file),
        stages=stage_table(tree, states),
        roots=tree_of(tree, states),
        small=len(tree.stages) <= MOST_OPEN_STAGES,
        cost=cost_sentences(tree),
        verdicts=verdict_table(verdicts),
        figures=[(figure, *inline_svg(figure)) for figure in figures],
        search=search_part(store.root, tree.study),
        recipes=recipe_tables(rows),
        losses=loss_table(file, rows),
        losses_open=len(rows) <= MOST_OPEN_ROWS,
        choices=choices,
        summary=summary(choices),
        file_name=file.path.name,
        file_text=file.path.read_text(encoding="utf-8"),
        making=provenance_table(tree, store, states, origin),
        interruptions=interruptions(states),
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        script=(FOLDER / "script.js").read_text(encoding="utf-8"),
    )
    path = study_folder(store.root, tree.study, overrides) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A row for each verdict: its outcome, and every effect behind it with interval and number of seeds."""
    marks = {"supported": "good", "not supported": "bad"}
    rows: Rows = []
    for verdict in verdicts:
        known = [(label, effect) for label, effect in verdict.evidence if effect.seeds]
        evidence = "\n".join(f"{label}: {effect} ({effect.sample})" for label, effect in known)
        outcome = Cell(verdict.outcome, mark=marks.get(verdict.outcome, "open"))
        rows.append([verdict.claim, outcome, verdict.sentence, evidence or DASH, verdict.note or DASH])
    columns = ("claim", "outcome", "in words", "all effects", "note")
    return table("verdicts", "The paper's claims on these results", columns, rows)


def _partial_sentences(tree: Tree, rows: Sequence[Row]) -> list[str]:
    """The notices at the top of the page; empty if the results are complete."""
    missing = sum(row[L_RET] is None for row in rows)
    notices = ["The data is not prepared: keys are provisional and no stage is trained."] if tree.provisional else []
    return notices + ([f"Partial results: {missing_trials(missing, len(rows))}."] if missing else [])


def inline_svg(figure: DrawnFigure) -> tuple[str, int]:
    """matplotlib's SVG as an element of the page, and the width in CSS pixels at which its text has its intended size.

    Ids get the figure's name as a prefix, because all figures share one page. The metadata, which holds addresses, is removed.
    """
    svg = figure.svg.read_text(encoding="utf-8")
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>", "", element, flags=re.DOTALL)
    element = re.sub(r"<!--.*?-->\s*", "", element, flags=re.DOTALL)
    element = re.sub(r'\bid="', f'id="{figure.name}-', element)
    element = re.sub(r'(href="#|url\(#)', rf"\g<1>{figure.name}-", element)
    opening = element[: element.index(">") + 1]
    size = re.search(r'width="([\d.]+)pt"', opening)
    box = re.search(r'viewBox="[^"]*"', opening)
    assert size is not None, "matplotlib writes the width in points"
    assert box is not None, "matplotlib writes a viewBox"
    label = html.escape(figure.title, quote=True)
    start = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" aria-label="{label}">'
    return start + element[len(opening) :], round(float(size[1]) * 96 / 72)
