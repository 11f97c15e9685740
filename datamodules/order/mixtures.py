"""The order in which a stage reads its sequences: a pure function of its recipe, seed included.

Positions count the sequences of a stage from 0. `locate` returns the corpus and the sequence at a position, in O(1) and
without stored state. So resuming means starting at an offset, and the number of ranks does not change the order. λ is already
a number of sequences here: `sweeps.tree.recipes.stage` computes it.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from retain.datamodules.order.permutation import Indices, derive_seed, permute
from retain.sweeps.tree.recipes.mixture import spread, window_of


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
    purpose: str = "order"
    """What the permutation's seed is derived for."""

    @property
    def total(self) -> int:
        return sum(self.amounts)

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        drawn = permute(positions, self.total, derive_seed(self.seed, self.purpose))
        return _assign_to_subsets(drawn, self.subsets, self.amounts, (0,) * len(self.subsets))


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
        # The start of a pass is rounded to the nearest sequence, so the estimate may be one too low, and is never too high.
        return number + (self.start(number + 1) <= position)

    def _locate_in_pass(self, number: int, positions: Indices) -> tuple[Indices, Indices]:
        """Locate positions that are counted from the beginning of a pass."""
        # How many sequences of this pass are replayed, so that the stage has its share up to the pass's end, cut short or not.
        begin, end = self.start(number), min(self.start(number + 1), self.total)
        before, size = self.replayed_before(number), end - begin
        after = min(int(end * self.share + 0.5), before + size)
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


@dataclass(frozen=True)
class Component:
    """The sequences of `order`, spread over parts of a stage."""

    order: Mixture | Passes
    counts: tuple[int, ...]
    """How many of the sequences each part of the stage has."""
    seed: int

    @property
    def subsets(self) -> tuple[Subset, ...]:
        return self.order.subsets

    def find(self, part: Indices, places: Indices, sizes: Indices) -> tuple[Indices, Indices, Indices]:
        """Find this component among places of parts of the stage.

        part, places, sizes: for each place its part, its number in the part, and the number of places there. Every part is
        divided into as many equal slots as it has sequences of the component, and each of these has a seeded place in its
        slot. Returns for each place whether it is one of these, the number of the slot's sequence in `order`, and the number
        of the component's places before it in its part.
        """
        counts = np.array(self.counts, np.int64)
        found, number, before = np.zeros(part.shape, bool), np.zeros_like(places), np.zeros_like(places)
        some = np.flatnonzero(counts[part] > 0)
        part, places, sizes = part[some], places[some], sizes[some]
        count = counts[part]
        slot = ((places + 1) * count - 1) // sizes
        number[some] = (np.cumsum(counts) - counts)[part] + slot
        first, after = slot * sizes // count, (slot + 1) * sizes // count
        drawn = permute(number[some], 2**32, derive_seed(self.seed, "places"))
        chosen = first + (drawn * (after - first) >> 32)
        found[some], before[some] = places == chosen, slot + (chosen < places)
        return found, number, before


@dataclass(frozen=True)
class Spread:
    """A base order with components spread over windows of the stage.

    The windows' ends divide the stage into parts. In each part, the first component takes its places first, the second one
    takes its own among the remaining places, and so on; the base order continues through what remains. So every part of a
    window holds its share of the window's sequences, and the order within each corpus does not depend on the windows.
    """

    base: Mixture | Passes
    components: tuple[Component, ...]
    ends: tuple[int, ...]
    """The position at which each part of the stage ends."""

    @property
    def subsets(self) -> tuple[Subset, ...]:
        return (*self.base.subsets, *(subset for component in self.components for subset in component.subsets))

    @property
    def total(self) -> int:
        return self.ends[-1]

    def locate(self, positions: Indices) -> tuple[Indices, Indices]:
        source, sequence = np.empty_like(positions), np.empty_like(positions)
        sizes = np.diff(self.ends, prepend=0)
        at, part = np.arange(len(positions)), np.searchsorted(self.ends, positions, side="right")
        places = positions - (np.array(self.ends) - sizes)[part]
        subset = len(self.base.subsets)
        for component in self.components:
            found, number, before = component.find(part, places, sizes[part])
            source[at[found]], sequence[at[found]] = component.order.locate(number[found])
            source[at[found]] += subset
            subset += len(component.subsets)
            at, part, places = at[~found], part[~found], (places - before)[~found]
            sizes = sizes - component.counts
        source[at], sequence[at] = self.base.locate((np.cumsum(sizes) - sizes)[part] + places)
        return source, sequence


Order = Mixture | Passes | Spread
"""Which sequence a stage reads at each of its `total` positions.

`locate` returns, for each position, the index of its subset in `subsets` and the sequence's number in that corpus.
"""


def stage_order(recipe: Mapping[str, Any], sizes: Mapping[str, int]) -> Order:
    """Return the order of a recipe. sizes: the number of training sequences of each corpus, by fingerprint.

    Exposure over the whole stage of a recipe without other components is one permutation of both corpora, as it was before
    there were components, so that the runs of earlier recipes keep their order.
    """

    def subset(part: Mapping[str, Any]) -> Subset:
        corpus = part["corpus"]
        return Subset(corpus, sizes[corpus], part["distinct"], part.get("first", 0), recipe["subset_seed"])

    seed, total, main = recipe["seed"], recipe["sequences"], subset(recipe)
    exposure, mix = recipe.get("exposure"), recipe.get("mix", [])
    if exposure and not mix and window_of(exposure, total)[:2] == (0, total):
        return Mixture((main, subset(exposure)), (recipe["distinct"], exposure["sequences"]), seed)
    mixed = [*([exposure] if exposure else []), *mix]
    orders: list[tuple[Mixture | Passes, int]] = []
    if exposure:
        orders.append((Mixture((subset(exposure),), (exposure["sequences"],), seed, "exposed"), seed))
    for number, part in enumerate(mix):
        own = derive_seed(seed, "mix", number)
        orders.append((Passes(subset(part), None, 0.0, part["sequences"], own), own))
    base = _base(recipe, subset, total - sum(part["sequences"] for part in mixed))
    if not mixed:
        return base
    ends, counts = spread(total, [window_of(part, total) for part in mixed])
    components = zip(orders, counts, strict=True)
    return Spread(base, tuple(Component(order, count, own) for (order, own), count in components), ends)


def _base(recipe: Mapping[str, Any], subset: Callable[[Mapping[str, Any]], Subset], total: int) -> Mixture | Passes:
    """The order of a recipe's own corpus, with replay if there is any, in `total` sequences without components.

    Recipes of post-training, which have `early_stopping`, always read in passes; others do if they repeat their corpus.
    """
    if "early_stopping" not in recipe and total <= recipe["distinct"]:
        return Mixture((subset(recipe),), (total,), recipe["seed"])
    replay = recipe.get("replay")
    share = replay["fraction"] if replay else 0.0
    return Passes(subset(recipe), subset(replay) if replay else None, share, total, recipe["seed"])
