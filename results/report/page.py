"""`retain report`: one self-contained HTML page about a study, from complete or partial results."""

import html
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from retain.results.analysis.loss_planes import L_RET
from retain.results.claims.judging import Verdict
from retain.results.claims.power import in_words
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


@dataclass(frozen=True)
class Part:
    """What the page says of one study."""

    name: str
    question: list[str]
    overview: Table
    corpora: Table
    budgets: Table
    choices: Table
    summary: str
    """How many choices are those of the paper."""
    file_name: str
    file_text: str


def write_report(
    studies: Sequence[tuple[StudyFile, Facts, Sequence[Row]]],
    tree: Tree,
    store: Store,
    rows: Sequence[Row],
    figures: Sequence[DrawnFigure],
    verdicts: Sequence[Verdict],
    origin: Origin,
    overrides: Sequence[str] = (),
    how_looked: Sequence[str] = (),
) -> Path:
    """Write report.html into the folder of `study_folder` and return its path.

    studies: one study, or several that are reported together, each with its own rows. tree, rows: those of all. how_looked:
    sentences about the looks of a study whose seeds were added until its verdicts were decided.
    """
    import jinja2

    states = store.states(tree.stages)
    parts = [_part(number, *each) for number, each in enumerate(studies)]
    labels = list(dict.fromkeys(name for file, _, _ in studies for name in file.labels))
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(FOLDER),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.j2").render(
        study=tree.study,
        parts=parts,
        partial=_partial_sentences(tree, rows),
        stages=stage_table(tree, states),
        roots=tree_of(tree, states),
        small=len(tree.stages) <= MOST_OPEN_STAGES,
        cost=cost_sentences(tree),
        verdicts=verdict_table(verdicts),
        how_looked=how_looked,
        figures=[(figure, *inline_svg(figure)) for figure in figures],
        search=search_part(store.root, tree.study),
        recipes=recipe_tables(rows),
        losses=loss_table(labels, studies[0][0].study.loss_unit, rows),
        losses_open=len(rows) <= MOST_OPEN_ROWS,
        making=provenance_table(tree, store, states, origin),
        interruptions=interruptions(states),
        style=(FOLDER / "style.css").read_text(encoding="utf-8"),
        script=(FOLDER / "script.js").read_text(encoding="utf-8"),
    )
    path = study_folder(store.root, tree.study, overrides) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _part(number: int, file: StudyFile, facts: Facts, rows: Sequence[Row]) -> Part:
    """One study of the page; the tables of the second and later ones have its number in their ids."""
    choices = deviations(file, parameter_count(file.study, facts))

    def named(made: Table) -> Table:
        return replace(made, name=f"{made.name}-{number + 1}") if number else made

    return Part(
        name=file.study.study,
        question=question(file) or [GENERAL_QUESTION],
        overview=named(overview(file, facts, rows)),
        corpora=named(corpora(file, facts)),
        budgets=named(budgets(file)),
        choices=named(choices),
        summary=summary(choices),
        file_name=file.path.name,
        file_text=file.path.read_text(encoding="utf-8"),
    )


def verdict_table(verdicts: Sequence[Verdict]) -> Table:
    """A row for each verdict: its outcome, its p-values, and every effect behind it with interval and number of seeds."""
    marks = {"supported": "good", "not supported": "bad"}
    rows: Rows = []
    for verdict in verdicts:
        known = [(label, effect) for label, effect in verdict.evidence if effect.seeds]
        evidence = "\n".join(f"{label}: {effect} ({effect.sample})" for label, effect in known)
        outcome = Cell(verdict.outcome, mark=marks.get(verdict.outcome, "open"))
        values = [DASH if math.isnan(p) else Cell(f"{p:.2g}", p) for p in (verdict.p, verdict.adjusted)]
        rows.append(
            [verdict.claim, outcome, in_words(verdict), evidence or DASH, *values, verdict.source, verdict.note or DASH]
        )
    adjusted = f"p, adjusted for {len(verdicts)} verdict{'' if len(verdicts) == 1 else 's'}"
    columns = ("claim", "outcome", "in words", "all effects", "p", adjusted, "in the paper", "note")
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
