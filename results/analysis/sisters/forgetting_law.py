"""The law of forgetting of Bethune et al. (arXiv 2502.06042), and the forgetting of a study to which it is fitted.

A model of N parameters is fine-tuned on D target tokens, with a share p of pretraining text. Its loss on that text becomes
L_pt = L_pt⁰ + A · D^β / ((1 + B·p) · N)^α + E, where L_pt⁰ is the loss before. What is fitted is the forgetting L_pt − L_pt⁰.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

from retain.results.analysis.axes import axis_names, repetitions, seed_of
from retain.results.analysis.loss_planes import Floats
from retain.results.analysis.sisters.designs import SHARE, TOKENS, is_forgetting_law, share_axis
from retain.results.analysis.sisters.measured import over_seeds
from retain.results.store.loss_table import Row, chain_of
from retain.sweeps.base.units import parse_size

DRAWS = 200
"""The number of resampled sets of seeds."""
FEWEST = 2
"""The fewest model sizes, numbers of target tokens that are fitted, and shares."""
CONSTANTS = ("A", "B", "α", "β", "E")
LARGEST_EXPONENT = 5.0
B_RANGE = (1e-3, 1e6)
"""The limits of α and β, and of B: beyond them, the data do not determine the constant."""


@dataclass(frozen=True)
class Condition:
    """The fine-tunings of one model size, number of target tokens and share."""

    parameters: int
    """N."""
    tokens: int
    """D, in tokens of the target corpus."""
    share: float
    """p, the share of pretraining text among all tokens of the fine-tuning."""
    before: Mapping[int, float] = field(default_factory=dict)
    """The loss on pretraining text before fine-tuning by seed, in nats per token."""
    after: Mapping[int, float] = field(default_factory=dict)
    """The same after fine-tuning."""

    @property
    def forgotten(self) -> dict[int, float]:
        """What fine-tuning adds to the loss, by seed."""
        return {seed: self.after[seed] - self.before[seed] for seed in self.after}

    @property
    def point(self) -> tuple[int, int, float]:
        """N, D and p."""
        return self.parameters, self.tokens, self.share


def conditions(rows: Iterable[Row]) -> list[Condition]:
    """The conditions of a study, by N, D and p, finished or not; empty for a study of another design."""
    rows = list(rows)
    axis = share_axis(axis_names(rows))
    if not is_forgetting_law(axis_names(rows)) or axis is None:
        return []
    found = SHARE.fullmatch(axis)
    assert found is not None
    corpus = found[1]
    by_point: dict[tuple[int, int, float], list[Row]] = {}
    for row in rows:
        if "finetune" in chain_of(row)[1:] and TOKENS in row["axes"]:
            point = (row.get("parameters") or 0, parse_size(row["axes"][TOKENS]), float(row["axes"].get(axis) or 0))
            by_point.setdefault(point, []).append(row)
    repetition = repetitions(list(by_point.values()))
    made = []
    for point, own in sorted(by_point.items()):
        values = [(seed_of(row), *ends) for row in own if (ends := _before_and_after(row, corpus))]
        before, after = (over_seeds([(one[0], one[part]) for one in values], repetition) for part in (1, 2))
        made.append(Condition(*point, before, after))
    return made


def _before_and_after(row: Row, corpus: str) -> tuple[float, float] | None:
    """The losses of a trial on a corpus before and after fine-tuning; None if one is missing or not finite."""
    chain = chain_of(row)
    place = chain.index("finetune")
    before, after = (row["losses"][chain[at]].get(corpus) for at in (place - 1, place))
    if before is None or after is None or not (math.isfinite(before) and math.isfinite(after)):
        return None
    return before, after


@dataclass(frozen=True)
class Law:
    """The constants of the law, for N in parameters, D in tokens and losses in nats per token."""

    A: float
    B: float
    alpha: float
    beta: float
    E: float

    @property
    def constants(self) -> tuple[float, float, float, float, float]:
        """A, B, α, β and E."""
        return self.A, self.B, self.alpha, self.beta, self.E

    def forgotten(self, parameters: npt.ArrayLike, tokens: npt.ArrayLike, share: npt.ArrayLike) -> Floats:
        """L_pt − L_pt⁰ at these N, D and p, in their common shape."""
        effective = (1 + self.B * np.asarray(share, dtype=np.float64)) * np.asarray(parameters, dtype=np.float64)
        return np.asarray(self.A * np.asarray(tokens, dtype=np.float64) ** self.beta / effective**self.alpha + self.E)


@dataclass(frozen=True)
class Prediction:
    """The law at one condition."""

    condition: Condition
    measured: float
    """The mean forgetting over seeds, in nats per token."""
    predicted: float
    heldout: bool
    """Whether the condition was held out from the fit."""


@dataclass(frozen=True)
class Fit:
    """The law as fitted to a study."""

    law: Law
    intervals: Mapping[str, tuple[float, float]]
    """The 95% interval of each constant, by the names in CONSTANTS; nan with one seed."""
    seeds: int
    predictions: tuple[Prediction, ...]
    """One for each condition."""
    at_limits: tuple[str, ...] = ()
    """The constants at an end of their range: the law cannot follow the data there, and their intervals mean nothing."""

    @property
    def heldout_tokens(self) -> int:
        """The number of target tokens whose conditions were held out."""
        return max(one.condition.tokens for one in self.predictions)

    def relative_error(self) -> float:
        """The mean absolute error of the held-out L_pt, each relative to its measured value."""
        held = [one for one in self.predictions if one.heldout]
        losses = [float(np.mean(list(one.condition.after.values()))) for one in held]
        return float(
            np.mean([abs(one.predicted - one.measured) / loss for one, loss in zip(held, losses, strict=True)])
        )

    def error_of_forgetting(self) -> float:
        """The mean absolute error of the held-out forgetting, relative to its mean absolute value: far stricter."""
        held = [one for one in self.predictions if one.heldout]
        errors, sizes = (
            sum(abs(one.predicted - one.measured) for one in held),
            sum(abs(one.measured) for one in held),
        )
        return errors / sizes if sizes else math.nan


def fit(found: Sequence[Condition], draws: int = DRAWS) -> Fit | None:
    """Fit the law by least squares to the mean forgetting over seeds, without the conditions of the largest D.

    These are held out and predicted. Only conditions with results count, and seeds that all of these have. None if there are
    too few sizes, tokens or shares to determine the constants.

    Intervals are a bootstrap over seeds. Each draw resamples whole seeds and fits again. Percentiles of so few seeds would be
    too narrow, so an interval is the estimate and, to each side, Student's t times the standard deviation of the draws, with
    the correction √(n / (n − 1)): for a mean, the interval of `effects.effect_of`. A and B are positive, so theirs are on the
    logarithm.
    """
    found = [one for one in found if one.after]
    seeds = sorted(set.intersection(*(set(one.after) for one in found))) if found else []
    largest = max((one.tokens for one in found), default=0)
    fitted = [one for one in found if one.tokens < largest]
    varied = [len({one.point[part] for one in fitted}) for part in range(3)]
    if not seeds or min(varied) < FEWEST or not all(one.parameters for one in found):
        return None
    points = np.array([one.point for one in fitted], dtype=np.float64)
    forgotten = np.array([[one.forgotten[seed] for seed in seeds] for one in fitted])
    problem = _Problem.of(points)
    shape = problem.best(forgotten.mean(axis=1))
    law = problem.law(shape, forgotten.mean(axis=1))
    random = np.random.Generator(np.random.PCG64(0))
    drawn = []
    for _ in range(draws if len(seeds) > 1 else 0):
        mean = forgotten[:, random.integers(0, len(seeds), len(seeds))].mean(axis=1)
        drawn.append(problem.law(problem.improved(shape, mean), mean))
    predictions = tuple(
        Prediction(
            one,
            float(np.mean([one.forgotten[seed] for seed in seeds])),
            float(law.forgotten(*one.point)),
            one.tokens == largest,
        )
        for one in found
    )
    return Fit(law, _intervals(law, drawn, len(seeds)), len(seeds), predictions, _at_limits(law))


@dataclass(frozen=True)
class _Problem:
    """The least-squares problem in log B, α and β. A and E enter linearly and are solved for at each of these."""

    parameters: Floats
    tokens: Floats
    """[n], both divided by their geometric mean, so that A does not depend on α and β."""
    share: Floats
    scale: tuple[float, float]
    """The geometric means of N and D."""

    @classmethod
    def of(cls, points: Floats) -> "_Problem":
        """points: [n, 3], N, D and p of each condition."""
        means = np.exp(np.log(points[:, :2]).mean(axis=0))
        scaled = points[:, :2] / means
        return cls(scaled[:, 0], scaled[:, 1], points[:, 2], (float(means[0]), float(means[1])))

    def _power(self, shape: Floats) -> Floats:
        log_b, alpha, beta = shape
        return np.asarray(self.tokens**beta / ((1 + np.exp(log_b) * self.share) * self.parameters) ** alpha)

    def _linear(self, shape: Floats, forgotten: Floats) -> tuple[Floats, float, float]:
        """The power law without A, and the best A (not below 0) and E for it."""
        power = self._power(shape)
        centred = power - power.mean()
        spread = float(centred @ centred)
        factor = max(float(centred @ forgotten) / spread, 0.0) if spread > 0 else 0.0
        return power, factor, float(forgotten.mean() - factor * power.mean())

    def _residuals(self, shape: Floats, forgotten: Floats) -> Floats:
        power, factor, constant = self._linear(shape, forgotten)
        return np.asarray(factor * power + constant - forgotten)

    def improved(self, start: Floats, forgotten: Floats) -> Floats:
        """The local optimum that is reached from a start."""
        from scipy.optimize import least_squares

        low = np.array([math.log(B_RANGE[0]), 0.0, 0.0])
        high = np.array([math.log(B_RANGE[1]), LARGEST_EXPONENT, LARGEST_EXPONENT])
        inside = np.clip(start, low + 1e-6, high - 1e-6)
        found = least_squares(self._residuals, inside, bounds=(low, high), args=(forgotten,), x_scale=(1.0, 0.1, 0.1))
        return np.asarray(found.x, dtype=np.float64)

    def best(self, forgotten: Floats) -> Floats:
        """The best of the optima that are reached from several starts."""
        starts = [(log_b, alpha, beta) for log_b in (1.0, 4.0, 7.0) for alpha in (0.3, 1.0) for beta in (0.3, 1.0)]
        optima = [self.improved(np.array(start), forgotten) for start in starts]
        return min(optima, key=lambda shape: float((self._residuals(shape, forgotten) ** 2).sum()))

    def law(self, shape: Floats, forgotten: Floats) -> Law:
        """The constants in parameters, tokens and nats."""
        log_b, alpha, beta = map(float, shape)
        _, factor, constant = self._linear(shape, forgotten)
        size, tokens = self.scale
        return Law(factor * size**alpha / tokens**beta, math.exp(log_b), alpha, beta, constant)


def _at_limits(law: Law) -> tuple[str, ...]:
    """The constants that are at an end of their range."""
    exponents = {"α": law.alpha, "β": law.beta}
    found = [name for name, value in exponents.items() if not 1e-3 < value < LARGEST_EXPONENT - 1e-3]
    low, high = B_RANGE
    return tuple(
        name
        for name in CONSTANTS
        if name in found or (name == "A" and law.A == 0) or (name == "B" and not 1.01 * low < law.B < high / 1.01)
    )


def _intervals(law: Law, drawn: Sequence[Law], seeds: int) -> dict[str, tuple[float, float]]:
    """The 95% interval of each constant."""
    if seeds < 2:
        return dict.fromkeys(CONSTANTS, (math.nan, math.nan))
    from scipy.special import stdtrit

    reach = float(stdtrit(seeds - 1, 0.975)) * math.sqrt(seeds / (seeds - 1))
    found = {}
    for index, name in enumerate(CONSTANTS):
        values = np.array([one.constants[index] for one in drawn])
        centre = law.constants[index]
        if name in ("A", "B") and centre > 0 and (values > 0).all():
            spread = math.exp(min(reach * float(np.log(values).std()), 700.0))
            found[name] = (centre / spread, centre * spread)
        else:
            width = reach * float(values.std())
            found[name] = (centre - width, centre + width)
    return found
