"""The page of the docs site on every field of a study, generated from the docstrings of the schema."""

import inspect
from collections.abc import Mapping, Sequence

from pydantic.fields import FieldInfo

from retain.sweeps.reference.sections import default_text, field_docs, type_words
from retain.sweeps.schema import corpora, execution, models, search_space, sites, stages, study
from retain.sweeps.schema.linear import study as linear
from retain.sweeps.schema.section import Section
from tools.docstrings import one_line

PARTS: Sequence[tuple[str, Sequence[tuple[str, type[Section]]]]] = (
    (
        "Study",
        (
            ("The study", study.Study),
            ("`model`", models.Model),
            ("`tokenizer`", corpora.Tokenizer),
            ("`corpora.NAME`", corpora.Corpus),
            ("`corpora.NAME.heldout`", corpora.HeldoutSplit),
            ("`documents`", corpora.Documents),
        ),
    ),
    (
        "Stages",
        (
            ("Fields of every stage", stages.Optimisation),
            ("A component of `mix`", stages.Component),
            ("`schedule` of a stage", stages.Wsd),
            ("`pretrain`", stages.Pretrain),
            ("Fields of `posttrain` and `finetune`", stages.Adaptable),
            ("`posttrain`", stages.Posttrain),
            ("a stage of your own", stages.FurtherStage),
            ("`start` of a stage", stages.Start),
            ("`posttrain.early_stopping`", stages.EarlyStopping),
            ("`evaluate`", stages.Evaluate),
            ("`evaluate.tasks.NAME`", stages.Task),
            ("`finetune`", stages.Finetune),
            ("`posttrain.lora` and `finetune.lora`", stages.Lora),
            ("`anchor` of a stage", stages.Anchor),
            ("`objective` of a stage", stages.TrainingObjective),
        ),
    ),
    (
        "How and where stages run",
        (
            ("`execution`", execution.Execution),
            ("Fields of `execution` and `execution.stages.KIND`", execution.StageExecution),
            ("`execution.data`", execution.DataExecution),
            ("`execution.data.slurm`, and `data` of a site", execution.DataJobs),
            ("`execution.slurm`", execution.Slurm),
            ("Fields of `execution.slurm` and of a site", execution.SiteOptions),
            ("A site in `sites.yaml`", sites.Site),
        ),
    ),
    (
        "Searches",
        (
            ("`search`", search_space.SearchBlock),
            ("A range in `search.axes`", search_space.Range),
            ("`search.objective`", search_space.Objective),
            ("`search.constraints.LOSS`", search_space.Constraint),
            ("`search.prune`", search_space.Rungs),
            ("`search.probe`", search_space.Probe),
        ),
    ),
    (
        "A study of the theory",
        (
            ("The linear study", linear.LinearStudy),
            ("The linear `model`", linear.LinearModel),
            ("`model.linear`", linear.Linear),
            ("Fields of every linear stage", linear.LinearStage),
            ("The linear `pretrain`", linear.LinearPretrain),
            ("The linear `posttrain` and `finetune`", linear.LinearLaterStage),
        ),
    ),
)
"""The parts of the page, and the sections of the schema in each, with their titles."""
TITLES: Mapping[type[Section], str] = {section: title for _, sections in PARTS for title, section in sections}
INTRODUCTION = """\
# Field reference

Every field of a study file, with its type, its default and its meaning. A field without a default is **required**.
[Your own study](../study.md) introduces the fields by example.

- A *size* is a number of tokens, written as a whole number or as `200k`, `300M` or `8.7B`.
- A *loss* is `immediate_posttraining_loss` (L_im), `retained_posttraining_loss` (L_ret), `finetuning_loss` (L_ft) or
  `retained_pretraining_loss` (L_pre).
- A dotted path such as `posttrain.lr` names a field on the command line, in `grid:`, in `cases:` and in `search.axes:`.
- Only what changes the weights is part of a [stage key](../study.md#what-decides-whether-a-stage-is-shared). Nothing below
  `execution` is.
"""


def field_reference() -> str:
    """The page, in Markdown. Raises ValueError for a section that no part of the page has, or a field without docstring."""
    if missing := all_sections() - TITLES.keys():
        raise ValueError(f"tools/field_reference.py: PARTS lacks {', '.join(sorted(one.__name__ for one in missing))}")
    parts = [INTRODUCTION]
    for name, sections in PARTS:
        parts += [f"## {name}\n", *(section_text(section) for _, section in sections)]
    return "\n".join(parts)


def all_sections() -> set[type[Section]]:
    """Every section that the schema defines."""
    found = [Section]
    for section in found:
        found += section.__subclasses__()
    return {section for section in found[1:] if section.__module__.startswith("retain.")}


def section_text(section: type[Section]) -> str:
    """The title of a section, its docstring, and a table of the fields that it defines itself."""
    docs = field_docs(section)
    lines = [f"### {TITLES[section]}\n", f"{one_line(inspect.getdoc(section) or '')}\n"]
    above = [link_to(base) for base in section.__bases__ if base in TITLES]
    if above:
        lines.append(f"{'In addition to the' if docs else 'The'} fields in {' and '.join(above)}.\n")
    if docs:
        lines += ["| field | type | default | meaning |", "|---|---|---|---|"]
        for name, doc in docs.items():
            field = section.model_fields[name]
            kind = type_words(field.annotation, field.metadata, link_to).replace("<", "&lt;")
            default = "-" if "The default is" in doc and field.is_required() else _default(field)
            lines.append(f"| `{name}` | {kind} | {default} | {one_line(doc)} |")
        lines.append("")
    return "\n".join(lines)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "**required**"
    text = default_text(field)
    return text if text == "-" else f"`{text}`" if text else "its defaults"


def link_to(section: type[Section]) -> str:
    """A link to a section of this page."""
    title = TITLES[section]
    anchor = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_").strip()
    return f"[{title}](#{anchor.replace(' ', '-')})"
