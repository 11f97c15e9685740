"""What a search has found: the recommended recipes beside the best of the study's own grid, and a study that confirms them."""

from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.prepare import known_facts
from retain.launchers.search.derived_studies import Fields, SearchedStudy, fresh_seeds, write_confirmation
from retain.launchers.search.engine import Search
from retain.results.analysis.axes import SEEDS
from retain.results.analysis.recipe_comparison import ON_FRONTIER, RECOMMENDED
from retain.results.analysis.search_summary import (
    Result,
    best_group,
    frontier_area,
    importances,
    recommended,
    result_of,
)
from retain.results.store.loss_table import Row, trial_rows
from retain.results.store.study_files import POINTS_STUDY, SUMMARY
from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.files import write_json
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.search_space import Values
from retain.sweeps.tree.tree import expand, plain_value


def conclude(search: Search, searched: SearchedStudy) -> dict[str, Any]:
    """Keep the summary of a finished search and the study that confirms it; the document of `retain search --json`."""
    document = summary_document(search, searched)
    write_json(searched.folder / SUMMARY, document)
    return document


def summary_document(search: Search, searched: SearchedStudy) -> dict[str, Any]:
    """The document of `retain search --json`; also writes the study that confirms what is recommended."""
    states, results = search.states(), search.results()
    found = recommended(searched.search, results)
    spent = search.spent()
    points_study = searched.folder / POINTS_STUDY
    by_label = {result.label: result for result in results}
    points = [
        {
            "point": one.point.label,
            "state": search.state_of(one, states),
            "values": one.point.values,
            "by": one.point.by,
        }
        | {"losses": by_label[one.point.label].means if one.point.label in by_label else None}
        | {"reason": search.reason_of(one, states)}
        for one in search.candidates
    ]
    return {
        "study": searched.name,
        "objective": str(searched.search.block.objective),
        "constraints": [f"{name} {bound}" for name, bound in searched.search.block.constraints.items()],
        "points": points,
        "recommended": [_recommendation(one) for one in found],
        "frontier_area": frontier_area(searched.search, results),
        "importances": [asdict(one) for one in importances(searched.search, results)],
        "spent": {"tokens": spent.tokens, "device_hours": spent.hours, "stages": spent.stages}
        | {"tokens_without_sharing": spent.without_sharing},
        "budget": str(search.budget) if search.budget else None,
        "over_budget": search.budget.excess(spent) if search.budget else None,
        "ended": search.exhausted or f"at most {searched.search.block.trials:,} were asked for",
        "points_study": str(points_study) if points_study.exists() else None,
        "confirm": str(_confirm(searched, found)) if found else None,
    }


def _recommendation(one: Result) -> dict[str, Any]:
    losses = {name: asdict(estimate) for name, estimate in one.losses.items()}
    return {"point": one.label, "values": one.values, "losses": losses}


def _confirm(searched: SearchedStudy, found: Sequence[Result]) -> Path:
    names = [RECOMMENDED] if len(found) == 1 else [f"{ON_FRONTIER}{number}" for number in range(len(found))]
    recipes: dict[str, Values] = {name: one.values for name, one in zip(names, found, strict=True)}
    return write_confirmation(searched, recipes, fresh_seeds(searched), grid_best(searched))


def grid_best(searched: SearchedStudy) -> Values | None:
    """The best point of the study's own grid on the axes before fine-tuning; None if the store lacks a trial of the grid.

    The grid is evaluated on its own seeds or on those of the search: on the more numerous ones if all of it is done on them.
    The best point is the one that the search would recommend: the best mean objective among those that keep the constraints.
    With a frontier as objective, it is the upstream recipe whose fine-tunings dominate the largest area.
    """
    axes = {path: [plain_value(value) for value in values] for path, values in searched.file.axes.items()}
    unseeded = {path: values for path, values in axes.items() if path.rpartition(".")[2] != "seed"}
    if not unseeded:
        return None
    grids = [axes, unseeded | {"seed": searched.search.block.seeds}]
    for grid in sorted(grids, key=lambda grid: -len(grid.get("seed", ()))):
        rows = _rows(searched, searched.base | {"grid": grid})
        results = _results(searched, rows)
        if results:
            upstream = [path for path in unseeded if not path.startswith("finetune.")]
            best = best_group(searched.search, results, upstream)
            return {path: best[0].values[path] for path in upstream if path in best[0].values} if best else None
    return None


def _rows(searched: SearchedStudy, fields: Fields) -> list[Row]:
    """The rows of a grid; none if its data is not prepared, or if it is invalid on these seeds."""
    try:
        file = check_study(fields, searched.file.path)
        tree = expand(file, known_facts(file, searched.store.root))
    except StudyError:
        return []
    return [] if tree.provisional else trial_rows(tree, searched.store)


def _results(searched: SearchedStudy, rows: Sequence[Row]) -> list[Result]:
    """A result for each point of the grid; none at all if one of them lacks a loss."""
    points: dict[str, list[Row]] = {}
    for row in rows:
        points.setdefault(repr(_values(row)), []).append(row)
    found = [result_of(label, _values(group[0]), group, searched.search) for label, group in points.items()]
    return [] if None in found else [one for one in found if one is not None]


def _values(row: Row) -> dict[str, Any]:
    return {path: value for path, value in row["axes"].items() if path not in SEEDS}
