"""The best point of the study's own grid, where the store has all of it: what a searched recipe has to beat."""

from collections.abc import Sequence
from typing import Any

from retain.datamodules.corpora.prepare import known_facts
from retain.launchers.search.derived_studies import Fields, SearchedStudy
from retain.results.analysis.axes import SEEDS
from retain.results.analysis.search_summary import Result, best_group, result_of
from retain.results.store.loss_table import Row, trial_rows
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.search_space import Values
from retain.sweeps.tree.tree import expand, plain


def grid_best(searched: SearchedStudy) -> Values | None:
    """The values of that point on the grid's axes before fine-tuning; None where the store lacks a trial of the grid.

    The grid is taken on its own seeds or on the search's: on the more numerous ones, if all of it is done on them, as they
    tell more. The point is the one that the search would recommend of the grid's: the best mean of the objective among those
    that keep the constraints. Of a frontier it is the upstream recipe whose fine-tunings dominate the largest area.
    """
    axes = {path: [plain(value) for value in values] for path, values in searched.file.axes.items()}
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
    """Of a grid; none where its data is not prepared, or where it makes no sense on these seeds."""
    try:
        file = check_study(fields, searched.file.path)
        tree = expand(file, known_facts(file, searched.store.root))
    except StudyError:
        return []
    return [] if tree.provisional else trial_rows(tree, searched.store)


def _results(searched: SearchedStudy, rows: Sequence[Row]) -> list[Result]:
    """A result for each point of the grid; none at all where one of them lacks a loss."""
    points: dict[str, list[Row]] = {}
    for row in rows:
        points.setdefault(repr(_values(row)), []).append(row)
    found = [result_of(label, _values(group[0]), group, searched.search) for label, group in points.items()]
    return [] if None in found else [one for one in found if one is not None]


def _values(row: Row) -> dict[str, Any]:
    return {path: value for path, value in row["axes"].items() if path not in SEEDS}
