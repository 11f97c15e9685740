"""The document of a finished search: every point, the recommended recipes, and a study that confirms them."""

from dataclasses import asdict
from typing import Any

from retain.datamodules.corpora.known import known_facts
from retain.launchers.search.derived_studies import SearchedStudy, write_confirmation
from retain.launchers.search.engine import Search
from retain.results.analysis.axes import grouped, is_seed
from retain.results.analysis.recipe_comparison import ON_FRONTIER, RECOMMENDED
from retain.results.analysis.search_summary import best_group, frontier_area, importances, recommended, result_of
from retain.results.store.loss_table import Row, stages_after_posttraining, trial_rows
from retain.results.store.study_files import POINTS_STUDY
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.search_space import SearchSpace, Values
from retain.sweeps.tree.tree import expand, plain_value


def summary_document(search: Search) -> dict[str, Any]:
    """The document of `retain search --json`; also writes the study that confirms what it recommends."""
    search.read_states()
    searched, space, results, spent = search.searched, search.space, search.results(), search.spent()
    points_study = searched.folder / POINTS_STUDY
    means = {result.label: result.means for result in results}
    found = recommended(space, results)
    names = [RECOMMENDED] if len(found) == 1 else [f"{ON_FRONTIER}{number}" for number in range(len(found))]
    recipes: dict[str, Values] = {name: one.values for name, one in zip(names, found, strict=True)}
    return {
        "study": searched.name,
        "objective": str(space.block.objective),
        "maximised": maximised(space),
        "constraints": [f"{name} {bound}" for name, bound in space.block.constraints.items()],
        "points": [
            {
                "point": one.point.label,
                "state": search.state_of(one),
                "values": one.point.values,
                "by": one.point.by,
                "losses": means.get(one.point.label),
                "reason": search.reason_of(one),
            }
            for one in search.candidates
        ],
        "recommended": [
            {
                "point": one.label,
                "values": one.values,
                "losses": {name: asdict(estimate) for name, estimate in one.losses.items()},
            }
            for one in found
        ],
        "frontier_area": frontier_area(space, results),
        "importances": [asdict(one) for one in importances(space, results)],
        "spent": {
            "tokens": spent.tokens,
            "device_hours": spent.hours,
            "stages": spent.stages,
            "tokens_without_sharing": spent.without_sharing,
        },
        "budget": str(search.budget) if search.budget else None,
        "over_budget": search.budget.excess(spent) if search.budget else None,
        "ended": search.exhausted or f"at most {space.block.trials:,} were asked for",
        "points_study": str(points_study) if points_study.exists() else None,
        "confirm": str(write_confirmation(searched, recipes, grid_best(searched))) if found else None,
    }


def maximised(space: SearchSpace) -> list[str]:
    """The metrics of the objective for which higher is better; none if the objective is a sum, whose weights have signs."""
    objective = space.block.objective
    return [] if objective.weighted else [name for name in objective.losses() if name in space.higher]


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
    later = stages_after_posttraining(searched.file.study.stages)
    upstream = [path for path in unseeded if path.partition(".")[0] not in later]
    grids = [axes, unseeded | {"seed": searched.space.block.seeds}]
    for grid in sorted(grids, key=lambda grid: -len(grid.get("seed", ()))):
        points = grouped(_rows(searched, grid), lambda row: repr(_values(row)))
        results = [result_of(label, _values(rows[0]), rows, searched.space) for label, rows in points.items()]
        done = [one for one in results if one is not None]
        if done and len(done) == len(results):
            best = best_group(searched.space, done, upstream)
            return {path: best[0].values[path] for path in upstream if path in best[0].values} if best else None
    return None


def _rows(searched: SearchedStudy, grid: Values) -> list[Row]:
    """The rows of a grid; none if its data is not prepared, or if the study is invalid on these seeds."""
    try:
        file = check_study(searched.base | {"grid": grid}, searched.file.path)
        tree = expand(file, known_facts(file, searched.store.root))
    except StudyError:
        return []
    return [] if tree.provisional else trial_rows(tree, searched.store)


def _values(row: Row) -> Values:
    return {path: value for path, value in row["axes"].items() if not is_seed(path)}
