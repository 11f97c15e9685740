"""Which method has the better frontier, in which plane of losses: claims 3 to 5 of the paper (Figures 2 and 4 to 12), and 6,
which is ours.
"""

import itertools
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retain.results.analysis.axes import (
    EXPOSURE,
    METHOD,
    axis_names,
    grouped,
    is_seed,
    repetitions,
    setting,
    varied_axes,
)
from retain.results.analysis.effects import (
    Effect,
    effect_of,
    frontier_gap,
    hypervolume_gain,
    over_repetitions,
    paired_difference,
    worst_of,
)
from retain.results.analysis.frontiers import pareto_set
from retain.results.analysis.loss_planes import (
    PLANES,
    SYMBOLS,
    Floats,
    LossPlane,
    Points,
    has_losses,
    matched_rows,
    points_by_seed,
)
from retain.results.analysis.methods import METHOD_FIELDS, method_of
from retain.results.claims.judging import Statement, Verdict, judge, shared_runs, subjects
from retain.results.store.loss_table import Row
from retain.sweeps.base.units import counted
from retain.sweeps.tree.tree import axes_label


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
        Contrast("4e", f"mixing improves the frontier on top of {technique}", alone, on_top),
    )


REACTIVE = {
    "rehearsal": "replay of D_post in fine-tuning",
    "l2sp": "L2-SP",
    "ewc": "EWC",
    "averaging": "averaging the weights",
    "adapters": "LoRA in fine-tuning",
}
"""Remedies against forgetting that act in Stage 3, by the name of the method that adds them."""


def _against(remedy: str, words: str) -> tuple[Contrast, ...]:
    """Our claims on exposure and a remedy in Stage 3."""
    alone = f"unmixed+{remedy}"
    return (
        Contrast("6a", f"mixing improves the frontier more than {words}", alone, "mixed"),
        Contrast("6b", f"mixing improves the frontier on top of {words}", alone, f"mixed+{remedy}"),
    )


CONTRASTS = (
    Contrast("3", "mixing improves the frontier", "unmixed", "mixed"),
    *_complementarity("dropout"),
    *_complementarity("replay"),
    Contrast("5a", "mixing improves the frontier of LoRA", "unmixed+lora", "mixed+lora"),
    Contrast("5b", "unmixed, full post-training has a better frontier than LoRA", "unmixed+lora", "unmixed"),
    Contrast("5c", "mixed, full post-training has a better frontier than LoRA", "mixed+lora", "mixed"),
    *(contrast for remedy, words in REACTIVE.items() for contrast in _against(remedy, words)),
)
"""Claim 5 of the paper, that mixing helps both, is 5a for LoRA and 3 for full post-training."""

Measure = Callable[[Mapping[int, Points], Mapping[int, Points]], Effect]
"""An effect b − a of two methods from their points by seed."""


@dataclass(frozen=True)
class _Comparison:
    """The points of the methods of a contrast that can be compared, in one plane."""

    rows: Sequence[Row]
    """The trials that can be compared."""
    points: Mapping[str, dict[int, Points]]
    """All points of each method, by seed."""
    parts: Mapping[str, list[dict[int, Points]]]
    """The same for each setting of the axes that the methods do not share, such as each rate of dropout, or a learning rate
    with other values in another method."""
    repetition: Mapping[int, int]
    """That of each seed: seeds that share the compared runs are one."""

    def is_even(self, a: str, b: str) -> bool:
        """Whether two methods have equal numbers of checkpoints."""
        return len(self.parts[a]) == len(self.parts[b])

    def effect(self, measure: Measure, a: str, b: str) -> Effect:
        """The effect b − a at equal numbers of checkpoints.

        If the methods have different numbers, each part of one is compared with each part of the other, and the effects are
        averaged within a seed.
        """
        if self.is_even(a, b):
            return measure(self.points[a], self.points[b])
        values: dict[int, list[float]] = {}
        for part_a, part_b in itertools.product(self.parts[a], self.parts[b]):
            for seed, value in measure(part_a, part_b).per_seed.items():
                values.setdefault(seed, []).append(value)
        return effect_of({seed: float(np.mean(own)) for seed, own in sorted(values.items())})

    def contrasted(self, contrast: Contrast, effect: Callable[[str, str], Effect]) -> Effect:
        """An effect of a contrast, as a difference of two if the contrast has `than`."""
        found = effect(contrast.a, contrast.b)
        if contrast.than:
            found = paired_difference(effect(*contrast.than).per_seed, found.per_seed)
        return over_repetitions(found, self.repetition)


def frontier_verdicts(rows: Iterable[Row]) -> Iterator[Verdict]:
    """A verdict for each contrast and plane of each subject (pipeline, size of D_post) that traces both frontiers.

    A frontier takes at least two settings. If exposure is an axis, `mixed` is its highest value. The hypervolume gain
    decides, as it is defined for any two frontiers. More checkpoints alone improve a frontier, so methods with different
    numbers of checkpoints are compared at equal numbers. The vertical gap at equal loss is shown beside it, over the range that
    both hulls cover (often none in the (L_pre, L_ret) plane, where a hull may be a single checkpoint).
    """
    for subject, group in subjects(rows).items():
        by_method = grouped(_ends_of_exposure(group), method_of)
        for contrast in CONTRASTS:
            if all(varied_axes(by_method.get(method, ())) for method in contrast.methods):
                for plane in PLANES:
                    yield _verdict(subject, contrast, plane, {name: by_method[name] for name in contrast.methods})


def _verdict(subject: str, contrast: Contrast, plane: LossPlane, by_method: Mapping[str, Sequence[Row]]) -> Verdict:
    compared, left_out = _comparable(by_method, plane)
    points = compared.points
    reference = worst_of(*points.values()) if any(points.values()) else np.zeros(2)

    def gain(a: Mapping[int, Points], b: Mapping[int, Points]) -> Effect:
        return hypervolume_gain(a, b, reference)

    def evenly(measure: Measure) -> Effect:
        return compared.contrasted(contrast, lambda a, b: compared.effect(measure, a, b))

    pairs = [(contrast.a, contrast.b), *([contrast.than] if contrast.than else [])]
    even = all(compared.is_even(*pair) for pair in pairs)
    how = "" if even else ", at equal numbers of checkpoints"
    named = " minus that of ".join(f"{b} over {a}" for a, b in pairs)
    others = [
        (
            f"gap in {SYMBOLS[plane.y]} at matched {SYMBOLS[plane.x]} (below 0 is better){how}, nats",
            evenly(frontier_gap),
        )
    ]
    if not even:
        plain = compared.contrasted(contrast, lambda a, b: gain(points[a], points[b]))
        others.append(("hypervolume gained with all checkpoints, which does not decide, squared nats", plain))
    is_or_are = "is" if left_out == 1 else "are"
    missing = f"{counted(left_out, 'checkpoint')} {is_or_are} left out for lack of counterparts." if left_out else ""
    deciding = [(f"hypervolume gained by {named}{how}, squared nats", evenly(gain))]
    statement = Statement(contrast.claim, contrast.words, subject, plane.name)
    notes = (_counts(points), _strays(compared, plane, reference), missing, shared_runs(compared.repetition))
    return judge(statement, 1, deciding, others, notes)


def _ends_of_exposure(rows: Sequence[Row]) -> list[Row]:
    """The rows without exposure or with the highest one: more exposures would give `mixed` more checkpoints."""
    highest = max((row["axes"][EXPOSURE] for row in rows if EXPOSURE in row["axes"]), default=0)
    return [row for row in rows if METHOD in row["axes"] or row["axes"].get(EXPOSURE, 0) in (0, highest)]


def _comparable(by_method: Mapping[str, Sequence[Row]], plane: LossPlane) -> tuple[_Comparison, int]:
    """The points of each method whose counterparts in the other methods are finished; the number of finished rows dropped."""
    shared = _shared_axes(by_method.values())
    rows: list[Row] = []
    for own in by_method.values():
        # A part without any result, such as a rate at which every run diverged, has no counterparts.
        begun = [part for part in _parts(own, shared) if _finished(part, plane)] or [list(own)]
        rows += [row for part in begun for row in part]
    kept = matched_rows(rows, shared, plane.x, plane.y)
    by_name = grouped(kept, method_of)
    finished = {method: by_name.get(method, []) for method in by_method}
    points = {method: points_by_seed(own, plane) for method, own in finished.items()}
    parts = {method: [points_by_seed(part, plane) for part in _parts(own, shared)] for method, own in finished.items()}
    compared = _Comparison(kept, points, parts, repetitions(list(by_method.values())))
    return compared, _finished(rows, plane) - len(kept)


def _finished(rows: Iterable[Row], plane: LossPlane) -> int:
    return sum(has_losses(row, plane.x, plane.y) for row in rows)


def _shared_axes(methods: Collection[Sequence[Row]]) -> set[str]:
    """The axes by which methods have counterparts: seeds, and those that have the same values in every method."""
    common = set.intersection(*(set(row["axes"]) for own in methods for row in own)) - {METHOD, *METHOD_FIELDS}

    def values(rows: Sequence[Row], name: str) -> frozenset[tuple[str, ...]]:
        return frozenset(setting(row, [name]) for row in rows)

    return {name for name in common if is_seed(name) or len({values(own, name) for own in methods}) == 1}


def _parts(rows: Sequence[Row], shared: set[str]) -> Iterable[list[Row]]:
    """The rows of a method by their settings of the axes that other methods do not share."""
    apart = {name for name in axis_names(rows) if not is_seed(name)} - shared - {METHOD}
    return grouped(rows, lambda row: setting(row, apart)).values()


def _counts(points: Mapping[str, Mapping[int, Points]]) -> str:
    """The number of checkpoints of each method, if it differs."""
    most = {method: max(map(len, by_seed.values()), default=0) for method, by_seed in points.items()}
    if len(set(most.values())) == 1:
        return ""
    counted = ", ".join(f"{method} {count}" for method, count in most.items())
    return f"Checkpoints per seed: {counted}; the comparison at equal numbers decides."


def _strays(compared: _Comparison, plane: LossPlane, reference: Floats) -> str:
    """The checkpoints on frontiers that lie beyond the reference point, if there are any, and their runs."""

    def at(x: float, y: float) -> str:
        return f"{SYMBOLS[plane.y]} {y:.4g} and {SYMBOLS[plane.x]} {x:.4g}"

    beyond = {
        (x, y)
        for by_seed in compared.points.values()
        for points in by_seed.values()
        for x, y in pareto_set(points).tolist()
        if x > reference[0] or y > reference[1]
    }
    named = [
        f"{axes_label(row['axes'])} ({_last_run(row)}) at {at(row[plane.x], row[plane.y])}"
        for row in compared.rows
        if (row[plane.x], row[plane.y]) in beyond
    ]
    if not named:
        return ""
    return f"Hypervolumes reach up to {at(*reference)}. Checkpoints far beyond all others add none: {'; '.join(named)}."


def _last_run(row: Row) -> str:
    """The run that a checkpoint is of, such as `run 0a1b2c3d`."""
    return next((f"run {key[:8]}" for key in reversed(row["keys"].values()) if key), "no run")
