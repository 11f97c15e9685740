"""How many parts a budget makes, and in how many rounds, on many made-up sources."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest

from retain.datamodules.corpora.parts.budget import SAMPLE, Made, next_round

Numbers = npt.NDArray[np.float64]
PART = 10_000
"""Bytes of a part."""


@dataclass(frozen=True)
class Outcome:
    """What the rounds of a source have made."""

    rounds: list[list[int]]
    needed: int
    """The number of parts that hold the budget."""
    surplus: float
    """The tokens of the other parts that were made, by the budget."""

    @property
    def other(self) -> int:
        """The number of parts that were made and not needed."""
        return sum(number >= self.needed for numbers in self.rounds for number in numbers)


def drift_up(at: Numbers, draw: np.random.Generator) -> Numbers:
    return 1 + at


def drift_down(at: Numbers, draw: np.random.Generator) -> Numbers:
    return 2 - at


def up_and_down(at: Numbers, draw: np.random.Generator) -> Numbers:
    return 1.5 - 0.5 * np.cos(2 * np.pi * draw.uniform(0.5, 1.5) * at)


def even(at: Numbers, draw: np.random.Generator) -> Numbers:
    return np.ones(len(at))


def varied(at: Numbers, draw: np.random.Generator) -> Numbers:
    return np.exp(draw.normal(0, 0.2, len(at)))


def varied_drift(at: Numbers, draw: np.random.Generator) -> Numbers:
    return (1 + at) * np.exp(draw.normal(0, 0.1, len(at)))


def sparser_from_some_part_on(at: Numbers, draw: np.random.Generator) -> Numbers:
    return np.where(at < draw.uniform(), 2.0, 1.0)


SOURCES = [drift_up, drift_down, up_and_down, even, varied, varied_drift, sparser_from_some_part_on]
"""Tokens per byte at each place of a source, from 0 to 1."""


def prepared(tokens: Numbers, sizes: list[int], budget: int, share: float = 1.0) -> Outcome:
    """Prepare the parts of a source round after round. tokens: those of each part."""
    every = [Made(int(one), int(share * one)) for one in tokens]
    trained = np.array([one.trained for one in every])
    made: dict[int, Made] = {}
    rounds = []
    while numbers := next_round(sizes, made, budget, share):
        assert not made.keys() & set(numbers)
        assert numbers == sorted(set(numbers))
        rounds.append(numbers)
        made |= {number: every[number] for number in numbers}
        assert len(rounds) < 30
    needed = min(len(sizes), int(np.searchsorted(np.cumsum(trained), budget)) + 1)
    assert set(range(needed)) <= made.keys()
    return Outcome(rounds, needed, sum(int(trained[number]) for number in made if number >= needed) / budget)


def made_up(
    source: Callable[[Numbers, np.random.Generator], Numbers], number: int, parts: int | None = None
) -> Outcome:
    """A source of some number of parts of several sizes, and a budget of some share of it. number: the seed."""
    draw = np.random.default_rng(number)
    count = parts or int(np.exp(draw.uniform(np.log(3), np.log(1000))))
    sizes = draw.integers(PART, PART + 1 + number % 2 * PART // 2, count)
    tokens = source(np.linspace(0, 1, count), draw) * sizes
    share = (1.0, 0.9)[number % 2]
    return prepared(tokens, sizes.tolist(), int(draw.uniform(0.3, 0.98) * share * tokens.sum()), share)


@pytest.mark.parametrize("source", SOURCES)
def test_surplus_stays_below_a_part_or_5_percent_whatever_the_source(
    source: Callable[[Numbers, np.random.Generator], Numbers],
) -> None:
    for number in range(150):
        outcome = made_up(source, number)
        assert outcome.other <= 1 or outcome.surplus < 0.05, (number, outcome)


@pytest.mark.parametrize("source", SOURCES)
def test_rounds_are_few(source: Callable[[Numbers, np.random.Generator], Numbers]) -> None:
    rounds = [len(made_up(source, number).rounds) for number in range(150)]
    assert max(rounds) <= 7
    assert np.mean(rounds) < 5
    of_many = [len(made_up(source, number, 1000).rounds) for number in range(20)]
    assert max(of_many) <= 8


def test_an_even_source_of_a_thousand_parts_takes_five_rounds() -> None:
    outcome = prepared(np.full(1200, 2500.0), [PART] * 1200, 2_500_000)
    assert [len(numbers) for numbers in outcome.rounds][:3] == [1, SAMPLE, 744]
    assert len(outcome.rounds) == 5
    assert outcome.other == 0


def test_few_parts_take_no_round_each() -> None:
    rounds = {count: prepared(np.full(20, 2500.0), [PART] * 20, count * 2500) for count in range(1, 10)}
    assert max(len(one.rounds) for one in rounds.values()) == 4
    assert all(one.other == 0 for one in rounds.values())


@pytest.mark.parametrize("tokens", [0.0, 1.0])
def test_a_first_part_without_text_is_no_reason_to_make_all(tokens: float) -> None:
    of_parts = np.array([tokens, *[2500.0] * 999])
    outcome = prepared(of_parts, [PART] * 1000, 2_500 * 500)
    assert outcome.other <= 1
    assert len(outcome.rounds) <= 6


def test_parts_of_unknown_size_count_by_their_number() -> None:
    assert prepared(np.full(50, 2500.0), [0] * 50, 2500 * 30).other == 0


def test_a_source_that_ends_before_its_budget_is_read_whole() -> None:
    outcome = prepared(np.full(50, 2500.0), [PART] * 50, 2500 * 100)
    assert outcome.needed == sum(map(len, outcome.rounds)) == 50


def test_parts_that_were_made_for_a_smaller_budget_count() -> None:
    known: Mapping[int, Made] = {number: Made(2500, 2500) for number in range(40)}
    assert next_round([PART] * 100, known, 2500 * 40) == []
    assert next_round([PART] * 100, known, 2500 * 42) == [40, 41]
    assert next_round([PART] * 100, known, 2500 * 60) == list(range(40, 55))  # three quarters
