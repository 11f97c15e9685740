"""Seeds that share the runs that are compared are one repetition: their spread says nothing of what these runs are like."""

import itertools
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from retain.results.analysis.axes import repetitions
from retain.results.analysis.axis_effects import axis_effects
from retain.results.analysis.sisters.measured import losses_at
from retain.results.claims.verdicts import verdicts
from retain.results.report.headline import answer, kept_groups
from retain.results.report.study import overview
from retain.results.store.loss_table import Row
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.section import LOSSES
from tests.studies import made_up_facts, tiny_fields

STAGES = ("pretrain", "posttrain", "finetune")


def rows_of(seeded: str, axes: dict[str, list[Any]], seeds: int = 3) -> list[Row]:
    """Trials in which nothing changes anything: the noise of a run passes to the runs below it.

    seeded: the stage whose seed varies; empty for the seed of all stages.
    """
    random, noise, rows = np.random.Generator(np.random.PCG64(0)), dict[str, float](), list[Row]()
    for *values, seed in itertools.product(*axes.values(), range(seeds)):
        own = dict(zip(axes, values, strict=True)) | {f"{seeded}.seed".lstrip("."): seed}
        keys = {}
        for number, stage in enumerate(STAGES):
            above = {
                name: value
                for name, value in own.items()
                if name == "seed" or name.partition(".")[0] in STAGES[: number + 1]
            }
            keys[stage] = f"{stage} {sorted(above.items())}"
        drawn = [
            noise.setdefault(key, random.normal(0, scale))
            for key, scale in zip(keys.values(), (0.1, 0.02, 0.01), strict=True)
        ]
        losses = (1.5 + sum(drawn[:2]), *(mean + sum(drawn) for mean in (2.0, 3.0, 4.0)))
        matrix = {stage: {"target": 2.0 + sum(drawn[: number + 1])} for number, stage in enumerate(STAGES)}
        rows.append(
            {"axes": own, "keys": keys, **dict(zip(LOSSES, losses, strict=True)), "tokens": 1, "losses": matrix}
        )
    return rows


EXPOSURES: dict[str, list[Any]] = {"pretrain.exposure": [0, 1], "finetune.lr": [1e-4, 1e-3]}


@pytest.mark.parametrize(("seeded", "counted"), [("", 3), ("pretrain", 3), ("posttrain", 1), ("finetune", 1)])
def test_seeds_of_later_stages_are_one_repetition_of_what_pretraining_decides(seeded: str, counted: int) -> None:
    rows = rows_of(seeded, EXPOSURES)
    found = verdicts(rows)
    assert {verdict.claim for verdict in found} == {"1a", "1b", "3"}
    for verdict in found:
        assert {effect.seeds for _, effect in verdict.evidence} <= {counted, 0}
        assert ("share the runs that are compared, and count as 1" in verdict.note) == (counted == 1)
        assert counted > 1 or (verdict.outcome == "undecided" and math.isnan(verdict.p))
    (immediate,) = [one for one in axis_effects(rows) if one.loss == LOSSES[0] and one.axis == "pretrain.exposure"]
    assert immediate.effect.seeds == counted
    assert ("interval" in answer(rows, kept_groups(rows), found, "nats")[1]) == (counted > 1)
    at = losses_at(rows, "target", lambda row: row["axes"]["pretrain.exposure"])
    assert {len(losses) for losses in at.values()} == {counted}


def test_seeds_of_a_stage_repeat_what_is_decided_in_it() -> None:
    rows = rows_of("finetune", EXPOSURES)
    effects = [one.effect for one in axis_effects(rows) if one.axis == "finetune.lr"]
    assert effects
    assert {effect.seeds for effect in effects} == {3}
    rows = rows_of("posttrain", {"posttrain.dropout": [0, 0.1], "finetune.lr": [1e-4, 1e-3]})
    (dropout, _) = [verdict for verdict in verdicts(rows) if verdict.claim == "4b"]
    assert dropout.told[1].seeds == 3


def test_the_mean_over_one_repetition_is_that_of_its_seeds() -> None:
    rows = rows_of("finetune", EXPOSURES)
    without, mixed = ([row for row in rows if row["axes"]["pretrain.exposure"] == exposure] for exposure in (0, 1))
    assert repetitions([without, mixed]) == {0: 0, 1: 0, 2: 0}
    (retained,) = [one for one in axis_effects(rows) if one.loss == LOSSES[1] and one.axis == "pretrain.exposure"]
    means = [np.mean([row[LOSSES[1]] for row in arm]) for arm in (without, mixed)]
    assert retained.effect.mean == pytest.approx(means[1] - means[0])


def test_the_report_says_which_stages_repetitions_differ_in() -> None:
    for seeds, said in (
        ({"seed": [0, 1]}, "initialisation, order of the data, dropout and adapters, but"),
        ({"pretrain.seed": [0, 1]}, "initialisation, order of the data, dropout and adapters of pretrain alone, but"),
        ({"finetune.seed": [0, 1]}, "order of the data, dropout and adapters of finetune alone, but"),
    ):
        file = check_study(tiny_fields(grid=seeds), Path("tiny.yaml"))
        (text,) = [
            row[1].text for row in overview(file, made_up_facts(file), []).rows if row[0].text == "seeds differ in"
        ]
        assert text.startswith(said)
