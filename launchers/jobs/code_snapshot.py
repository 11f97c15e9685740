"""The code that queued jobs run: a copy of the package at submission, in a folder named after its content."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path

from retain.sweeps.base.files import sync_folder, write_json

ROOMS = ("sweeps", "datamodules", "lightning_modules", "launchers", "results")
"""Folders of the package. In a checkout they are next to `retain/`; in an installation they are in it."""
SUFFIXES = (".py", ".yaml", ".yml", ".json")
GIT_S = 30.0
"""Seconds after which git counts as unanswered."""


def snapshot_code(store: Path) -> Path:
    """Copy the running code into `<store>/code/<digest>`, unless that folder exists; returns the folder.

    commit.json in it holds the git commit and the uncommitted changes, if git knows them.
    """
    files = _source()
    place = _place(store, files)
    if place.is_dir():
        return place
    temporary = place.with_name(f".{place.name}.{os.getpid()}.{os.urandom(3).hex()}")
    try:
        for name, content in files.items():
            (temporary / name).parent.mkdir(parents=True, exist_ok=True)
            (temporary / name).write_bytes(content)
        write_json(temporary / "commit.json", _commit())
        sync_folder(temporary)
        temporary.rename(place)
    except OSError as error:
        if not place.is_dir():  # otherwise another submitter was faster
            # A failed write names no file, and other errors one of the temporary folder.
            error.filename = str(place)
            del error.filename2
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return place


def snapshot_path(store: Path) -> Path:
    """The folder that `snapshot_code` would return; nothing is written."""
    return _place(store, _source())


def _place(store: Path, files: Mapping[str, bytes]) -> Path:
    """The folder of a snapshot of files, which are named by their paths in it."""
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name}\0".encode() + content + b"\0")
    return store / "code" / digest.hexdigest()[:20]


def _source() -> dict[str, bytes]:
    """The content of the files of the package, by path in the snapshot. Read once: the user may be editing them."""
    return {name: path.read_bytes() for name, path in _source_files()}


def _source_files() -> Iterator[tuple[str, Path]]:
    """The files of the package: the path in the snapshot, and the path of the original."""
    for path in _folder("retain").glob("*.py"):
        yield f"retain/{path.name}", path
    for room in ROOMS:
        folder = _folder(f"retain.{room}")
        for path in folder.rglob("*"):
            if path.suffix in SUFFIXES and path.is_file() and "__pycache__" not in path.parts:
                yield f"retain/{room}/{path.relative_to(folder)}", path


def _folder(package: str) -> Path:
    """The folder of an importable package, which is not imported."""
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _commit() -> dict[str, str | None]:
    """The git commit of the code, and the uncommitted changes; None if git does not know them."""
    commit = git("rev-parse", "HEAD")
    return {"commit": commit and commit.strip(), "diff": git("diff", "HEAD", "--", "retain", *ROOMS)}


def git(*arguments: str) -> str | None:
    """What a git command prints in the folder of this code; None if git is missing, fails or does not answer."""
    command = ["git", "-C", str(_folder("retain.launchers").parent), *arguments]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=GIT_S).stdout
    except (OSError, subprocess.SubprocessError):
        return None
