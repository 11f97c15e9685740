"""The style of all figures, and the one way to open, save and name them."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.sweeps.base.files import write_bytes
from retain.sweeps.base.units import counted

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Paul Tol's "bright" scheme, told apart with any colour vision; the markers repeat the distinction.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
MARKERS = "osD^vPX"
GREY = "#777777"
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
    "grid.color": "#E6E6E6",
    "grid.linewidth": 0.6,
    "axes.axisbelow": True,
}


@dataclass(frozen=True)
class LineStyle:
    """The style of one line and its points."""

    colour: str
    marker: str


# A method looks the same in every figure: unmixed is blue, mixed is red, each addition has its own colour.
METHOD_STYLES = {
    "unmixed": LineStyle(COLOURS[0], "o"),
    "mixed": LineStyle(COLOURS[1], "s"),
    "unmixed+dropout": LineStyle(COLOURS[2], "D"),
    "mixed+dropout": LineStyle(COLOURS[2], "D"),
    "unmixed+replay": LineStyle(COLOURS[5], "^"),
    "mixed+replay": LineStyle(COLOURS[5], "^"),
    "unmixed+lora": LineStyle(COLOURS[4], "v"),
    "mixed+lora": LineStyle(COLOURS[3], "P"),
}


def style_at(index: int) -> LineStyle:
    """The style of the line with this index."""
    return LineStyle(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])


def line_styles(names: Sequence[str]) -> dict[str, LineStyle]:
    """The method's style for each method, and the style by index for other lines; by index for all if two would be equal."""
    by_index = {name: style_at(index) for index, name in enumerate(names)}
    own = {name: METHOD_STYLES.get(name, style) for name, style in by_index.items()}
    return own if len(set(own.values())) == len(own) else by_index


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


def missing_trials(missing: int, total: int) -> str:
    """`3 of 4 trials are missing`."""
    return f"{missing:,} of {counted(total, 'trial is', 'trials are')} missing"


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
