"""A recommended recipe compared with others on fresh seeds; rows of methods stand in for rows of recipes."""

import re
from pathlib import Path

import pytest

from retain.results.analysis.recipe_comparison import frontier_contrasts, loss_contrasts
from retain.results.report.page import write_report
from retain.results.report.provenance import Origin
from retain.results.report.recipes import recipe_tables
from retain.results.store.loss_table import Row
from retain.results.store.runs import Store
from retain.sweeps.schema.read import read_study
from retain.sweeps.schema.section import LOSSES
from retain.sweeps.tree.tree import expand
from tests.results.made_rows import GAIN, POSTTRAIN_RATES, method_rows
from tests.studies import made_up_facts, tiny_study

NAMES = {"mixed": "recommended", "mixed+lora": "grid-best", "unmixed": "default"}
"""From the best to the worst."""


def recipe_rows(*names: str, seeds: tuple[int, ...] = (0, 1, 2), unfinished: int = 0) -> list[Row]:
    """Recipes at one post-training rate and four fine-tuning rates."""
    rows = method_rows([None], [method for method, name in NAMES.items() if name in names], seeds, unfinished)
    kept = []
    for row in rows:
        if row["axes"]["posttrain.lr"] == POSTTRAIN_RATES[0]:
            axes = dict(row["axes"])
            kept.append(row | {"axes": {"recipe": NAMES[axes.pop("method")]} | axes})
    return kept


def test_the_recommended_frontier_is_compared_with_every_other_one_in_both_planes() -> None:
    found = frontier_contrasts(recipe_rows("recommended", "grid-best", "default"))
    assert [(one.plane.name, one.other) for one in found] == [
        ("(L_ret, L_ft)", "grid-best"),
        ("(L_ret, L_ft)", "default"),
        ("(L_pre, L_ret)", "grid-best"),
        ("(L_pre, L_ret)", "default"),
    ]
    by_name = {(one.plane.name, one.other): one for one in found}
    for one in found:
        assert one.gain.seeds == 3
        assert one.gain.low < one.gain.mean < one.gain.high
        assert one.checkpoints == (4, 4)
    better = by_name["(L_ret, L_ft)", "default"]
    assert better.gain.low > 0
    assert better.gap.high < 0
    # The rows are made so that the method's gain lowers L_ret at about the same L_ft.
    assert better.gap.mean == pytest.approx(-GAIN["mixed"], rel=0.6)
    assert better.gain.mean > by_name["(L_ret, L_ft)", "grid-best"].gain.mean


def test_losses_are_compared_over_the_same_fine_tunings() -> None:
    rows = recipe_rows("recommended", "default")
    differences = {one.loss: one.difference for one in loss_contrasts(rows)}
    assert list(differences) == list(LOSSES)
    retained = differences["retained_posttraining_loss"]
    assert retained.mean == pytest.approx(-GAIN["mixed"], abs=0.02)
    assert retained.high < 0
    # A row without a counterpart is left out of both recipes.
    for row in rows:
        if row["axes"]["recipe"] == "default" and row["axes"]["finetune.lr"] == 1e-3:
            row["retained_posttraining_loss"] = None
    again = {one.loss: one.difference for one in loss_contrasts(rows)}["retained_posttraining_loss"]
    assert again.mean == pytest.approx(retained.mean, abs=0.02)
    assert [one.checkpoints for one in frontier_contrasts(rows)] == [(3, 3), (3, 3)]


def test_each_recipe_of_a_recommended_frontier_is_compared_with_as_many_checkpoints_and_all_together() -> None:
    """A user has to choose one of them: pooled, their frontier is better by the number of its checkpoints alone."""
    rows = recipe_rows("recommended", "grid-best", "default")
    for row in rows:
        names = {"recommended": "frontier-0", "grid-best": "frontier-1"}
        row["axes"]["recipe"] = names.get(row["axes"]["recipe"], "default")
    first, second, whole = found = frontier_contrasts(rows)[:3]
    assert [(one.recipe, one.other, one.checkpoints) for one in found] == [
        ("frontier-0", "default", (4, 4)),
        ("frontier-1", "default", (4, 4)),
        ("whole frontier", "default", (8, 4)),
    ]
    assert first.gain.mean > second.gain.mean
    assert whole.gain.mean >= first.gain.mean
    assert [(one.recipe, one.other) for one in loss_contrasts(rows)[:2]] == [
        ("frontier-0", "default"),
        ("frontier-1", "default"),
    ]
    frontiers, losses = recipe_tables(rows)
    assert [[cell.text for cell in row[:3]] for row in (frontiers.rows[0], losses.rows[0])] == [
        ["(L_ret, L_ft)", "frontier-0", "default"],
        ["L_im", "frontier-0", "default"],
    ]


def test_without_recipes_or_before_training_there_are_no_tables() -> None:
    assert recipe_tables(method_rows([None], ["mixed", "unmixed"], (0, 1))) == ()
    assert recipe_tables(recipe_rows("default")) == ()
    assert recipe_tables([]) == ()
    rows = recipe_rows("recommended", "default", seeds=(0, 1))
    for row in rows:
        row |= dict.fromkeys(LOSSES)
    assert recipe_tables(rows) == ()


def test_the_report_shows_effects_with_intervals_and_marks_certain_ones() -> None:
    frontiers, losses = recipe_tables(recipe_rows("recommended", "default"))
    assert [row[0].text for row in frontiers.rows] == ["(L_ret, L_ft)", "(L_pre, L_ret)"]
    assert {(row[1].text, row[2].text) for row in (*frontiers.rows, *losses.rows)} == {("recommended", "default")}
    assert re.fullmatch(r"\+0\.\d+ \(\+0\.\d+ to \+0\.\d+\)", frontiers.rows[0][3].text)
    assert [cell.mark for cell in frontiers.rows[0][3:5]] == ["good", "good"]
    assert frontiers.rows[0][6].text == "4 and 4"
    assert [row[0].text for row in losses.rows] == ["L_im", "L_ret", "L_ft", "L_pre"]
    # One seed gives no interval, so no effect is certain.
    frontiers, losses = recipe_tables(recipe_rows("recommended", "default", seeds=(0,)))
    assert {cell.mark for row in (*frontiers.rows, *losses.rows) for cell in row} == {""}


def test_the_page_of_the_confirming_study_shows_the_comparison(tmp_path: Path) -> None:
    file = read_study(str(tiny_study(tmp_path)))
    facts = made_up_facts(file)
    origin = Origin("tiny", {"retain": "0"}, None, "a machine", 1.8e9)
    for rows, shown in ((recipe_rows("recommended", "default"), True), (method_rows([None], ["mixed"]), False)):
        page = write_report(
            [(file, facts, rows)], expand(file, facts), Store(tmp_path), rows, [], [], origin
        ).read_text()
        assert ('<section id="section-recipes">' in page) is shown
        assert ("recommended recipe&#39;s frontier minus that of the other recipe" in page) is shown


def test_a_frontier_of_more_checkpoints_is_not_marked_as_better() -> None:
    """Of several recipes that are like the other one, the frontier is better by chance."""
    rows = recipe_rows("recommended", "default")
    twice = [
        row | {"axes": row["axes"] | {"recipe": f"frontier-{number}"}}
        for row in rows
        for number in (0, 1)
        if row["axes"]["recipe"] == "recommended"
    ]
    frontiers, *_ = recipe_tables([*twice, *rows[len(twice) // 2 :]])
    marks = {row[1].text: row[3].mark for row in frontiers.rows}
    assert marks == {"frontier-0": "good", "frontier-1": "good", "whole frontier": ""}
