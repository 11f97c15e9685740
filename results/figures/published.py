"""The curves that the paper published, digitised, for overlays and comparisons: published.json beside this file.

L. Feng, G. R. Ghosal, J. M. Springer, Z. Zhong, A. Raghunathan, "Early Data Exposure Improves Robustness to Subsequent
Fine-Tuning", arXiv 2605.12705v1, CC BY 4.0. One seed a point; read off to four decimals.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from retain.results.analysis.axes import grouped
from retain.results.analysis.loss_planes import Points

FILE = Path(__file__).with_suffix(".json")
Found = TypeVar("Found")


@dataclass(frozen=True)
class Curve:
    """One method of a panel; in figure 3, one size of D_post."""

    name: str
    """A method as in `retain.results.analysis.methods`; in figure 3 the size, such as 30M (tokens)."""
    points: Points
    """[n, 2] by x: its checkpoints, with those outside the panel's limits as far as the figure's file has them."""
    line: Points
    """[m, 2] by x: the line as drawn, in figure 3 through all points, elsewhere the lower-left convex hull."""
    ends_off_canvas: Points
    """[0 to 2, 2]: the ends of the line that leave the canvas towards unknown checkpoints."""


@dataclass(frozen=True)
class Panel:
    """One panel of a published figure."""

    figure: str
    panel: str
    model: str
    """135M or 1B."""
    pipeline: str
    """A pipeline as in `retain.results.analysis.methods`."""
    x: str
    """One of the four losses, or `pretrain.exposure`."""
    y: str
    x_lim: tuple[float, float]
    y_lim: tuple[float, float]
    curves: tuple[Curve, ...]

    def curve(self, name: str) -> Curve:
        """The curve of a method or size. Raises KeyError with the names that exist."""
        return _named(name, {curve.name: curve for curve in self.curves}, f"{self.figure} {self.panel}: unknown curve")


def published(figure: str, panel: str) -> Panel:
    """One panel of a figure. Raises KeyError with the names that exist.

    `figure3a` and `figure3b` have the panels immediate and retained, `figure7` a and b, the others a.left, a.right and so on
    (figures 9 to 12 have a only).
    """
    return _named(panel, {found.panel: found for found in panels_of(figure)}, f"{figure}: unknown panel")


def panels_of(figure: str) -> tuple[Panel, ...]:
    """All panels of a figure: figure2, figure3a, figure3b, figure4 to figure12. Raises KeyError with the names that exist."""
    by_figure = grouped(_read()["panels"], lambda item: str(item["figure"]))
    return tuple(map(_panel, _named(figure, by_figure, "unknown published figure")))


def about() -> dict[str, Any]:
    """What must be said with every published curve: source, title, licence, method, reading_error (nats per token)."""
    return dict(_read()["about"])


def _named(name: str, found: Mapping[str, Found], what: str) -> Found:
    if name not in found:
        raise KeyError(f"{what} {name}; choose one of {', '.join(found)}")
    return found[name]


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
