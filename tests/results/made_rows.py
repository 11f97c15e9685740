"""Made-up trial rows in which each method trades retention against fine-tuning along a curve."""

import itertools
import math
import random
from collections.abc import Sequence

from retain.results.store.loss_table import Row

GAIN = {"mixed": 0.15, "dropout": 0.04, "replay": 0.06, "lora": -0.03}
POSTTRAIN_RATES = (1e-4, 5e-4, 1e-3)
RATES = (5e-5, 2e-4, 5e-4, 1e-3)


def method_rows(
    pipelines: Sequence[str | None], methods: Sequence[str], seeds: Sequence[int] = (0,), unfinished: int = 0
) -> list[Row]:
    """A row for each pipeline, method, post-training rate, fine-tuning rate and seed; the first `unfinished` lack Stage 3."""
    rows: list[Row] = []
    for pipeline, method, rate, tuned, seed in itertools.product(pipelines, methods, POSTTRAIN_RATES, RATES, seeds):
        named = {} if pipeline is None else {"pipeline": pipeline}
        axes = {**named, "method": method, "posttrain.lr": rate, "finetune.lr": tuned, "seed": seed}
        noise = random.Random(str(axes))
        strength, learned = RATES.index(tuned) / 3, POSTTRAIN_RATES.index(rate) / 2
        gain = sum(GAIN[part] for part in method.split("+") if part in GAIN) + noise.gauss(0, 0.01)
        losses = {
            "immediate_posttraining_loss": 1.5 - 0.1 * learned + noise.gauss(0, 0.01),
            "retained_posttraining_loss": 1.7 - 0.1 * learned - gain + 0.6 * strength**2,
            "finetuning_loss": 2.9 - 0.4 * strength + 0.05 * learned - gain / 5 + noise.gauss(0, 0.01),
            "retained_pretraining_loss": 3.6 + 0.2 * learned - gain / 2 + 0.5 * (1 - strength) ** 2,
        }
        rows.append(_row(axes, losses, f"{pipeline} {method} {rate} {seed}"))
    for row in rows[:unfinished]:
        row["retained_posttraining_loss"] = row["finetuning_loss"] = row["retained_pretraining_loss"] = None
    return rows


def exposure_rows(
    sizes: Sequence[int] = (100_000, 300_000), seeds: Sequence[int] = (0, 1, 2), rates: Sequence[float] = (5e-5,)
) -> list[Row]:
    """Figure 3's grid: exposure, |D_post|, fine-tuning rate and seed."""
    rows: list[Row] = []
    for exposure, size, rate, seed in itertools.product((0, 0.25, 0.5, 0.75, 1), sizes, rates, seeds):
        axes = {"pretrain.exposure": exposure, "posttrain.tokens": size, "finetune.lr": rate, "seed": seed}
        noise = random.Random(str(axes))
        immediate = 2.0 - 0.2 * math.log10(size / 1e5) + noise.gauss(0, 0.01)
        losses = {
            "immediate_posttraining_loss": immediate,
            "retained_posttraining_loss": immediate + 0.4 - 0.2 * exposure + noise.gauss(0, 0.02),
            "finetuning_loss": 2.9,
            "retained_pretraining_loss": 3.6 - 0.05 * exposure,
        }
        rows.append(_row(axes, losses, f"{exposure} {size} {seed}"))
    return rows


def _row(axes: Row, losses: Row, path: str) -> Row:
    keys = {"pretrain": f"pre {path}", "posttrain": f"post {path}", "finetune": f"fine {axes}"}
    return {"axes": axes, "keys": keys, **losses, "tokens": 1_000_000}
