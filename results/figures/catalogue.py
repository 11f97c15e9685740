"""What each figure of the paper shows: its pipelines, its panels, their axes and methods; and which of them a study has."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from retain.results.analysis.methods import PIPELINES, method_of
from retain.results.analysis.recipe_comparison import RECIPE
from retain.results.store.loss_table import Row
from retain.results.store.study_files import AXIS_OF_POINTS

L_IM, L_RET = "immediate_posttraining_loss", "retained_posttraining_loss"
L_FT, L_PRE = "finetuning_loss", "retained_pretraining_loss"

AXIS_LABELS = {
    L_IM: "L_im: post-training loss before fine-tuning",
    L_RET: "L_ret: post-training loss after fine-tuning",
    L_FT: "L_ft: fine-tuning loss",
    L_PRE: "L_pre: pretraining loss after fine-tuning",
}

MUSIC_CHEMISTRY, MUSIC_INSTRUCTION = "music-chemistry", "music-instruction"
INSTRUCTION_CHEMISTRY, INSTRUCTION_MUSIC = "instruction-chemistry", "instruction-music"

PIPELINE_TITLES = {
    MUSIC_CHEMISTRY: "Music → Chemistry",
    MUSIC_INSTRUCTION: "Music → Instruction",
    INSTRUCTION_CHEMISTRY: "Instruction → Chemistry",
    INSTRUCTION_MUSIC: "Instruction → Music",
}


@dataclass(frozen=True)
class Side:
    """One column of a frontier figure: two of the four losses, and the methods that are compared."""

    x: str
    y: str
    methods: tuple[str, ...] = ()
    """Empty: whatever the study has."""
    title: str = ""
    place: str = ""
    """What figures.json calls it: left, right, or nothing where a pipeline has one panel."""


@dataclass(frozen=True)
class PaperFigure:
    """A frontier figure of the paper: a row of panels for each pipeline."""

    name: str
    asks: str
    sides: tuple[Side, ...]
    pipelines: tuple[str, ...] = ()
    """In the paper's order (a, b, ...); empty: whatever the study has."""
    scale: str = "135M"


@dataclass(frozen=True)
class ExposureFigure:
    """Figure 3a or 3b, or any study's losses over the exposure λ."""

    name: str
    asks: str
    scale: str = "135M"
    published: bool = True


AnyFigure = PaperFigure | ExposureFigure

MUSIC = (MUSIC_CHEMISTRY, MUSIC_INSTRUCTION)
UNMIXED_MIXED = ("unmixed", "mixed")
TWO_VIEWS = (Side(L_FT, L_RET, UNMIXED_MIXED, place="left"), Side(L_RET, L_PRE, UNMIXED_MIXED, place="right"))


def _added(base: str, y: str) -> tuple[Side, Side]:
    """Dropout on the left and replay on the right, on top of `base`, against unmixed and mixed."""
    return (
        Side(L_RET, y, (*UNMIXED_MIXED, f"{base}+dropout"), "dropout", "left"),
        Side(L_RET, y, (*UNMIXED_MIXED, f"{base}+replay"), "replay", "right"),
    )


FRONTIERS = PaperFigure(
    "frontiers",
    "What does each method trade between the three losses?",
    (Side(L_FT, L_RET), Side(L_RET, L_PRE)),
)
"""Of a study that is none of the paper's."""

EXPOSURE = ExposureFigure(
    "exposure",
    "What does the exposure λ change right after post-training, and what after the next fine-tuning?",
    published=False,
)

FIGURES: dict[str, AnyFigure] = {
    figure.name: figure
    for figure in (
        PaperFigure(
            "figure2",
            "Does mixing post-training data into pretraining shift the frontier on all four pipelines?",
            TWO_VIEWS,
            PIPELINES,
        ),
        ExposureFigure("figure3a", "Does exposure help after fine-tuning even where it changes nothing before it?"),
        ExposureFigure(
            "figure3b", "With every post-training token seen exactly once: how many are best seen in pretraining?"
        ),
        PaperFigure(
            "figure4", "Do dropout and replay add to mixing? (L_ret against L_ft)", _added("mixed", L_FT), MUSIC
        ),
        PaperFigure(
            "figure5", "Do dropout and replay add to mixing? (L_ret against L_pre)", _added("mixed", L_PRE), MUSIC
        ),
        PaperFigure("figure6", "What do dropout and replay do without mixing?", _added("unmixed", L_FT), MUSIC),
        PaperFigure(
            "figure7",
            "Does mixing help LoRA too, and is full fine-tuning the better trade-off?",
            (Side(L_RET, L_FT, (*UNMIXED_MIXED, "unmixed+lora", "mixed+lora")),),
            MUSIC,
        ),
        PaperFigure("figure8", "Does mixing shift the frontier at 1B, after music?", TWO_VIEWS, MUSIC, "1B"),
        PaperFigure(
            "figure9",
            "Does mixing shift the frontier at 1B, after instructions?",
            TWO_VIEWS,
            (INSTRUCTION_CHEMISTRY,),
            "1B",
        ),
        PaperFigure(
            "figure10",
            "Do dropout and replay add to mixing at 1B? (L_ret against L_ft)",
            _added("mixed", L_FT),
            (MUSIC_INSTRUCTION,),
            "1B",
        ),
        PaperFigure(
            "figure11",
            "Do dropout and replay add to mixing at 1B? (L_ret against L_pre)",
            _added("mixed", L_PRE),
            (MUSIC_INSTRUCTION,),
            "1B",
        ),
        PaperFigure(
            "figure12",
            "What do dropout and replay do at 1B without mixing?",
            _added("unmixed", L_FT),
            (MUSIC_INSTRUCTION,),
            "1B",
        ),
    )
}


def figures_of(study: str, rows: Sequence[Row]) -> list[AnyFigure]:
    """The figures that a study's rows are for: by its name (figure2, laptop-figure3a, figure4-5), or else by its axes.

    Figure 4 brings figure 5, which shows the same trials in the other view. By the axes alone, a study has the figure
    whose methods it compares; one that varies the exposure has the losses over it; any other its frontiers.
    """
    named = named_figures(study)
    return named or _by_axes(rows)


def named_figures(study: str) -> list[AnyFigure]:
    """The paper's figures that a study's name speaks of, such as `laptop-figure2`; none where it speaks of none."""
    found = re.search(r"(?:^|[-_.])figure(\d+)([ab]?)(?:-(\d+))?(?![\w.])", study)
    if not found:
        return []
    first, letter, last = found[1], found[2], found[3] or ("5" if found[1] == "4" else found[1])
    wanted = [f"figure{number}{letter}" for number in range(int(first), int(last) + 1)]
    return [FIGURES[name] for name in wanted if name in FIGURES]


def _by_axes(rows: Sequence[Row]) -> list[AnyFigure]:
    names = {name for row in rows for name in row["axes"]}
    if names & {AXIS_OF_POINTS, RECIPE}:  # of a search: they differ in several fields at once
        return [FRONTIERS]
    if "method" in names:
        methods = {method_of(row) for row in rows}
        chosen = [FIGURES[name] for name in ("figure4", "figure5", "figure6", "figure7") if _added_to(name) <= methods]
        plain = [FIGURES["figure2"]] if methods == set(UNMIXED_MIXED) else []
        return chosen or plain or [FRONTIERS]
    if len(_values(rows, "pretrain.exposure")) > 1:
        return [EXPOSURE, FRONTIERS]
    return [FRONTIERS]


def _added_to(name: str) -> set[str]:
    figure = FIGURES[name]
    assert isinstance(figure, PaperFigure)
    return {method for side in figure.sides for method in side.methods} - set(UNMIXED_MIXED)


def _values(rows: Iterable[Row], axis: str) -> set[str]:
    return {str(row["axes"].get(axis)) for row in rows}
