"""The order in which a stage reads its sequences: a pure function of its recipe, seed included.

Positions count the sequences of a stage from 0. `locate` returns the corpus and the sequence at a position, in O(1) and
without stored state. So resuming means starting at an offset, and the number of ranks does not change the order. λ is already
a number of sequences here: `sweeps.tree.recipes` computes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retain.datamodules.order.permutation import Indices, derive_seed, permute


@dataclass(frozen=True)
class Subset:
    """`distinct` sequences of a corpus, from number `first` on in a seeded shuffle of the corpus.

    Subsets with the same `first` and `seed` are nested: a smaller one is the beginning of a larger one.
    """

    corpus: str
    """The corpus's fingerprint."""
    size: int
    """Sequences in the corpus's training split."""
    distinct: int
    first: int
    seed: int

    def sequences(self, indices: Indices) -> Indices:
        """Return the corpus's sequence numbers at indices of the subset; indices from `distinct` on wrap around."""
        return permute(self.first + indices % self.distinct, self.size, derive_seed(self.seed, "subset"))


@dataclass(frozen=True)
class Mixture:
    """Given amounts of several subsets, uniformly mixed: one permutation of all their sequences."""

    subsets: tuple[Subset, ...]
    amounts: tuple[int, ...]
    seed: int

    @property
    def total(self) -> int:
        return sum(self.amounts)

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        drawn = permute(positions, self.total, derive_seed(self.seed, "order"))
        return _assign_to_subsets(drawn, self.subsets, self.amounts, (0,) * len(self.subsets))


@dataclass(frozen=True)
class ExposureWindow:
    """All of `main` in a seeded order, with `amount` sequences of `exposed` spread over the positions [begin, end).

    The window is divided into `amount` equal slots, and each exposed sequence has a seeded position in its slot. So every
    part of the window contains its share of exposed sequences, to within two, and the order of the sequences of `main`
    does not depend on the window.
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
        slots = self._slots_at(np.clip(positions, self.begin, self.end - 1))
        exposed_at = self._exposed_positions(slots)
        source = (inside & (positions == exposed_at)).astype(np.int64)
        # The number of exposed sequences before each position.
        before = np.where(inside, slots + (exposed_at < positions), np.where(positions < self.begin, 0, self.amount))
        sequence = np.empty_like(positions)
        main, exposed = source == 0, source == 1
        order = permute((positions - before)[main], self.main.distinct, derive_seed(self.seed, "order"))
        sequence[main] = self.main.sequences(order)
        order = permute(slots[exposed], self.amount, derive_seed(self.seed, "exposed"))
        sequence[exposed] = self.exposed.sequences(order)
        return source, sequence

    def _slots_at(self, positions: Indices) -> Indices:
        """Return the slot of each position in the window."""
        return ((positions - self.begin + 1) * self.amount - 1) // (self.end - self.begin)

    def _exposed_positions(self, slots: Indices) -> Indices:
        """Return the position of each slot's exposed sequence."""
        first, after = (self.begin + number * (self.end - self.begin) // self.amount for number in (slots, slots + 1))
        drawn = permute(slots, 2**32, derive_seed(self.seed, "places"))
        return first + (drawn * (after - first) >> 32)


@dataclass(frozen=True)
class Passes:
    """Repeated passes over the subset `post`, each in a new order, with a share of replayed sequences in every pass.

    A pass contains all of `post`, and as many replayed sequences as bring the share of replay in all passes so far closest
    to `share`. The last pass may be cut short and keeps the share as well. Each pass continues in the replay subset where
    the previous pass ended.
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
        """Return the number of replayed sequences in all passes before pass `number`, rounded."""
        return int(number * self.post.distinct * self.share / (1 - self.share) + 0.5)

    def start(self, number: int) -> int:
        """Return the first position of a pass."""
        return number * self.post.distinct + self.replayed_before(number)

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        source, sequence = np.empty_like(positions), np.empty_like(positions)
        remaining = np.ones(positions.shape, bool)
        while remaining.any():
            number = self._pass_at(int(positions[remaining].min()))
            here = remaining & (positions < self.start(number + 1))
            source[here], sequence[here] = self._locate_in_pass(number, positions[here] - self.start(number))
            remaining &= ~here
        return source, sequence

    def _pass_at(self, position: int) -> int:
        """Return the number of the pass that contains a position."""
        number = int(position * (1 - self.share) / self.post.distinct)
        # Passes differ in length by at most one sequence, so the estimate is off by at most one.
        while self.start(number) > position:
            number -= 1
        while self.start(number + 1) <= position:
            number += 1
        return number

    def _locate_in_pass(self, number: int, positions: Indices) -> tuple[Indices, Indices]:
        """Locate positions that are counted from the beginning of a pass."""
        # How many sequences of this pass are replayed; a pass that is cut short keeps the share of the whole stage.
        begin, end = self.start(number), min(self.start(number + 1), self.total)
        before, size = self.replayed_before(number), end - begin
        complete = end == self.start(number + 1)
        after = self.replayed_before(number + 1) if complete else min(int(end * self.share + 0.5), before + size)
        replayed = max(0, after - before, size - self.post.distinct)
        # Mix fresh and replayed sequences.
        drawn = permute(positions, size, derive_seed(self.seed, "order", number))
        fresh = drawn < size - replayed
        # Shuffle `post` in every pass, so that a pass that is cut short takes a random part of it and not its beginning.
        drawn[fresh] = permute(drawn[fresh], self.post.distinct, derive_seed(self.seed, "pass", number))
        drawn[~fresh] += self.post.distinct - (size - replayed)
        return _assign_to_subsets(drawn, self.subsets, (self.post.distinct, replayed)[: len(self.subsets)], (0, before))


def _assign_to_subsets(
    drawn: Indices, subsets: tuple[Subset, ...], amounts: tuple[int, ...], offsets: tuple[int, ...]
) -> tuple[Indices, Indices]:
    """Return (subset index, sequence number) for numbers in range(sum(amounts)).

    The first amounts[0] numbers belong to the first subset, the next amounts[1] to the second, and so on. offsets: the index
    in each subset of its first number.
    """
    ends = np.cumsum(amounts)
    source = np.searchsorted(ends, drawn, side="right").astype(np.int64)
    sequence = np.empty_like(drawn)
    for index, subset in enumerate(subsets):
        here = source == index
        sequence[here] = subset.sequences(offsets[index] + drawn[here] - (ends[index] - amounts[index]))
    return source, sequence


Order = Mixture | ExposureWindow | Passes
"""Which sequence a stage reads at each of its `total` positions.

`locate` returns, for each position, the index of its subset in `subsets` and the sequence's number in that corpus.
"""


def stage_order(recipe: Mapping[str, Any], sizes: Mapping[str, int]) -> Order:
    """Return the order of a recipe. sizes: the number of training sequences of each corpus, by fingerprint."""

    def subset(part: Mapping[str, Any], first: int = 0) -> Subset:
        corpus = part["corpus"]
        return Subset(corpus, sizes[corpus], part["distinct"], first, recipe["subset_seed"])

    main = subset(recipe, recipe.get("first", 0))
    exposure = recipe.get("exposure")
    if "early_stopping" in recipe or (exposure is None and recipe["sequences"] != recipe["distinct"]):
        replay = recipe.get("replay")
        share = replay["fraction"] if replay else 0.0
        return Passes(main, subset(replay) if replay else None, share, recipe["sequences"], recipe["seed"])
    if exposure and "window" in exposure:
        begin, end = exposure["window"]
        return ExposureWindow(main, subset(exposure), exposure["sequences"], begin, end, recipe["seed"])
    subsets = (main, subset(exposure)) if exposure else (main,)
    amounts = (recipe["distinct"], exposure["sequences"]) if exposure else (recipe["sequences"],)
    return Mixture(subsets, amounts, recipe["seed"])
