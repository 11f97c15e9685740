"""The studies of other papers: each has the design that its claims need, and trains what its trials share once."""

from collections import Counter

import pytest

from tests.sweeps.test_studies import fields_of, planned


@pytest.mark.parametrize(
    ("name", "by_stage"),
    [
        ("forgetting-law", {"pretrain": 5, "finetune": 5 * 4 * 5}),
        ("laptop-forgetting-law", {"pretrain": 3 * 5, "finetune": 3 * 5 * 4 * 4}),
    ],
)
def test_every_fine_tuning_of_a_model_starts_from_its_one_pretraining(name: str, by_stage: dict[str, int]) -> None:
    _, tree = planned(name)
    assert Counter(stage.stage for stage in tree.stages.values()) == by_stage


MOST_TOKENS = 20e6


@pytest.mark.parametrize("name", ["laptop-forgetting-law"])
def test_a_twin_trains_in_about_a_quarter_of_an_hour_on_two_cores(name: str) -> None:
    """About 20,000 tokens a second."""
    file, tree = planned(name)
    assert sum(stage.tokens for stage in tree.stages.values()) < MOST_TOKENS
    assert 3 <= len(file.values("seed")) <= 5
    assert all(corpus.package for corpus in fields_of(file).corpora.values())


@pytest.mark.parametrize("name", ["forgetting-law", "laptop-forgetting-law"])
def test_one_percent_is_a_share_that_the_law_of_forgetting_is_measured_at(name: str) -> None:
    file, _ = planned(name)
    (share,) = (axis for axis in file.axes if axis.endswith(".share"))
    assert {0, 0.01} < set(file.values(share))
