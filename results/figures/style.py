"""The style of all figures, and the one way to open, save and name them."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from retain.sweeps.base.files import write_bytes
from retain.sweeps.base.units import counted

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Range = tuple[float, float]
Line = TypeVar("Line")

# Paul Tol's "bright" scheme, told apart with any colour vision; yellow and cyan are darker. Markers repeat the distinction.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#B39B00", "#2E9FC6", "#AA3377")
MARKERS = "osD^vPX"
INK, GREY, GRID = "#1c1f24", "#777777", "#e6e6e6"
MOST_LINES = 10
"""More lines than these become small multiples."""
DOTS_PER_INCH = 150
RC: dict[Any, Any] = {
    # Names of a study, such as $x_$, are text and not formulas.
    "text.parse_math": False,
    # The bytes of an SVG depend on its content alone.
    "svg.hashsalt": "retain",
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "grid.color": GRID,
    "grid.linewidth": 0.6,
    **dict.fromkeys(("text.color", "axes.labelcolor", "axes.edgecolor", "xtick.color", "ytick.color"), INK),
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class LineStyle:
    """The style of one line and its points."""

    colour: str
    marker: str
    hollow: bool = False

    @property
    def points(self) -> dict[str, Any]:
        """The points' part of the style as matplotlib names it."""
        face = "white" if self.hollow else self.colour
        return {"marker": self.marker, "markersize": 4.5, "markerfacecolor": face, "markeredgecolor": self.colour}


# A method looks the same in every figure: unmixed is blue, mixed is red, and each addition has its own colour and shape, hollow
# without mixing.
METHOD_STYLES = {
    "unmixed": LineStyle(COLOURS[0], "o"),
    "mixed": LineStyle(COLOURS[1], "s"),
    "unmixed+dropout": LineStyle(COLOURS[2], "D", hollow=True),
    "mixed+dropout": LineStyle(COLOURS[2], "D"),
    "unmixed+replay": LineStyle(COLOURS[5], "^", hollow=True),
    "mixed+replay": LineStyle(COLOURS[5], "^"),
    "unmixed+lora": LineStyle(COLOURS[4], "v", hollow=True),
    "mixed+lora": LineStyle(COLOURS[4], "v"),
}


def style_at(index: int) -> LineStyle:
    """The style of the line with this index. A colour that returns has another marker: 42 styles are different."""
    return LineStyle(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])


def line_styles(names: Sequence[str]) -> dict[str, LineStyle]:
    """The method's style for each method, and the style by index for other lines; by index for all if two would be equal."""
    by_index = {name: style_at(index) for index, name in enumerate(names)}
    own = {name: METHOD_STYLES.get(name, style) for name, style in by_index.items()}
    return own if len(set(own.values())) == len(own) else by_index


LegendEntry = tuple[str, LineStyle, bool]
"""The name of a line, its style, and whether it is dashed."""


@dataclass(frozen=True)
class Drawing:
    """One pair of axes for the page: the page writes its title and its legend."""

    title: str
    svg: str
    """An element of `results.figures.drawing.draw_axes`."""
    legend: tuple[LegendEntry, ...] = ()


@dataclass(frozen=True)
class DrawnFigure:
    """A figure in the store: its files, title, caption and number of trials."""

    name: str
    title: str
    caption: str
    png: Path
    svg: Path
    data: Path
    trials: int
    missing: int
    """The number of trials without a result yet."""
    panels: tuple[Drawing, ...] = ()
    """Each pair of axes by itself, for the page."""
    paired: bool = False
    """Whether two panels belong together, as the two planes of a pipeline."""


def small_multiples(lines: Sequence[Line]) -> list[Sequence[Line]]:
    """The lines of each of the small multiples: as few as have no more than MOST_LINES, and as many lines in each."""
    count = max(1, -(-len(lines) // MOST_LINES))
    size = max(1, -(-len(lines) // count))
    return [lines[start : start + size] for start in range(0, len(lines), size)]


def share_range(axes: Sequence["Axes"], along: Literal["x", "y"]) -> Range:
    """Give axes the range of all of them along x or y; returns it."""
    ranges = [getattr(one, f"get_{along}lim")() for one in axes]
    low, high = min(start for start, _ in ranges), max(end for _, end in ranges)
    # Each panel's own margin may be a small part of the shared range, which would cut markers.
    margin = 0.04 * (high - low)
    for one in axes:
        one.set(**{f"{along}lim": (low - margin, high + margin)})
    return low - margin, high + margin


def missing_trials(missing: int, total: int) -> str:
    """`3 of 4 trials are missing`."""
    return f"{missing:,} of {counted(total, 'trial')} {'is' if missing == 1 else 'are'} missing"


def trials_note(missing: int, total: int) -> str:
    """How complete a figure is: `3 of 4 trials missing`, or `all 4 trials`."""
    return f"{missing:,} of {counted(total, 'trial')} missing" if missing else f"all {counted(total, 'trial')}"


@contextmanager
def new_figure(stem: Path, inches: tuple[float, float]) -> Iterator["Figure"]:
    """Open an empty figure in this style; at the end of the block, write it to the files of `image_files`.

    Each file is written whole or not at all; the same figure gives the same bytes.
    """
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC):
        figure = Figure(figsize=inches, layout="constrained")
        yield figure
        stem.parent.mkdir(parents=True, exist_ok=True)
        for path in image_files(stem):
            drawn = io.BytesIO()
            dated = {"Date": None} if path.suffix == ".svg" else None
            figure.savefig(drawn, format=path.suffix[1:], dpi=DOTS_PER_INCH, metadata=dated)
            write_bytes(path, drawn.getvalue())


def image_files(stem: Path) -> tuple[Path, Path]:
    """The files of a figure: <stem>.png and <stem>.svg."""
    return stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg")
