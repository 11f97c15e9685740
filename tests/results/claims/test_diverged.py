"""Runs that diverged, or nearly, and the verdicts on frontiers beside them."""

import math

import pytest

from retain.results.claims.verdicts import verdicts
from tests.results.claims.test_claims import FINETUNING, PRETRAINING, RETAINED, frontier_rows, outcomes


def test_a_diverged_run_does_not_count() -> None:
    rows = frontier_rows({"unmixed": 0, "mixed": -0.2})
    rows[3][FINETUNING] = math.nan
    assert outcomes(rows) == {"3": {"supported"}}
    assert "1 checkpoint is left out for lack of counterparts." in [one.note for one in verdicts(rows)]


def test_a_run_that_nearly_diverged_widens_no_interval_and_is_named_beside_the_verdict() -> None:
    """It has the lowest fine-tuning loss of its seed, so it is on the frontier, 27 nats above every other."""
    rows = frontier_rows({"unmixed": 0, "mixed": -0.05}, seeds=range(5), noise=0.02)
    usual = verdicts(rows)
    assert [one.outcome for one in usual] == ["supported", "supported"]
    strayed = next(each for each in rows if each["axes"] == {"method": "mixed", "finetune.lr": 3, "seed": 2})
    strayed |= {RETAINED: 30.0, "keys": {"pretrain": "a" * 20, "posttrain": "b" * 20, "finetune": "0123456789" * 2}}
    for before, after in zip(usual, verdicts(rows), strict=True):
        assert after.outcome == "supported"
        assert after.told[1].mean == pytest.approx(before.told[1].mean, rel=0.3)
        assert before.note == ""
        assert "method=mixed finetune.lr=3 seed=2 (run 01234567) at L_" in after.note
        assert "L_ret 30" in after.note


def test_an_ordinary_run_that_is_on_the_frontier_by_chance_is_not_named_as_far_beyond_all_others() -> None:
    """Both losses of a plane rise with the rate, so most frontiers are the lowest rate alone."""
    rows = frontier_rows({"unmixed": 0, "mixed": -0.05}, seeds=range(5))
    for row in rows:
        row |= {RETAINED: 2 + 0.5 * row["axes"]["finetune.lr"], PRETRAINING: 4 + 0.1 * row["axes"]["finetune.lr"]}
    lucky = next(row for row in rows if row["axes"] == {"method": "mixed", "finetune.lr": 2, "seed": 3})
    lucky[PRETRAINING] = 3.99
    assert [one.note for one in verdicts(rows)] == ["", ""]
