from collections import Counter
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.datamodules.order.mixtures import Component, Mixture, Spread, Subset, stage_order
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import read_study
from retain.sweeps.tree.recipes.mixture import spread
from tests.datamodules.order.test_mixtures import SEEDS, SIZE, everything, members, subset
from tests.studies import tiny_study, tiny_tree


@dataclass(frozen=True)
class Window:
    """Exposure in a window, with what its recipe says."""

    main: Subset
    exposed: Subset
    amount: int
    begin: int
    end: int
    seed: int

    @property
    def order(self) -> Spread:
        general, exposed = Mixture((self.main,), (self.main.distinct,), self.seed), (self.exposed,)
        ends, (counts,) = spread(self.main.distinct + self.amount, [(self.begin, self.end, self.amount)])
        component = Component(Mixture(exposed, (self.amount,), self.seed, "exposed"), counts, self.seed)
        return Spread(general, (component,), ends)


@st.composite
def windows(draw: st.DrawFn) -> Window:
    """Any window with room for its exposure, including windows without general data and repeated passes over D_post."""
    distinct, seed = draw(st.integers(1, SIZE)), draw(SEEDS)
    amount = draw(st.integers(1, 3 * SIZE))
    begin = draw(st.integers(0, distinct))
    end = draw(st.integers(begin + amount, distinct + amount))
    post = subset("post", draw(st.integers(1, min(amount, SIZE))), seed=seed)
    return Window(subset("main", distinct, seed=seed), post, amount, begin, end, seed)


@given(windows())
def test_every_sequence_is_read_exactly_as_often_as_the_recipe_says(window: Window) -> None:
    seen = Counter(everything(window.order))
    assert seen.total() == window.order.total == window.main.distinct + window.amount
    assert {seen[member] for member in members(window.main)} == {1}
    passes, more = divmod(window.amount, window.exposed.distinct)
    times = Counter({passes + 1: more, passes: window.exposed.distinct - more})
    assert Counter(seen[member] for member in members(window.exposed)) == times - Counter()


@given(windows(), st.data())
def test_exposure_lies_within_its_window_and_is_evenly_spread_over_it(window: Window, data: st.DataObject) -> None:
    exposed = np.array([corpus == "post" for corpus, _ in everything(window.order)])
    assert not exposed[: window.begin].any()
    assert not exposed[window.end :].any()
    first = data.draw(st.integers(window.begin, window.end))
    last = data.draw(st.integers(first, window.end))
    share = window.amount / (window.end - window.begin)
    assert abs(exposed[first:last].sum() - share * (last - first)) < 2


@settings(max_examples=60)
@given(windows(), st.data())
def test_the_order_does_not_depend_on_the_first_position_or_the_number_of_ranks(
    window: Window, data: st.DataObject
) -> None:
    order = window.order
    whole = everything(order)
    world, start = data.draw(st.integers(1, 5)), data.draw(st.integers(0, order.total - 1))
    for rank in range(world):
        positions = np.arange(start + rank, order.total, world)
        source, sequence = order.locate(positions)
        names = [order.subsets[index].corpus for index in source]
        assert list(zip(names, sequence.tolist(), strict=True)) == whole[start + rank :: world]


@given(windows(), st.data())
def test_the_window_does_not_change_the_order_within_each_corpus(window: Window, data: st.DataObject) -> None:
    begin = data.draw(st.integers(0, window.main.distinct))
    end = data.draw(st.integers(begin + window.amount, window.order.total))
    moved = replace(window, begin=begin, end=end)
    for corpus in ("main", "post"):
        first, second = ([item for item in everything(one.order) if item[0] == corpus] for one in (window, moved))
        assert first == second


def test_another_seed_changes_the_order_and_the_exposed_positions_but_not_the_sequences() -> None:
    first, second = (
        everything(Window(subset("main", 50), subset("post", 20), 20, 10, 60, seed).order) for seed in (1, 2)
    )
    assert sorted(first) == sorted(second)
    for corpus in ("main", "post"):
        assert [item for item in first if item[0] == corpus] != [item for item in second if item[0] == corpus]
    assert [corpus for corpus, _ in first] != [corpus for corpus, _ in second]


def test_positions_in_twenty_billion_tokens_are_located_at_once() -> None:
    general, exposed, begin = 20_000_000, 300_000, 9_000_000
    end = begin + 2 * exposed
    main, post = subset("main", general, size=general), subset("post", exposed, size=exposed)
    order = Window(main, post, exposed, begin, end, 7).order
    source, _ = order.locate(np.array([0, begin - 1, end, order.total - 1]))
    assert source.tolist() == [0, 0, 0, 0]
    source, sequence = order.locate(np.arange(begin, begin + 1000))
    assert abs(int(source.sum()) - 500) <= 1
    assert len(set(sequence[source == 1].tolist())) == source.sum()
    assert (sequence < np.where(source == 1, exposed, general)).all()


SIZES = {"pre": SIZE, "post": SIZE}
RECIPE: dict[str, Any] = {"corpus": "pre", "subset_seed": 4, "seed": 9, "distinct": 30, "sequences": 40}


def test_exposure_is_uniform_over_the_stage_unless_the_recipe_has_a_window() -> None:
    exposure = {"corpus": "post", "distinct": 10, "sequences": 10}
    order = stage_order(RECIPE | {"exposure": exposure | {"window": [20, 40]}}, SIZES)
    assert isinstance(order, Spread)
    uniform = stage_order(RECIPE | {"exposure": exposure}, SIZES)
    assert isinstance(uniform, Mixture)
    assert sorted(everything(order)) == sorted(everything(uniform))
    assert {corpus for corpus, _ in everything(order)[:20]} == {"pre"}


PRETRAIN = {"grid": {}, "pretrain.tokens": 320 * 32, "posttrain.tokens": 80 * 32, "pretrain.exposure": 1}


def pretrain_key(**overrides: Any) -> str:
    (trial,) = tiny_tree(**PRETRAIN | overrides).trials
    return trial.key("pretrain")


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ({"pretrain.exposure_schedule": "uniform"}, {}),
        ({"pretrain.exposure_schedule": [0, 1]}, {}),
        ({"pretrain.exposure_schedule": "early"}, {"pretrain.exposure_schedule": [0, 0.5]}),
        ({"pretrain.exposure_schedule": "late"}, {"pretrain.exposure_schedule": [0.5, 1.0]}),
        ({"pretrain.exposure_schedule": "late", "pretrain.exposure": 0}, {"pretrain.exposure": 0}),
        ({"pretrain.exposure_schedule": [0, 0.001], "pretrain.exposure": 0}, {"pretrain.exposure": 0}),
    ],
)
def test_equivalent_schedules_have_the_same_stage_key(first: dict[str, Any], second: dict[str, Any]) -> None:
    assert pretrain_key(**first) == pretrain_key(**second)


def test_an_axis_of_schedules_may_mix_names_and_windows() -> None:
    schedules = ["uniform", "early", "late", [0.25, 0.75]]
    tree = tiny_tree(**PRETRAIN | {"grid": {"pretrain.exposure_schedule": schedules}})
    assert len({trial.key("pretrain") for trial in tree.trials}) == 4
    assert len({stage.tokens for stage in tree.stages.values() if stage.stage == "pretrain"}) == 1
    unmixed = tiny_tree(**PRETRAIN | {"pretrain.exposure": 0, "grid": {"pretrain.exposure_schedule": schedules}})
    assert len({trial.key("pretrain") for trial in unmixed.trials}) == 1


def test_an_override_or_a_case_may_give_one_window_or_a_list_of_schedules(tmp_path: Path) -> None:
    path = str(tiny_study(tmp_path, **PRETRAIN))
    assert read_study(path, ["pretrain.exposure_schedule=[0.2, 0.6]"]).study.pretrain.exposure_schedule == (0.2, 0.6)
    several = read_study(path, ["pretrain.exposure_schedule=[early, [0.2, 0.6]]"])
    assert several.axes == {"pretrain.exposure_schedule": ["early", (0.2, 0.6)]}
    cases = {
        "one": {"pretrain.exposure_schedule": [0.2, 0.6]},
        "two": {"pretrain.exposure_schedule": ["early", "late"]},
    }
    assert len(tiny_tree(**PRETRAIN | {"cases": {"when": cases}}).trials) == 3


def test_a_window_too_small_for_the_exposure_is_refused_and_an_exactly_full_one_is_not() -> None:
    pretrain_key(**{"pretrain.exposure_schedule": [0.5, 0.7]})
    with pytest.raises(
        StudyError,
        match=r"pretrain\.exposure_schedule: \[0\.5, 0\.6\] leaves room for 40 sequences, but 80 are mixed in",
    ):
        pretrain_key(**{"pretrain.exposure_schedule": [0.5, 0.6]})


def test_a_window_may_hold_repeated_exposure() -> None:
    twice = {"pretrain.exposure": 2, "pretrain.repeat": True}
    pretrain_key(**twice, **{"pretrain.exposure_schedule": "late"})
    with pytest.raises(StudyError, match="160 are mixed in"):
        pretrain_key(**twice, **{"pretrain.exposure_schedule": [0.8, 1]})


@pytest.mark.parametrize("wrong", ["always", [0.5], [0.5, 0.5], [0.6, 0.2], [-0.1, 0.5], [0, 1.1], [False, True], 0.5])
def test_an_invalid_schedule_is_refused_with_the_valid_forms(wrong: Any) -> None:
    with pytest.raises(
        StudyError, match=r"pretrain\.exposure_schedule: invalid schedule .*; write uniform, early, late"
    ):
        tiny_tree(**PRETRAIN | {"pretrain.exposure_schedule": wrong})
