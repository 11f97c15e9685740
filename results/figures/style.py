"""How every figure looks, and how it is written: colours, markers, and files that a reader sees whole or not at all."""

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.sweeps.base.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Paul Tol's "bright" scheme: told apart with any colour vision; the marker says the same once more.
COLOURS = ("#4477AA", "#EE6677", "#228833", "#CCBB44", "#66CCEE", "#AA3377", "#BBBBBB")
MARKERS = "osD^vPX"
GREY = "#777777"
DOTS_PER_INCH = 150


@dataclass(frozen=True)
class Look:
    """Of one line with its points."""

    colour: str
    marker: str


# A method has the same look in every figure: mixed is red, unmixed blue, and what is added to either is its own colour.
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


def looks(names: Sequence[str]) -> dict[str, Look]:
    """A method's own look, of any other line the one of its place; by place for all where two would look the same."""
    places = [Look(COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]) for index in range(len(names))]
    own = {name: METHOD_LOOKS.get(name, place) for name, place in zip(names, places, strict=True)}
    return own if len(set(own.values())) == len(own) else dict(zip(names, places, strict=True))


@contextmanager
def style() -> Iterator[None]:
    """Sizes that are readable without zooming, and SVG whose bytes depend on the content alone."""
    import matplotlib

    settings: dict[Any, Any] = {
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
    with matplotlib.rc_context(settings):
        yield


def save_figure(figure: "Figure", stem: Path) -> tuple[Path, Path]:
    """Write stem.png and stem.svg, each whole or not at all; the same figure gives the same bytes."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = (stem.with_name(f"{stem.name}.png"), stem.with_name(f"{stem.name}.svg"))
    for path in paths:
        drawn = io.BytesIO()
        dated = {"Date": None} if path.suffix == ".svg" else None
        figure.savefig(drawn, format=path.suffix[1:], dpi=DOTS_PER_INCH, metadata=dated)
        write_bytes(path, drawn.getvalue())
    return paths
