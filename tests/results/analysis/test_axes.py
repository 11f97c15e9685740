"""Which axes vary, which values they take, and which trials share a setting."""

from typing import Any

from retain.results.analysis.axes import axis_names, axis_values, grouped, seed_of, setting, varied_axes
from retain.results.analysis.loss_planes import matched_rows
from retain.results.store.loss_table import Row
from retain.sweeps.schema.section import LOSSES


def trial(loss: float | None = 1.0, **axes: Any) -> Row:
    return {"axes": {name.replace("_", "."): value for name, value in axes.items()}, **dict.fromkeys(LOSSES, loss)}


def test_axes_and_their_values_keep_the_order_of_the_trials() -> None:
    rows = [trial(finetune_lr=2.0), trial(finetune_lr=1.0, posttrain_betas=[0.9, 0.95]), trial(finetune_lr=2.0)]
    assert axis_names(rows) == ["finetune.lr", "posttrain.betas"]
    assert axis_values(rows, "finetune.lr") == [2.0, 1.0]
    assert axis_values(rows, "posttrain.betas") == [[0.9, 0.95]]
    assert axis_values(rows, "pretrain.lr") == []


def test_an_axis_varies_if_trials_differ_in_it_or_only_some_have_it() -> None:
    rows = [trial(method="mixed", finetune_lr=1.0), trial(method="mixed", finetune_lr=2.0, posttrain_dropout=0.1)]
    assert varied_axes(rows) == ["finetune.lr", "posttrain.dropout"]
    assert varied_axes([trial(seed=0), trial(seed=1)]) == []
    assert varied_axes([]) == []


def test_trials_with_equal_values_share_a_setting_in_whatever_order_the_axes_are_given() -> None:
    rows = [trial(seed=0, finetune_lr=1.0), trial(seed=1, finetune_lr=1.0), trial(seed=0, finetune_lr=2.0)]
    assert [len(group) for group in grouped(rows, lambda row: setting(row, ["finetune.lr"])).values()] == [2, 1]
    assert setting(rows[0], ["seed", "finetune.lr"]) == setting(rows[0], ["finetune.lr", "seed"])


def test_a_trial_counts_once_its_counterparts_have_the_loss_too() -> None:
    rows = [trial(method=method, finetune_lr=rate) for method in ("mixed", "unmixed") for rate in (1.0, 2.0)]
    rows[0] = trial(None, method="mixed", finetune_lr=1.0)
    kept = matched_rows(rows, ["finetune.lr"], LOSSES[0])
    assert [row["axes"] for row in kept] == [rows[1]["axes"], rows[3]["axes"]]


def test_the_seed_is_that_of_the_earliest_stage_that_varies_it() -> None:
    assert seed_of(trial(seed=3)) == 3
    assert seed_of(trial(finetune_seed=2, pretrain_seed=1)) == 1
    assert seed_of(trial()) == 0
