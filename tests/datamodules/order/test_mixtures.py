from collections import Counter
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retain.datamodules.order.mixtures import Mixture, Order, Passes, Subset, stage_order
from retain.datamodules.order.permutation import derive_seed, permute

SEEDS = st.integers(0, 2**63 - 1)
SIZE = 60


def subset(corpus: str, distinct: int, first: int = 0, seed: int = 0, size: int = SIZE) -> Subset:
    return Subset(corpus, size, distinct, first, seed)


def everything(order: Order) -> list[tuple[str, int]]:
    """Everything that a stage reads, in order: (corpus, sequence)."""
    source, sequence = order.locate(np.arange(order.total))
    return [(order.subsets[index].corpus, int(number)) for index, number in zip(source, sequence, strict=True)]


def members(part: Subset) -> set[tuple[str, int]]:
    return {(part.corpus, int(number)) for number in part.sequences(np.arange(part.distinct))}


@st.composite
def orders(draw: st.DrawFn) -> Order:
    main = subset("main", draw(st.integers(1, SIZE)), seed=draw(SEEDS))
    other = subset("other", draw(st.integers(1, SIZE)), seed=main.seed)
    if draw(st.booleans()):
        amount = draw(st.integers(1, 2 * SIZE))
        return Mixture((main, other), (main.distinct, amount), draw(SEEDS))
    share = draw(st.floats(0, 0.9))
    return Passes(main, other if share else None, share, draw(st.integers(1, 4 * SIZE)), draw(SEEDS))


@given(st.integers(1, 3000), SEEDS)
def test_a_permutation_maps_to_every_index_exactly_once(size: int, seed: int) -> None:
    assert sorted(permute(np.arange(size), size, seed)) == list(range(size))


@given(st.integers(1, 2**40), SEEDS, st.data())
def test_any_part_of_a_permutation_can_be_computed_alone(size: int, seed: int, data: st.DataObject) -> None:
    indices = np.array(data.draw(st.lists(st.integers(0, size - 1), min_size=1, max_size=20, unique=True)))
    together = permute(indices, size, seed)
    assert len(set(together.tolist())) == len(indices)
    assert ((together >= 0) & (together < size)).all()
    assert [int(permute(np.array([index]), size, seed)[0]) for index in indices] == together.tolist()


@pytest.mark.parametrize("index", [-1, 10])
def test_an_index_outside_the_permutation_is_refused(index: int) -> None:
    with pytest.raises(IndexError, match=r"index outside range\(10\)"):
        permute(np.array([0, index]), 10, 0)


def test_permutations_of_different_seeds_are_uncorrelated_with_each_other_and_with_the_index() -> None:
    size = 4096
    first, second = permute(np.arange(size), size, 1), permute(np.arange(size), size, 2)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06
    assert abs(np.corrcoef(first, np.arange(size))[0, 1]) < 0.06
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.06
    assert (first == second).sum() < 10


def test_over_many_seeds_every_index_comes_first_equally_often() -> None:
    size, draws = 10, 2000
    first = Counter(int(permute(np.array([0]), size, derive_seed(number))[0]) for number in range(draws))
    expected = draws / size
    assert sum((first[index] - expected) ** 2 / expected for index in range(size)) < 27.9  # χ², 9 degrees, p = 0.001


def test_a_derived_seed_depends_on_every_part_and_its_type() -> None:
    seeds = {
        derive_seed(*parts) for parts in ((1, "a"), (1, "b"), (2, "a"), ("1", "a"), (1, "a", 0), ("1a",), (12,), (1, 2))
    }
    assert len(seeds) == 8
    assert all(0 <= seed < 2**64 for seed in seeds)


@given(st.integers(1, SIZE), st.integers(1, SIZE), SEEDS)
def test_a_smaller_subset_is_the_beginning_of_a_larger_one(first: int, second: int, seed: int) -> None:
    small, large = sorted((first, second))
    assert members(subset("post", small, seed=seed)) <= members(subset("post", large, seed=seed))
    assert len(members(subset("post", large, seed=seed))) == large


@given(st.integers(1, SIZE), st.integers(0, 3 * SIZE), SEEDS, SEEDS)
def test_a_mixture_reads_each_sequence_exactly_as_often_as_the_recipe_says(
    distinct: int, exposed: int, seed: int, subset_seed: int
) -> None:
    main, post = subset("main", distinct, seed=subset_seed), subset("post", min(exposed, 40) or 1, seed=subset_seed)
    seen = Counter(everything(Mixture((main, post), (distinct, exposed), seed)))
    assert {item for item in seen if item[0] == "main"} == members(main)
    assert {seen[member] for member in members(main)} == {1}
    passes, more = divmod(exposed, post.distinct)
    assert (
        Counter(seen[member] for member in members(post))
        == Counter({passes + 1: more, passes: post.distinct - more}) - Counter()
    )
    assert seen.total() == distinct + exposed


@settings(max_examples=60)
@given(orders(), st.data())
def test_the_order_does_not_depend_on_chunks_or_the_number_of_ranks(order: Order, data: st.DataObject) -> None:
    whole = everything(order)
    world = data.draw(st.integers(1, 5))
    chunk = data.draw(st.integers(-(-order.total // 6), order.total))
    start = data.draw(st.integers(0, order.total - 1))
    seen: dict[int, tuple[str, int]] = {}
    for first in range(start, order.total, chunk):
        for rank in range(world):
            positions = np.arange(first + rank, min(first + chunk, order.total), world)
            source, sequence = order.locate(positions)
            for position, index, number in zip(positions, source, sequence, strict=True):
                seen[int(position)] = (order.subsets[index].corpus, int(number))
    assert [seen[position] for position in range(start, order.total)] == whole[start:]


@given(orders())
def test_locating_does_not_change_the_positions_array(order: Order) -> None:
    positions = np.arange(order.total)
    order.locate(positions)
    assert (positions == np.arange(order.total)).all()


@given(st.integers(1, SIZE), st.integers(1, 4), SEEDS)
def test_every_full_pass_reads_the_whole_subset_once_in_a_new_order(distinct: int, passes: int, seed: int) -> None:
    post = subset("post", distinct)
    seen = everything(Passes(post, None, 0.0, passes * distinct, seed))
    each_pass = [seen[start : start + distinct] for start in range(0, len(seen), distinct)]
    assert all(sorted(one) == sorted(members(post)) for one in each_pass)
    if distinct > 15:
        assert len({tuple(one) for one in each_pass}) == passes


@given(st.integers(1, SIZE), st.integers(1, SIZE - 1), SEEDS)
def test_a_pass_cut_short_reads_no_sequence_twice(distinct: int, cut: int, seed: int) -> None:
    total = min(cut, distinct)
    seen = everything(Passes(subset("post", distinct), None, 0.0, total, seed))
    assert len(set(seen)) == total


def test_a_pass_cut_short_reads_a_random_part_of_the_subset() -> None:
    post = subset("post", 40)
    parts = [set(everything(Passes(post, None, 0.0, 20, seed))) for seed in range(20)]
    assert set().union(*parts) == members(post)
    assert len({frozenset(part) for part in parts}) == 20


@given(st.integers(20, SIZE), st.floats(0.01, 0.6), st.integers(1, 4), SEEDS)
def test_every_pass_holds_the_whole_subset_and_all_passes_together_keep_the_replay_share(
    distinct: int, share: float, passes: int, seed: int
) -> None:
    post, pre = subset("post", distinct), subset("pre", SIZE)
    starts = [Passes(post, pre, share, 1, seed).start(number) for number in range(passes + 1)]
    seen = everything(Passes(post, pre, share, starts[-1], seed))
    for number, (start, end) in enumerate(pairwise(starts), 1):
        assert Counter(corpus for corpus, _ in seen[start:end])["post"] == distinct
        replayed = Counter(corpus for corpus, _ in seen[:end])["pre"]
        assert abs(replayed - share / (1 - share) * distinct * number) <= 0.5 + 1e-9
    counts = Counter(item for item in seen if item[0] == "pre")
    assert len(counts) == min(SIZE, counts.total()), "each pass continues the replay where the last pass ended"
    assert max(counts.values(), default=0) - min(counts.values(), default=0) <= 1


@given(st.integers(1, SIZE), st.floats(0.001, 0.6), st.integers(1, 5 * SIZE), SEEDS)
def test_replay_is_exact_to_the_sequence_over_any_number_of_passes(
    distinct: int, share: float, total: int, seed: int
) -> None:
    order = Passes(subset("post", distinct), subset("pre", SIZE), share, total, seed)
    counts = Counter(corpus for corpus, _ in everything(order))
    assert counts.total() == total
    assert abs(counts["pre"] - share * total) <= 1


def test_one_percent_of_replay_is_exactly_one_percent_of_the_sequences() -> None:
    order = Passes(subset("post", 9900, size=9900), subset("pre", 5000, size=5000), 0.01, 25_000, 3)
    assert Counter(corpus for corpus, _ in everything(order)) == {"post": 24_750, "pre": 250}


@given(st.integers(20, SIZE), st.floats(0.01, 0.6), SEEDS, st.data())
def test_a_short_last_pass_keeps_the_replay_share(distinct: int, share: float, seed: int, data: st.DataObject) -> None:
    post, pre = subset("post", distinct), subset("pre", SIZE)
    total = data.draw(st.integers(1, distinct - 1))
    counts = Counter(corpus for corpus, _ in everything(Passes(post, pre, share, total, seed)))
    assert abs(counts["pre"] - share * total) <= 0.5 + 1e-9
    assert counts.total() == total


def recipe(stage: str, **fields: Any) -> dict[str, Any]:
    common = {"corpus": "post", "subset_seed": 4, "seed": 9}
    if stage == "pretrain":
        return common | {"corpus": "pre", "distinct": 30, "sequences": 30, "exposure": None} | fields
    return common | {"first": 0, "distinct": 40, "replay": None, "early_stopping": None} | fields


SIZES = {"pre": SIZE, "post": SIZE}


@settings(max_examples=50)
@given(st.integers(0, 40), st.integers(1, 40))
def test_matched_allocation_divides_d_post_between_pretraining_and_post_training(exposed: int, distinct: int) -> None:
    exposed = min(exposed, distinct)
    exposure = {"corpus": "post", "distinct": exposed, "sequences": exposed} if exposed else None
    pretrain = stage_order(recipe("pretrain", exposure=exposure, sequences=30 + exposed), SIZES)
    before = [item for item in everything(pretrain) if item[0] == "post"]
    rest = distinct - exposed
    after = (
        everything(stage_order(recipe("posttrain", first=exposed, distinct=rest, sequences=rest), SIZES))
        if rest
        else []
    )
    assert len(before) == exposed
    assert len(after) == rest
    assert set(before) | set(after) == members(subset("post", distinct, seed=4))
    assert not set(before) & set(after)


def test_pretraining_without_exposure_reads_its_corpus_once() -> None:
    seen = everything(stage_order(recipe("pretrain"), SIZES))
    assert len(seen) == len(set(seen)) == 30
    assert {corpus for corpus, _ in seen} == {"pre"}


def test_exposure_beyond_one_pass_repeats_d_post_evenly() -> None:
    exposure = {"corpus": "post", "distinct": 10, "sequences": 25}
    seen = Counter(everything(stage_order(recipe("pretrain", exposure=exposure, sequences=55), SIZES)))
    assert Counter(seen[member] for member in members(subset("post", 10, seed=4))) == {2: 5, 3: 5}


def test_exposure_is_spread_over_all_of_pretraining() -> None:
    exposure = {"corpus": "post", "distinct": 500, "sequences": 500}
    sizes = {"pre": 2000, "post": 500}
    order = stage_order(recipe("pretrain", distinct=2000, exposure=exposure, sequences=2500), sizes)
    quarters = np.array([corpus == "post" for corpus, _ in everything(order)]).reshape(4, -1).sum(axis=1)
    assert quarters.sum() == 500
    assert (abs(quarters - 125) < 40).all()


def test_replay_reads_sequences_that_pretraining_has_read() -> None:
    replay = {"corpus": "pre", "distinct": 30, "fraction": 0.2}
    seen = everything(stage_order(recipe("posttrain", replay=replay, sequences=100), SIZES))
    pretrained = set(everything(stage_order(recipe("pretrain"), SIZES)))
    replayed = [item for item in seen if item[0] == "pre"]
    assert len(replayed) == 20
    assert set(replayed) <= pretrained


def test_another_seed_changes_the_order_but_not_the_sequences() -> None:
    first, second = (everything(stage_order(recipe("pretrain", seed=seed), SIZES)) for seed in (1, 2))
    assert first != second
    assert sorted(first) == sorted(second)
