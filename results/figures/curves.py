"""Loss curves of a study's runs: in each stage the training loss, and the held-out loss on the post-training text."""

import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from retain.results.analysis.axes import grouped
from retain.results.analysis.loss_planes import Floats
from retain.results.figures.drawing import draw_axes
from retain.results.figures.paper import method_title
from retain.results.figures.style import MOST_LINES, Drawing, LineStyle, line_styles, small_multiples
from retain.results.store.curves import CURVES, Curve, heldout_curve, read_curves, training_curve
from retain.results.store.runs import Store
from retain.sweeps.base.errors import DamageError
from retain.sweeps.tree.tree import Stage, Tree

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_RUNS = 240
"""Of more runs, these many are drawn, evenly spread over the tree: reading curves takes milliseconds a run."""
MOST_POINTS = 40
"""Points drawn of one curve, evenly spread."""
REMEMBERED = heldout_curve("posttraining")


@dataclass(frozen=True)
class LossCurves:
    """The panels of the section, and what it leaves out."""

    panels: tuple[Drawing, ...]
    runs: int
    """The number of runs that are drawn."""
    total: int
    """The number of runs that have begun."""


def draw_curves(tree: Tree, store: Store, names: Mapping[str, str]) -> LossCurves:
    """A panel for each stage and kind of curve that the store has; no panel if no run has begun.

    names: of each run's line, by key, in the order of the trials; runs of one name share a style. More than ten names make
    several panels.
    """
    begun = [stage for stage in tree.stages.values() if (store.root / stage.key / CURVES).is_file()]
    shown = [begun[at] for at in np.linspace(0, len(begun) - 1, min(len(begun), MOST_RUNS)).astype(int)]
    curves = {stage.key: _curves(store, stage) for stage in shown}
    chain = tree.chain
    by_stage = grouped(sorted(shown, key=lambda one: chain.index(one.stage)), lambda one: one.stage)
    leaves = {trial.leaf for trial in tree.trials}
    whole = [name for key, name in names.items() if key in leaves]
    styles = _styles(whole, [[names[one.key] for one in own] for own in by_stage.values()])
    panels: list[Drawing] = []
    for stage, own in by_stage.items():
        for kind, text in (
            (training_curve(stage, "loss"), "training loss"),
            (REMEMBERED, "held-out post-training text"),
        ):
            lines = [(names[one.key], curves[one.key][kind]) for one in own if len(curves[one.key].get(kind, ())) > 1]
            for title, part in _multiples(f"{stage}: {text}", lines, list(styles)):
                panels.append(_panel(f"curves-{len(panels)}", title, part, styles))
    return LossCurves(tuple(panels), len(shown), len(begun))


def _styles(whole: Sequence[str], names_by_stage: Sequence[Sequence[str]]) -> dict[str, LineStyle]:
    """The style of each name: first those of whole trials, so that a line has one colour on the page.

    With more names than one legend holds, a name has the first style that is free in its stage.
    """
    everything = list(dict.fromkeys([*whole, *itertools.chain(*names_by_stage)]))
    if len(everything) <= MOST_LINES:
        return line_styles(everything)
    styles: dict[str, LineStyle] = {}
    for names in names_by_stage:
        styles = line_styles(list(dict.fromkeys(names))) | styles
    return styles


def _curves(store: Store, stage: Stage) -> Mapping[str, Curve]:
    try:
        return read_curves(store.root / stage.key)
    except DamageError:
        return {}


def _without_short_end(points: Floats) -> Floats:
    """A curve without a last point that is a mean over less than half as many tokens as the others, such as one short batch."""
    along = np.diff(points[:, 0], prepend=0)
    return points[:-1] if len(points) > 2 and along[-1] < along[-2] / 2 else points


Lines = Sequence[tuple[str, Curve]]
"""Curves with the name of their line."""


def _multiples(title: str, lines: Lines, names: Sequence[str]) -> Iterator[tuple[str, Lines]]:
    """The panels of these curves: one, or several of at most ten names. names: those of all curves, in order."""
    there = {name for name, _ in lines}
    parts = small_multiples([name for name in names if name in there])
    for number, part in enumerate(parts, 1):
        of = f" ({number} of {len(parts)})" if len(parts) > 1 else ""
        yield title + of, [(name, curve) for name, curve in lines if name in part]


def _panel(name: str, title: str, lines: Lines, styles: Mapping[str, LineStyle]) -> Drawing:
    from matplotlib.ticker import EngFormatter, MaxNLocator

    def draw(axes: "Axes") -> None:
        for line, curve in lines:
            points = _without_short_end(np.array(curve, dtype=float))
            kept = points[np.unique(np.linspace(0, len(points) - 1, MOST_POINTS).astype(int))]
            shape: dict[str, Any] = {"color": styles[line].colour, "linewidth": 0.9, "alpha": 0.6}
            axes.plot(kept[:, 0], kept[:, 1], markevery=[-1], **shape, **styles[line].points | {"markersize": 3.5})
        axes.set_xlabel("tokens seen in the stage")
        axes.set_ylabel("loss")
        axes.xaxis.set_major_formatter(EngFormatter(sep=""))
        axes.xaxis.set_major_locator(MaxNLocator(5))

    there = {line for line, _ in lines}
    legend = tuple((method_title(line), style, False) for line, style in styles.items() if line in there)
    return Drawing(title, draw_axes(name, title, draw), legend)
