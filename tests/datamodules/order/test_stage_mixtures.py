"""The order of a stage with further corpora mixed in: exact amounts, windows, and earlier recipes bit for bit."""

import hashlib
import itertools
from collections import Counter
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.datamodules.order.mixtures import Spread, stage_order
from retain.datamodules.order.permutation import derive_seed, permute
from retain.sweeps.tree.recipes.mixture import OverfullError, Window, spread, window_of
from tests.datamodules.order.test_mixtures import SEEDS, everything

SIZES = {"general": 500, "music": 120, "code": 90}
COMMON = {"corpus": "general", "subset_seed": 4, "seed": 9}
EXPOSED = {"corpus": "music", "distinct": 40, "sequences": 60}
REPLAYED = {"corpus": "general", "distinct": 300, "fraction": 0.1}
TUNED = COMMON | {"corpus": "music", "distinct": 70, "sequences": 250}

EARLIER: dict[str, tuple[dict[str, Any], str]] = {
    "one corpus": (COMMON | {"distinct": 300, "sequences": 300}, "9224e70ac0d656c6"),
    "uniform exposure": (
        COMMON | {"distinct": 300, "sequences": 360, "exposure": EXPOSED},
        "515958b2352ea7a4",
    ),
    "exposure in a window": (
        COMMON | {"distinct": 300, "sequences": 360, "exposure": EXPOSED | {"window": [90, 240]}},
        "d8b5fa6c84b38713",
    ),
    "passes with replay": (
        TUNED | {"first": 10, "early_stopping": None, "replay": REPLAYED},
        "fd38f96cdc2ca401",
    ),
    "passes": (
        TUNED | {"first": 0, "early_stopping": {"every": 5, "patience": 2}, "replay": None},
        "bf1b3037550435e9",
    ),
    "a part of a pass": (
        TUNED | {"first": 0, "early_stopping": None, "replay": None, "sequences": 50},
        "4321fdd76cc2f4b9",
    ),
}


@pytest.mark.parametrize("kind", EARLIER)
def test_recipes_from_before_there_were_mixtures_keep_their_order_bit_for_bit(kind: str) -> None:
    recipe, digest = EARLIER[kind]
    order = stage_order(recipe, SIZES)
    located = np.stack(order.locate(np.arange(order.total))).astype("<i8")
    assert hashlib.sha256(located.tobytes()).hexdigest()[:16] == digest


@st.composite
def windows(draw: st.DrawFn, total: int) -> tuple[int, int]:
    begin = draw(st.integers(0, total - 1))
    return begin, draw(st.integers(begin + 1, total))


@st.composite
def recipes(draw: st.DrawFn) -> dict[str, Any]:
    """Recipes of all stages with one to four components that fit, exposure, replay and repeated passes included."""
    total = draw(st.integers(8, 150))
    parts: list[dict[str, Any]] = []
    for _ in range(draw(st.integers(1, 4))):
        begin, end = draw(windows(total) | st.just((0, total)))
        corpus = draw(st.sampled_from(["music", "code"]))
        first = draw(st.integers(0, 20))
        part = {
            "corpus": corpus,
            "first": first,
            "sequences": draw(st.integers(1, end - begin)),
            "window": [begin, end],
        }
        part["distinct"] = draw(st.integers(1, min(part["sequences"], SIZES[corpus] - first)))
        try:
            spread(total, [window_of(one, total) for one in [*parts, part]])
        except OverfullError:
            continue
        if (begin, end) == (0, total):
            del part["window"]
        parts.append(part)
    main = total - sum(part["sequences"] for part in parts)
    seeds = {"corpus": "general", "subset_seed": draw(SEEDS), "seed": draw(SEEDS), "sequences": total}
    if draw(st.booleans()):
        replay = {"corpus": "code", "distinct": 30, "fraction": 0.25} if draw(st.booleans()) else None
        distinct = draw(st.integers(2, 60))
        return seeds | {"first": 3, "distinct": distinct, "replay": replay, "early_stopping": None, "mix": parts}
    exposure = None
    if len(parts) > 1 and draw(st.booleans()):
        exposure = {name: value for name, value in parts.pop().items() if name != "first"}
        exposure["distinct"] = min(exposure["distinct"], SIZES[exposure["corpus"]])
    return seeds | {"distinct": main, "exposure": exposure, "mix": parts}


def order_of(recipe: dict[str, Any], sizes: Mapping[str, int] = SIZES) -> Spread:
    order = stage_order(recipe, sizes)
    assert isinstance(order, Spread)
    return order


def parts_of(recipe: dict[str, Any]) -> list[dict[str, Any]]:
    """The components of a recipe in the order of the subsets after those of the base."""
    return [*([recipe["exposure"]] if recipe.get("exposure") else []), *recipe["mix"]]


@given(recipes())
def test_every_component_has_its_exact_amount_within_its_window(recipe: dict[str, Any]) -> None:
    order = order_of(recipe)
    source, _ = order.locate(np.arange(order.total))
    assert order.total == recipe["sequences"]
    for number, part in enumerate(parts_of(recipe), len(order.base.subsets)):
        begin, end, count = window_of(part, order.total)
        at = np.flatnonzero(source == number)
        assert len(at) == count
        assert at.min() >= begin
        assert at.max() < end


@given(recipes())
def test_every_distinct_sequence_of_a_component_is_read_equally_often_to_within_one(recipe: dict[str, Any]) -> None:
    order = order_of(recipe)
    source, sequence = order.locate(np.arange(order.total))
    for number, part in enumerate(parts_of(recipe), len(order.base.subsets)):
        subset = order.subsets[number]
        wanted = subset.sequences(np.arange(part["distinct"])).tolist()
        times = Counter(sequence[source == number].tolist())
        passes, more = divmod(part["sequences"], part["distinct"])
        assert set(times) <= set(wanted)
        assert (
            Counter(times[one] for one in wanted)
            == Counter({passes: part["distinct"] - more, passes + 1: more}) - Counter()
        )


@given(recipes())
def test_the_base_order_is_that_of_the_stage_without_components(recipe: dict[str, Any]) -> None:
    order = order_of(recipe)
    source, sequence = order.locate(np.arange(order.total))
    own = source < len(order.base.subsets)
    alone = order.base.locate(np.arange(order.base.total))
    assert (source[own] == alone[0]).all()
    assert (sequence[own] == alone[1]).all()


def naive(recipe: dict[str, Any]) -> list[tuple[int, int]]:
    """The subset and the sequence at each position, from a list of the free places of every part of the stage."""
    order = order_of(recipe)
    stage: list[tuple[int, int] | None] = [None] * order.total
    for begin, end in itertools.pairwise((0, *order.ends)):
        part = order.ends.index(end)
        free = list(range(begin, end))
        number = len(order.base.subsets)
        for component in order.components:
            count, before = component.counts[part], sum(component.counts[:part])
            chosen = []
            for slot in range(count):
                first, after = slot * len(free) // count, (slot + 1) * len(free) // count
                draw = int(permute(np.array([before + slot]), 2**32, derive_seed(component.seed, "places"))[0])
                chosen.append(free[first + (draw * (after - first) >> 32)])
            for index, place in enumerate(chosen, before):
                source, sequence = component.order.locate(np.array([index]))
                stage[place] = (number + int(source[0]), int(sequence[0]))
            free = [place for place in free if place not in chosen]
            number += len(component.subsets)
    rest = [place for place, read in enumerate(stage) if read is None]
    for place, source, sequence in zip(rest, *order.base.locate(np.arange(len(rest))), strict=True):
        stage[place] = (int(source), int(sequence))
    return [read for read in stage if read is not None]


@settings(max_examples=60)
@given(recipes())
def test_the_order_is_that_of_a_naive_reference(recipe: dict[str, Any]) -> None:
    order = order_of(recipe)
    source, sequence = order.locate(np.arange(order.total))
    assert list(zip(source.tolist(), sequence.tolist(), strict=True)) == naive(recipe)


@settings(max_examples=60)
@given(recipes(), st.data())
def test_any_position_can_be_located_alone_on_any_rank(recipe: dict[str, Any], data: st.DataObject) -> None:
    order = order_of(recipe)
    whole = order.locate(np.arange(order.total))
    start, world = data.draw(st.integers(0, order.total - 1)), data.draw(st.integers(1, 5))
    for rank in range(world):
        positions = np.arange(start + rank, order.total, world)
        before = positions.copy()
        located = order.locate(positions)
        assert all((part == all_of_it[positions]).all() for part, all_of_it in zip(located, whole, strict=True))
        assert (positions == before).all()


@st.composite
def stages_with_windows(draw: st.DrawFn) -> tuple[int, list[Window]]:
    total = draw(st.integers(1, 30))
    made = [draw(windows(total)) for _ in range(draw(st.integers(0, 4)))]
    return total, [(begin, end, draw(st.integers(1, end - begin))) for begin, end in made]


@settings(max_examples=300)
@given(stages_with_windows())
def test_windows_are_refused_only_where_no_order_could_hold_them(stage: tuple[int, list[Window]]) -> None:
    total, made = stage
    cuts = sorted({0, total, *(cut for begin, end, _ in made for cut in (begin, end))})
    pieces = [set(range(*piece)) for piece in itertools.pairwise(cuts)]
    unions = [
        set().union(*chosen) for size in range(len(pieces) + 1) for chosen in itertools.combinations(pieces, size)
    ]
    needed = [sum(count for begin, end, count in made if set(range(begin, end)) <= union) for union in unions]
    if any(count > len(union) for count, union in zip(needed, unions, strict=True)):  # Hall's condition
        with pytest.raises(OverfullError) as caught:
            spread(total, made)
        inside = set(itertools.chain.from_iterable(range(*part) for part in caught.value.parts))
        assert needed[unions.index(inside)] >= caught.value.needed > caught.value.room == len(inside)
        return
    ends, counts = spread(total, made)
    parts = list(itertools.pairwise((0, *ends)))
    assert all(sum(row[part] for row in counts) <= end - begin for part, (begin, end) in enumerate(parts))
    for row, (begin, end, count) in zip(counts, made, strict=True):
        assert sum(row) == count
        assert all(number >= 0 for number in row)
        assert all(
            number == 0 or begin <= first < last <= end for number, (first, last) in zip(row, parts, strict=True)
        )


def test_sequences_are_spread_in_proportion_to_the_parts_of_their_window() -> None:
    ends, counts = spread(1000, [(0, 1000, 100), (300, 700, 40), (500, 1000, 50)])
    assert ends == (300, 500, 700, 1000)
    assert counts == [(30, 20, 20, 30), (0, 20, 20, 0), (0, 0, 20, 30)]


def test_sequences_move_to_the_rest_of_their_window_where_a_narrower_one_needs_the_places() -> None:
    assert spread(100, [(0, 100, 50), (0, 50, 40)])[1] == [(10, 40), (40, 0)]
    with pytest.raises(OverfullError) as caught:
        spread(100, [(0, 100, 61), (0, 50, 40)])
    assert (caught.value.needed, caught.value.room) == (101, 100)


RATIOS, SHARES = [0, 0.25, 0.5, 0.75, 0.875, 0.9375], [1, 0.5, 0.25, 0.125]


@pytest.mark.parametrize(("replay", "late"), list(itertools.product(RATIOS, SHARES)))
def test_the_two_phases_of_kotha_and_liang_are_exact_to_the_sequence(replay: float, late: float) -> None:
    # Of the run, a share g is rare: 32 passes over 1/1,024 of it. A share `late` of that is in phase 2, beside `replay`.
    total, distinct, passes = 2**14, 16, 32
    rare = distinct * passes
    phase2 = round(rare * late / (1 - replay))
    start = total - phase2
    sizes = {"c4": total, "math": distinct}
    halves = [(passes * (1 - late), [0, start]), (passes * late, [start, total])]
    mix = [
        {"corpus": "math", "distinct": distinct, "first": 0, "sequences": round(times * distinct), "window": window}
        for times, window in halves
        if times
    ]
    recipe = {"corpus": "c4", "distinct": total - rare, "sequences": total, "subset_seed": 0, "seed": 1, "mix": mix}
    order = stage_order(recipe, sizes)
    source, sequence = order.locate(np.arange(total))
    rare_at = source > 0
    assert rare_at[start:].sum() == rare * late
    assert (~rare_at[start:]).sum() == phase2 - rare * late == round(replay * phase2)
    assert rare_at[:start].sum() == rare * (1 - late)
    assert Counter(sequence[rare_at].tolist()) == dict.fromkeys(range(distinct), passes)
    assert len(set(sequence[~rare_at].tolist())) == total - rare
    # Phase 1 holds its rare sequences uniformly: every quarter has a quarter of them, to within two.
    quarters = [part.sum() for part in np.array_split(rare_at[:start], 4)]
    assert all(abs(count - rare * (1 - late) / 4) <= 2 for count in quarters)


@given(st.integers(2, 40), st.integers(2, 5), SEEDS)
def test_a_component_in_several_passes_ends_each_before_the_next_and_reorders_it(
    distinct: int, passes: int, seed: int
) -> None:
    part = {"corpus": "music", "distinct": distinct, "first": 0, "sequences": passes * distinct}
    recipe = COMMON | {"seed": seed, "distinct": 100, "sequences": 100 + passes * distinct, "mix": [part]}
    read = [number for corpus, number in everything(order_of(recipe)) if corpus == "music"]
    each = [tuple(read[first : first + distinct]) for first in range(0, len(read), distinct)]
    assert len({frozenset(one) for one in each}) == 1
    assert len(set(each[0])) == distinct
    if distinct > 15:
        assert len(set(each)) == passes


def test_a_stage_in_several_passes_keeps_a_new_order_each_pass_beside_a_component() -> None:
    part = {"corpus": "code", "distinct": 30, "first": 0, "sequences": 30}
    recipe = TUNED | {"first": 0, "replay": None, "early_stopping": None, "sequences": 240, "mix": [part]}
    read = [number for corpus, number in everything(order_of(recipe)) if corpus == "music"]
    each = [tuple(read[first : first + 70]) for first in range(0, 210, 70)]
    assert len(set(each)) == 3
    assert len({frozenset(one) for one in each}) == 1


@pytest.mark.parametrize("mix", [[], [{"corpus": "code", "distinct": 30, "first": 0, "sequences": 30}]])
def test_any_stage_that_repeats_its_corpus_reads_whole_passes_in_a_new_order_each(mix: list[dict[str, Any]]) -> None:
    recipe = COMMON | {"distinct": 50, "sequences": 150 + 30 * len(mix), "mix": mix}
    read = [number for corpus, number in everything(stage_order(recipe, SIZES)) if corpus == "general"]
    each = [tuple(read[first : first + 50]) for first in (0, 50, 100)]
    assert len(set(each)) == 3
    assert len({frozenset(one) for one in each}) == 1
    assert len(set(each[0])) == 50


def test_exposure_in_a_window_that_is_the_whole_stage_has_the_order_of_uniform_exposure() -> None:
    recipe = EARLIER["uniform exposure"][0]
    whole = recipe | {"exposure": EXPOSED | {"window": [0, 360]}}
    assert everything(stage_order(whole, SIZES)) == everything(stage_order(recipe, SIZES))
    part = {"corpus": "code", "distinct": 30, "first": 0, "sequences": 30}
    both = [
        one | {"sequences": 390, "mix": [part]}
        for one in (recipe, recipe | {"exposure": EXPOSED | {"window": [0, 390]}})
    ]
    assert everything(order_of(both[0])) == everything(order_of(both[1]))


def test_components_of_twenty_billion_tokens_are_located_at_once() -> None:
    total = 20_000_000
    sizes = {"general": total, "music": 300_000, "code": 5_000_000}
    mix = [
        {"corpus": "music", "distinct": 300_000, "first": 0, "sequences": 2_400_000, "window": [total // 2, total]},
        {"corpus": "code", "distinct": 5_000_000, "first": 0, "sequences": 5_000_000},
    ]
    recipe = COMMON | {"distinct": total - 7_400_000, "sequences": total, "mix": mix}
    source, sequence = order_of(recipe, sizes).locate(np.arange(total - 1000, total))
    assert abs(int((source == 1).sum()) - 240) <= 2
    assert abs(int((source == 2).sum()) - 250) <= 4
    assert (sequence < np.array([total, 300_000, 5_000_000])[source]).all()
