"""What the report shows of a chain that lacks some of the paper's losses."""

from typing import Any

from retain.results.figures.catalogue import figures_of
from retain.results.report.headline import answer, facts
from retain.results.report.study import loss_table
from retain.results.store.loss_table import Row
from retain.sweeps.schema.section import LOSSES


def trial(chain: tuple[str, ...], axes: dict[str, Any], **losses: float) -> Row:
    matrix = {stage: {"general": 3.0, "music": 2.0} for stage in chain}
    return {"axes": axes, "keys": {}, **dict.fromkeys(LOSSES), **losses, "tokens": 640, "losses": matrix}


def test_a_chain_of_ones_own_is_finished_and_shows_the_losses_of_every_stage() -> None:
    rows = [trial(("base", "midtrain"), {"midtrain.lr": rate}) for rate in (1e-4, 1e-3)]
    table = loss_table(["midtrain.lr"], "losses in nats", rows, {})
    stages = [f"{stage}/{corpus}" for stage in ("base", "midtrain") for corpus in ("general", "music")]
    assert list(table.columns) == ["midtrain.lr", *stages, "tokens"]
    assert [cell.text for cell in table.rows[0]][1:-1] == ["3.0000", "2.0000"] * 2
    (sentence,) = answer(rows, (), (), "nats")
    assert "has no post-training with a stage after it" in sentence
    assert next(fact.value for fact in facts(rows, (), {}) if fact.label == "trials") == "2"
    assert figures_of("mine", rows) == []


def test_a_chain_without_pretraining_has_frontiers_in_the_plane_that_it_has() -> None:
    losses = dict(zip(LOSSES, (2.0, 2.5, 3.0), strict=False))
    rows = [trial(("posttrain", "finetune"), {"finetune.lr": rate}, **losses) for rate in (1e-4, 1e-3)]
    (frontiers,) = figures_of("mine", rows)
    assert [(side.x, side.y) for side in frontiers.sides] == [("finetuning_loss", "retained_posttraining_loss")]
    assert "L_pre" not in loss_table([], "losses", rows, {}).columns
