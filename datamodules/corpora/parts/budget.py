"""Which parts of a corpus to prepare next, so that its budget of tokens is reached in few rounds and with little surplus.

How many tokens a part has is known once it is prepared. So parts are prepared in rounds, each estimated from all parts that are
made:

1. the first part;
2. SAMPLE parts, spread over the first half of those that the first part lets expect: these are needed even if it has half as
   many tokens per byte as the others;
3. the parts that ASKED of the missing tokens are expected to take, again and again while more than REST of the budget, and more
   than two parts, are missing;
4. the rest, and whatever that falls short by.

Surplus stays under 5% of the budget, or under a part, where tokens per byte drift by a factor of two over the source or vary
by a fifth from part to part. It may be more where they double at once behind the parts of the second round. A thousand parts
take five to eight rounds; the first, of one part, needs no queue.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retain.datamodules.corpora.parts.plan import CutCorpus

SAMPLE = 8
ASKED = 0.75
REST = 0.07
LATEST = 8
"""What is behind the last part that is made is expected to have the tokens per byte of the last so many."""


@dataclass(frozen=True)
class Made:
    """What is known of a part that is prepared."""

    tokens: int
    """The tokens of documents that no part before it has."""
    trained: int
    """Those of them in the training split."""


def needed_parts(cut: CutCorpus, made: Mapping[str, Made]) -> list[str]:
    """The keys of the parts of the next round; all that are not made without a budget, none once the budget is reached.

    made: the parts that are prepared, by key.
    """
    keys, budget = list(cut.keys), cut.corpus.tokens
    if budget is None:
        return [key for key in keys if key not in made]
    # The hashes of documents decide on their split, so its share is known better than from some of them.
    share = 1 - max(cut.withheld, cut.corpus.heldout_share)
    known = {number: made[key] for number, key in enumerate(keys) if key in made}
    return [keys[number] for number in next_round([part.bytes for part in cut.keys.values()], known, budget, share)]


def next_round(sizes: Sequence[int], made: Mapping[int, Made], budget: int, share: float = 1.0) -> list[int]:
    """The numbers of the parts of the next round, in order.

    sizes: the bytes of all parts, in the order in which a budget uses them up; 0 if they are unknown. made: the parts that are
    prepared, by number. share: the share of tokens that are trained on.
    """
    if not made:
        return [0]
    # 1. How many parts the budget is expected to need.
    expected = _expected_tokens(sizes, made, share)
    needed = min(len(sizes), int(np.searchsorted(np.cumsum(expected), budget)) + 1)
    missing = [number for number in range(needed) if number not in made]
    # 2. A sample of them.
    if len(made) == 1:
        spread = np.linspace(0, needed // 2, SAMPLE + 1).round().astype(int).tolist()
        return [number for number in dict.fromkeys(spread) if number in missing] or missing[:1]
    # 3. Most of them, or all.
    rest = budget - sum(one.trained for number, one in made.items() if number < needed)
    if rest <= REST * budget or len(missing) <= 2:
        return missing
    return missing[: int(np.searchsorted(np.cumsum(expected[missing]), ASKED * rest)) + 1]


def _expected_tokens(sizes: Sequence[int], made: Mapping[int, Made], share: float) -> npt.NDArray[np.float64]:
    """The tokens to train on of each part: by the tokens per byte of the parts around it, if it is not made."""
    bytes_ = np.array(sizes if all(sizes) else [1] * len(sizes), float)
    numbers = sorted(made)
    tokens = np.array([made[number].tokens for number in numbers])
    every = np.arange(len(sizes))
    per_byte = np.interp(every, numbers, tokens / bytes_[numbers])
    per_byte[every > numbers[-1]] = tokens[-LATEST:].sum() / bytes_[numbers[-LATEST:]].sum()
    expected: npt.NDArray[np.float64] = share * per_byte * bytes_
    expected[numbers] = [made[number].trained for number in numbers]
    return expected
