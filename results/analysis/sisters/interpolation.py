"""How much data reaches a loss, by interpolation between runs with different amounts of it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np


@dataclass(frozen=True)
class Amount:
    """The amount of data that reaches a loss."""

    value: float
    """The amount; if the loss is beyond the range, its nearest end."""
    beyond: Literal["", "more", "less"] = ""
    """Whether more than the largest amount is needed, or less than the smallest; empty within the range."""


def logs_within(found: Mapping[int, Amount], unit: float = 1.0) -> dict[int, float]:
    """The binary logarithm of each amount in this unit, by seed; empty if any is beyond the range.

    A mean over the others alone would be biased.
    """
    if any(one.beyond for one in found.values()):
        return {}
    return {seed: float(np.log2(one.value / unit)) for seed, one in found.items()}


def amount_for(loss: float, amounts: Sequence[float], losses: Sequence[float]) -> Amount:
    """The smallest amount of data at which runs reach a loss.

    amounts: ascending and positive; losses: the loss of the run with each amount. More data should not raise the loss, so the
    losses are first replaced by the nearest ones that do not rise (isotonic regression). Between two amounts the loss is
    linear in the logarithm of the amount. Nothing is extrapolated.
    """
    from scipy.optimize import isotonic_regression

    curve = np.asarray(isotonic_regression(np.asarray(losses, dtype=np.float64), increasing=False).x)
    if loss > curve[0]:
        return Amount(float(amounts[0]), "less")
    if loss < curve[-1]:
        return Amount(float(amounts[-1]), "more")
    after = int(np.argmax(curve <= loss))
    if after == 0:
        return Amount(float(amounts[0]))
    share = (curve[after - 1] - loss) / (curve[after - 1] - curve[after])
    logs = np.log(np.asarray(amounts, dtype=np.float64))
    return Amount(float(np.exp(logs[after - 1] + share * (logs[after] - logs[after - 1]))))
