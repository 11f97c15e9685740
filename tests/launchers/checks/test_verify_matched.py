"""`retain verify` on matched allocation: each sequence of D_post is seen once, before or after."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from retain.launchers.checks.verify_matched import matched_problems
from retain.launchers.planning.opened_study import OpenedStudy, prepare_study
from retain.launchers.planning.register import register
from retain.results.store.state import State
from tests.results.runs import put_state
from tests.studies import tiny_study


@pytest.fixture(scope="module")
def matched(tmp_path_factory: pytest.TempPathFactory) -> OpenedStudy:
    """Five exposures of a matched study, its stages marked as done."""
    folder = tmp_path_factory.mktemp("matched")
    grid = {"pretrain.exposure": [0, 0.25, 0.5, 0.75, 1]}
    study = tiny_study(folder, allocation="matched", grid=grid, **{"posttrain.max_tokens": None, "posttrain.warmup": 0})
    opened = prepare_study(str(study), [], folder / "runs")
    register(opened.tree, opened.file, opened.facts, opened.store)
    for key in opened.tree.stages:
        put_state(opened.store.run(key), State(state="done"))
    return opened


def test_every_sequence_is_seen_once_at_every_exposure(matched: OpenedStudy) -> None:
    assert sum(trial.key("posttrain") is None for trial in matched.tree.trials) == 1
    assert matched_problems(matched) == []


@pytest.mark.parametrize(
    ("shift", "words"), [(-1, "1 are seen twice and 1 never"), (3, "0 are seen twice and 3 never")]
)
def test_a_post_training_that_starts_at_another_sequence_is_found(matched: OpenedStudy, shift: int, words: str) -> None:
    key = next(trial.key("posttrain") for trial in matched.tree.trials if trial.axes["pretrain.exposure"] == 0.5)
    assert key is not None
    recipe = json.loads(matched.tree.stages[key].recipe)
    changed = replace(matched.tree.stages[key], recipe=json.dumps(recipe | {"first": recipe["first"] + shift}))
    tree = replace(matched.tree, stages=matched.tree.stages | {key: changed})
    (problem,) = matched_problems(replace(matched, tree=tree))
    assert problem.where == key
    assert words in problem.what


def test_untrained_stages_are_no_problem(matched: OpenedStudy, tmp_path: Path) -> None:
    assert matched_problems(replace(matched, store=type(matched.store)(tmp_path))) == []
