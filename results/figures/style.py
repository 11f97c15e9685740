"""How every figure looks, and how it is drawn and written: colours, markers, and whole files."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.sweeps.base.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Paul Tol's "bright" scheme, told apart with any colour vision; the markers repeat the distinction.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
MARKERS = "osD^vPX"
GREY = "#777777"
DOTS_PER_INCH = 150
RC: dict[Any, Any] = {
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
class Look:
    """The look of one line and its points."""

    colour: str
    marker: str


# A method looks the same in every figure: unmixed is blue, mixed is red, each addition has its own colour.
METHOD_LOOKS = {
    "unmixed": Look(COLOURS[0], "o"),
    "mixed": Look(COLOURS[1], "s"),
    "unmixed+dropout": Look(COLOURS[2], "D"),
    "mixed+dropout": Look(COLOURS[2], "D"),
    "unmixed+replay": Look(COLOURS[5], "^"),
    "mixed+replay": Look(COLOURS[5], "^"),
    "unmixed+lora": Look(COLOURS[4], "v"),
    "mixed+lora": Look(COLOURS[3], "P"),
}


def look_at(index: int) -> Look:
    """The look of the line with this index."""
    return Look(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)])


def looks(names: Sequence[str]) -> dict[str, Look]:
    """The method's look for each method, and the look by index for other lines; by index for all if two would be equal."""
    by_index = {name: look_at(index) for index, name in enumerate(names)}
    own = {name: METHOD_LOOKS.get(name, look) for name, look in by_index.items()}
    return own if len(set(own.values())) == len(own) else by_index


@dataclass(frozen=True)
class DrawnFigure:
    """A figure in the store: its files, and what a reader needs beside it."""

    name: str
    title: str
    caption: str
    png: Path
    svg: Path
    data: Path
    trials: int
    missing: int
    """The number of trials without a result yet."""


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
