"""Claims 3 to 5 of the paper (Figures 2 and 4 to 12): which method has the better frontier, in which plane of losses."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retain.results.analysis.axes import EXPOSURE, METHOD, grouped, setting, varied_axes
from retain.results.analysis.effects import (
    Effect,
    effect_of,
    frontier_gap,
    hypervolume_gain,
    paired_difference,
    worst_of,
)
from retain.results.analysis.loss_planes import (
    PLANES,
    SYMBOLS,
    LossPlane,
    Points,
    has_losses,
    matched_rows,
    points_by_seed,
)
from retain.results.analysis.methods import METHOD_FIELDS, method_of
from retain.results.claims.judging import Verdict, judge, subjects
from retain.results.store.loss_table import Row


@dataclass(frozen=True)
class Contrast:
    """The claim that `b` has a better frontier than `a`, or that `b` gains more over `a` than `than[1]` over `than[0]`."""

    claim: str
    words: str
    a: str
    b: str
    than: tuple[str, str] | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.a, self.b, *(self.than or ()))


def _complementarity(technique: str) -> tuple[Contrast, ...]:
    """Claim 4 for dropout or replay."""
    alone, on_top = f"unmixed+{technique}", f"mixed+{technique}"
    return (
        Contrast("4a", f"{technique} improves the frontier on top of mixing", "mixed", on_top),
        Contrast("4b", f"{technique} alone improves the frontier", "unmixed", alone),
        Contrast("4c", f"{technique} alone does less than mixing", alone, "mixed"),
        Contrast("4d", f"{technique} gains more on top of mixing than alone", "mixed", on_top, ("unmixed", alone)),
    )


CONTRASTS = (
    Contrast("3", "mixing improves the frontier", "unmixed", "mixed"),
    *_complementarity("dropout"),
    *_complementarity("replay"),
    Contrast("5a", "mixing improves the frontier of LoRA", "unmixed+lora", "mixed+lora"),
    Contrast("5b", "unmixed, full post-training has a better frontier than LoRA", "unmixed+lora", "unmixed"),
    Contrast("5c", "mixed, full post-training has a better frontier than LoRA", "mixed+lora", "mixed"),
)
"""Claim 5 of the paper, that mixing helps both, is 5a for LoRA and 3 for full post-training."""


def frontier_verdicts(rows: Iterable[Row]) -> Iterator[Verdict]:
    """A verdict for each contrast and plane of each subject (pipeline, size of D_post) that traces both frontiers.

    A frontier takes at least two settings. If exposure is an axis, `mixed` is its highest value. The hypervolume gain
    decides, as it is defined for any two frontiers. The vertical gap at equal loss is shown beside it, over the range that
    both hulls cover (often none in the (L_pre, L_ret) plane, where a hull may be a single checkpoint).
    """
    for subject, group in subjects(rows).items():
        by_method = grouped(_ends_of_exposure(group), method_of)
        for contrast in CONTRASTS:
            if all(varied_axes(by_method.get(method, ())) for method in contrast.methods):
                for plane in PLANES:
                    yield _verdict(subject, contrast, plane, {name: by_method[name] for name in contrast.methods})


def _verdict(subject: str, contrast: Contrast, plane: LossPlane, by_method: Mapping[str, Sequence[Row]]) -> Verdict:
    rows, left_out = _comparable(by_method, plane)
    points = {method: points_by_seed(own, plane) for method, own in rows.items()}
    a, b = points[contrast.a], points[contrast.b]
    reference = worst_of(*points.values()) if any(points.values()) else np.zeros(2)
    gain, gap, even = hypervolume_gain(a, b, reference), frontier_gap(a, b), None
    if contrast.than:
        other_a, other_b = (points[method] for method in contrast.than)
        gain = paired_difference(hypervolume_gain(other_a, other_b, reference).per_seed, gain.per_seed)
        gap = paired_difference(frontier_gap(other_a, other_b).per_seed, gap.per_seed)
    else:
        even = _even_gain(rows[contrast.a], rows[contrast.b], plane, reference)
    others = [(f"gap in {SYMBOLS[plane.y]} at matched {SYMBOLS[plane.x]} (below 0 is better), nats", gap)]
    others += [("hypervolume gained with equal numbers of checkpoints, squared nats", even)] if even else []
    words = ", ".join(part for part in (subject, plane.name) if part)
    missing = f"{left_out} checkpoints are left out because their counterparts are missing." if left_out else ""
    pair = f"{contrast.b} over {contrast.a}"
    pair += f" minus that of {contrast.than[1]} over {contrast.than[0]}" if contrast.than else ""
    deciding = [(f"hypervolume gained by {pair}, squared nats", gain)]
    return judge(contrast.claim, f"{words}: {contrast.words}", 1, deciding, others, (_counts(points), missing))


def _ends_of_exposure(rows: Sequence[Row]) -> list[Row]:
    """The rows without exposure or with the highest one: more exposures would give `mixed` more checkpoints."""
    highest = max((row["axes"][EXPOSURE] for row in rows if EXPOSURE in row["axes"]), default=0)
    return [row for row in rows if METHOD in row["axes"] or row["axes"].get(EXPOSURE, 0) in (0, highest)]


def _comparable(by_method: Mapping[str, Sequence[Row]], plane: LossPlane) -> tuple[dict[str, list[Row]], int]:
    """The rows of each method whose counterparts in the other methods are finished; the number of finished rows dropped."""
    rows = [row for own in by_method.values() for row in own]
    shared = set.intersection(*(set(row["axes"]) for row in rows)) - {METHOD, *METHOD_FIELDS}
    kept = matched_rows(rows, shared, plane.x, plane.y)
    dropped = sum(has_losses(row, plane.x, plane.y) for row in rows) - len(kept)
    finished = grouped(kept, method_of)
    return {method: finished.get(method, []) for method in by_method}, dropped


def _even_gain(
    a: Sequence[Row], b: Sequence[Row], plane: LossPlane, reference: npt.NDArray[np.float64]
) -> Effect | None:
    """The hypervolume gained with the same number of checkpoints each; None if both methods vary the same axes.

    It is averaged over the values of the axes that only one of the two varies, such as the rate of dropout.
    """
    varied_a, varied_b = (set(varied_axes(rows)) - {METHOD, EXPOSURE} for rows in (a, b))
    if varied_a == varied_b:
        return None
    parts_a = grouped(a, lambda row: setting(row, varied_a - varied_b)).values()
    parts_b = grouped(b, lambda row: setting(row, varied_b - varied_a)).values()
    gains: dict[int, list[float]] = {}
    for part_a, part_b in itertools.product(parts_a, parts_b):
        gain = hypervolume_gain(points_by_seed(part_a, plane), points_by_seed(part_b, plane), reference)
        for seed, value in gain.per_seed.items():
            gains.setdefault(seed, []).append(value)
    return effect_of({seed: float(np.mean(values)) for seed, values in sorted(gains.items())})


def _counts(points: Mapping[str, Mapping[int, Points]]) -> str:
    """The number of checkpoints of each method, if it differs."""
    most = {method: max(map(len, by_seed.values()), default=0) for method, by_seed in points.items()}
    if len(set(most.values())) == 1:
        return ""
    counted = ", ".join(f"{method} {count}" for method, count in most.items())
    return f"Checkpoints per seed: {counted}; more checkpoints alone improve a frontier."
