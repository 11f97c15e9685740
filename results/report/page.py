"""`retain report`: one self-contained HTML page about a study, from complete or partial results."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from retain.results.analysis.axes import seed_of
from retain.results.analysis.axis_effects import axis_effects
from retain.results.claims.judging import Verdict
from retain.results.figures.curves import draw_curves
from retain.results.figures.style import DrawnFigure
from retain.results.report.cells import Table
from retain.results.report.collect import failures, missing_results
from retain.results.report.deviations import deviations, every_field, is_of_paper, summary
from retain.results.report.forest import forest
from retain.results.report.headline import MOST_OPEN, answer, facts, kept_groups, run_names
from retain.results.report.provenance import Origin, interruptions, provenance_table
from retain.results.report.recipes import axis_table, recipe_tables
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
from retain.results.store.loss_table import Row, named_losses
from retain.results.store.runs import Store
from retain.results.store.state import DAMAGED, State
from retain.results.store.study_files import study_folder
from retain.sweeps.base.files import write_text
from retain.sweeps.base.redaction import redacted
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.evaluation_runs import asked_columns
from retain.sweeps.tree.tree import Tree

WEB = Path(__file__).parent / "web"
MOST_FAILURES = 3
"""The reasons of more failed and cancelled stages are left to `retain status`."""
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
    """How many choices are those of the paper; empty for a study that is not one of the paper's."""
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
    about_looks: Sequence[str] = (),
    states: Mapping[str, State] | None = None,
    notes: Sequence[str] = (),
) -> Path:
    """Write report.html into the folder of `study_folder` and return its path.

    studies: one study, or several that are reported together, each with its own rows. tree, rows: those of all. about_looks:
    sentences about the looks of a study whose seeds were added until its verdicts were decided. states: of all stages, as
    `readable_rows` finds them; without them, a damaged run raises DamageError. notes: further notices for the top of the page.
    """
    import jinja2

    states = store.states(tree.stages) if states is None else states
    parts = [_part(number, *each) for number, each in enumerate(studies)]
    labels = list(dict.fromkeys(name for file, _, _ in studies for name in file.labels))
    first = studies[0][0]
    linear = isinstance(first.study, LinearStudy)
    unit = "squared loss" if linear else "nats per token"
    kept, effects = kept_groups(rows), axis_effects(rows)
    curves = draw_curves(tree, store, run_names(rows))
    search, recipes = search_part(store.root, tree.study), recipe_tables(rows)
    of_paper = any(part.summary for part in parts)
    asked = asked_columns(tree)
    higher = [name for name, is_higher in asked.items() if is_higher]
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(WEB),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    text = environment.get_template("page.html.j2").render(
        study=tree.study,
        parts=parts,
        partial=[*_partial_sentences(tree, rows, states), *notes],
        sections=_sections(bool(curves.panels), bool(recipes), search is not None, of_paper),
        answer=answer(rows, kept, verdicts, unit, linear, effects),
        facts=facts(rows, verdicts, states),
        kept=kept,
        several_seeds=len({seed_of(row) for row in rows}) > 1,
        most_open=MOST_OPEN,
        unit=unit,
        linear=linear,
        forest=forest(verdicts),
        axis_effects=axis_table(effects, higher, unit),
        figures=figures,
        curves=curves,
        search=search,
        recipes=recipes,
        losses=loss_table(labels, first.study.loss_unit, rows, asked),
        named=named_losses(rows),
        losses_open=len(rows) <= MOST_OPEN_ROWS,
        stages=stage_table(tree, states),
        roots=tree_of(tree, states),
        small=len(tree.stages) <= MOST_OPEN_STAGES,
        cost=cost_sentences(tree),
        of_paper=of_paper,
        about_looks=about_looks,
        making=provenance_table(tree, store, states, origin),
        interruptions=interruptions(states),
        style=(WEB / "style.css").read_text(encoding="utf-8"),
        script=(WEB / "script.js").read_text(encoding="utf-8"),
    )
    path = study_folder(store.root, tree.study, overrides) / "report.html"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
    return path


def _part(number: int, file: StudyFile, known: Facts, rows: Sequence[Row]) -> Part:
    """One study of the page; the tables of the second and later ones have its number in their ids."""
    of_paper = is_of_paper(file.study.study)
    choices = deviations(file, parameter_count(file.study, known)) if of_paper else every_field(file)

    def named(made: Table) -> Table:
        return replace(made, name=f"{made.name}-{number + 1}") if number else made

    return Part(
        name=file.study.study,
        question=question(file) or [GENERAL_QUESTION],
        overview=named(overview(file, known, rows)),
        corpora=named(corpora(file, known)),
        budgets=named(budgets(file)),
        choices=named(choices),
        summary=summary(choices) if of_paper else "",
        file_name=file.path.name,
        file_text=redacted(file.path.read_text(encoding="utf-8")),
    )


def _sections(curves: bool, recipes: bool, search: bool, of_paper: bool) -> list[tuple[str, str]]:
    """The sections of the page, by id and title."""
    return [
        (name, title)
        for name, title, there in (
            ("verdicts", "Effects", True),
            ("figures", "Figures", True),
            ("curves", "Curves", curves),
            ("recipes", "Recipes", recipes),
            ("search", "Search", search),
            ("losses", "Losses", True),
            ("tree", "Tree and cost", True),
            ("study", "Study", True),
            ("choices", "Deviations", of_paper),
            ("making", "Provenance", True),
        )
        if there
    ]


def _partial_sentences(tree: Tree, rows: Sequence[Row], states: Mapping[str, State]) -> list[str]:
    """The notices at the top of the page; empty if the results are complete."""
    failed = failures(tree, states)
    notices = ["The data is not prepared: keys are provisional and no stage is trained."] if tree.provisional else []
    if missing := missing_results(rows, failed):
        notices.append(f"Partial results: {missing}.")
    told = [one for one in failed if one.state != DAMAGED][:MOST_FAILURES]
    return notices + [f"{one.sentence}." for one in failed if one.state == DAMAGED or one in told]
