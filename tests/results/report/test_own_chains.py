"""What the report shows of a chain that lacks some of the paper's losses."""

from pathlib import Path
from typing import Any

from retain.results.figures.catalogue import figures_of
from retain.results.report.headline import answer, facts
from retain.results.report.study import budgets, loss_table, overview
from retain.results.store.loss_table import Row, loss_columns
from retain.sweeps.schema.families.counts import ModelCounts
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.section import LOSSES
from retain.sweeps.tree.data_facts import CheckpointFacts, Facts, checkpoint_of
from tests.studies import made_up_facts, tiny_fields


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


def test_seeds_do_not_vary_the_initialisation_of_a_model_that_starts_from_a_checkpoint(tmp_path: Path) -> None:
    counts = ModelCounts(30_000, 25_000, 64, 320 * 32, True, {})
    checkpoint = CheckpointFacts("abc", "gpt2", {"n_embd": 32}, 320, 64, "tokenizer", counts)
    for weights, begins in (({}, "order of the data"), ({"weights": "random"}, "initialisation, order")):
        file = check_study(tiny_fields(model={"hf": "some/model", **weights}, tokenizer=None), tmp_path / "tiny.yaml")
        found = Facts("tokenizer", 320, {}, {checkpoint_of(file.study.model): checkpoint})
        (said,) = [row[1].text for row in overview(file, found, []).rows if row[0].text == "seeds differ in"]
        assert said.startswith(begins)


def test_the_model_of_one_layer_and_one_head_is_described_in_the_singular() -> None:
    model = {"preset": "laptop", "layers": 1, "hidden": 32, "heads": 1, "kv_heads": 1}
    file = check_study(tiny_fields(model=model), Path("tiny.yaml"))
    (said,) = [row[1].text for row in overview(file, made_up_facts(file), []).rows if row[0].text == "model"]
    assert ": 1 layer of 32, 1 head, MLP " in said


def test_a_chain_without_pretraining_has_frontiers_in_the_plane_that_it_has() -> None:
    losses = dict(zip(LOSSES, (2.0, 2.5, 3.0), strict=False))
    rows = [trial(("posttrain", "finetune"), {"finetune.lr": rate}, **losses) for rate in (1e-4, 1e-3)]
    (frontiers,) = figures_of("mine", rows)
    assert [(side.x, side.y) for side in frontiers.sides] == [("finetuning_loss", "retained_posttraining_loss")]
    assert "L_pre" not in loss_table([], "losses", rows, {}).columns


def test_a_value_that_is_none_is_told_apart_from_a_missing_one_and_both_stand_in_columns_of_numbers() -> None:
    rows = [
        trial(("pretrain", "posttrain", "finetune"), axes)
        for axes in ({"posttrain.max_tokens": None}, {"posttrain.max_tokens": 60_000}, {})
    ]
    table = loss_table(["posttrain.max_tokens"], "losses", rows, {})
    assert [row[0].text for row in table.rows] == ["none", "60,000", "\N{EN DASH}"]
    assert dict(zip(table.columns, table.numeric, strict=True)) == {
        "posttrain.max_tokens": True,
        **dict.fromkeys(("L_im", "L_ret", "L_ret \N{MINUS SIGN} L_im", "L_ft", "L_pre"), False),
        "tokens": True,
    }


def test_the_losses_of_stages_that_only_some_trials_have_are_in_the_order_of_the_chain() -> None:
    rows = [trial(chain, {}) for chain in (("pretrain", "finetune"), ("pretrain", "midtrain", "finetune"))]
    stages = dict.fromkeys(name.partition("/")[0] for name in loss_columns(rows))
    assert list(stages) == ["pretrain", "midtrain", "finetune"]


def test_the_budgets_give_every_seed_of_the_study(tmp_path: Path) -> None:
    file = check_study(tiny_fields(grid={"seed": [0, 1]}), tmp_path / "tiny.yaml")
    (seeds,) = [row[1:] for row in budgets(file).rows if row[0].text == "seed"]
    assert {cell.text for cell in seeds} == {"0; 1 (the study's)"}
