"""The studies that a search derives from a study, as files that every verb takes: its points, and what confirms them."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.find import absolute, local_folder
from retain.datamodules.corpora.known import known_facts
from retain.datamodules.corpora.prepare import prepare
from retain.datamodules.corpora.reading.report import Report
from retain.launchers.local.preparation import prepare_here
from retain.launchers.planning.data_room import check_data_room
from retain.launchers.planning.opened_study import check_loggers, check_name, claim_name, facts_now
from retain.results.analysis.axes import RECIPE
from retain.results.analysis.recipe_comparison import DEFAULT, GRID_BEST
from retain.results.store.loss_table import stages_after_posttraining
from retain.results.store.runs import Run, Store, make_store, open_store
from retain.results.store.study_files import AXIS_OF_POINTS, POINTS_STUDY, SUFFIX, search_run, study_folder
from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.files import write_text
from retain.sweeps.base.yaml_text import yaml_of
from retain.sweeps.schema.axes import get_field, is_axis
from retain.sweeps.schema.read import StudyFile, check_study, corpus_names, read_study
from retain.sweeps.schema.search_space import SearchSpace, Values
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.evaluation_runs import asked_columns, check_objective
from retain.sweeps.tree.keys import canonical
from retain.sweeps.tree.recipes.devices import device_mismatch
from retain.sweeps.tree.recipes.point import study_at
from retain.sweeps.tree.tree import Tree, expand, plain_value

Fields = dict[str, Any]
FRESH_SEEDS = 3
"""The number of seeds that confirm a recommendation."""


@dataclass(frozen=True)
class SearchedStudy:
    """A study with its search space, its store and its data."""

    file: StudyFile
    space: SearchSpace
    base: Fields
    """The fields of the study with its cases applied, without grid, cases and search."""
    store: Store
    facts: Facts

    @property
    def name(self) -> str:
        return self.file.study.study

    @property
    def folder(self) -> Path:
        """The folder of the search's history and of what it writes."""
        return study_folder(self.store.root, self.name)

    @property
    def run(self) -> Run:
        """The run of the search; it may not exist yet."""
        return search_run(self.store, self.name)

    def fields(self, name: str, points: Mapping[str, Values], seeds: Sequence[int]) -> Fields:
        """The plain fields of a study of these points; each value is a list of one, so that tables name it."""
        cases = {
            label: {path: [value] if is_axis(path, [value]) else value for path, value in values.items()}
            for label, values in points.items()
        }
        fields = self.base | {"study": name, "cases": {AXIS_OF_POINTS: cases}, "grid": {"seed": list(seeds)}}
        # A corpus that no point happens to have, or that an override has replaced, still belongs to the data, as the tokeniser
        # may be trained on it.
        corpora = {axis.path: list(axis.choices or ()) for axis in self.space.axes if axis.path.endswith(".corpus")}
        named = corpus_names(fields | corpora) | {*self.file.only_measured}
        if replaced := [name for name in fields.get("corpora", {}) if name not in named]:
            last = self.file.study.stages[-1]
            path, own = f"{last}.corpus", self.base[last]["corpus"]
            corpora[path] = [*corpora.get(path, [own]), *replaced]
        if corpora:
            objective = {name: part for name, part in self.file.study.search.items() if name == "objective"}
            fields["search"] = objective | {"axes": corpora}
        return fields

    def tree(self, points: Mapping[str, Values]) -> tuple[StudyFile, Tree]:
        """These points, on all seeds, as a study and its tree. Raises StudyError."""
        file = check_study(self.fields(f"{self.name}{SUFFIX}", points, self.space.block.seeds), self.file.path)
        return file, expand(file, self.facts)

    def corners(self) -> dict[str, Values]:
        """The points at the ends of the space."""
        return {f"corner{number}": values for number, values in enumerate(self.space.corners())}

    def identity(self) -> str:
        """A digest of what decides which stages a point has: the base, the data, the names of the axes.

        The base's own values of searched fields do not count, because every point replaces them.
        """
        fields = {name: part for name, part in self.base.items() if name not in ("execution", "study")}
        for axis in self.space.axes:
            fields = _left_out(fields, axis.path.split("."))
        for corpus in self.base.get("corpora", {}):
            fields = _left_out(fields, ["corpora", corpus, "by"])
        data = sorted((name, length, known.fingerprint) for (name, length), known in self.facts.corpora.items())
        axes = sorted(axis.path for axis in self.space.axes)
        text = canonical([fields, [list(one) for one in data], self.facts.tokenizer, axes])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_search(name: str, overrides: Sequence[str], store: Path, report: Report | None) -> SearchedStudy:
    """Read a study with its search section, and check the ends of the space; with `report`, prepare its data too.

    Raises StudyError if there is no search section, if several cases are open, if an end of the space is invalid, or for an
    override that a search would ignore; MissingResourceError for a logger that is not installed.
    """
    file = read_study(name, overrides)
    check_loggers(file)
    for override in overrides if file.search else ():
        _check_override(file, override.partition("=")[0].removeprefix("grid."))
    check_name(file, store)
    searched = search_of(file, store, report)
    if report is not None:
        claim_name(file, store)
    return searched


def _check_override(file: StudyFile, path: str) -> None:
    """Raise StudyError for an override that makes an axis of the grid, or sets what every point of the search replaces."""
    if path in file.axes:
        cure = (
            "list seeds under search.seeds" if _is_seed(path) else "give it one value, or search it under search.axes"
        )
        raise StudyError(f"{path}: a search replaces the grid; {cure}")
    searched = [axis.path for axis in file.search.axes] if file.search else []
    if axis := next((axis for axis in searched if f"{path}.".startswith(f"{axis}.")), None):
        raise StudyError(
            f"{path}: the search sets {axis} itself (search.axes), so this override would have no effect; remove one of the two"
        )
    if path == "seed" and "seeds" in (file.study.search or {}):
        raise StudyError("seed: the search trains every point with search.seeds; change search.seeds instead")


def search_of(file: StudyFile, store: Path, report: Report | None) -> SearchedStudy:
    """`open_search` for a study that has been read already."""
    if file.search is None:
        raise StudyError(
            f"{file.path.name}: search: there is nothing to search; name the fields, as in "
            "`search: {axes: {pretrain.exposure: {uniform: [0, 1]}}}`"
        )
    unread = SearchedStudy(file, file.search, _base(file), open_store(store), Facts("", 0, {}))
    whole = check_study(unread.fields(unread.name, unread.corners(), file.search.block.seeds), file.path)
    if mismatch := device_mismatch(whole):
        raise StudyError(f"{file.path.name}: {mismatch}")
    # A search is opened without a report first: what is remarked is said then, and not again.
    facts = facts_now(whole, store) if report is None else known_facts(whole, store)
    tree = expand(whole, facts)
    check_objective(file, tree)
    if report is not None:
        check_data_room(file.path.name, whole, facts, store)
        make_store(store)
        facts = prepare(whole, store, report, prepare_here)
        tree = expand(whole, facts)
        check_objective(file, tree)  # the values of `by` are known now
    higher = frozenset(name for name, is_higher in asked_columns(tree).items() if is_higher)
    return replace(unread, facts=facts, space=replace(file.search, higher=higher))


def write_points(searched: SearchedStudy, points: Mapping[str, Values]) -> None:
    """Write all points as a study, for `results`, `report`, `why` and every other verb."""
    head = f"# The points that retain search {searched.name} has tried: an ordinary study, for results, report, status, why."
    fields = searched.fields(f"{searched.name}{SUFFIX}", points, searched.space.block.seeds)
    _write(searched.folder / POINTS_STUDY, head, fields)


def write_confirmation(searched: SearchedStudy, recipes: Mapping[str, Values], grid_best: Values | None) -> Path:
    """Write a study of the recommended recipes, the best of the study's grid, and the study's own recipe, on fresh seeds.

    If the study's grid varies fine-tuning, so does this study, so that frontiers are compared. grid_best: the values of that
    point on the grid's axes before fine-tuning; None leaves it out.
    """
    file, axes = searched.file, searched.file.axes
    later = stages_after_posttraining(file.study.stages)
    varied = {
        path: [plain_value(value) for value in values]
        for path, values in axes.items()
        if path.partition(".")[0] in later and not _is_seed(path)
    }
    own = check_study(dict(searched.base), file.path).study
    fields_now = {axis.path: plain_value(get_field(own, axis.path)) for axis in searched.space.axes}
    default = {path: value for path, value in fields_now.items() if value is not None}
    named = dict(recipes) | ({GRID_BEST: default | grid_best} if grid_best is not None else {}) | {DEFAULT: default}
    distinct: dict[str, Values] = {}
    head = [
        "# Fresh seeds for what the search recommends, for the best of the study's grid (where the store has it) and for the",
        "# study's own recipe (default): retain run, then retain report.",
    ]
    for label, values in named.items():
        kept = {path: value for path, value in values.items() if path not in varied}
        same = next((other for other, known in distinct.items() if known == kept), None)
        if same is not None:
            head.append(f"# {label} is the same recipe as {same}.")
        elif kept:
            distinct[label] = kept
    # Neither the search nor the study's grid has chosen anything by these seeds.
    grid = [seed for path, seeds in axes.items() if _is_seed(path) for seed in seeds]
    first = max([*searched.space.block.seeds, *grid, file.study.seed]) + 1
    seeds = list(range(first, first + FRESH_SEEDS))
    fields = searched.fields(f"{searched.name}-confirm", distinct, seeds)
    # Without recipes, only the fine-tunings of the grid were searched.
    fields["cases"] = {RECIPE: fields["cases"][AXIS_OF_POINTS]} if distinct else {}
    fields["grid"] = {"seed": seeds} | varied
    path = searched.folder / "confirm.yaml"
    _write(path, "\n".join(head), fields)
    return path


def _is_seed(path: str) -> bool:
    return path.rpartition(".")[2] == "seed"


def _left_out(fields: Any, path: Sequence[str]) -> Any:
    """A copy of nested fields without the one at this path."""
    first, *inner = path
    if not isinstance(fields, dict) or first not in fields:
        return fields
    if inner and (rest := _left_out(fields[first], inner)):
        return fields | {first: rest}
    return {name: part for name, part in fields.items() if name != first}


def _base(file: StudyFile) -> Fields:
    """The fields of a study with its cases applied, without grid, cases and search; paths are absolute."""
    study = file.study
    for name, options in file.cases.items():
        if len(options) > 1:
            raise StudyError(
                f"{file.path.name}: cases.{name}: a search takes one case; choose it, as in {name}="
                f"{next(iter(options[0].labels.values()))}, or search its fields"
            )
        study = study_at(study, options)
    fields: Fields = study.model_dump(exclude_unset=True, exclude={"grid", "cases", "search"}, mode="json")
    corpora = list(fields.get("corpora", {}).values())
    held = [corpus["heldout"] for corpus in corpora if isinstance(corpus.get("heldout"), dict)]
    for section in (*corpora, *held):
        if isinstance(files := section.get("files"), str):
            section["files"] = absolute(files, file.folder)
        elif files is not None:
            section["files"] = [absolute(name, file.folder) for name in files]
    for task in fields.get("evaluate", {}).get("tasks", {}).values():
        if task.get("path"):
            task["path"] = absolute(task["path"], file.folder)
    for section in (*corpora, fields.get("tokenizer") or {}, fields["model"]):
        if section.get("hf") and (place := local_folder(section["hf"], file.folder, "hf: ")) is not None:
            section["hf"] = str(place.absolute())
    return fields


def _write(path: Path, head: str, fields: Fields) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{head}\n{yaml_of(fields)}")
