"""The order in which a stage sees its sequences: a pure function of its recipe, so of its seed, at any position.

A position counts the sequences of a stage from 0. `locate` says which corpus and which sequence stand there, in O(1) and
without stored state, so resuming is starting at an offset and ranks and workers cannot change the order.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from retain.datamodules.order.permutation import Indices, derive_seed, permute


@dataclass(frozen=True)
class Subset:
    """`distinct` sequences of a corpus from the `first` on, in the order of the corpus's one seeded shuffle.

    Subsets from 0 are nested: a smaller one is the beginning of a larger one.
    """

    corpus: str
    """Fingerprint."""
    size: int
    """Sequences in the corpus's training split."""
    distinct: int
    first: int
    seed: int

    def sequences(self, indices: Indices) -> Indices:
        """Sequence numbers in the corpus; indices beyond `distinct` begin again."""
        return permute(self.first + indices % self.distinct, self.size, derive_seed(self.seed, "subset"))


class Order(Protocol):
    """What a stage sees at each of its positions."""

    @property
    def subsets(self) -> tuple[Subset, ...]: ...

    @property
    def total(self) -> int:
        """Positions, in sequences."""

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        """For each position, which of `subsets` it comes from and the sequence's number in that corpus."""


@dataclass(frozen=True)
class Mixture:
    """Subsets in stated amounts, uniformly interleaved: one permutation of all their sequences."""

    subsets: tuple[Subset, ...]
    amounts: tuple[int, ...]
    seed: int

    @property
    def total(self) -> int:
        return sum(self.amounts)

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        drawn = permute(positions, self.total, derive_seed(self.seed, "order"))
        return _assign(drawn, self.subsets, self.amounts, (0,) * len(self.subsets))


@dataclass(frozen=True)
class ExposureWindow:
    """All of `main` in one seeded order, and `amount` sequences of `exposed` spread over the positions [begin, end).

    The window is cut into as many equal slots as there are exposed sequences; each stands at a seeded place in its slot.
    So any part of the window holds its share to one sequence or two, and the sequences of `main` follow each other in
    the same order wherever the window lies.
    """

    main: Subset
    exposed: Subset
    amount: int
    begin: int
    end: int
    seed: int

    @property
    def subsets(self) -> tuple[Subset, ...]:
        return self.main, self.exposed

    @property
    def total(self) -> int:
        return self.main.distinct + self.amount

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        inside = (positions >= self.begin) & (positions < self.end)
        slots = self._slot_of(np.clip(positions, self.begin, self.end - 1))
        places = self._place_in(slots)
        source = (inside & (positions == places)).astype(np.int64)
        before = np.where(inside, slots + (places < positions), np.where(positions < self.begin, 0, self.amount))
        sequence = np.empty_like(positions)
        main, exposed = source == 0, source == 1
        order = permute((positions - before)[main], self.main.distinct, derive_seed(self.seed, "order"))
        sequence[main] = self.main.sequences(order)
        order = permute(slots[exposed], self.amount, derive_seed(self.seed, "exposed"))
        sequence[exposed] = self.exposed.sequences(order)
        return source, sequence

    def _slot_of(self, positions: Indices) -> Indices:
        """The slot that each position of the window lies in."""
        return ((positions - self.begin + 1) * self.amount - 1) // (self.end - self.begin)

    def _place_in(self, slots: Indices) -> Indices:
        """The position of the exposed sequence of each slot."""
        first, after = (self.begin + number * (self.end - self.begin) // self.amount for number in (slots, slots + 1))
        drawn = permute(slots, 2**32, derive_seed(self.seed, "places"))
        return first + (drawn * (after - first) >> 32)


@dataclass(frozen=True)
class Passes:
    """Repeated passes over one subset, each in a new order, with a share of replayed sequences in every pass.

    A pass holds all of the subset and the replayed sequences that bring all passes up to it closest to `share`; a last,
    shorter pass does the same. Replay goes on through its own subset from pass to pass.
    """

    post: Subset
    replay: Subset | None
    share: float
    total: int
    seed: int

    @property
    def subsets(self) -> tuple[Subset, ...]:
        return (self.post,) if self.replay is None else (self.post, self.replay)

    def replayed_before(self, number: int) -> int:
        """Replayed sequences in all passes before this one, to the nearest whole one."""
        return int(number * self.post.distinct * self.share / (1 - self.share) + 0.5)

    def start(self, number: int) -> int:
        """The first position of a pass."""
        return number * self.post.distinct + self.replayed_before(number)

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        source, sequence = np.empty_like(positions), np.empty_like(positions)
        waiting = np.ones(positions.shape, bool)
        while waiting.any():
            number = self._pass_of(int(positions[waiting].min()))
            here = waiting & (positions < self.start(number + 1))
            source[here], sequence[here] = self._locate_in_pass(number, positions[here] - self.start(number))
            waiting &= ~here
        return source, sequence

    def _pass_of(self, position: int) -> int:
        number = int(position * (1 - self.share) / self.post.distinct)
        # Passes differ by one replayed sequence at most, so the estimate is off by one at most.
        while self.start(number) > position:
            number -= 1
        while self.start(number + 1) <= position:
            number += 1
        return number

    def _locate_in_pass(self, number: int, positions: Indices) -> tuple[Indices, Indices]:
        begin, end = self.start(number), min(self.start(number + 1), self.total)
        before, size = self.replayed_before(number), end - begin
        whole = end == self.start(number + 1)
        upto = self.replayed_before(number + 1) if whole else min(int(end * self.share + 0.5), before + size)
        replayed = max(0, upto - before, size - self.post.distinct)
        drawn = permute(positions, size, derive_seed(self.seed, "order", number))
        fresh = drawn < size - replayed
        # A pass that is cut short takes a random part of the subset, not always its beginning.
        drawn[fresh] = permute(drawn[fresh], self.post.distinct, derive_seed(self.seed, "pass", number))
        drawn[~fresh] += self.post.distinct - (size - replayed)
        return _assign(drawn, self.subsets, (self.post.distinct, replayed)[: len(self.subsets)], (0, before))


def _assign(
    drawn: Indices, subsets: tuple[Subset, ...], amounts: tuple[int, ...], offsets: tuple[int, ...]
) -> tuple[Indices, Indices]:
    """Numbers in range(sum(amounts)) as (subset, sequence): the first amounts[0] belong to the first subset, and so on."""
    ends = np.cumsum(amounts)
    source = np.searchsorted(ends, drawn, side="right").astype(np.int64)
    sequence = np.empty_like(drawn)
    for index, subset in enumerate(subsets):
        here = source == index
        sequence[here] = subset.sequences(offsets[index] + drawn[here] - (ends[index] - amounts[index]))
    return source, sequence


def stage_order(recipe: Mapping[str, Any], sizes: Mapping[str, int]) -> Order:
    """The order that a recipe means; `sizes` gives the training sequences of each corpus by fingerprint."""

    def subset(part: Mapping[str, Any], first: int = 0) -> Subset:
        corpus = part["corpus"]
        return Subset(corpus, sizes[corpus], part["distinct"], first, recipe["subset_seed"])

    main = subset(recipe, recipe.get("first", 0))
    if "early_stopping" in recipe:
        replay = recipe["replay"]
        share = replay["fraction"] if replay else 0.0
        return Passes(main, subset(replay) if replay else None, share, recipe["sequences"], recipe["seed"])
    exposure = recipe.get("exposure")
    if exposure and "window" in exposure:
        begin, end = exposure["window"]
        return ExposureWindow(main, subset(exposure), exposure["sequences"], begin, end, recipe["seed"])
    subsets = (main, subset(exposure)) if exposure else (main,)
    amounts = (recipe["distinct"], exposure["sequences"]) if exposure else (recipe["sequences"],)
    return Mixture(subsets, amounts, recipe["seed"])
