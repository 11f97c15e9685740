"""Which point a searcher tries next."""

from pathlib import Path
from typing import Any

import pytest

from launchers.search.searchers import Outcome, propose
from sweeps.read import check_study
from sweeps.search import Search
from tests.studies import tiny_fields

AXES: dict[str, Any] = {
    "pretrain.exposure": {"uniform": [0, 1]},
    "posttrain.warmup": {"integers": [0, 5]},
    "finetune.betas": [[0.9, 0.95], [0.9, 0.99]],
}


def space_of(**block: Any) -> Search:
    search = check_study(tiny_fields(search=block), Path("tiny.yaml")).search
    assert search is not None
    return search


@pytest.mark.parametrize("searcher", ["random", "grid", "tpe", "nsga2"])
@pytest.mark.parametrize(
    "objective", ["retained_posttraining_loss", {"hypervolume": ["finetuning_loss", "retained_posttraining_loss"]}]
)
def test_a_searcher_is_a_function_of_what_was_tried(searcher: str, objective: Any) -> None:
    bound = {"immediate_posttraining_loss": {"within": 0.5}}
    space = space_of(searcher=searcher, objective=objective, axes=AXES, constraints=bound)
    outcomes: list[Outcome] = []
    for number in range(14):
        fixed = {"pretrain.exposure": 0.5} if searcher != "grid" and number % 3 == 2 else {}
        point = propose(space, outcomes, fixed)
        assert point is not None
        assert propose(space, list(outcomes), fixed) == point
        assert point not in [outcome.values for outcome in outcomes]
        assert set(point) == set(AXES)
        assert all(axis.holds(point[axis.path]) for axis in space.axes)
        assert fixed.items() <= point.items()
        scores = (point["pretrain.exposure"], 1 - point["pretrain.exposure"])[: 2 if isinstance(objective, dict) else 1]
        state: Any = ("done", "done", "open", "failed", "pruned")[number % 5]
        outcomes.append(Outcome(point, state, scores if state == "done" else (), (-0.1,)))


@pytest.mark.parametrize("searcher", ["random", "tpe"])
def test_a_space_of_choices_ends(searcher: str) -> None:
    space = space_of(searcher=searcher, axes={"pretrain.exposure": [0, 1], "finetune.lr": [5e-4, 2e-3]})
    outcomes: list[Outcome] = []
    while (point := propose(space, outcomes, {})) is not None:
        outcomes.append(Outcome(point, "done", (1.0,)))
    assert len(outcomes) == 4
