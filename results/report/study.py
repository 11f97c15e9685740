"""What a study is: its question, model, corpora, budgets, axes and seeds."""

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import replace

from retain.results.analysis.axes import SEEDS_VARY, SUBSET, SUBSETS_VARY, axis_values, is_seed, seed_of
from retain.results.analysis.loss_planes import L_IM, L_RET, SYMBOLS, has_losses
from retain.results.report.cells import Rows, Table, loss_cell, table, value_cell, value_text
from retain.results.report.deviations import resolved, values_text
from retain.results.store.loss_table import Row, loss_at, loss_columns, named_losses
from retain.sweeps.base.redaction import redacted
from retain.sweeps.base.units import counted, format_size
from retain.sweeps.schema.families.table import FAMILIES
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.schema.models import parameters
from retain.sweeps.schema.read import AnyStudy, StudyFile
from retain.sweeps.schema.section import STAGE_KINDS, is_metric, without_value
from retain.sweeps.schema.study import Study
from retain.sweeps.tree.data_facts import CheckpointFacts, Facts, checkpoint_of, reading_remarks

GENERAL_QUESTION = "What does a model still know after its next fine-tuning, and which upstream choices decide that?"


def question(file: StudyFile) -> list[str]:
    """The paragraphs of the last comment above the first field of the study's file, which says what the study asks.

    Comments that an empty line separates from it are not part of it, such as what `retain init` writes for the author.
    """
    lines = [line.rstrip() for line in redacted(file.path.read_text(encoding="utf-8")).splitlines()]
    head = "\n".join(itertools.takewhile(lambda line: not line or line.startswith("#"), lines))
    comment = head.strip().rpartition("\n\n")[2]
    paragraphs: list[list[str]] = [[]]
    for line in comment.splitlines():
        if text := line.lstrip("#").strip():
            paragraphs[-1].append(text)
        else:
            paragraphs.append([])
    return [" ".join(lines) for lines in paragraphs if lines]


def parameter_count(study: AnyStudy, facts: Facts) -> int:
    """The number of parameters of the study's model; a vocabulary of 0 takes the tokeniser's size."""
    if isinstance(study, LinearStudy):
        return 2 * study.model.linear.features**2
    if study.model.hf is not None:
        counts = _checkpoint(study, facts).counts
        return counts.parameters if counts else 0
    model = study.model.architecture()
    return parameters(replace(model, vocabulary=model.vocabulary or facts.vocabulary))


def _checkpoint(study: Study, facts: Facts) -> CheckpointFacts:
    """The study's checkpoint; the first one if an axis replaces the study's own."""
    return facts.checkpoints.get(checkpoint_of(study.model)) or next(iter(facts.checkpoints.values()))


def overview(file: StudyFile, facts: Facts, rows: Sequence[Row]) -> Table:
    """The model, the tokeniser, the axes, and the number of trials and seeds."""
    study = file.study
    seeds = sorted({seed_of(row) for row in rows}) if any(map(is_seed, file.labels)) else [study.seed]
    lines: Rows = [
        *_model_lines(study, facts),
        ("trials", f"{len(rows):,}"),
        ("seeds", f"{len(seeds)}: {value_text(seeds)}"),
        ("seeds differ in", _seeds_vary(file)),
        *((f"axis {name}", value_text(axis_values(rows, name))) for name in file.labels if name != "seed"),
    ]
    return table("overview", "Model, trials, seeds", ("", ""), lines)


def _seeds_vary(file: StudyFile) -> str:
    """What repetitions of a study differ in, and what they share."""
    if isinstance(file.study, LinearStudy):
        return "the singular vectors; the data has no noise"
    subsets_alone = SUBSET in file.labels and not any(is_seed(name) for name in file.labels if name != SUBSET)
    vary = SUBSETS_VARY if subsets_alone else SEEDS_VARY
    chain = file.study.stages
    seeded = [stage for stage in chain if "seed" not in file.labels and f"{stage}.seed" in file.labels]
    if not subsets_alone and (file.study.model.is_trained or (seeded and chain[0] not in seeded)):
        vary = vary.removeprefix("initialisation, ")
    if seeded:
        vary = vary.replace(", but", f" of {' and '.join(seeded)} alone, but")
    return f"{vary}; the held-out splits are the same"


def _model_lines(study: AnyStudy, facts: Facts) -> list[tuple[str, str]]:
    if isinstance(study, LinearStudy):
        linear = study.model.linear
        kinds = f"{linear.inconsistent} inconsistent and as many specialised"
        return [("model", f"two linear layers of {linear.features} features, {kinds}"), ("losses", study.loss_unit)]
    own = f"byte-level BPE, trained on the study's corpora ({facts.vocabulary:,} entries)"
    tokenizer = "the checkpoint's own" if study.tokenizer is None else study.tokenizer.hf or own
    return [
        ("model", _model_text(study, facts)),
        ("tokeniser", tokenizer),
        ("sequence length", f"{study.sequence_length:,} tokens"),
        ("allocation", study.allocation),
    ]


def _model_text(study: Study, facts: Facts) -> str:
    """The model's name, family and size."""
    size = format_size(parameter_count(study, facts))
    if study.model.hf is not None:
        found = _checkpoint(study, facts)
        if not found.prepared:
            return f"{study.model.hf}, not prepared"
        weights = "fresh weights" if study.model.weights == "random" else f"weights {found.fingerprint}"
        return f"{study.model.hf}: {FAMILIES[found.family].title}, {size} parameters, {weights}"
    model = study.model.architecture()
    layers, heads = counted(model.layers, "layer"), counted(model.heads, "head")
    shape = f"Llama, {size} parameters: {layers} of {model.hidden}, {heads}, MLP {model.mlp}"
    return f"{study.model.preset}: {shape}" if study.model.preset else shape


def corpora(file: StudyFile, facts: Facts) -> Table:
    """The source and the size of each corpus, and what was skipped; known once the corpus is prepared."""
    rows: Rows = []
    for (name, length), known in facts.corpora.items():
        amounts = ["not prepared" if size is None else size * length for size in (known.train, known.heldout)]
        read = known.reading
        counts = ["", "", ""] if read is None else [read.documents, round(read.tokens_per_document, 1), read.duplicates]
        remarks = "" if read is None else "; ".join(reading_remarks(read))
        rows.append([name, file.study.corpora[name].source, *amounts, *counts, remarks])
    columns = ("corpus", "source", "training tokens", "held-out tokens", "documents", "tokens each", "exact copies")
    return table("corpora", "Corpora", (*columns, "notes"), rows)


def budgets(file: StudyFile) -> Table:
    """The stages side by side, one row for each field, also those at their defaults."""
    fields: dict[str, dict[str, str]] = {}
    chain, seeds = file.study.stages, values_text("seed", file.values("seed"))
    for path, values in resolved(file):
        stage, _, name = path.partition(".")
        if stage in chain and name:
            fields.setdefault(name, {})[stage] = values_text(path, values)
    for stage in chain:
        section = getattr(file.study, stage)
        for name in type(section).model_fields:
            # A field that is left out and has no value of its own; sections with fields of their own are above.
            if getattr(section, name) in (None, {}) and stage not in fields.get(name, {}):
                own = [path for path in fields if path.startswith(f"{name}.")] or [name]
                for path in own:
                    fields.setdefault(path, {}).setdefault(
                        stage, f"{seeds} (the study's)" if name == "seed" else "none"
                    )
    rows: Rows = [[name, *(stages.get(stage, "") for stage in chain)] for name, stages in fields.items()]
    return table("budgets", "Stages: budgets in tokens, batches in sequences", ("", *chain), rows)


def loss_table(names: Sequence[str], unit: str, rows: Sequence[Row], asked: Mapping[str, bool]) -> Table:
    """One row for each trial: its axes (names), its losses in this unit with L_ret − L_im, and its tokens.

    The losses are those of the paper's four that the chain has, and those asked for; a chain besides the paper's also has the
    matrix. asked: what `sweeps.tree.evaluation_runs.asked_columns` returns.
    """
    four = [name for name in SYMBOLS if name in named_losses(rows)]
    is_of_paper = four == list(SYMBOLS) and not any(set(row.get("losses", {})) - set(STAGE_KINDS) for row in rows)
    columns = [*four, *(name for name in loss_columns(rows) if not is_of_paper or name in asked)]
    forgotten = {L_IM, L_RET} <= set(four)
    cells: Rows = []
    for row in rows:
        losses = [loss_cell(loss_at(row, name)) for name in columns]
        if forgotten:
            losses.insert(2, loss_cell(row[L_RET] - row[L_IM] if has_losses(row, L_IM, L_RET) else None))
        values = (value_cell(row["axes"][name]) if name in row["axes"] else None for name in names)
        cells.append([*values, *losses, row["tokens"]])
    titles = [SYMBOLS.get(name, name) + (" \N{UPWARDS ARROW}" if asked.get(name) else "") for name in columns]
    if forgotten:
        titles.insert(2, f"{SYMBOLS[L_RET]} \N{MINUS SIGN} {SYMBOLS[L_IM]}")
    caption = f"{unit[0].upper()}{unit[1:]}"
    if any("/" in name and not is_metric(name) for name in columns):
        caption += "; STAGE/CORPUS is the loss on CORPUS after STAGE"
    if any(without_value(name) != name for name in columns):
        caption += ", and STAGE/CORPUS[VALUE] that on its documents with this value"
    if any(map(is_metric, columns)):
        caption += "; STAGE/NAME/METRIC is a metric of a task, or of held-out pairs, after STAGE"
        caption += "; \N{UPWARDS ARROW}: higher is better"
    return table("losses", caption, (*names, *titles, "tokens"), cells, filters=len(names))
