"""Keep the user's surroundings out of processes: they import only installed libraries, and their sockets have short paths."""

import contextlib
import json
import os
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

LONGEST_TEMPORARY = 30
"""The longest path of a temporary folder that leaves room for the names of sockets: their paths have at most 107 bytes."""
BEFORE = "RETAIN_BEFORE"
"""The environment variable with the former values of the variables that Retain has set, as JSON; null for unset ones."""


@contextlib.contextmanager
def library_imports(variables: Mapping[str, str] | None = None) -> Iterator[None]:
    """Import only libraries in the block, in this process and in Python processes that it starts.

    A token.py, torch.py or results.py of the user's, in the current folder, next to a script or in PYTHONPATH, would replace
    a module of Python, of a library or of Retain. variables: further environment variables of the block.
    """
    before, path = dict(os.environ), sys.path
    chosen = safe_python_path()
    changed = {"PYTHONSAFEPATH": "1", "PYTHONPATH": chosen, **(variables or {})}
    os.environ |= changed | {BEFORE: values_before(changed)}
    stdlib = os.path.dirname(os.__file__)
    own = path.index(stdlib) if stdlib in path else 0
    # An empty entry is the current folder.
    kept = [entry for entry in path[:own] if entry and (entry in chosen.split(os.pathsep) or _holds_packages(entry))]
    home = [] if _home() in kept else [entry for entry in path[:own] if entry == _home()]
    sys.path = [*kept, *path[own:], *home]
    try:
        yield
    finally:
        sys.path = path
        for name in os.environ.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


def values_before(names: Iterable[str]) -> str:
    """The content of BEFORE for a process in which these variables are set too."""
    known = json.loads(os.environ.get(BEFORE, "{}"))
    return json.dumps({name: os.environ.get(name) for name in names} | known, sort_keys=True)


def users_environment() -> dict[str, str]:
    """The environment for a program of the user's: without what Retain has set for its own processes."""
    variables = dict(os.environ)
    for name, value in json.loads(variables.pop(BEFORE, "{}")).items():
        if value is None:
            variables.pop(name, None)
        else:
            variables[name] = value
    return variables


def safe_python_path() -> str:
    """The entries of PYTHONPATH without the user's own sources: folders of installed packages, and the one of Retain."""
    entries = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    return os.pathsep.join(entry for entry in entries if entry and (entry == _home() or _holds_packages(entry)))


def temporary_folder() -> str:
    """The folder for temporary files, or a shorter one if its path is too long for sockets."""
    usual = tempfile.gettempdir()
    return usual if len(usual) <= LONGEST_TEMPORARY else "/tmp"


def _holds_packages(entry: str) -> bool:
    """Whether an entry of Python's path is a folder of installed packages, and not one of sources."""
    if Path(entry).name in ("site-packages", "dist-packages"):
        return True
    try:
        return any(name.endswith(".dist-info") for name in os.listdir(entry))
    except OSError:  # no folder, or one of another user's
        return False


def _home() -> str:
    """The folder in which the running package `retain` lies."""
    return str(Path(sys.modules["retain"].__file__ or "").parents[1])
