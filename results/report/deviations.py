"""Every choice of a study beside the paper's number: where it is the paper's, where it differs, where the paper says none.

The numbers are those of arXiv 2605.12705v1, by table; `open` are choices that it leaves open.
"""

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from retain.results.report.cells import DASH, Cell, Rows, Table, table, value_text
from retain.sweeps.base.units import format_size
from retain.sweeps.schema.linear import LinearStudy
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.tree import STAGES, plain_value

SAME, DIFFERS, OPEN = "as in the paper", "differs", "open in the paper"
SIZES = ("tokens", "max_tokens", "vocabulary")
LEFT_OUT = {"study", "model", "corpora", "grid", "cases", "search", "execution"}


@dataclass(frozen=True)
class Paper:
    """What the paper says of one field. A study is as in the paper where all its values are among `values`."""

    values: tuple[Any, ...]
    source: str
    text: str = ""
    """Written in place of the values, where they need words."""
    only_some: bool = False
    """The paper has further values that it does not print, so that another one is no deviation."""


def _each(fields: Mapping[str, Any], source: str) -> dict[str, Paper]:
    return {name: Paper(value if isinstance(value, tuple) else (value,), source) for name, value in fields.items()}


_BOTH = {
    **{f"{stage}.clip": Paper((1.0,), "Table 5") for stage in STAGES},
    **{f"{stage}.betas": Paper(((0.9, 0.95),), "Table 5") for stage in STAGES},
    **_each({"sequence_length": 1024}, "Section 4"),
    "pretrain.exposure": Paper((0, 0.25, 0.5, 0.75, 1), "Section 4.2"),
    "pretrain.repeat": Paper((False,), "Section 3.3", "at most one pass"),
    "posttrain.tokens": Paper((30 * 10**6, 150 * 10**6, 300 * 10**6), "Tables 3, 4; Figure 3"),
    "posttrain.max_tokens": Paper((2 * 10**9, None), "Tables 7, 8", "2B; Figure 3b: one pass"),
    "posttrain.replay": Paper((0, 0.01), "Section 4.3"),
    "posttrain.method": Paper(("full", "lora"), "Figure 7"),
    "posttrain.lora.rank": Paper((64,), "Table 9"),
    "posttrain.lora.alpha": Paper((128.0,), "Table 9"),
    "posttrain.lora.targets": Paper(
        (("o_proj", "gate_proj", "up_proj", "down_proj", "lm_head"),), "Table 9", "projection, MLP and head"
    ),
    "pretrain.corpus": Paper(("c4",), "Table 1", "C4"),
    "posttrain.corpus": Paper(("musicpile", "flan"), "Table 1", "MusicPile, FLAN"),
    "finetune.corpus": Paper(("chempile", "flan", "musicpile"), "Table 1", "ChemPile, FLAN, MusicPile"),
    "posttrain.weight_decay": Paper((0.1,), "Tables 7, 8"),
    "finetune.lr": Paper((5e-5,), "Section 4.1", "5e-05 in the controlled studies; a sweep elsewhere", only_some=True),
    "finetune.tokens": Paper((200 * 10**6,), "Section 4.1"),
    "finetune.method": Paper(("full",), "Section 4.1"),
    "tokenizer.hf": Paper(
        ("HuggingFaceTB/SmolLM2-135M", "HuggingFaceTB/SmolLM2-1.7B"), "Section 4", "SmolLM2's, 49,152"
    ),
    "allocation": Paper(("additive", "matched"), "Section 4.2"),
}
_SMALL = {
    **_each(
        {
            "model.layers": 30,
            "model.hidden": 576,
            "model.heads": 9,
            "model.kv_heads": 3,
            "model.mlp": 1536,
            "model.vocabulary": 49_152,
            "model.tied": True,
            "model.context": 8192,
            "model.rope_base": 100_000.0,
            "model.norm_eps": 1e-5,
            "model.initializer_range": 1 / 24,
        },
        "SmolLM2-135M as published",
    ),
    "pretrain.tokens": Paper((8_700_000_000,), "Tables 3, 4"),
    "posttrain.lr": Paper((1e-4, 2e-4, 5e-4, 1e-3, 5e-3), "Table 7"),
    "posttrain.min_lr": Paper((5e-5,), "Table 7"),
    "posttrain.warmup": Paper((500,), "Table 7"),
    "posttrain.batch": Paper((192, 480, 896), "Table 7"),
    "posttrain.dropout": Paper((0.0, 0.02, 0.05), "Table 7"),
}
_LARGE = {
    **_each(
        {
            "model.layers": 24,
            "model.hidden": 1728,
            "model.heads": 27,
            "model.kv_heads": 27,
            "model.mlp": 4608,
            "model.vocabulary": 49_152,
            "model.tied": False,
            "model.context": 8192,
            "model.rope_base": 100_000.0,
        },
        "Table 2",
    ),
    "pretrain.tokens": Paper((19_700_000_000,), "Table 6"),
    "pretrain.lr": Paper((5e-4,), "Table 6"),
    "pretrain.min_lr": Paper((5e-5,), "Table 6"),
    "pretrain.warmup": Paper((1000,), "Table 6"),
    "pretrain.batch": Paper((512,), "Table 6"),
    "posttrain.lr": Paper((1e-5, 2e-5, 5e-5, 1e-4, 2e-4), "Table 8"),
    "posttrain.min_lr": Paper((5e-5,), "Table 8"),
    "posttrain.warmup": Paper((100,), "Table 8"),
    "posttrain.batch": Paper((512,), "Table 8"),
    "posttrain.dropout": Paper((0.0, 0.02, 0.05), "Tables 8, 10"),
    "posttrain.early_stopping.every": Paper((100,), "Table 8"),
    "posttrain.early_stopping.patience": Paper((3,), "Table 8"),
    "seed": Paper(("42, then 40",), "Tables 6, 8", "42 in Stage 1, 40 in Stage 2"),
}
LARGE_FROM = 500_000_000
"""Parameters from which on a study is compared with the paper's 1B tables."""


def deviations(file: StudyFile, parameters: int) -> Table:
    """A row for each field of the study, its values over all trials beside the paper's at the nearer of its two scales.

    Of a linear study's numbers the paper's theory says only what they must satisfy.
    """
    large = parameters >= LARGE_FROM
    paper = {} if isinstance(file.study, LinearStudy) else _BOTH | (_LARGE if large else _SMALL)
    rows: Rows = []
    for name, values in resolved(file):
        said = paper.get(name)
        shown = _text(name, values)
        if name.endswith(".corpus"):
            values = [file.study.corpora[value].published for value in values]
        outcome = _outcome(values, said)
        mark = {SAME: "good", DIFFERS: "bad", OPEN: "open"}[outcome]
        theirs = DASH if said is None else said.text or _text(name, said.values)
        rows.append([name, shown, theirs, Cell(outcome, mark=mark), said.source if said else ""])
    scale = "1B" if large else "135M"
    caption = f"Every field of the study against the paper's {scale} studies; a field with several values is swept."
    return table("choices", caption, ("field", "here", "paper", "compared", "source"), rows)


def summary(choices: Table) -> str:
    """How many fields are as in the paper, differ, or are open in it."""
    outcomes = [row[3].text for row in choices.rows]
    told = [f"{outcomes.count(outcome):,} {words}" for outcome, words in _SUMMARY.items()]
    return f"Of {len(outcomes):,} fields {', '.join(told)}."


_SUMMARY = {SAME: "are as in the paper", DIFFERS: "differ from it", OPEN: "are left open by it"}


def resolved(file: StudyFile) -> Iterator[tuple[str, list[Any]]]:
    """Every field of a study that can change a result, by dotted path, with all its values over the trials."""
    study = file.study
    model = study.model.linear.model_dump() if isinstance(study, LinearStudy) else asdict(study.model.architecture())
    fields = {f"model.{name}": model[name] for name in model} | dict(_flat(study.model_dump(exclude=LEFT_OUT), ""))
    for name, corpus in study.corpora.items():
        fields |= {f"corpora.{name}.{part}": getattr(corpus, part) for part in sorted(corpus.model_fields_set)}
    swept = [*file.axes, *(name for options in file.cases.values() for option in options for name in option.fields)]
    for name in sorted(dict.fromkeys([*fields, *swept]), key=_section):
        if name in swept:
            yield name, file.values(name)
        elif not any(name.startswith(f"{axis}.") for axis in swept) and fields[name] is not None:
            yield name, [fields[name]]


def _flat(value: Mapping[str, Any], above: str) -> Iterator[tuple[str, Any]]:
    for name, inner in value.items():
        if isinstance(inner, Mapping):
            yield from _flat(inner, f"{above}{name}.")
        else:
            yield f"{above}{name}", inner


def _section(name: str) -> int:
    """The place of a field's section; within one the schema's order stays."""
    sections = ("model", "tokenizer", "sequence_length", "corpora", *STAGES)
    section = name.split(".")[0]
    return sections.index(section) if section in sections else len(sections)


def _outcome(values: list[Any], paper: Paper | None) -> str:
    if paper is None:
        return OPEN
    if all(_comparable(value) in map(_comparable, paper.values) for value in values):
        return SAME
    return OPEN if paper.only_some else DIFFERS


def _comparable(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value


def _text(name: str, values: list[Any] | tuple[Any, ...]) -> str:
    size = name.split(".")[-1] in SIZES and name != "model.vocabulary"
    return "; ".join(
        format_size(value) if size and isinstance(value, int) else value_text(plain_value(value)) for value in values
    )
