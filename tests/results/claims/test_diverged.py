"""Runs that diverged, or nearly, and the verdicts on frontiers beside them."""

import math

import pytest

from retain.results.claims.verdicts import verdicts
from tests.results.claims.test_claims import FINETUNING, RETAINED, frontier_rows, outcomes


def test_a_diverged_run_does_not_count() -> None:
    rows = frontier_rows({"unmixed": 0, "mixed": -0.2})
    rows[3][FINETUNING] = math.nan
    assert outcomes(rows) == {"3": {"supported"}}


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
