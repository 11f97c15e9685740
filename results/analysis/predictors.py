"""How well measurements at θ_post, before Stage 3, predict L_ret: rank correlations with intervals."""

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retain.results.analysis.axes import PIPELINE, RATE
from retain.results.analysis.loss_planes import L_IM, Floats
from retain.results.store.study_files import PREDICTORS_FILE, study_folder
from retain.sweeps.base.documents import write_document

PREDICTORS = {
    L_IM: "L_im, the baseline",
    "short_retained_loss": "L_ret after a short fine-tuning",
    "short_forgetting": "L_ret after a short fine-tuning − L_im",
    "gradient_share": "share of the D_ft gradient in the span of D_post gradients",
}
"""Each predictor in words."""
FEWEST = 3
"""The fewest trials for a correlation."""
FEWEST_STARTS = 4
"""The fewest different θ_post for its interval."""


@dataclass(frozen=True)
class Prediction:
    """One trial: the predictors at its θ_post and its true L_ret; None for a missing value."""

    axes: Mapping[str, Any]
    start: str
    """The stage key of θ_post; trials that share it are not independent."""
    pipeline: str | None
    rate: float
    """The learning rate of its fine-tuning."""
    retained_posttraining_loss: float | None
    """In nats per token."""
    predictors: Mapping[str, float | None]


@dataclass(frozen=True)
class Correlation:
    """Spearman's rank correlation of a predictor with L_ret, over the trials that have both.

    The correlation is None if there are too few trials or all have the same value.
    """

    predictor: str
    within: Mapping[str, Any]
    """The pipeline and the fine-tuning rate that the trials share; empty for a correlation over all trials."""
    trials: int
    starts: int
    """The number of different θ_post among the trials."""
    correlation: float | None
    low: float | None
    high: float | None
    """The upper end of the 95% interval; `low` is the lower end."""


def correlations(predictions: Sequence[Prediction]) -> list[Correlation]:
    """Every predictor's correlation with L_ret: over all trials, within each rate, each pipeline, and each pair of both."""
    found = []
    for within, members in _groups(predictions):
        for name in PREDICTORS:
            pairs = [
                (value, trial.retained_posttraining_loss, trial.start)
                for trial in members
                if (value := trial.predictors[name]) is not None and trial.retained_posttraining_loss is not None
            ]
            predicted, true = (np.array([pair[column] for pair in pairs], np.float64) for column in (0, 1))
            starts, correlation = len({pair[2] for pair in pairs}), spearman(predicted, true)
            low, high = (None, None) if correlation is None else interval(correlation, starts)
            found.append(Correlation(name, within, len(pairs), starts, correlation, low, high))
    return found


def spearman(x: Floats, y: Floats) -> float | None:
    """The correlation of the ranks, with tied values at their mean rank; None if it is undefined."""
    from scipy.stats import rankdata

    if len(x) < FEWEST:
        return None
    ranks_x, ranks_y = rankdata(x) - (len(x) + 1) / 2, rankdata(y) - (len(y) + 1) / 2
    scale = float(np.sqrt((ranks_x @ ranks_x) * (ranks_y @ ranks_y)))
    return float(ranks_x @ ranks_y) / scale if scale else None


def interval(correlation: float, starts: int) -> tuple[float, float] | tuple[None, None]:
    """The 95% interval of a rank correlation over this number of θ_post; (None, None) for fewer than FEWEST_STARTS.

    Fisher's z with the standard error of Bonett and Wright (2000), "Sample size requirements for estimating Pearson, Kendall
    and Spearman correlations". All trials of one θ_post count as one, so the interval is wider than necessary where they
    differ much. A perfect ranking counts as one in which two neighbours have changed places: its own z is infinite.
    """
    if starts < FEWEST_STARTS:
        return None, None
    nearly_perfect = 1 - 12 / (starts**3 - starts)
    z = math.atanh(max(-nearly_perfect, min(correlation, nearly_perfect)))
    width = 1.96 * math.sqrt((1 + correlation**2 / 2) / (starts - 3))
    return min(math.tanh(z - width), correlation), max(math.tanh(z + width), correlation)


def save_predictors(store: Path, study: str, document: Mapping[str, Any]) -> Path:
    """Save a study's predictors beside its other output; return the path."""
    folder = study_folder(store, study)
    folder.mkdir(parents=True, exist_ok=True)
    write_document(folder / PREDICTORS_FILE, document)
    return folder / PREDICTORS_FILE


def predictors_document(predictions: Sequence[Prediction], found: Sequence[Correlation]) -> dict[str, Any]:
    """Trials and correlations as a JSON document."""
    return {
        "predictors": PREDICTORS,
        "trials": [asdict(trial) for trial in predictions],
        "correlations": [asdict(correlation) for correlation in found],
    }


def _groups(predictions: Sequence[Prediction]) -> Iterator[tuple[dict[str, Any], list[Prediction]]]:
    """All trials; then, if there are several, those of each rate, of each pipeline, and of each pair of both."""
    rates: list[float | None] = [*sorted({trial.rate for trial in predictions})]
    pipelines: list[str | None] = [*dict.fromkeys(trial.pipeline for trial in predictions)]
    choices = ([None, *(several if len(several) > 1 else [])] for several in (pipelines, rates))
    for pipeline, rate in itertools.product(*choices):
        within = {PIPELINE: pipeline, RATE: rate}
        yield (
            {name: value for name, value in within.items() if value is not None},
            [trial for trial in predictions if pipeline in (None, trial.pipeline) and rate in (None, trial.rate)],
        )
