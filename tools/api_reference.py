"""The page of the docs site on the Python API, generated from the docstrings of `retain` and of what it returns."""

import inspect
import re
from collections.abc import Iterator
from dataclasses import is_dataclass
from typing import is_typeddict

import retain
from retain.launchers.jobs.status import Orphan
from retain.launchers.jobs.submit import Submitted, SubmittedJob
from retain.launchers.planning.evaluations import PlannedEvaluations
from retain.launchers.planning.overlaps import CorpusPair, Overlaps
from retain.launchers.planning.plan import DiskItem, Plan, PlannedStage, PlannedStudy, PlanTotals
from retain.launchers.study_status import SearchStatus, Status
from retain.results.report.collect import Failure, Results
from retain.results.store.state import AttemptCost
from retain.results.store.status import RunStatus, StageCost
from retain.results.store.study_files import SavedLook, SavedLooks, SavedVerdict
from retain.sweeps.reference.sections import attribute_docs
from retain.sweeps.tree.overlap import Overlap
from tools.docstrings import one_line

FUNCTIONS = ("plan", "run", "evaluate", "overlap", "submit", "status", "load")
RETURNED = (
    *(Plan, PlanTotals, PlannedStage, PlannedStudy, PlannedEvaluations, DiskItem),
    *(Results, Failure, SavedLooks, SavedLook, SavedVerdict),
    *(Overlaps, CorpusPair, Overlap),
    *(Submitted, SubmittedJob),
    *(Status, RunStatus, AttemptCost, StageCost, SearchStatus, Orphan),
)
INTRODUCTION = """\
# Python API

The distribution is `retain-lm`, the import is `retain`. Each function imports what it needs when it is called, so that
`import retain` takes no time. Except for `load`, they return what
the commands of the same names print with `--json`, as dataclasses.

```python
import retain

plan = retain.plan(["figure3a", "figure3b"])           # together, with what they share
print(plan.totals.stages, plan.totals.gpu_hours_by_device)

results = retain.run("laptop", ["seed=[0,1]"])
for failure in results.failures:
    print(failure.sentence)

frame = retain.load("laptop", overrides=["seed=[0,1]"])
print(frame.groupby("pretrain.exposure")["retained_posttraining_loss"].mean())
```

Errors that a user can fix are `StudyError` (an invalid study or argument) and `MissingResourceError` (something is missing on
this machine), both in `retain.sweeps.base.errors`. Their message is one sentence, with the fix.

The key of a stage is also that of its run. `Axes` maps the name of each axis to its value. `Row` maps `axes`, `keys`, `tokens`
and the names of the four losses to the values of one trial. Losses are in nats per token.

## Functions
"""


def api_reference() -> str:
    """The page, in Markdown. Raises ValueError for a function that the page lacks, or a field without docstring."""
    if missing := set(retain.__all__) - set(FUNCTIONS):
        raise ValueError(f"tools/api_reference.py: FUNCTIONS lacks {', '.join(sorted(missing))}")
    parts = [INTRODUCTION, *map(_function, FUNCTIONS), "## What they return\n", *map(_dataclass, RETURNED)]
    return "\n".join(parts)


def _function(name: str) -> str:
    function = getattr(retain, name)
    signature = inspect.signature(function)
    lines: list[str] = []
    for one in signature.parameters.values():
        if one.kind is one.KEYWORD_ONLY and "    *," not in lines:
            lines.append("    *,")
        lines.append(f"    {_parameter(one)},")
    returned = _plain(signature.return_annotation)
    code = "\n".join([f"retain.{name}(", *lines, f") -> {returned}"])
    return f"### `retain.{name}`\n\n```python\n{code}\n```\n\n{inspect.getdoc(function)}\n"


def _parameter(parameter: inspect.Parameter) -> str:
    default = "" if parameter.default is parameter.empty else f" = {parameter.default!r}"
    return f"{parameter.name}: {_plain(parameter.annotation)}{default}"


def _plain(annotation: object) -> str:
    """An annotation as it reads in the source, without the modules of its names."""
    text = inspect.formatannotation(annotation).strip("'")
    return text.replace("collections.abc.", "").replace("pathlib.", "").replace("pandas.", "")


def _dataclass(owner: type) -> str:
    lines = [f"### {owner.__name__}\n", f"{one_line(inspect.getdoc(owner) or '')}\n"]
    lines += ["| field | type | meaning |", "|---|---|---|"]
    names = {one.__name__ for one in RETURNED}
    for field, annotation, doc in _fields(owner):
        if not doc:
            raise ValueError(f"{owner.__module__}.{owner.__name__}: {field} has no docstring; write one below it")
        linked = next((name for name in re.findall(r"\w+", annotation) if name in names), None)
        shown = f"`{annotation}`".replace("|", "\\|")
        lines.append(f"| `{field}` | {f'[{shown}](#{linked.lower()})' if linked else shown} | {one_line(doc)} |")
    return "\n".join(lines) + "\n"


def _of_property(one: property) -> str:
    return f"{doc} Only in Python, not in JSON." if (doc := inspect.getdoc(one)) else ""


def _fields(owner: type) -> Iterator[tuple[str, str, str]]:
    """The fields of a dataclass or a typed mapping, those of its bases, and its properties: name, annotation, docstring."""
    for base in reversed(owner.__mro__):
        if is_dataclass(base) or is_typeddict(base):
            for name, (annotation, doc) in attribute_docs(base).items():
                yield name, annotation, doc
            for name, one in vars(base).items():
                if isinstance(one, property) and one.fget is not None:
                    yield name, inspect.formatannotation(one.fget.__annotations__["return"]), _of_property(one)
