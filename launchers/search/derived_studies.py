"""A search as studies that any verb takes: its base, its points as the cases of a study file, and the study that confirms."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from retain.datamodules.corpora.prepare import Report, known_facts, prepare
from retain.results.analysis.axes import RECIPE
from retain.results.analysis.recipe_comparison import DEFAULT, GRID_BEST
from retain.results.store.runs import Store, make_store, open_store
from retain.results.store.study_files import AXIS_OF_POINTS, POINTS_STUDY, SUFFIX, study_folder
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.axes import is_axis
from retain.sweeps.schema.read import StudyFile, check_study, read_study
from retain.sweeps.schema.search_space import Search, Values
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.keys import canonical
from retain.sweeps.tree.tree import Tree, device_mismatch, expand, plain_value, with_values

Fields = dict[str, Any]
FRESH_SEEDS = 3


@dataclass(frozen=True)
class SearchedStudy:
    """A study with its search space, its store and its data; `base`: its fields without grid, cases and search."""

    file: StudyFile
    search: Search
    base: Fields
    store: Store
    facts: Facts

    @property
    def name(self) -> str:
        return self.file.study.study

    @property
    def folder(self) -> Path:
        """Where the search keeps its history and what it writes."""
        return study_folder(self.store.root, self.name)

    def tree(self, cases: Mapping[str, Values]) -> tuple[StudyFile, Tree]:
        """Points, by their names, with all seeds, as a study and its tree. Raises StudyError."""
        file = points_file(self, f"{self.name}{SUFFIX}", cases, self.search.block.seeds)
        return file, expand(file, self.facts)

    def identity(self) -> str:
        """Changes with anything that makes other stages of the same point: the base, the data, the names of the axes.

        What the base gives to a searched field is replaced by every point, so it changes nothing.
        """
        fields = {name: part for name, part in self.base.items() if name not in ("execution", "study")}
        for axis in self.search.axes:
            fields = _left_out(fields, axis.path.split("."))
        data = sorted((name, length, known.fingerprint) for (name, length), known in self.facts.corpora.items())
        axes = sorted(axis.path for axis in self.search.axes)
        text = canonical([fields, [list(one) for one in data], self.facts.tokenizer, axes])
        return hashlib.sha256(text.encode()).hexdigest()[:16]


def open_search(name: str, overrides: Sequence[str], store: Path, report: Report | None) -> SearchedStudy:
    """Read a study with its search block, and try the ends of the space; with `report`, prepare its data too.

    Raises StudyError for a study without a search block, with a choice of cases left open, or with ends that make no sense,
    and for an override that makes an axis of the grid, which a search does not look at.
    """
    file = read_study(name, overrides)
    for override in overrides if file.search else ():
        path = override.partition("=")[0].removeprefix("grid.")
        if path in file.axes:
            cure = (
                "list seeds under search.seeds"
                if _is_seed(path)
                else "give it one value, or search it under search.axes"
            )
            raise StudyError(f"{path}: a search replaces the grid; {cure}")
    return search_of(file, store, report)


def search_of(file: StudyFile, store: Path, report: Report | None) -> SearchedStudy:
    """`open_search` of a study that is read already."""
    if file.search is None:
        raise StudyError(
            f"{file.path.name}: search: there is nothing to search; name the fields, as in "
            "`search: {axes: {pretrain.exposure: {uniform: [0, 1]}}}`"
        )
    base = _base(file)
    unread = SearchedStudy(file, file.search, base, open_store(store), Facts("", 0, {}))
    corners = {f"corner{number}": values for number, values in enumerate(file.search.corners())}
    whole = points_file(unread, file.study.study, corners, file.search.block.seeds)
    if mismatch := device_mismatch(whole):
        raise StudyError(f"{file.path.name}: {mismatch}; choose a batch that they divide, or other devices")
    facts = known_facts(whole, store)
    expand(whole, facts)
    if report is not None:
        make_store(store)
        facts = prepare(whole, store, report)
        expand(whole, facts)
    return SearchedStudy(file, file.search, base, open_store(store), facts)


def points_file(searched: SearchedStudy, name: str, cases: Mapping[str, Values], seeds: Sequence[int]) -> StudyFile:
    """A study of these points. Raises StudyError."""
    return check_study(points_fields(searched.base, name, cases, seeds), searched.file.path)


def points_fields(base: Fields, name: str, cases: Mapping[str, Values], seeds: Sequence[int]) -> Fields:
    """The plain fields of a study of these points; each value is a list of one, so that tables name it."""
    made = {
        label: {path: [value] if is_axis(path, [value]) else value for path, value in values.items()}
        for label, values in cases.items()
    }
    return base | {"study": name, "cases": {AXIS_OF_POINTS: made}, "grid": {"seed": list(seeds)}}


def write_points(searched: SearchedStudy, cases: Mapping[str, Values]) -> Path:
    """Keep all points as a study file of their own, for `results`, `report`, `why` and every other verb."""
    path = searched.folder / POINTS_STUDY
    head = f"# The points that retain search {searched.name} has tried: an ordinary study, for results, report, status, why."
    _write(path, head, points_fields(searched.base, f"{searched.name}{SUFFIX}", cases, searched.search.block.seeds))
    return path


def fresh_seeds(searched: SearchedStudy) -> range:
    """Seeds by which nothing was chosen yet, neither by the search nor by the study's grid."""
    grid = [seed for path, seeds in searched.file.axes.items() if _is_seed(path) for seed in seeds]
    first = max([*searched.search.block.seeds, *grid, searched.file.study.seed]) + 1
    return range(first, first + FRESH_SEEDS)


def write_confirmation(
    searched: SearchedStudy, recipes: Mapping[str, Values], seeds: Sequence[int], grid_best: Values | None
) -> Path:
    """A study of the recommended recipes, the best of the study's grid, and the study's own recipe, on fresh seeds.

    Where the study's grid varies fine-tuning, so does this one, so that frontiers are compared. grid_best: what that point
    gives to the grid's axes before fine-tuning; None leaves it out.
    """
    varied = {
        path: [plain_value(value) for value in values]
        for path, values in searched.file.axes.items()
        if path.startswith("finetune.") and not _is_seed(path)
    }
    default = {axis.path: value for axis in searched.search.axes if (value := _own(searched, axis.path)) is not None}
    named = dict(recipes) | ({GRID_BEST: default | grid_best} if grid_best is not None else {}) | {DEFAULT: default}
    distinct: dict[str, Values] = {}
    head = [
        "# Fresh seeds for what the search recommends, for the best of the study's grid (where the store has it) and for the",
        "# study's own recipe (default): retain run, then retain report.",
    ]
    for label, values in named.items():
        kept = _without(values, varied)
        same = next((other for other, known in distinct.items() if known == kept), None)
        if same is not None:
            head.append(f"# {label} is the same recipe as {same}.")
        elif kept:
            distinct[label] = kept
    fields = points_fields(searched.base, f"{searched.name}-confirm", distinct, seeds)
    # Without any, the grid's fine-tunings are all that was searched.
    fields["cases"] = {RECIPE: fields["cases"][AXIS_OF_POINTS]} if distinct else {}
    fields["grid"] = {"seed": list(seeds)} | varied
    path = searched.folder / "confirm.yaml"
    _write(path, "\n".join(head), fields)
    return path


def _without(values: Values, varied: Mapping[str, Any]) -> Values:
    return {path: value for path, value in values.items() if path not in varied}


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


def _own(searched: SearchedStudy, path: str) -> Any:
    """The value that the study itself gives a field; None where it gives none."""
    place: Any = check_study(dict(searched.base), searched.file.path).study
    for name in path.split("."):
        place = getattr(place, name, None)
    return plain_value(place)


def _base(file: StudyFile) -> Fields:
    study = file.study
    for name, options in file.cases.items():
        if len(options) > 1:
            raise StudyError(
                f"{file.path.name}: cases.{name}: a search is of one case; choose it, as in {name}="
                f"{next(iter(options[0].labels.values()))}, or search its fields"
            )
        study = with_values(study, options[0].fields)
    fields: Fields = study.model_dump(exclude_unset=True, mode="json")
    for part in ("grid", "cases", "search"):
        fields.pop(part, None)
    for corpus in fields.get("corpora", {}).values():
        if "files" in corpus:
            corpus["files"] = _absolute(corpus["files"], file.folder)
    tokenizer = fields.get("tokenizer") or {}
    if tokenizer.get("hf") and (file.folder / tokenizer["hf"]).is_dir():
        tokenizer["hf"] = str((file.folder / tokenizer["hf"]).absolute())
    return fields


def _absolute(files: str | list[str], folder: Path) -> str | list[str]:
    if isinstance(files, str):
        return str(folder / Path(files).expanduser())
    return [str(folder / Path(name).expanduser()) for name in files]


def _write(path: Path, head: str, fields: Fields) -> None:
    from retain.sweeps.base.files import write_text

    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, f"{head}\n{yaml.safe_dump(fields, sort_keys=False, width=120)}")
