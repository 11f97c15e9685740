"""Read a study file with overrides into a checked study. Every error is one sentence with file, field and cure."""

import difflib
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.files import is_file
from retain.sweeps.base.notices import notice
from retain.sweeps.base.units import format_seconds, shortened
from retain.sweeps.base.yaml_text import parse_yaml, read_yaml
from retain.sweeps.schema.axes import Option, get_field, is_axis, read_axes, read_base, set_field
from retain.sweeps.schema.linear.study import LinearStudy, is_linear
from retain.sweeps.schema.search_space import BEFORE_FINETUNING, SearchBlock, SearchSpace, read_search
from retain.sweeps.schema.section import LOSSES, PAIR_MEASURES, loss_name, unknown_loss, without_value
from retain.sweeps.schema.study import Study
from retain.sweeps.schema.validation_messages import validate

STUDIES = Path(__file__).parents[1] / "studies"
AnyStudy = Study | LinearStudy
TEXTS = [f"execution.{stage}slurm.{name}" for stage in ("", "stages.*.") for name in ("environment", "extra")]
"""The mappings of a study whose values are kept as they are written."""
NOT_TRAINED_ON = ("study", "corpora", "execution", "evaluate")
"""Sections that name no corpus to train on."""
MANY_TRIALS, MOST_TRIALS = 100_000, 1_000_000
"""From this many trials on, their number is printed first; and the most that a study may have, which take 1.3 GB of memory."""


@dataclass(frozen=True)
class StudyFile:
    """A study with its file and its axes."""

    path: Path
    """The study file."""
    study: AnyStudy
    axes: dict[str, list[Any]]
    """The axes of the grid: dotted paths with their checked values."""
    cases: dict[str, list[Option]] = field(default_factory=dict)
    """The axes of cases, by name, with their options."""
    search: SearchSpace | None = None
    """The space that `retain search` searches; None if the study has none."""
    unused: tuple[str, ...] = ()
    """The corpora of the file that nothing in it names. They are left out of the study: nothing prepares or reads them."""
    only_measured: tuple[str, ...] = ()
    """The corpora that only `evaluate` names. Nothing that is trained, the tokeniser included, depends on them."""

    @property
    def unused_note(self) -> str:
        """What to tell the reader of a study with unused corpora."""
        which = ", ".join(f"corpora.{name}" for name in self.unused)
        these, are, it = (
            ("these corpora", "they are", "them") if len(self.unused) > 1 else ("this corpus", "it is", "it")
        )
        return (
            f"{which}: no stage uses {these}, so {are} not prepared, and no tokeniser is trained on {it}; remove {it}"
        )

    @property
    def trained(self) -> list[str]:
        """The names of the corpora that the tokeniser and the stages may train on."""
        return [name for name in self.study.corpora if name not in self.only_measured]

    @property
    def dimensions(self) -> list[list[Option]]:
        """The options of every axis, first of cases, then of the grid. A trial takes one option of each axis."""
        grid = [[Option({axis: value}, {axis: value}) for value in values] for axis, values in self.axes.items()]
        return [*self.cases.values(), *grid]

    @property
    def labels(self) -> list[str]:
        """The names of the columns, in order, in which tables show the axes of a trial."""
        return list({name: None for options in self.dimensions for option in options for name in option.labels})

    def values(self, path: str) -> list[Any]:
        """The distinct values of a field over all trials: its own value if no axis sets it or a section that holds it."""
        found: list[Any] = []
        for options in self.dimensions:
            if any(_holds(name, path) for option in options for name in option.fields):
                found = [self._value_with(option, path) for option in options]
        distinct = [value for index, value in enumerate(found) if value not in found[:index]]
        return distinct or [get_field(self.study, path)]

    def _value_with(self, option: Option, path: str) -> Any:
        """The value of a field with an option of the axis that may set it."""
        setter = max((name for name in option.fields if _holds(name, path)), key=len, default="")
        inside = path.removeprefix(setter).removeprefix(".")
        value = option.fields[setter] if setter else self.study
        return get_field(value, inside) if inside else value

    @property
    def folder(self) -> Path:
        """The folder that relative paths in the study start from."""
        return self.path.parent


def _holds(section: str, path: str) -> bool:
    """Whether a path is that of a field or of one in it."""
    return f"{path}.".startswith(f"{section}.")


def read_study(name: str, overrides: Sequence[str] = ()) -> StudyFile:
    """Read the study with this path, or with this name in sweeps/studies, and apply overrides of the form `path=value`.

    An override with a list makes the path an axis of the grid; an override with a single value removes it from the grid.
    Raises StudyError.
    """
    path = find_study(name)
    raw = _load(path)
    # A corpus that an override replaces stays, so that narrowing an axis trains the same tokeniser.
    named = corpus_names(raw)
    for override in overrides:
        _check_axes(raw, path.name)
        _apply(raw, override)
    _check_axes(raw, path.name)
    for override in overrides:
        _check_reaches_a_trial(raw, override)
    file = check_study(raw, path)
    named |= corpus_names(raw)
    measured = tuple(name for name in measured_corpora(file.study) if name not in named)
    used = {name: corpus for name, corpus in file.study.corpora.items() if name in named or name in measured}
    unused = tuple(name for name in file.study.corpora if name not in used)
    if unused:
        file = replace(file, study=file.study.model_copy(update={"corpora": used}), unused=unused)
    return replace(file, only_measured=measured)


def corpus_names(raw: Mapping[str, Any]) -> set[str]:
    """The texts in the plain fields of a study that may name a corpus to train on."""
    return _texts({name: part for name, part in raw.items() if name not in NOT_TRAINED_ON})


def measured_corpora(study: AnyStudy) -> tuple[str, ...]:
    """The names of the corpora that `evaluate` of a study measures on, each once."""
    if isinstance(study, LinearStudy) or study.evaluate is None:
        return ()
    return tuple(dict.fromkeys(study.evaluate.corpora))


def measured_tasks(study: AnyStudy) -> tuple[str, ...]:
    """The names of the tasks of `evaluate` of a study."""
    return () if isinstance(study, LinearStudy) or study.evaluate is None else tuple(study.evaluate.tasks)


def measured_stages(study: AnyStudy) -> tuple[str, ...]:
    """The names of the stages after which `evaluate` of a study measures."""
    if isinstance(study, LinearStudy) or study.evaluate is None:
        return ()
    return study.evaluate.at or study.stages


def find_study(name: str) -> Path:
    """The file of the study with this path, or with this name in sweeps/studies. Raises StudyError if there is none."""
    known = {file.stem: file for file in sorted(STUDIES.glob("*.yaml"))}
    if name in known:
        return known[name]
    if is_file(name):
        return Path(name).resolve()
    if "=" in name and "/" not in name.partition("=")[0]:
        raise StudyError(f"{shortened(name)}: an override needs a study before it; name the study first")
    beside = _files_beside(name)
    same = [file for file in beside if Path(file).stem == Path(name).stem]
    near = same or difflib.get_close_matches(name, [*known, *beside], n=1)
    hint = f"did you mean {near[0]}?" if near else f"the studies are {', '.join(known)}"
    raise StudyError(f"{shortened(name)}: not found, neither as a file nor in sweeps/studies; {hint}")


def _files_beside(name: str) -> list[str]:
    """The paths of the YAML files in the folder where a study was looked for."""
    try:
        return [str(file) for file in sorted(Path(name).parent.glob("*.y*ml"))]
    except (OSError, ValueError):
        return []


def is_study(name: str) -> bool:
    """Whether this is the name of a study in sweeps/studies or the path of a file."""
    return is_file(f"{STUDIES}/{name}.yaml") or is_file(name)


def check_study(raw: dict[str, Any], path: Path) -> StudyFile:
    """Validate the plain mapping of a study file, and each value of its axes. Raises StudyError."""
    if not isinstance(raw.get("search", {}), dict):
        raise StudyError(
            f"{path.name}: search: expected a mapping with axes; write `search: {{axes: {{field: [a, b]}}}}`"
        )
    schema: type[AnyStudy] = LinearStudy if is_linear(raw) else Study
    raw, study = read_base(raw, schema, f"{path.name}: ")
    _check_count(study, path.name)
    cases, grid = read_axes(raw, study.cases, study.grid, schema, path.name)
    varied = [*grid, *(field for options in cases.values() for option in options for field in option.fields)]
    if measured := [name for name in varied if name.partition(".")[0] == "evaluate"]:
        raise StudyError(
            f"{path.name}: {measured[0]}: what is measured is the same for all trials; set it under evaluate"
        )
    search = read_search(raw, schema, path.name, study.stages) if study.search else None
    named = corpus_names(raw)
    if search is not None:
        _check_losses(search.block, study, named, path.name)
    only_measured = tuple(name for name in measured_corpora(study) if name not in named)
    return StudyFile(path, study, grid, cases, search, only_measured=only_measured)


def _known_losses(study: AnyStudy, named: Collection[str]) -> list[str]:
    """The names of the losses of a study: the paper's four, then the matrix. named: the corpora that stages may train on."""
    if isinstance(study, LinearStudy):
        return list(LOSSES)
    asked = study.evaluate
    found = [*LOSSES]
    for stage in study.stages:
        measured = asked.corpora if asked and stage in (asked.at or study.stages) else ()
        corpora = [corpus for corpus in study.corpora if corpus in named or corpus in measured]
        found += [loss_name(stage, corpus) for corpus in corpora]
        pairs = [corpus for corpus in corpora if study.corpora[corpus].is_pairs]
        found += [loss_name(stage, f"{corpus}/{measure}") for corpus in pairs for measure in PAIR_MEASURES]
    return found


def _check_losses(block: SearchBlock, study: AnyStudy, named: Collection[str], file: str) -> None:
    """Raise StudyError if a study lacks a loss that its search needs, or a stage after which the loss is measured."""
    chain, known = study.stages, _known_losses(study, named)
    tasks = [loss_name(stage, task) for stage in measured_stages(study) for task in measured_tasks(study)]
    known += [f"{task}/METRIC" for task in tasks]
    # The values of `by` are known once the data is prepared.
    divided = {name for name, corpus in study.corpora.items() if corpus.by} if isinstance(study, Study) else set()
    parts = [name for name in known if name.partition("/")[2] in divided]
    for name in block.losses():
        if without_value(name) != name and without_value(name) in parts:
            continue
        if name not in known and name.rpartition("/")[0] not in tasks:  # the metrics are known once the task is read
            field = "objective" if name in block.objective.losses() else "constraints"
            raise StudyError(f"{file}: search.{field}: {unknown_loss(name, known)}")
    needed: dict[str, tuple[str, ...]] = {
        "immediate_posttraining_loss": ("posttrain",),
        "retained_posttraining_loss": ("posttrain",),
        "finetuning_loss": ("finetune",),
        "retained_pretraining_loss": ("pretrain",),
    }
    for loss in sorted(set(block.losses()) & set(LOSSES)):
        if missing := [stage for stage in needed[loss] if stage not in chain]:
            raise StudyError(
                f"{file}: search: {loss} is measured with the stage {missing[0]}, which the chain {', '.join(chain)} does not "
                "have; choose another objective, or add the stage to `stages`"
            )
        if loss == "retained_posttraining_loss" and chain[-1] == "posttrain":
            raise StudyError(
                f"{file}: search: {loss} is measured after a stage that follows posttrain, and no stage does; set "
                f"search.objective: {BEFORE_FINETUNING}"
            )
    if block.prune and "posttrain" not in chain:
        raise StudyError(f"{file}: search.prune: it stops post-trainings, and the chain has no posttrain; remove prune")
    if block.probe and tuple(chain[-2:]) != ("posttrain", "finetune"):
        raise StudyError(
            f"{file}: search.probe: it stops fine-tunings after post-training, and the chain does not end with posttrain and "
            "finetune; remove probe"
        )
    if block.probe and (further := [name for name in block.losses() if name not in LOSSES]):
        raise StudyError(
            f"{file}: search.probe: it compares fine-tunings by the paper's four losses, and the search is for {further[0]}; "
            "remove probe"
        )


def _texts(value: Any) -> set[str]:
    """Every text in nested mappings and lists, names of fields included, and the NAME in paths like finetune.mix.NAME.share."""
    if isinstance(value, dict):
        return _texts([*value, *value.values()])
    if isinstance(value, list | tuple):
        return set().union(*map(_texts, value))
    if not isinstance(value, str):
        return set()
    mixed = re.match(r"\w+\.mix\.([^.]+)", value)
    return {value, mixed[1]} if mixed else {value}


def _check_count(study: AnyStudy, file: str) -> None:
    """Print the number of trials before a long expansion. Raises StudyError if there are too many to expand."""
    counts = [len(values) for values in study.grid.values()]
    for cases in study.cases.values():
        counts.append(
            sum(
                math.prod(len(values) for path, values in fields.items() if is_axis(path, values))
                for fields in cases.values()
            )
        )
    trials = math.prod(counts)
    if trials > MOST_TRIALS:
        raise StudyError(
            f"{file}: {trials:,} trials are more than the {MOST_TRIALS:,} that one study may have; give the axes fewer "
            "values, divide the study into several, or search the space with retain search"
        )
    if trials >= MANY_TRIALS:
        notice(f"{file}: {trials:,} trials; expanding them takes about {format_seconds(trials / 10_000)}")


def check_section(study: AnyStudy, name: str) -> None:
    """Check a section whose fields were set one by one. Raises StudyError if they are invalid together."""
    section = getattr(study, name)
    validate(type(section), section.model_dump(), f"{name}: ")


def _load(path: Path) -> dict[str, Any]:
    raw = read_yaml(path, TEXTS)
    if not isinstance(raw, dict):
        found = "nothing" if raw is None else type(raw).__name__
        raise StudyError(
            f"{path.name}: expected a mapping of fields, but the file holds {found}; write `field: value` lines"
        )
    raw.setdefault("study", path.stem)
    return raw


def _check_axes(raw: dict[str, Any], file: str) -> None:
    for part, example in (("grid", "axis: [a, b]"), ("cases", "axis: {a: {field: value}}")):
        if not isinstance(raw.setdefault(part, {}), dict):
            raise StudyError(f"{file}: {part}: expected a mapping of axes; write `{example}`, or remove {part}")


def _apply(raw: dict[str, Any], override: str) -> None:
    field, separator, text = override.partition("=")
    shown = shortened(repr(override))
    if not separator or not field:
        raise StudyError(f"{shown}: invalid override; write path=value, for instance pretrain.exposure=0.5")
    plain = ".".join(name.strip() for name in field.split("."))
    if plain != field or not all(plain.split(".")):
        raise StudyError(f"{shown}: spaces or an empty name in the path; write path=value, as in pretrain.exposure=0.5")
    if not text.strip():
        raise StudyError(f"{shown}: no value after =; write {field}=null to unset the field")
    if field in raw["cases"]:
        names = parse_yaml(text, shown, texts=[field], at=field)
        raw["cases"] = raw["cases"] | {field: _chosen(raw["cases"][field], names, shown)}
        return
    # A variable is text as it is written, also with signs of YAML, but for quotes around it.
    verbatim = field.rpartition(".")[0].endswith("slurm.environment") and text[0] not in "\"'"
    value = text if verbatim else _value(text, shown, field)
    grid = raw["grid"]
    if is_axis(field, value) and field != "search" and not field.startswith(("corpora.", "grid.", "search.")):
        raw["grid"] = grid | {field: value}
        return
    raw["grid"] = {axis: values for axis, values in grid.items() if axis != field}
    if field.startswith("grid."):
        raw["grid"] = raw["grid"] | {field.removeprefix("grid."): value}
    else:
        set_field(raw, field, value, shown)


def _value(text: str, shown: str, field: str) -> Any:
    """The value of an override. Raises StudyError, with a hint where the shell has probably cut a list at its spaces."""
    try:
        return parse_yaml(text, shown, TEXTS, at=field)
    except StudyError as error:
        if text.count("[") > text.count("]") or text.count("{") > text.count("}"):
            raise StudyError(f"{error}; quote an override that has spaces, as in 'seed=[0, 1]'") from None
        raise


def _check_reaches_a_trial(raw: dict[str, Any], override: str) -> None:
    """Raise StudyError for an override of a field that every case of an axis sets to a value of its own."""
    field = override.partition("=")[0]
    for axis, cases in raw["cases"].items():
        if field == axis or not isinstance(cases, dict) or not cases:
            continue
        setters = [
            next((path for path in settings if f"{field}.".startswith(f"{path}.")), None)
            for settings in cases.values()
            if isinstance(settings, dict)
        ]
        if len(setters) == len(cases) and all(setters):
            case = next(iter(cases))
            raise StudyError(
                f"{shortened(repr(override))}: every case of {axis} sets {setters[0]}, so this would change no trial; change a "
                f"case, as in 'cases.{axis}.{case}={{{setters[0]}: VALUE}}'"
            )


def _chosen(cases: Any, names: Any, override: str) -> dict[str, Any]:
    """The cases of an axis that an override names. Raises StudyError if it names none, or an unknown one."""
    wanted = names if isinstance(names, list) else [names]
    known = list(cases) if isinstance(cases, dict) else []
    if not wanted:
        raise StudyError(f"{override}: name at least one case; the cases are {', '.join(map(str, known))}")
    if unknown := [name for name in wanted if name not in known]:
        raise StudyError(
            f"{override}: unknown case {', '.join(map(str, unknown))}; the cases are {', '.join(map(str, known))}"
        )
    return {name: cases[name] for name in wanted}
