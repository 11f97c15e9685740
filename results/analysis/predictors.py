"""How well what is known before Stage 3 predicts what it leaves of post-training, as rank correlations."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from retain.results.store.study_files import study_folder
from retain.sweeps.base.files import read_json, write_json

PREDICTORS = {
    "immediate_posttraining_loss": "L_im, the baseline",
    "short_retained_loss": "L_ret after a short fine-tuning",
    "short_forgetting": "L_ret after a short fine-tuning − L_im",
    "gradient_share": "share of the D_ft gradient in the span of D_post gradients",
}
"""What each predictor is."""
PIPELINE, RATE = "pipeline", "finetune.lr"
DRAWS = 1000
FEWEST = 3
"""Trials, and different θ_post, below which a correlation or its interval says nothing."""

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Prediction:
    """One trial: what each predictor says at its θ_post, and its true L_ret; None where one is missing."""

    axes: Mapping[str, Any]
    start: str
    """The stage key of θ_post: trials that share it are no independent evidence."""
    pipeline: str | None
    rate: float
    """Of its fine-tuning."""
    retained_posttraining_loss: float | None
    """nats per token."""
    predictors: Mapping[str, float | None]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a predictor with L_ret, over the trials that have both.

    None where it is not defined: too few trials, or all with the same value.
    """

    predictor: str
    within: Mapping[str, Any]
    """The pipeline and the fine-tuning rate that the trials share, where the correlation is within one; {}: over all."""
    trials: int
    starts: int
    """Different θ_post among them."""
    correlation: float | None
    low: float | None
    high: float | None
    """The bootstrap's 95% interval."""


def correlations(predictions: Sequence[Prediction], draws: int = DRAWS, seed: int = 0) -> list[Correlation]:
    """Every predictor's correlation with L_ret: over all trials, within each rate, within each pipeline, within both.

    The intervals are the 2.5% and 97.5% points of a bootstrap that draws whole θ_post with all their trials. With few of
    them such an interval is too narrow rather than too wide: `starts` says how many there are.
    """
    found = []
    for within, members in _groups(predictions):
        for name in PREDICTORS:
            pairs = [
                (value, trial.retained_posttraining_loss, trial.start)
                for trial in members
                if (value := trial.predictors[name]) is not None and trial.retained_posttraining_loss is not None
            ]
            predicted, true = (np.array([pair[column] for pair in pairs], np.float64) for column in (0, 1))
            starts = [pair[2] for pair in pairs]
            low, high = _interval(predicted, true, starts, draws, seed)
            found.append(Correlation(name, within, len(pairs), len(set(starts)), spearman(predicted, true), low, high))
    return found


def spearman(x: Floats, y: Floats) -> float | None:
    """The correlation of the ranks, ties at their mean; None where it is not defined."""
    from scipy.stats import rankdata

    if len(x) < FEWEST:
        return None
    ranks_x, ranks_y = rankdata(x) - (len(x) + 1) / 2, rankdata(y) - (len(y) + 1) / 2
    scale = float(np.sqrt((ranks_x @ ranks_x) * (ranks_y @ ranks_y)))
    return float(ranks_x @ ranks_y) / scale if scale else None


def save_predictors(store: Path, study: str, document: Mapping[str, Any]) -> Path:
    """Keep a study's predictors for its report; returns the file."""
    folder = study_folder(store, study)
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "predictors.json", document)
    return folder / "predictors.json"


def read_predictors(store: Path, study: str) -> dict[str, Any]:
    """What `retain probe` last kept for a study. Raises FileNotFoundError."""
    return dict(read_json(study_folder(store, study) / "predictors.json"))


def predictors_document(predictions: Sequence[Prediction], found: Sequence[Correlation]) -> dict[str, Any]:
    """Trials and correlations as JSON."""
    return {
        "predictors": PREDICTORS,
        "trials": [asdict(trial) for trial in predictions],
        "correlations": [asdict(correlation) for correlation in found],
    }


def _groups(predictions: Sequence[Prediction]) -> Iterator[tuple[dict[str, Any], list[Prediction]]]:
    """All trials; then, for what differs among them, those of each rate, of each pipeline, and of each pair of both."""
    rates: list[float | None] = [*sorted({trial.rate for trial in predictions})]
    pipelines: list[str | None] = [*dict.fromkeys(trial.pipeline for trial in predictions)]
    for pipeline in [None, *(pipelines if len(pipelines) > 1 else [])]:
        for rate in [None, *(rates if len(rates) > 1 else [])]:
            within = {PIPELINE: pipeline, RATE: rate}
            yield (
                {name: value for name, value in within.items() if value is not None},
                [trial for trial in predictions if pipeline in (None, trial.pipeline) and rate in (None, trial.rate)],
            )


def _interval(
    x: Floats, y: Floats, starts: Sequence[str], draws: int, seed: int
) -> tuple[float, float] | tuple[None, None]:
    names, group = np.unique(np.array(starts), return_inverse=True)
    if len(names) < FEWEST or spearman(x, y) is None:
        return None, None
    members = [np.flatnonzero(group == number) for number in range(len(names))]
    generator = np.random.default_rng(seed)
    drawn = (
        np.concatenate([members[number] for number in generator.integers(len(names), size=len(names))])
        for _ in range(draws)
    )
    # A draw of one θ_post alone, many times over, may have no ranks to compare.
    values = [value for chosen in drawn if (value := spearman(x[chosen], y[chosen])) is not None]
    if not values:
        return None, None
    low, high = np.quantile(values, [0.025, 0.975])
    return float(low), float(high)
