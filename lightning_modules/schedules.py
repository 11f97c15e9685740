"""The learning-rate schedule of a stage."""

import math


def learning_rate(step: int, steps: int, peak: float, floor: float, warmup: int) -> float:
    """Return the learning rate of a step, counted from 0: linear warm-up to `peak`, then cosine decay to `floor`.

    The schedule of the paper's Table 5. A floor above the peak, as in some rows of the paper's Table 8, is lowered to the
    peak: the learning rate then stays at the peak after the warm-up.
    """
    floor = min(floor, peak)
    if step < warmup:
        return peak * (step + 1) / (warmup + 1)
    progress = (step - warmup) / max(1, steps - 1 - warmup)
    return floor + (peak - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
