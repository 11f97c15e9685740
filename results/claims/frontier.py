"""Claims 3 to 5 of the paper, those of Figures 2 and 4 to 12: which method has the better frontier, in which view."""

import itertools
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retain.results.analysis.effects import (
    Effect,
    effect_of,
    frontier_gap,
    hypervolume_gain,
    paired_difference,
    worst_of,
)
from retain.results.analysis.methods import EXPOSURE, SEEDS, Points, has_losses, method_of, points_by_seed
from retain.results.claims.judging import Verdict, judged, subjects
from retain.results.store.loss_table import Row


@dataclass(frozen=True)
class View:
    """A plane of two losses, laid out as in Figure 2."""

    name: str
    x: str
    y: str


@dataclass(frozen=True)
class Contrast:
    """The claim that `b` has a better frontier than `a`, or gains more over it than another pair's b over its a."""

    claim: str
    words: str
    a: str
    b: str
    than: tuple[str, str] | None = None

    @property
    def methods(self) -> tuple[str, ...]:
        return (self.a, self.b, *(self.than or ()))


AFTER = View("(L_ret, L_ft)", "finetuning_loss", "retained_posttraining_loss")
BEFORE = View("(L_pre, L_ret)", "retained_posttraining_loss", "retained_pretraining_loss")
SYMBOLS = {"finetuning_loss": "L_ft", "retained_posttraining_loss": "L_ret", "retained_pretraining_loss": "L_pre"}


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
SWITCHES = ("method", EXPOSURE, "posttrain.dropout", "posttrain.replay", "posttrain.method")
"""The axes that make a method; all others are settings that methods share."""


def frontier_verdicts(rows: Iterable[Row]) -> Iterator[Verdict]:
    """A verdict for each contrast and view of each subject (pipeline, size of D_post) that traces both frontiers.

    A frontier is traced by two settings or more. Where exposure is an axis, mixed is its highest value. Decided by the
    hypervolume gained, which is defined for any two frontiers; the vertical gap at matched loss stands beside it, over
    the range that both hulls cover (often none in the (L_pre, L_ret) view, where a hull may be a single checkpoint).
    """
    for subject, group in subjects(rows):
        by_method: dict[str, list[Row]] = {}
        for row in _ends_of_exposure(group):
            by_method.setdefault(method_of(row), []).append(row)
        for contrast in CONTRASTS:
            if all(_traces_a_frontier(by_method.get(method, ())) for method in contrast.methods):
                for view in (AFTER, BEFORE):
                    yield _verdict(subject, contrast, view, by_method)


def _verdict(subject: str, contrast: Contrast, view: View, by_method: Mapping[str, Sequence[Row]]) -> Verdict:
    rows, left_out = _comparable({method: by_method[method] for method in contrast.methods}, view)
    points = {method: points_by_seed(rows[method], view.x, view.y) for method in rows}
    a, b = points[contrast.a], points[contrast.b]
    reference = worst_of(*points.values()) if any(points.values()) else np.zeros(2)
    gain, gap, even = hypervolume_gain(a, b, reference), frontier_gap(a, b), None
    if contrast.than:
        other_a, other_b = (points[method] for method in contrast.than)
        gain = paired_difference(hypervolume_gain(other_a, other_b, reference).per_seed, gain.per_seed)
        gap = paired_difference(frontier_gap(other_a, other_b).per_seed, gap.per_seed)
    else:
        even = _even_gain(rows[contrast.a], rows[contrast.b], view, reference)
    others = [(f"gap in {SYMBOLS[view.y]} at matched {SYMBOLS[view.x]} (below 0 is better), nats", gap)]
    others += [("hypervolume gained with as many checkpoints each, squared nats", even)] if even else []
    words = ", ".join(part for part in (subject, view.name) if part)
    missing = f"{left_out} checkpoints are left out, for their counterparts are missing." if left_out else ""
    pair = f"{contrast.b} over {contrast.a}"
    pair += f" less that of {contrast.than[1]} over {contrast.than[0]}" if contrast.than else ""
    deciding = [(f"hypervolume gained by {pair}, squared nats", gain)]
    return judged(contrast.claim, f"{words}: {contrast.words}", 1, deciding, others, (_counts(points), missing))


def _ends_of_exposure(rows: Sequence[Row]) -> list[Row]:
    """Without exposures between none and the highest, which would give `mixed` more checkpoints than `unmixed` has."""
    highest = max((row["axes"][EXPOSURE] for row in rows if EXPOSURE in row["axes"]), default=0)
    return [row for row in rows if "method" in row["axes"] or row["axes"].get(EXPOSURE, 0) in (0, highest)]


def _traces_a_frontier(rows: Iterable[Row]) -> bool:
    return len({_setting(row, row["axes"].keys() - SEEDS) for row in rows}) > 1


def _comparable(by_method: Mapping[str, Sequence[Row]], view: View) -> tuple[dict[str, list[Row]], int]:
    """The finished rows of each method, without those whose counterpart in another method is planned but missing: else the
    method that is further on would look better. Also how many were left out so."""
    everything = [row for rows in by_method.values() for row in rows]
    shared = set.intersection(*(set(row["axes"]) for row in everything)) - set(SWITCHES)
    missing = {_setting(row, shared) for row in everything if not has_losses(row, view.x, view.y)}
    kept = {method: [row for row in rows if _setting(row, shared) not in missing] for method, rows in by_method.items()}
    finished = sum(has_losses(row, view.x, view.y) for row in everything)
    return kept, finished - sum(map(len, kept.values()))


def _even_gain(a: Sequence[Row], b: Sequence[Row], view: View, reference: npt.NDArray[np.float64]) -> Effect | None:
    """The hypervolume gained, averaged over the values of the axes that only one of the two varies, such as the rate of
    dropout: with as many checkpoints each. None where there is no such axis."""
    extra = _varied(a) ^ _varied(b)
    if not extra:
        return None
    gains: dict[int, list[float]] = {}
    for part_a, part_b in itertools.product(_parts(a, extra & _varied(a)), _parts(b, extra & _varied(b))):
        points_a, points_b = (points_by_seed(part, view.x, view.y) for part in (part_a, part_b))
        for seed, gain in hypervolume_gain(points_a, points_b, reference).per_seed.items():
            gains.setdefault(seed, []).append(gain)
    return effect_of({seed: float(np.mean(values)) for seed, values in sorted(gains.items())})


def _varied(rows: Sequence[Row]) -> set[str]:
    """The axes that have more than one value, without exposure and seeds."""
    names = {name for row in rows for name in row["axes"]} - {"method", EXPOSURE, *SEEDS}
    return {name for name in names if len({_setting(row, {name}) for row in rows}) > 1}


def _parts(rows: Sequence[Row], names: Set[str]) -> list[list[Row]]:
    parts: dict[str, list[Row]] = {}
    for row in rows:
        parts.setdefault(_setting(row, names), []).append(row)
    return list(parts.values())


def _setting(row: Row, names: Set[str]) -> str:
    return str([(name, row["axes"].get(name)) for name in sorted(names)])


def _counts(points: Mapping[str, Mapping[int, Points]]) -> str:
    """How many checkpoints each method has, where that differs."""
    most = {method: max(map(len, by_seed.values()), default=0) for method, by_seed in points.items()}
    if len(set(most.values())) == 1:
        return ""
    counted = ", ".join(f"{method} {count}" for method, count in most.items())
    return f"Checkpoints a seed: {counted}; more of them alone make a frontier better."
