"""The first screen of the page: its facts."""

from retain.results.report.headline import facts
from tests.results.made_rows import method_rows


def test_seeds_are_those_that_intervals_are_over() -> None:
    rows = [
        row | {"axes": row["axes"] | {"subset_seed": subset, "finetune.seed": subset}}
        for subset in (0, 1)
        for row in method_rows((None,), ("unmixed", "mixed"), seeds=(0, 1, 2))
    ]
    assert {one.label: one.value for one in facts(rows, [], {})}["seeds"] == "3"
