"""What each axis changes, for any chain and any axes: paired differences with intervals over seeds."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.results.analysis.axis_effects import AxisEffect, axis_effects
from retain.results.store.loss_table import Row
from retain.sweeps.schema.section import LOSSES

Axes = dict[str, Any]


def trial(axes: Axes, loss: float | None, above: float = 4.0) -> Row:
    """A trial of a chain of one's own, whose last stage has this loss."""
    losses = {"base": {"general": above}, "adapt": {"general": loss}}
    return {"axes": axes, "keys": {}, **dict.fromkeys(LOSSES), "tokens": 640, "losses": losses}


def of(effects: list[AxisEffect], axis: str, value: Any) -> AxisEffect:
    (found,) = (one for one in effects if (one.axis, one.value) == (axis, value))
    return found


@given(st.lists(st.floats(-5, 5).filter(bool), min_size=1, max_size=5), st.floats(0.1, 5), st.floats(0.1, 5))
def test_an_effect_is_the_mean_over_seeds_at_equal_values_of_all_other_axes(
    noise: list[float], by_rate: float, by_dropout: float
) -> None:
    rows = [
        trial(
            {"adapt.lr": rate, "adapt.dropout": dropout, "seed": seed}, 3 + own + by_rate * rate + by_dropout * dropout
        )
        for seed, own in enumerate(noise)
        for rate in (1, 2, 4)
        for dropout in (0, 0.1)
    ]
    found = axis_effects(rows)
    assert {(one.axis, one.against, one.loss) for one in found} == {
        ("adapt.lr", 1, "adapt/general"),
        ("adapt.dropout", 0, "adapt/general"),
    }
    assert of(found, "adapt.lr", 4).effect.mean == pytest.approx(3 * by_rate)
    assert of(found, "adapt.dropout", 0.1).effect.mean == pytest.approx(0.1 * by_dropout)
    assert {(one.effect.seeds, one.settings) for one in found if one.axis == "adapt.lr"} == {(len(noise), 2)}


def test_only_settings_that_are_finished_at_all_seeds_count() -> None:
    rows = [
        trial({"adapt.lr": rate, "adapt.dropout": dropout, "seed": seed}, 3 + 10 * dropout * rate)
        for seed in (0, 1, 2)
        for rate in (1, 2)
        for dropout in (0, 0.1)
    ]
    diverged = next(row for row in rows if row["axes"] == {"adapt.lr": 2, "adapt.dropout": 0.1, "seed": 1})
    for lost in (None, math.nan, math.inf):
        diverged["losses"]["adapt"]["general"] = lost
        effect = of(axis_effects([*rows]), "adapt.dropout", 0.1)
        assert effect.settings == 1
        assert effect.effect.per_seed == {seed: pytest.approx(1.0) for seed in (0, 1, 2)}


def test_every_seed_averages_over_the_same_subsets() -> None:
    rows = [
        trial({"adapt.lr": rate, "seed": seed, "subset_seed": subset}, 3 + rate * (1 + 10 * subset))
        for seed in (0, 1, 2)
        for subset in (0, 1)
        for rate in (1, 2)
    ]
    whole = of(axis_effects(rows), "adapt.lr", 2)
    assert (whole.effect.per_seed, whole.settings) == (dict.fromkeys(range(3), 6.0), 2)
    rows[-1]["losses"]["adapt"]["general"] = None  # the second subset of the last seed is not finished
    partial = of(axis_effects(rows), "adapt.lr", 2)
    assert (partial.effect.per_seed, partial.settings) == (dict.fromkeys(range(3), 1.0), 1)


@given(st.floats(0, 10), st.floats(-1e-15, 1e-15))
def test_differences_of_rounding_are_none(loss: float, rounding: float) -> None:
    rows = [
        trial({"adapt.lr": rate, "seed": seed}, loss + seed * rate * rounding) for seed in range(3) for rate in (1, 2)
    ]
    assert axis_effects(rows) == []


def test_a_seed_without_any_pair_does_not_hide_the_others() -> None:
    rows = [
        trial({"adapt.lr": rate, "seed": seed}, None if seed == 2 else 3.0 + rate)
        for seed in range(3)
        for rate in (1, 2)
    ]
    assert of(axis_effects(rows), "adapt.lr", 2).effect.per_seed == {0: 1.0, 1: 1.0}


def test_the_papers_chain_is_compared_in_the_papers_losses_and_in_the_metrics_of_tasks() -> None:
    rows = []
    for exposure in (0.0, 1.0):
        losses = {stage: {"general": 3.0, "music": 2.0 - exposure} for stage in ("pretrain", "posttrain", "finetune")}
        four = dict.fromkeys(LOSSES, 2.0 - exposure)
        measures = {"finetune": {"arc_easy/acc": 0.5 + exposure}}
        rows.append(
            {
                "axes": {"pretrain.exposure": exposure},
                "keys": {},
                **four,
                "tokens": 1,
                "losses": losses,
                "measures": measures,
            }
        )
    found = axis_effects(rows)
    assert [one.loss for one in found] == [*LOSSES, "finetune/arc_easy/acc"]
    assert [(one.effect.mean, one.effect.seeds) for one in found] == [(-1.0, 1)] * 4 + [(1.0, 1)]


def test_points_of_a_search_are_not_compared_axis_by_axis() -> None:
    assert axis_effects([trial({"point": f"p{number}", "adapt.lr": number}, 3.0 + number) for number in range(3)]) == []


def test_losses_on_different_corpora_are_not_compared() -> None:
    rows = []
    for number, (post, tuned) in enumerate((("music", "chemistry"), ("music", "law"), ("code", "law"))):
        roles = {"pretraining": "general", "posttraining": post, "finetuning": tuned}
        row = {"axes": {"pipeline": f"{post}-{tuned}"}, "keys": {}, **dict.fromkeys(LOSSES, 2.0 + number), "tokens": 1}
        rows.append(row | {"losses": {stage: {} for stage in ("pretrain", "posttrain", "finetune")}, "corpora": roles})
    compared = {(one.value, one.loss) for one in axis_effects(rows)}
    assert compared == {
        *(("music-law", loss) for loss in LOSSES if loss != "finetuning_loss"),
        ("code-law", "retained_pretraining_loss"),
    }


def test_the_loss_on_fine_tuning_is_that_of_a_further_stage_that_ends_the_chain() -> None:
    rows = []
    for corpus in ("law", "code"):
        roles = {"pretraining": "general", "posttraining": "music", "finetuning": "chemistry", "again": corpus}
        row = {"axes": {"again.corpus": corpus}, "keys": {}, **dict.fromkeys(LOSSES, float(len(corpus))), "tokens": 1}
        rows.append(row | {"losses": {stage: {} for stage in ("posttrain", "finetune", "again")}, "corpora": roles})
    assert "finetuning_loss" not in {one.loss for one in axis_effects(rows)}
