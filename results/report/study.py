"""What a study is: its question, its model and corpora, the budgets of its stages, its axes and seeds."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from retain.results.analysis.axes import seed_of
from retain.results.figures.catalogue import AXIS_LABELS
from retain.results.report.cells import DASH, Cell, Rows, Table, count, loss, table, value_text
from retain.results.report.deviations import resolved
from retain.results.store.loss_table import LOSSES, Row
from retain.sweeps.base.units import format_size
from retain.sweeps.schema.linear import LinearStudy
from retain.sweeps.schema.models import parameters
from retain.sweeps.schema.read import AnyStudy, StudyFile
from retain.sweeps.schema.study import Corpus
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.tree import STAGES, plain

GENERAL_QUESTION = (
    "What does a model still know after its next fine-tuning, and which upstream choices (here: what it was pretrained "
    "on, and how it was post-trained) decide that?"
)


def question(file: StudyFile) -> list[str]:
    """The comment at the head of the study's file, a paragraph each; it says what the study asks."""
    paragraphs: list[list[str]] = [[]]
    for line in file.path.read_text(encoding="utf-8").splitlines():
        if not line.startswith("#"):
            break
        if text := line.lstrip("#").strip():
            paragraphs[-1].append(text)
        else:
            paragraphs.append([])
    return [" ".join(lines) for lines in paragraphs if lines]


def parameter_count(study: AnyStudy, facts: Facts) -> int:
    """Of the study's model, with the tokeniser's entries where the model takes them."""
    if isinstance(study, LinearStudy):
        return 2 * study.model.linear.features**2
    model = study.model.architecture()
    numbers = asdict(model) | {"vocabulary": model.vocabulary or facts.vocabulary}
    return parameters(type(model)(**numbers))


def overview(file: StudyFile, facts: Facts, rows: Sequence[Row]) -> Table:
    """Model, tokeniser, trials and seeds."""
    study = file.study
    seeds = sorted({seed_of(row) for row in rows}) if any("seed" in name for name in file.labels) else [study.seed]
    lines: Rows = [
        *_model_lines(study, facts),
        ("trials", f"{len(rows):,}"),
        ("seeds", f"{len(seeds)}: {value_text(seeds)}"),
        *((f"axis {name}", _axis_text(rows, name)) for name in file.labels if name != "seed"),
    ]
    return table("overview", "Model, trials, seeds", ("", ""), lines)


def _model_lines(study: AnyStudy, facts: Facts) -> list[tuple[str, str]]:
    if isinstance(study, LinearStudy):
        linear = study.model.linear
        kinds = f"{linear.inconsistent} inconsistent and as many specialised"
        return [("model", f"two linear layers of {linear.features} features, {kinds}"), ("losses", study.loss_unit)]
    model = study.model.architecture()
    shape = (
        f"Llama, {format_size(parameter_count(study, facts))} parameters: {model.layers} layers of {model.hidden}, "
        f"{model.heads} heads, MLP {model.mlp}"
    )
    own = f"byte-level BPE, trained on the study's corpora ({facts.vocabulary:,} entries)"
    return [
        ("model", f"{study.model.preset}: {shape}" if study.model.preset else shape),
        ("tokeniser", study.tokenizer.hf or own),
        ("sequence length", f"{study.sequence_length:,} tokens"),
        ("allocation", study.allocation),
    ]


def corpora(file: StudyFile, facts: Facts) -> Table:
    """Where each corpus comes from, and how much of it there is; unknown until it is prepared."""
    rows: Rows = []
    for (name, length), known in facts.corpora.items():
        amounts = [
            Cell("not prepared") if size is None else count(size * length) for size in (known.train, known.heldout)
        ]
        rows.append([name, _source(file.study.corpora[name]), *amounts])
    return table("corpora", "Corpora", ("corpus", "source", "training tokens", "held-out tokens"), rows)


def budgets(file: StudyFile) -> Table:
    """The stages side by side, a row for each field."""
    fields: dict[str, dict[str, str]] = {}
    for path, values in resolved(file):
        stage, _, name = path.partition(".")
        if stage in STAGES:
            size = name in ("tokens", "max_tokens")
            texts = [format_size(value) if size and value is not None else value_text(plain(value)) for value in values]
            fields.setdefault(name, {})[stage] = "; ".join(texts)
    rows: Rows = [[name, *(stages.get(stage, "") for stage in STAGES)] for name, stages in fields.items()]
    return table("budgets", "Stages: budgets in tokens, batches in sequences", ("", *STAGES), rows)


def loss_table(file: StudyFile, rows: Sequence[Row]) -> Table:
    """One row a trial: its axes, the four losses, the tokens trained on its path."""
    names = file.labels
    cells: Rows = [
        [
            *(_axis_cell(row["axes"].get(name)) for name in names),
            *(loss(row[name]) for name in LOSSES),
            Cell(DASH) if row["tokens"] is None else count(row["tokens"]),
        ]
        for row in rows
    ]
    short = [AXIS_LABELS[name].split(":")[0] for name in LOSSES]
    return table(
        "losses", f"{file.study.loss_unit[0].upper()}{file.study.loss_unit[1:]}", (*names, *short, "tokens"), cells
    )


def _axis_text(rows: Sequence[Row], name: str) -> str:
    values = [row["axes"][name] for row in rows if name in row["axes"]]
    distinct = [value for index, value in enumerate(values) if value not in values[:index]]
    return value_text(distinct)


def _axis_cell(value: Any) -> Cell:
    number = value if isinstance(value, int | float) and not isinstance(value, bool) else None
    return Cell("" if value is None else value_text(value), number)


def _source(corpus: Corpus) -> str:
    if corpus.package is not None:
        return f"package {corpus.package}"
    if corpus.hf is not None:
        parts = (corpus.hf, corpus.config, corpus.split, corpus.revision)
        return "Hugging Face " + ", ".join(part for part in parts if part)
    return f"files {value_text(corpus.files)}"
