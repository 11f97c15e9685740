"""What a stage's weights prefer on the held-out pairs that it, or a stage above it, learns from."""

from collections.abc import Mapping
from typing import Any

from retain.sweeps.schema.section import PAIR_MEASURES
from retain.sweeps.tree.heldout_splits import PREFERENCES


def measures_on_pairs(corpora: Mapping[str, str], losses: Mapping[str, Any] | None) -> dict[str, float | None]:
    """The measures on pairs as CORPUS/METRIC: the DPO loss (nats per pair), accuracy and margin (nats); None if not measured.

    corpora: their names by fingerprint. losses: the content of the losses.json; None if the stage is not trained.
    """
    known = (losses or {}).get(PREFERENCES, {})
    return {
        f"{name}/{metric}": known.get(corpus, {}).get(metric)
        for corpus, name in corpora.items()
        for metric in PAIR_MEASURES
    }
