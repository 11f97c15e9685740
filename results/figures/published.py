"""The curves that the paper published, digitised, for overlays and comparisons: published.json beside this file.

L. Feng, G. R. Ghosal, J. M. Springer, Z. Zhong, A. Raghunathan, "Early Data Exposure Improves Robustness to Subsequent
Fine-Tuning", arXiv 2605.12705v1, CC BY 4.0. One seed a point; read off to four decimals.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from retain.results.analysis.loss_planes import Points

FILE = Path(__file__).with_suffix(".json")


@dataclass(frozen=True)
class Source:
    """Where the curves come from and how exact they are; reading_error: nats per token, of every number."""

    source: str
    title: str
    licence: str
    method: str
    reading_error: float


@dataclass(frozen=True)
class Curve:
    """One method of a panel, or in figure 3 one size of D_post."""

    name: str
    """A method as in `retain.results.analysis.methods`; in figure 3 the size, such as 30M (tokens)."""
    points: Points
    """[n, 2] by x: its checkpoints. Those outside the panel's limits are among them, as far as the figure's file has
    them."""
    line: Points
    """[m, 2] by x: the line as it is drawn, for figure 3 through all points, elsewhere the lower-left convex hull."""
    ends_off_canvas: Points
    """[0 to 2, 2]: ends of the line where it leaves the canvas towards checkpoints that are not known."""


@dataclass(frozen=True)
class Panel:
    figure: str
    panel: str
    model: str
    """135M or 1B."""
    pipeline: str
    """As in `retain.results.analysis.methods`."""
    x: str
    """One of the four losses, or `pretrain.exposure`."""
    y: str
    x_lim: tuple[float, float]
    y_lim: tuple[float, float]
    curves: tuple[Curve, ...]

    def curve(self, name: str) -> Curve:
        """Raises KeyError, with the names there are."""
        for curve in self.curves:
            if curve.name == name:
                return curve
        raise KeyError(
            f"{self.figure} {self.panel} has no curve {name}; it has {', '.join(c.name for c in self.curves)}"
        )


def published(figure: str, panel: str) -> Panel:
    """One panel of a figure: `figure3a` and `figure3b` have immediate and retained, `figure7` a and b, the others
    a.left, a.right and so on (figures 9 to 12 have a only).

    Raises KeyError, with what there is.
    """
    panels = panels_of(figure)
    for found in panels:
        if found.panel == panel:
            return found
    raise KeyError(f"{figure} has no panel {panel}; it has {', '.join(found.panel for found in panels)}")


def panels_of(figure: str) -> tuple[Panel, ...]:
    """All panels of a figure: figure2, figure3a, figure3b, figure4 to figure12. Raises KeyError, with what there is."""
    everything = _read()["panels"]
    panels = tuple(_panel(item) for item in everything if item["figure"] == figure)
    if not panels:
        raise KeyError(
            f"{figure} is not published; there are {', '.join(dict.fromkeys(p['figure'] for p in everything))}"
        )
    return panels


def source() -> Source:
    """What has to be said wherever a published curve is shown."""
    about = _read()["about"]
    return Source(**{name: about[name] for name in Source.__dataclass_fields__})


def _read() -> Any:
    return json.loads(FILE.read_text(encoding="utf-8"))


def _panel(item: Mapping[str, Any]) -> Panel:
    curves = tuple(
        Curve(curve["name"], *(_points(curve[part]) for part in ("points", "line", "ends_off_canvas")))
        for curve in item["curves"]
    )
    limits = {name: (float(item[name][0]), float(item[name][1])) for name in ("x_lim", "y_lim")}
    return Panel(**{**item, **limits, "curves": curves})


def _points(pairs: Any) -> Points:
    return np.array(pairs, dtype=np.float64).reshape(-1, 2)
