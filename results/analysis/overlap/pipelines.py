"""Retention beside the overlap of D_post and D_ft, over pipelines: pairs of a post-training and a fine-tuning corpus."""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from retain.results.analysis.axes import axis_names, is_seed, setting
from retain.results.analysis.loss_planes import L_IM, L_RET, has_losses, means_by_seed
from retain.results.store.loss_table import Row
from retain.sweeps.base.errors import DamageError
from retain.sweeps.tree.overlap import Overlap, read_overlap

if TYPE_CHECKING:
    from retain.sweeps.tree.tree import Tree

FEWEST = 3
"""Fewer pipelines have no rank correlation worth a figure."""
FORGOTTEN = "forgotten"
"""What a pipeline forgets: L_ret − L_im."""
Corpora = tuple[str, str]
"""The fingerprints of D_post and D_ft."""


@dataclass(frozen=True)
class Pipeline:
    """The results of one pipeline on the settings that all pipelines have."""

    name: str
    overlap: Overlap
    """D_post comes first."""
    losses: Mapping[str, Mapping[int, float]]
    """L_ret and FORGOTTEN by seed, in nats per token: the means over the settings."""
    trials: int

    @property
    def distances(self) -> dict[str, float | None]:
        """How far D_ft is from D_post, in nats: unigrams, trigrams, and what a model of D_ft loses on D_post."""
        own, other = self.overlap.cross_entropies[0]
        extra = None if own is None or other is None else other - own
        return {"unigrams": self.overlap.divergences[0], "trigrams": self.overlap.divergences[2], "model": extra}

    def mean(self, loss: str) -> float:
        """The mean of L_ret or FORGOTTEN over the seeds."""
        return float(np.mean(list(self.losses[loss].values())))


def measured_pipelines(tree: "Tree", store: Path, rows: Sequence[Row]) -> list[Pipeline]:
    """The pipelines of a study whose overlap has been measured, on the settings that all of them have.

    Empty if there are fewer than FEWEST.
    """
    corpora = {key: json.loads(stage.recipe).get("corpus", "") for key, stage in tree.stages.items()}
    own: dict[Corpora, list[Row]] = {}
    for row in rows:
        keys = [row["keys"].get(stage) for stage in ("posttrain", "finetune")]
        if None not in keys and has_losses(row, L_IM, L_RET):
            own.setdefault((corpora[keys[0]], corpora[keys[1]]), []).append(row)
    overlaps: dict[Corpora, Overlap] = {}
    for pair in own:
        with contextlib.suppress(DamageError):  # as if it were not measured
            if (found := read_overlap(store, *pair)) is not None:
                overlaps[pair] = found
    own = {pair: found for pair, found in own.items() if pair in overlaps}
    if len(own) < FEWEST:
        return []
    names = {fingerprint: name for (name, _), fingerprint in tree.corpora.items()}
    matched = _matched(own)
    return [
        Pipeline(
            " → ".join(names.get(corpus, corpus[:8]) for corpus in pair),
            overlaps[pair],
            {L_RET: means_by_seed(found, L_RET), FORGOTTEN: means_by_seed(_forgotten(found), FORGOTTEN)},
            len(found),
        )
        for pair, found in matched.items()
        if found
    ]


def _forgotten(rows: Sequence[Row]) -> list[Row]:
    return [row | {FORGOTTEN: row[L_RET] - row[L_IM]} for row in rows]


def _matched(own: Mapping[Corpora, Sequence[Row]]) -> dict[Corpora, list[Row]]:
    """The trials of each pipeline whose settings every pipeline has.

    A setting is the values of all axes but those that name the pipeline: those with one value within each.
    """
    every = [row for rows in own.values() for row in rows]
    axes = [axis for axis in axis_names(every) if is_seed(axis) or not _is_constant(axis, own.values())]
    common = set.intersection(*({setting(row, axes) for row in rows} for rows in own.values()))
    return {pair: [row for row in rows if setting(row, axes) in common] for pair, rows in own.items()}


def _is_constant(axis: str, groups: Iterable[Sequence[Row]]) -> bool:
    """Whether an axis has one value within each group of trials."""
    return all(len({setting(row, [axis]) for row in rows}) == 1 for rows in groups)
