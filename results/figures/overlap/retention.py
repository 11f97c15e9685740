"""Retention against the overlap of D_post and D_ft: a point for each pipeline."""

import csv
import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from retain.results.analysis.loss_planes import L_RET
from retain.results.analysis.overlap.pipelines import FEWEST, FORGOTTEN, Pipeline, measured_pipelines
from retain.results.analysis.predictors import spearman
from retain.results.figures.drawing import draw_axes
from retain.results.figures.style import Drawing, DrawnFigure, LineStyle, image_files, line_styles, new_figure
from retain.results.store.loss_table import Row
from retain.results.store.study_files import study_folder
from retain.sweeps.base.files import write_text
from retain.sweeps.base.units import counted
from retain.sweeps.tree.tree import Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NAME, TITLE = "overlap", "Retention and overlap. Is less retained the further D_ft is from D_post?"
DISTANCES = {
    "unigrams": "divergence of unigrams (nats)",
    "trigrams": "divergence of trigrams (nats)",
    "model": "extra loss of a trigram model of D_ft\non D_post (nats per token)",
}
LOSSES = {FORGOTTEN: "L_ret − L_im (nats per token)", L_RET: "L_ret (nats per token)"}
PANEL_INCHES = (3.5, 2.9)


def overlap_figures(store: Path, tree: Tree, rows: Sequence[Row], overrides: Sequence[str] = ()) -> list[DrawnFigure]:
    """Draw the figure of a study into the folder figures/ of `study_folder`; none without three measured pipelines."""
    found = measured_pipelines(tree, store, rows)
    if len(found) < FEWEST:
        return []
    stem = study_folder(store, tree.study, overrides) / "figures" / NAME
    styles = line_styles([one.name for one in found])
    with new_figure(stem, (PANEL_INCHES[0] * len(DISTANCES), PANEL_INCHES[1] * len(LOSSES) + 0.7)) as figure:
        places = figure.subplots(len(LOSSES), len(DISTANCES), squeeze=False)
        for line, loss in zip(places, LOSSES, strict=True):
            for axes, distance in zip(line, DISTANCES, strict=True):
                _draw(axes, found, styles, distance, loss)
        handles, labels = places[0][0].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False)
        figure.suptitle(f"{tree.study}: retention and the overlap of D_post and D_ft", fontsize=10)
    data = stem.with_name(f"{NAME}.csv")
    write_text(data, _csv_text(found))
    legend = tuple((one.name, styles[one.name], False) for one in found)
    panels = []
    for loss in LOSSES:
        for distance in DISTANCES:
            title = _title(found, distance, loss)
            label = f"{LOSSES[loss]} against {DISTANCES[distance]}: {title}"

            def draw(axes: "Axes", distance: str = distance, loss: str = loss) -> None:
                _draw(axes, found, styles, distance, loss)

            panels.append(Drawing(title, draw_axes(f"{NAME}-{loss}-{distance}", label, draw), legend))
    trials = sum(one.trials for one in found)
    return [DrawnFigure(NAME, TITLE, _caption(found), *image_files(stem), data, trials, 0, tuple(panels))]


def _caption(found: Sequence[Pipeline]) -> str:
    seeds = len(found[0].losses[L_RET])
    bars = f" Points: means over {seeds} seeds; bars: from the lowest to the highest seed." if seeds > 1 else ""
    chance = math.factorial(len(found)) // 2
    return (
        f"{counted(len(found), 'pipeline')} on the settings that all of them have ({counted(found[0].trials, 'trial')} each); "
        f"retain overlap measured the corpora.{bars} The pipelines differ in more than their overlap, and {len(found)} of them "
        f"are ranked perfectly by chance in 1 of {chance:,} cases."
    )


def _title(found: Sequence[Pipeline], distance: str, loss: str) -> str:
    pairs = [(x, one.mean(loss)) for one in found if (x := one.distances[distance]) is not None]
    correlation = spearman(*(np.array([pair[place] for pair in pairs], np.float64) for place in (0, 1)))
    return f"rank correlation {'undefined' if correlation is None else f'{correlation:+.2f}'}"


def _draw(axes: "Axes", found: Sequence[Pipeline], styles: dict[str, LineStyle], distance: str, loss: str) -> None:
    for one in found:
        x = one.distances[distance]
        if x is None:
            continue
        mean, seeds = one.mean(loss), list(one.losses[loss].values())
        bars = [[mean - min(seeds)], [max(seeds) - mean]]
        style = styles[one.name]
        drawn = bars if len(seeds) > 1 else None
        shape: dict[str, Any] = {"color": style.colour, "linestyle": "none", "capsize": 2.5, **style.points}
        axes.errorbar([x], [mean], drawn, label=one.name, **shape)
    axes.margins(0.12)
    axes.set_title(_title(found, distance, loss), loc="left")
    axes.set_xlabel(DISTANCES[distance])
    axes.set_ylabel(LOSSES[loss])


def _csv_text(found: Sequence[Pipeline]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["pipeline", *DISTANCES, "trials", "seed", *LOSSES])
    for one in found:
        head = [one.name, *one.distances.values(), one.trials]
        for seed in one.losses[L_RET]:
            writer.writerow([*head, seed, *(one.losses[loss][seed] for loss in LOSSES)])
    return text.getvalue()
