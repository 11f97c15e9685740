"""What each figure of the paper shows: pipelines, panels, axes and methods; and which figures a study has.

The axes run the same way in every figure, as in the paper's Figure 2: the loss of the later stage is on x, that of the earlier
one on y. The paper's Figures 4, 6, 7, 10 and 12 have them the other way round.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace

from retain.results.analysis.axes import EXPOSURE, METHOD, axis_names, is_searched, varied_axes
from retain.results.analysis.loss_planes import L_FT, L_IM, L_PRE, L_RET
from retain.results.analysis.methods import PIPELINES, method_of
from retain.results.store.loss_table import Row, named_losses

AXIS_LABELS = {
    L_IM: "L_im: post-training loss before fine-tuning",
    L_RET: "L_ret: post-training loss after fine-tuning",
    L_FT: "L_ft: fine-tuning loss",
    L_PRE: "L_pre: pretraining loss after fine-tuning",
}
REVERSED = "-"
"""The prefix of an axis that shows the negated values of a metric where higher is better."""


def axis_label(name: str) -> str:
    """The label of an axis: a loss of the paper's four, STAGE/CORPUS, or STAGE/TASK/METRIC."""
    if name.startswith(REVERSED):
        return f"{name.removeprefix(REVERSED)} (higher is better; reversed)"
    return AXIS_LABELS.get(name, f"{name} (nats per token)" if name.count("/") == 1 else name)


@dataclass(frozen=True)
class Side:
    """One column of a figure: its axes and the methods that it compares."""

    x: str
    """A loss, or pretrain.exposure."""
    y: str
    methods: tuple[str, ...] = ()
    """Empty for all methods of the study."""
    title: str = ""
    place: str = ""
    """Its name in published.json: left, right, or empty if a pipeline has one panel."""


@dataclass(frozen=True)
class FigureSpec:
    """What one figure shows: a row of panels for each pipeline, a panel for each side."""

    name: str
    question: str
    sides: tuple[Side, ...]
    pipelines: tuple[str, ...] = ()
    """In the paper's order (a, b, ...); empty for all pipelines of the study."""
    scale: str = "135M"
    published: bool = True
    """Whether it is a figure of the paper."""
    title: str = ""
    """Empty for a figure that its name says."""

    @property
    def over_exposure(self) -> bool:
        """Whether it shows losses over the exposure λ, not frontiers."""
        return self.sides[0].x == EXPOSURE

    @property
    def losses(self) -> set[str]:
        """The losses that it shows."""
        return {loss for side in self.sides for loss in (side.x, side.y)} - {EXPOSURE}

    @property
    def methods(self) -> set[str]:
        """The methods that it compares; empty for all methods of the study."""
        return {method for side in self.sides for method in side.methods}


MUSIC = ("music-chemistry", "music-instruction")
MUSIC_1B, FLAN_1B = ("music-instruction",), ("instruction-chemistry",)
UNMIXED_MIXED = ("unmixed", "mixed")
TWO_PLANES = (Side(L_FT, L_RET, UNMIXED_MIXED, place="left"), Side(L_RET, L_PRE, UNMIXED_MIXED, place="right"))
OVER_EXPOSURE = (
    Side(EXPOSURE, L_IM, title="immediate: before fine-tuning"),
    Side(EXPOSURE, L_RET, title="retained: after fine-tuning"),
)


def _added(base: str, x: str, y: str) -> tuple[Side, Side]:
    """Dropout on the left and replay on the right, on top of `base`, against unmixed and mixed."""
    return (
        Side(x, y, (*UNMIXED_MIXED, f"{base}+dropout"), "dropout", "left"),
        Side(x, y, (*UNMIXED_MIXED, f"{base}+replay"), "replay", "right"),
    )


FRONTIERS = FigureSpec(
    "frontiers",
    "What does each method trade between the three losses?",
    (Side(L_FT, L_RET), Side(L_RET, L_PRE)),
    published=False,
)
"""The frontiers of a study that is not the paper's."""

LOSSES_OVER_EXPOSURE = FigureSpec(
    "exposure",
    "What does the exposure λ change right after post-training, and what after the next fine-tuning?",
    OVER_EXPOSURE,
    published=False,
)

PAPER_FIGURES = (
    FigureSpec(
        "figure2",
        "Does mixing post-training data into pretraining shift the frontier on all four pipelines?",
        TWO_PLANES,
        tuple(PIPELINES),
    ),
    FigureSpec("figure3a", "Does exposure help after fine-tuning even if it changes nothing before it?", OVER_EXPOSURE),
    FigureSpec(
        "figure3b", "If every post-training token is seen once, how many should pretraining see?", OVER_EXPOSURE
    ),
    FigureSpec(
        "figure4", "Do dropout and replay add to mixing? (L_ret against L_ft)", _added("mixed", L_FT, L_RET), MUSIC
    ),
    FigureSpec(
        "figure5", "Do dropout and replay add to mixing? (L_ret against L_pre)", _added("mixed", L_RET, L_PRE), MUSIC
    ),
    FigureSpec("figure6", "What do dropout and replay do without mixing?", _added("unmixed", L_FT, L_RET), MUSIC),
    FigureSpec(
        "figure7",
        "Does mixing help LoRA too, and is full fine-tuning the better trade-off?",
        (Side(L_FT, L_RET, (*UNMIXED_MIXED, "unmixed+lora", "mixed+lora")),),
        MUSIC,
    ),
    FigureSpec("figure8", "Does mixing shift the frontier at 1B, after music?", TWO_PLANES, MUSIC, "1B"),
    FigureSpec("figure9", "Does mixing shift the frontier at 1B, after instructions?", TWO_PLANES, FLAN_1B, "1B"),
    FigureSpec(
        "figure10",
        "Do dropout and replay add to mixing at 1B? (L_ret against L_ft)",
        _added("mixed", L_FT, L_RET),
        MUSIC_1B,
        "1B",
    ),
    FigureSpec(
        "figure11",
        "Do dropout and replay add to mixing at 1B? (L_ret against L_pre)",
        _added("mixed", L_RET, L_PRE),
        MUSIC_1B,
        "1B",
    ),
    FigureSpec(
        "figure12",
        "What do dropout and replay do at 1B without mixing?",
        _added("unmixed", L_FT, L_RET),
        MUSIC_1B,
        "1B",
    ),
)
FIGURES = {spec.name: spec for spec in PAPER_FIGURES}


def figures_of(study: str, rows: Sequence[Row]) -> list[FigureSpec]:
    """The figures of a study: by its name (figure2, laptop-figure3a, figure4-5), or else by its axes.

    Figure 4 brings figure 5, which shows the same trials in the other plane. By its axes, a study has the figures whose
    methods it compares, or else the losses over exposure if it varies exposure, and the frontiers.
    """
    found, there = named_figures(study) or _figures_by_axes(rows), {*named_losses(rows), EXPOSURE}
    # A chain need not have all of the paper's losses.
    kept = [replace(spec, sides=tuple(side for side in spec.sides if {side.x, side.y} <= there)) for spec in found]
    return [spec for spec in kept if spec.sides]


def named_figures(study: str) -> list[FigureSpec]:
    """The paper's figures that a study's name contains, such as `laptop-figure2`; empty if it contains none."""
    found = re.search(r"(?:^|[-_.])figure(\d+)([ab]?)(?:-(\d+))?(?![\w.])", study)
    if not found:
        return []
    first, letter, last = found[1], found[2], found[3] or ("5" if found[1] == "4" else found[1])
    wanted = [f"figure{number}{letter}" for number in range(int(first), int(last) + 1)]
    return [FIGURES[name] for name in wanted if name in FIGURES]


def _figures_by_axes(rows: Sequence[Row]) -> list[FigureSpec]:
    if any(map(is_searched, rows)):
        return [FRONTIERS]
    if METHOD in axis_names(rows):
        methods = {method_of(row) for row in rows}
        added = [FIGURES[f"figure{number}"] for number in (4, 5, 6, 7)]
        chosen = [figure for figure in added if figure.methods - set(UNMIXED_MIXED) <= methods]
        plain = [FIGURES["figure2"]] if methods == set(UNMIXED_MIXED) else []
        return chosen or plain or [FRONTIERS]
    return [LOSSES_OVER_EXPOSURE, FRONTIERS] if EXPOSURE in varied_axes(rows) else [FRONTIERS]
