"""The table of what each axis changes: the units of its differences, and which of them are good."""

from pathlib import Path
from typing import Any

from retain.launchers.cli.views.report import report_document
from retain.launchers.study_report import StudyReport
from retain.results.analysis.axis_effects import axis_effects
from retain.results.report.recipes import axis_table
from retain.results.store.loss_table import Row
from retain.sweeps.schema.section import LOSSES


def trials(values: list[Any], metric: str = "arc_easy/acc") -> list[Row]:
    """Two seeds at each value of an axis; loss and metric rise with the place of the value."""
    return [
        {"axes": {"adapt.corpus": value, "seed": seed}, "keys": {}, **dict.fromkeys(LOSSES), "tokens": 1}
        | {"losses": {"adapt": {"general": 3.0 + place}}, "measures": {"adapt": {metric: 0.5 + place / 10}}}
        for place, value in enumerate(values)
        for seed in (0, 1)
    ]


def test_a_metric_has_a_unit_of_its_own_and_may_be_better_when_it_rises() -> None:
    table = axis_table(axis_effects(trials(["a", "b"])), ["adapt/arc_easy/acc"], "nats per token")
    marks = {row[3].text: row[5].mark for row in table.rows}
    assert marks == {"adapt/general": "bad", "adapt/arc_easy/acc": "good"}
    assert not [title for title in table.columns if "nats" in title]
    assert table.caption.endswith(", in nats per token; those of STAGE/NAME/METRIC in the unit of the metric")


def test_passwords_in_the_values_of_an_axis_are_hidden(tmp_path: Path) -> None:
    rows = trials([{"files": f"https://me:secret@host/{name}.jsonl"} for name in "ab"])
    document = report_document(StudyReport("study", tmp_path / "report.html", rows, [], [], []))
    table = axis_table(axis_effects(rows), [], "nats per token")
    assert len(document["axes"]) == len(table.rows) == 2
    assert "secret" not in repr(document["axes"]) + repr(table)


def test_no_cell_is_blank_where_a_value_is_an_empty_mapping() -> None:
    table = axis_table(axis_effects(trials([{}, {"general": {"share": 0.2}}])), [], "nats per token")
    assert {(row[1].text, row[2].text) for row in table.rows} == {("general share 0.2", "none")}
