"""The map of the code: which folder may import which, and how large folders and files may be. See ARCHITECTURE.md."""

import ast
import subprocess
import tomllib
from collections.abc import Iterator, Mapping
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ROOMS: Mapping[str, tuple[str, ...]] = {
    "sweeps.base": (),
    "sweeps.schema": ("sweeps.base",),
    "sweeps.reference": ("sweeps.base", "sweeps.schema"),
    "sweeps.studies": (),
    "sweeps.tree": ("sweeps.base", "sweeps.schema"),
    "datamodules.corpora": ("sweeps",),
    "datamodules.order": ("sweeps", "datamodules.corpora"),
    "lightning_modules": ("sweeps",),
    "results.store": ("sweeps",),
    "results.analysis": ("sweeps", "results.store"),
    "results.claims": ("sweeps", "results.store", "results.analysis"),
    "results.figures": ("sweeps", "results.store", "results.analysis"),
    "results.tensorboard": ("sweeps", "results.store", "results.analysis"),
    "results.report": ("sweeps", "results"),
    "launchers.console": (),
    "launchers.kinds": ("sweeps", "results.store"),
    "launchers.slurm": ("sweeps", "results.store"),
    "launchers.speed": ("sweeps", "results.store"),
    "launchers.planning": (
        *("sweeps", "datamodules", "results.store", "results.analysis", "results.claims"),
        "launchers.kinds",
        "launchers.speed",
    ),
    "launchers.stage": (
        *("sweeps", "datamodules", "lightning_modules", "results.store", "results.tensorboard"),
        "launchers.kinds",
        "launchers.speed",
    ),
    "launchers.jobs": (
        *("sweeps", "datamodules", "results.store", "results.analysis"),
        *("launchers.kinds", "launchers.slurm", "launchers.planning", "launchers.stage"),
    ),
    "launchers.local": (
        *("sweeps", "datamodules", "results.store"),
        *("launchers.kinds", "launchers.slurm", "launchers.planning", "launchers.stage"),
    ),
    "launchers.retention_probe": (
        *("sweeps", "datamodules", "lightning_modules", "results.store", "results.analysis"),
        *("launchers.planning", "launchers.stage"),
    ),
    "launchers.checks": (
        *("sweeps", "datamodules", "results.store"),
        *("launchers.console", "launchers.kinds", "launchers.slurm", "launchers.planning", "launchers.stage"),
        *("launchers.local", "launchers.jobs", "launchers.speed"),
    ),
    "launchers.search": (
        *("sweeps", "datamodules", "results.store", "results.analysis", "results.tensorboard"),
        *(
            "results.report",
            "launchers.console",
            "launchers.kinds",
            "launchers.slurm",
            "launchers.planning",
            "launchers.stage",
        ),
        *("launchers.local", "launchers.jobs"),
    ),
    "launchers.study_status": (
        *("sweeps", "results.store"),
        *("launchers.kinds", "launchers.planning", "launchers.jobs", "launchers.search"),
    ),
    "launchers.study_report": ("sweeps", "results", "launchers.planning"),
    "retain": ("sweeps", "datamodules", "results", "launchers"),
    "launchers.cli": ("sweeps", "datamodules", "results", "launchers", "retain"),
}
"""Each room with the rooms that it may import. A name stands for the room and all below it."""
MOST_FILES = 12
MOST_LINES = 400


@cache
def tracked() -> tuple[Path, ...]:
    """The Python files of the project, relative to its root."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return tuple(path for line in listed.stdout.splitlines() if (ROOT / (path := Path(line))).exists())


def packaged() -> Iterator[tuple[str, Path]]:
    """The modules that are installed, without the `retain.` of their names."""
    tops = {room.split(".")[0] for room in ROOMS}
    for path in tracked():
        if path.parts[0] in tops:
            yield ".".join(path.with_suffix("").parts).removesuffix(".__init__"), path


@cache
def imports() -> Mapping[str, frozenset[str]]:
    """What each module imports of the project, also inside functions and for type checkers."""
    modules = dict(packaged())
    found = {}
    for module, path in modules.items():
        names: set[str] = set()
        for node in ast.walk(ast.parse((ROOT / path).read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                names |= {alias.name for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module:
                # `from package import module` imports the module.
                names |= {f"{node.module}.{alias.name}" for alias in node.names} | {node.module}
        own = {name.removeprefix("retain.") for name in names if name == "retain" or name.startswith("retain.")}
        found[module] = frozenset(own & modules.keys() - {module})
    return found


def test_every_folder_of_the_package_is_installed() -> None:
    packages = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["setuptools"]["packages"]
    folders = {path.parent for _, path in packaged()}
    assert sorted(packages) == sorted(
        "retain" if folder == Path("retain") else f"retain.{'.'.join(folder.parts)}" for folder in folders
    )


def room_of(module: str) -> str:
    return max((room for room in ROOMS if (module + ".").startswith(room + ".")), key=len, default=module)


def test_every_module_is_in_a_room() -> None:
    homeless = [module for module, path in packaged() if room_of(module) not in ROOMS and path.name != "__init__.py"]
    assert homeless == []


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_the_rooms_below_it(room: str) -> None:
    allowed = ROOMS[room]
    wrong = [
        f"{module} imports {other}"
        for module, others in imports().items()
        if room_of(module) == room
        for other in sorted(others)
        if room_of(other) != room and not any((other + ".").startswith(name + ".") for name in allowed)
    ]
    assert wrong == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    try:
        TopologicalSorter(imports()).prepare()
    except CycleError as error:
        pytest.fail(" → ".join(error.args[1]))


def test_no_folder_has_more_than_a_dozen_files() -> None:
    folders: dict[Path, int] = {}
    for path in tracked():
        folders[path.parent] = folders.get(path.parent, 0) + (path.name != "__init__.py")
    assert {str(folder): count for folder, count in folders.items() if count > MOST_FILES} == {}


def test_no_file_has_more_than_400_lines() -> None:
    lengths = {str(path): len((ROOT / path).read_text(encoding="utf-8").splitlines()) for path in tracked()}
    assert {path: length for path, length in lengths.items() if length > MOST_LINES} == {}
