"""One pair of axes as an SVG element of a page: readable on a phone, and in the page's font and colours."""

import html
import io
import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from retain.results.figures.style import GREY, GRID, INK, RC

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INCHES = (3.9, 2.9)
"""At 96 pixels an inch the width of a phone, so that text has its intended size there."""
FOR_PAGES: dict[Any, Any] = {
    # Text stays text: a fifth of the bytes, found by the browser's search, and in the page's font.
    "svg.fonttype": "none",
    "font.family": ["sans-serif"],
    "font.sans-serif": ["DejaVu Sans"],
}
THEMED = {
    INK: "var(--ink)",
    GREY: "var(--quiet)",
    GRID: "var(--grid)",
    "#ffffff": "var(--paper)",
    "#000000": "var(--ink)",
}
"""Colours that follow the page's scheme, light or dark."""


def draw_axes(name: str, label: str, draw: Callable[["Axes"], object]) -> str:
    """The SVG element of what `draw` draws. name: a prefix of its ids, unique on the page; label: what screen readers say."""
    import matplotlib
    from matplotlib.figure import Figure

    with matplotlib.rc_context(RC | FOR_PAGES):
        figure = Figure(figsize=INCHES, layout="constrained")
        axes = figure.subplots()
        draw(axes)
        # The page writes titles, in HTML.
        axes.set_title("", loc="left")
        axes.set_title("")
        drawn = io.StringIO()
        figure.savefig(drawn, format="svg", dpi=96, transparent=True, metadata={"Date": None})
    return page_element(drawn.getvalue(), name, label)


def page_element(svg: str, name: str, label: str) -> str:
    """matplotlib's SVG as an element of a page.

    Ids get a prefix, because all figures share one page; the metadata, which holds addresses, and fixed fonts are removed.
    """
    element = svg[svg.index("<svg") :]
    element = re.sub(r"<metadata>.*?</metadata>|<!--.*?-->", "", element, flags=re.DOTALL)
    element = re.sub(r'\bid="', f'id="{name}-', element)
    element = re.sub(r'(href="#|url\(#)', rf"\g<1>{name}-", element)
    element = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", element)
    element = re.sub(r">\s+<", "><", element)
    element = re.sub(r"#[0-9a-f]{6}(?=[;\"])", lambda found: THEMED.get(found[0], found[0]), element)
    # Hundredths of a pixel are enough for places; numbers in text stay as they are.
    element = re.sub(r'="[^"]*"', lambda found: re.sub(r"(\.\d\d)\d+", r"\1", found[0]), element)
    opening = element[: element.index(">") + 1]
    box = re.search(r'viewBox="[^"]*"', opening)
    assert box is not None, "matplotlib writes a viewBox"
    start = f'<svg xmlns:xlink="http://www.w3.org/1999/xlink" {box[0]} role="img" aria-label="{html.escape(label)}">'
    return start + element[len(opening) :]
