"""The section about a search, from the summary that `retain search` saves beside the study's other output."""

import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from retain.results.analysis.loss_planes import SYMBOLS
from retain.results.report.cells import DASH, Rows, Table, loss_cell, table, value_cell, value_text
from retain.results.store.study_files import AXIS_OF_POINTS, SUFFIX, SUMMARY, read_summary, study_folder
from retain.sweeps.base.units import counted, format_size
from retain.sweeps.schema.section import LOSSES


@dataclass(frozen=True)
class SearchPart:
    """The sentences and tables of the section; no table is empty."""

    sentences: tuple[str, ...]
    tables: tuple[Table, ...]
    points: Table


def search_part(store: Path, study: str) -> SearchPart | None:
    """The section for a study or for the study of its searched points; None if nothing has been searched."""
    summaries = [study_folder(store, name) / SUMMARY for name in (study, study.removesuffix(SUFFIX))]
    summary = next((path for path in summaries if os.path.lexists(path)), None)
    if summary is None:
        return None
    return describe_search(read_summary(summary))


def describe_search(document: Mapping[str, Any]) -> SearchPart:
    """A search in words and tables, from its summary."""
    tables = [_recommended(document["recommended"]), _importances(document["importances"])]
    return SearchPart(
        tuple(_sentences(document)), tuple(one for one in tables if one.rows), _points(document["points"])
    )


def _sentences(document: Mapping[str, Any]) -> Iterator[str]:
    states = [point["state"] for point in document["points"]]
    counts = ", ".join(f"{states.count(state)} {state}" for state in dict.fromkeys(states)) or "none"
    yield f"{_aim(document)}. {counted(len(states), 'point')}: {counts}; {document['ended']}."
    if bounds := document.get("constraints"):  # older summaries do not have the field
        yield f"Constraints: {', '.join(bounds)}."
    spent = document["spent"]
    saved = max(0, spent["tokens_without_sharing"] - spent["tokens"])
    budget = f", of a budget of {document['budget']}" if document.get("budget") else ""
    over = f" ({document['over_budget']} over the budget)" if document.get("over_budget") else ""
    yield (
        f"Spent: {format_size(spent['tokens'])} tokens in {spent['stages']:,} stages of its own{budget}{over}, "
        f"{spent['device_hours']:.3g} device-hours; one run per trial would have trained {format_size(saved)} more."
    )
    if document["frontier_area"] is not None:
        unit = "" if document.get("maximised") else " squared nats"
        yield f"The frontier's area: {document['frontier_area']:.4g}{unit}, up to the worst losses of all points."
    if found := document["recommended"]:
        seeds = next(iter(found[0]["losses"].values()))["seeds"]
        yield (
            f"Losses are means over {seeds} seeds."
            if seeds > 1
            else "Losses are from one seed, so they have no intervals."
        )
        yield "The best of many points is optimistically biased; the study confirm.yaml tests it on fresh seeds."
    elif "done" in states:
        yield "No finished point satisfies the constraints; relax them, or try more points."
    else:
        yield "No point has finished."
    if not document["importances"]:
        yield "There are too few points to estimate the importance of the axes."


def _aim(document: Mapping[str, Any]) -> str:
    """`Minimised: finetune/music`. Of a frontier it says which of its two is maximised."""
    maximised = document.get("maximised", [])  # older summaries do not have the field
    if maximised == [document["objective"]]:
        return f"Maximised: {document['objective']}"
    higher = f" ({' and '.join(maximised)} maximised)" if maximised else ""
    return f"Minimised: {document['objective']}{higher}"


def _recommended(points: Sequence[Mapping[str, Any]]) -> Table:
    rows: Rows = []
    measured = _names(one["losses"] for one in points)
    for one in points:
        recipe = "\n".join(f"{path}: {value_text(value)}" for path, value in one["values"].items())
        rows.append([one["point"], recipe, *(_interval(one["losses"].get(name)) for name in measured)])
    columns = (AXIS_OF_POINTS, "recipe", *(SYMBOLS.get(name, name) for name in measured))
    several = any(loss["low"] is not None for one in points for loss in one["losses"].values())
    caption = "Recommended; 95% intervals over seeds" if several else "Recommended"
    return table("recommended", caption, columns, rows)


def _importances(axes: Sequence[Mapping[str, Any]]) -> Table:
    rows: Rows = [[one["axis"], f"{one['mean']:.2f}", f"{one['low']:.2f} to {one['high']:.2f}"] for one in axes]
    columns = ("axis", "importance", "95% interval")
    return table("importances", "Which axes matter (PED-ANOVA, bootstrap over points)", columns, rows)


def _points(points: Sequence[Mapping[str, Any]]) -> Table:
    names = list({path: None for point in points for path in point["values"]})
    measured = _names(point["losses"] or {} for point in points)
    rows: Rows = []
    for point in points:
        values = [value_cell(point["values"].get(name)) for name in names]
        losses = [loss_cell((point["losses"] or {}).get(name)) for name in measured]
        rows.append([point["point"], point["state"], *values, *losses, point["reason"] or DASH])
    columns = (AXIS_OF_POINTS, "state", *names, *(SYMBOLS.get(name, name) for name in measured), "note")
    return table("points", "Searched points: means over seeds", columns, rows)


def _names(losses: Iterable[Mapping[str, Any]]) -> list[str]:
    """The losses that any point has, the paper's four first."""
    found = dict.fromkeys(name for one in losses for name in one)
    return [*(name for name in LOSSES if name in found), *(name for name in found if name not in LOSSES)]


def _interval(one: Mapping[str, Any] | None) -> str:
    if one is None:
        return DASH
    interval = "" if one["low"] is None else f" ({one['low']:.4f} to {one['high']:.4f})"
    return f"{one['mean']:.4f}{interval}"
