"""The page of the docs site on every field of a study, generated from the docstrings of the schema."""

import inspect
import json
from collections.abc import Iterator, Mapping, Sequence
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt
from pydantic import BeforeValidator
from pydantic.fields import FieldInfo

from retain.sweeps.base.units import format_size, parse_size
from retain.sweeps.schema import corpora, execution, models, search_space, sites, stages, study
from retain.sweeps.schema.linear import study as linear
from retain.sweeps.schema.section import Section
from tools.docstrings import attribute_docs, one_line

PARTS: Sequence[tuple[str, Sequence[tuple[str, type[Section]]]]] = (
    (
        "Study",
        (
            ("The study", study.Study),
            ("`model`", models.Model),
            ("`tokenizer`", corpora.Tokenizer),
            ("`corpora.NAME`", corpora.Corpus),
        ),
    ),
    (
        "Stages",
        (
            ("Fields of every stage", stages.Optimisation),
            ("`pretrain`", stages.Pretrain),
            ("Fields of `posttrain` and `finetune`", stages.Adaptable),
            ("`posttrain`", stages.Posttrain),
            ("a stage of your own", stages.FurtherStage),
            ("`start` of a stage", stages.Start),
            ("`posttrain.early_stopping`", stages.EarlyStopping),
            ("`finetune`", stages.Finetune),
            ("`posttrain.lora` and `finetune.lora`", stages.Lora),
        ),
    ),
    (
        "How and where stages run",
        (
            ("`execution`", execution.Execution),
            ("Fields of `execution` and `execution.stages.KIND`", execution.StageExecution),
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
    if missing := set(all_sections()) - set(TITLES):
        raise ValueError(f"tools/field_reference.py: PARTS lacks {', '.join(sorted(one.__name__ for one in missing))}")
    parts = [INTRODUCTION]
    for name, sections in PARTS:
        parts += [f"## {name}\n", *(section_text(section) for _, section in sections)]
    return "\n".join(parts)


def all_sections() -> Iterator[type[Section]]:
    """Every section that the schema defines."""
    for module in (study, execution, search_space, linear, sites):
        for section in vars(module).values():
            if inspect.isclass(section) and issubclass(section, Section) and section.__module__ == module.__name__:
                yield section


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
            kind = _type_words(field.annotation, field.metadata)
            default = "-" if "The default is" in doc and field.is_required() else default_text(field)
            lines.append(f"| `{name}` | {kind} | {default} | {one_line(doc)} |")
        lines.append("")
    return "\n".join(lines)


def field_docs(section: type[Section]) -> dict[str, str]:
    """The docstrings of the fields that a section defines itself, in order. Raises ValueError for a field without one."""
    docs = {name: doc for name, (_, doc) in attribute_docs(section).items() if name in section.model_fields}
    if missing := [name for name, doc in docs.items() if not doc]:
        raise ValueError(f"{section.__module__}.{section.__name__}: {missing[0]} has no docstring; write one below it")
    return docs


def default_text(field: FieldInfo) -> str:
    """The default of a field as a study file would write it; `-` if the meaning describes it."""
    if field.is_required():
        return "**required**"
    value = field.get_default(call_default_factory=True, validated_data={})
    if value is None:
        return "-"
    if isinstance(value, Section):
        given = value.model_dump(exclude_defaults=True, exclude_none=True)
        return f"`{_yaml(next(iter(given.values())))}`" if given else "its defaults"
    return f"`{_yaml(value)}`"


def link_to(section: type[Section]) -> str:
    """A link to a section of this page."""
    title = TITLES[section]
    anchor = "".join(letter for letter in title.lower() if letter.isalnum() or letter in " -_").strip()
    return f"[{title}](#{anchor.replace(' ', '-')})"


def _type_words(annotation: Any, metadata: Sequence[Any] = ()) -> str:
    """A type in words, with links to the sections of this page."""
    if annotation == search_space.Loss:
        return "loss"
    if any(isinstance(one, BeforeValidator) and one.func is parse_size for one in metadata):
        return "size"
    if isinstance(annotation, FieldInfo):
        return _type_words(annotation.annotation, annotation.metadata)
    origin, inner = get_origin(annotation), get_args(annotation)
    if hasattr(annotation, "__metadata__"):
        return _type_words(annotation.__origin__, _flat(annotation.__metadata__))
    if origin is Literal:
        return " or ".join(f"`{str(value).lower() if isinstance(value, bool) else value}`" for value in inner)
    if origin in (Union, UnionType):
        return " or ".join(_type_words(one) for one in inner if one is not NoneType)
    if origin is list or (origin is tuple and inner[-1] is Ellipsis):
        return f"list of {_type_words(inner[0])}"
    if origin is tuple:
        return f"[{', '.join(_type_words(one) for one in inner)}]"
    if origin is dict:
        return f"mapping of {_type_words(inner[0])} to {_type_words(inner[1])}"
    if inspect.isclass(annotation) and issubclass(annotation, Section):
        return link_to(annotation)
    return {bool: "true or false", int: "whole number", float: "number", str: "text"}.get(annotation, "any value") + (
        _bounds(metadata)
    )


def _flat(metadata: Sequence[Any]) -> list[Any]:
    """The metadata of an annotation, with that inside pydantic's Field in its place."""
    return [each for one in metadata for each in (one.metadata if isinstance(one, FieldInfo) else [one])]


def _bounds(metadata: Sequence[Any]) -> str:
    """The bounds of a number, such as ` ≥ 0, < 1`. Bounds that only a computer would reach are left out."""
    found = []
    for one in metadata:
        for kind, sign, name in ((Ge, "≥", "ge"), (Gt, ">", "gt"), (Le, "≤", "le"), (Lt, "<", "lt")):
            if isinstance(one, kind) and (bound := getattr(one, name)) < 2**63:
                found.append(f"{sign} {bound:g}")
    return f" {', '.join(found)}".rstrip().replace("<", "&lt;")


def _yaml(value: Any) -> str:
    """A value as in a study file: lists in brackets, lower-case booleans, short numbers."""
    if isinstance(value, list | tuple):
        return f"[{', '.join(_yaml(one) for one in value)}]"
    if isinstance(value, bool) or not isinstance(value, int | float):
        return json.dumps(value) if isinstance(value, bool | dict) else str(value)
    return format_size(value)
