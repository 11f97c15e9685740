"""The learning rate over a stage."""

import math


def learning_rate(step: int, steps: int, peak: float, floor: float, warmup: int) -> float:
    """The rate of a step, counted from 0: linear warm-up to the peak, then a cosine that ends at the floor (Table 5).

    A floor above the peak, as at some points of the paper's Table 8, is lowered to the peak: the rate then stays
    constant after the warm-up rather than rising past the peak that the point is named after.
    """
    floor = min(floor, peak)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
