"""What a search of the study has found, for the page: as `retain search` has kept it beside the study's other output."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.results.report.cells import DASH, Cell, Rows, Table, loss, table, value_text
from retain.results.store.loss_table import LOSSES
from retain.results.store.study_files import AXIS_OF_POINTS, SUFFIX, SUMMARY, study_folder
from retain.sweeps.base.files import read_json
from retain.sweeps.base.units import format_size


@dataclass(frozen=True)
class SearchPart:
    """Sentences and tables of the section; no table is empty."""

    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    points: Table


def search_part(store: Path, study: str) -> SearchPart | None:
    """Of a study, or of the study of its searched points; None where nothing has been searched."""
    places = [study_folder(store, name) / SUMMARY for name in (study, study.removesuffix(SUFFIX))]
    place = next((place for place in places if place.exists()), None)
    if place is None:
        return None
    document: dict[str, Any] = read_json(place)
    tables = [_recommended(document["recommended"]), _importances(document["importances"])]
    return SearchPart(_sentences(document), tuple(one for one in tables if one.rows), _points(document["points"]))


def _sentences(document: Mapping[str, Any]) -> tuple[str, ...]:
    states = [point["state"] for point in document["points"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states))
    spent = document["spent"]
    saved = max(0, spent["tokens_without_sharing"] - spent["tokens"])
    over = f" ({document['over_budget']} over the budget)" if document.get("over_budget") else ""
    said = [
        f"Minimised: {document['objective']}. {len(states):,} points: {counts}; {document['ended']}.",
        f"Spent: {format_size(spent['tokens'])} tokens in {spent['stages']:,} stages of its own{over}, "
        f"{spent['device_hours']:.3g} device-hours; one run per trial would have trained {format_size(saved)} more.",
    ]
    if bounds := document.get("constraints"):  # older summaries name none
        said.insert(1, f"Constraints: {', '.join(bounds)}.")
    if document["frontier_area"] is not None:
        said.append(
            f"The frontier's area: {document['frontier_area']:.4g} squared nats, up to the worst losses of all points."
        )
    if document["recommended"]:
        said.append("The best of many points is flattered by its seeds; the study confirm.yaml tries it on fresh ones.")
    return tuple(said)


def _recommended(points: Sequence[Mapping[str, Any]]) -> Table:
    rows: Rows = []
    for one in points:
        recipe = "\n".join(f"{path}: {value_text(value)}" for path, value in one["values"].items())
        rows.append([one["point"], recipe, *(_interval(one["losses"][name]) for name in LOSSES)])
    return table("recommended", "Recommended; 95% intervals over seeds", (AXIS_OF_POINTS, "recipe", *_SHORT), rows)


def _importances(axes: Sequence[Mapping[str, Any]]) -> Table:
    rows: Rows = [
        [one["axis"], Cell(f"{one['mean']:.2f}"), Cell(f"{one['low']:.2f} to {one['high']:.2f}")] for one in axes
    ]
    columns = ("axis", "importance", "95% interval")
    return table("importances", "Which axes matter (PED-ANOVA, bootstrap over points)", columns, rows)


def _points(points: Sequence[Mapping[str, Any]]) -> Table:
    names = list({path: None for point in points for path in point["values"]})
    rows: Rows = []
    for point in points:
        values = [_value(point["values"].get(name)) for name in names]
        losses = [loss(point["losses"] and point["losses"][name]) for name in LOSSES]
        rows.append([point["point"], point["state"], *values, *losses, point["reason"] or DASH])
    return table(
        "points", "Searched points: means over seeds", (AXIS_OF_POINTS, "state", *names, *_SHORT, "note"), rows
    )


_SHORT = ("L_im", "L_ret", "L_ft", "L_pre")


def _value(value: Any) -> Cell:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    return Cell(value_text(value), number)


def _interval(one: Mapping[str, Any]) -> Cell:
    if one["low"] is None:
        return Cell(f"{one['mean']:.4f}")
    return Cell(f"{one['mean']:.4f} ({one['low']:.4f} to {one['high']:.4f})")
