"""Every choice of a study beside the paper's: as in the paper, different, or left open by the paper.

The numbers are those of arXiv 2605.12705v1, by table.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from retain.results.report.cells import DASH, Cell, Rows, Table, table, value_text
from retain.sweeps.base.units import format_size
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.models import PRESETS
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.section import STAGE_KINDS
from retain.sweeps.tree.key_diff import leaves
from retain.sweeps.tree.tree import plain_value

SAME, DIFFERS, OPEN = "as in the paper", "differs", "open in the paper"
SIZES = ("tokens", "max_tokens")
NOT_A_CHOICE = {"study", "stages", "model", "corpora", "grid", "cases", "search", "execution"}
LARGE_FROM = 500_000_000
"""Studies with at least this many parameters are compared with the paper's 1B tables."""


@dataclass(frozen=True)
class Paper:
    """What the paper says of one field. A study is as in the paper if all its values are among `values`."""

    values: tuple[Any, ...]
    source: str
    text: str = ""
    """Shown in place of the values, if they need words."""
    only_some: bool = False
    """Whether the paper has further values that it does not print, so that another value is not a deviation."""
    printed: bool = True
    """Whether the paper prints the values. If not, they are those of the published model that it names as its style."""


def _stated(source: str, fields: Mapping[str, Any]) -> dict[str, Paper]:
    """The paper's value of each field, or its values as a tuple."""
    return {name: Paper(value if isinstance(value, tuple) else (value,), source) for name, value in fields.items()}


def _model(source: str, preset: str, *unstated: str, printed: bool = True) -> dict[str, Paper]:
    """The architecture of one of the paper's models."""
    fields = {f"model.{name}": value for name, value in asdict(PRESETS[preset]).items() if name not in unstated}
    return {name: replace(paper, printed=printed) for name, paper in _stated(source, fields).items()}


_BOTH = {
    **_stated("Table 5", {f"{stage}.clip": 1.0 for stage in STAGE_KINDS}),
    **_stated("Table 5", {f"{stage}.schedule": "cosine" for stage in STAGE_KINDS}),
    **_stated("Table 5", {f"{stage}.optimizer": "adamw" for stage in STAGE_KINDS}),
    **_stated("Table 5", {f"{stage}.betas": ((0.9, 0.95),) for stage in STAGE_KINDS}),
    **_stated("Section 4", {"sequence_length": 1024}),
    **_stated("Section 3.3", {"finetune.tokens": 200 * 10**6}),
    **_stated("Section 4.1", {"finetune.method": "full"}),
    **_stated("Section 4.2", {"pretrain.exposure": (0, 0.25, 0.5, 0.75, 1), "allocation": ("additive", "matched")}),
    **_stated("Section 4.4", {"posttrain.replay": (0, 0.01)}),
    **_stated("Figure 7", {"posttrain.method": ("full", "lora")}),
    **_stated("Table 9", {"posttrain.lora.rank": 64, "posttrain.lora.alpha": 128.0}),
    **_stated("Table 9", {"posttrain.lora.dropout": (0.0, 0.02, 0.05)}),
    **_stated("Tables 7, 8", {"posttrain.weight_decay": 0.1}),
    **_stated("Tables 3, 4; Figure 3", {"posttrain.tokens": (30 * 10**6, 150 * 10**6, 300 * 10**6)}),
    "pretrain.repeat": Paper((False,), "Section 3.3", "at most one pass"),
    "posttrain.max_tokens": Paper((2 * 10**9, None), "Section 3.3; Tables 7, 8", "2B; Figure 3b: one pass"),
    "posttrain.lora.targets": Paper(
        (("o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),), "Table 9", "projection, MLP and head"
    ),
    "pretrain.corpus": Paper(("c4",), "Table 1", "C4"),
    "posttrain.corpus": Paper(("musicpile", "flan"), "Table 1", "MusicPile, FLAN"),
    "finetune.corpus": Paper(("chempile", "flan", "musicpile"), "Table 1", "ChemPile, FLAN, MusicPile"),
    "finetune.lr": Paper((5e-5,), "Section 4.1", "5e-05 in the controlled studies; a sweep elsewhere", only_some=True),
    "tokenizer.hf": Paper(
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-1.7B"),
        "Table 2",
        "not named; 49,152 entries",
        printed=False,
    ),
}
_SMALL = {
    **_model("SmolLM2-135M as published; the paper says SmolLM2-style", "smollm2-135m", printed=False),
    **_stated("Tables 3, 4", {"pretrain.tokens": 8_700_000_000}),
    **_stated("Table 7", {"posttrain.lr": (1e-4, 2e-4, 5e-4, 1e-3, 5e-3), "posttrain.min_lr": 5e-5}),
    **_stated("Table 7", {"posttrain.warmup": 500, "posttrain.batch": (192, 480, 896)}),
    **_stated("Table 7", {"posttrain.dropout": (0.0, 0.02, 0.05)}),
}
_LARGE = {
    **_model("Table 2", "smollm2-1b", "norm_eps", "initializer_range"),
    **_stated("Tables 3, 4", {"pretrain.tokens": 19_700_000_000}),
    **_stated("Table 6", {"pretrain.lr": 5e-4, "pretrain.min_lr": 5e-5}),
    **_stated("Table 6", {"pretrain.warmup": 1000, "pretrain.batch": 512}),
    **_stated("Table 8", {"posttrain.lr": (1e-5, 2e-5, 5e-5, 1e-4, 2e-4), "posttrain.min_lr": 5e-5}),
    **_stated("Table 8", {"posttrain.warmup": 100, "posttrain.batch": 512}),
    **_stated("Table 8", {"posttrain.early_stopping.every": 100, "posttrain.early_stopping.patience": 3}),
    **_stated("Tables 8, 10", {"posttrain.dropout": (0.0, 0.02, 0.05)}),
    "seed": Paper(("42, then 40",), "Tables 6, 8", "42 in Stage 1, 40 in Stage 2"),
}


def is_of_paper(study: str) -> bool:
    """Whether a study repeats a figure or table of the paper, by its name, such as laptop-figure2: only those are compared."""
    return re.search(r"(?:^|[-_.])(?:figure|table)\d", study) is not None


def every_field(file: StudyFile) -> Table:
    """A row for each field of the study: its values over all trials."""
    rows: Rows = [[name, values_text(name, values)] for name, values in resolved(file)]
    return table("choices", "Every field; a field with several values is swept", ("field", "values"), rows)


def deviations(file: StudyFile, parameters: int) -> Table:
    """A row for each field of the study: its values over all trials beside the paper's at the nearer of its two scales.

    The paper gives no values for a linear study, only conditions.
    """
    large = parameters >= LARGE_FROM
    paper = {} if isinstance(file.study, LinearStudy) else _BOTH | (_LARGE if large else _SMALL)
    rows: Rows = []
    for name, values in resolved(file):
        stated = paper.get(name)
        compared = [file.study.corpora[value].published for value in values] if name.endswith(".corpus") else values
        outcome = _outcome(compared, stated)
        mark = {SAME: "good", DIFFERS: "bad", OPEN: "open"}[outcome]
        theirs = DASH if stated is None else stated.text or values_text(name, stated.values)
        rows.append(
            [name, values_text(name, values), theirs, Cell(outcome, mark=mark), stated.source if stated else ""]
        )
    scale = "1B" if large else "135M"
    caption = f"Every field of the study against the paper's {scale} studies; a field with several values is swept."
    return table("choices", caption, ("field", "here", "paper", "compared", "source"), rows)


def summary(choices: Table) -> str:
    """How many fields are as in the paper, differ, or are left open by it."""
    outcomes = [row[3].text for row in choices.rows]
    same, different, open_ = (f"{outcomes.count(outcome):,}" for outcome in (SAME, DIFFERS, OPEN))
    return f"Of {len(outcomes):,} fields {same} are as in the paper, {different} differ from it, {open_} are left open by it."


def resolved(file: StudyFile) -> Iterator[tuple[str, list[Any]]]:
    """Every field of a study that can change a result: its dotted path and all its values over the trials."""
    study = file.study
    if isinstance(study, LinearStudy):
        model = study.model.linear.model_dump()
    elif study.model.hf is not None:
        model = study.model.model_dump(exclude_none=True)
    else:
        model = asdict(study.model.architecture())
    fields = {f"model.{name}": model[name] for name in model} | dict(leaves(study.model_dump(exclude=NOT_A_CHOICE)))
    for name, corpus in study.corpora.items():
        fields |= {f"corpora.{name}.{part}": getattr(corpus, part) for part in sorted(corpus.model_fields_set)}
    swept = [*file.axes, *(name for options in file.cases.values() for option in options for name in option.fields)]
    sections = ["model", "tokenizer", "sequence_length", "corpora", *study.stages]
    for name in sorted(dict.fromkeys([*fields, *swept]), key=lambda name: _place(name.split(".")[0], sections)):
        if name in swept:
            # Trials without adapters have no value of a field of the adapters.
            yield name, [value for value in file.values(name) if value is not None or ".lora." not in name]
        elif not any(name.startswith(f"{axis}.") for axis in swept) and fields[name] not in (None, {}):
            yield name, [fields[name]]


def values_text(name: str, values: Sequence[Any]) -> str:
    """The values of a field as the page writes them; numbers of tokens get units."""
    size = name.split(".")[-1] in SIZES
    return "; ".join(
        format_size(value) if size and isinstance(value, int) else value_text(plain_value(value)) for value in values
    )


def _place(section: str, sections: Sequence[str]) -> int:
    """The place of a section among all; within a section the schema's order stays."""
    return sections.index(section) if section in sections else len(sections)


def _outcome(values: list[Any], paper: Paper | None) -> str:
    if paper is None:
        return OPEN
    if all(_comparable(value) in map(_comparable, paper.values) for value in values):
        return SAME if paper.printed else OPEN
    return OPEN if paper.only_some else DIFFERS


def _comparable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
