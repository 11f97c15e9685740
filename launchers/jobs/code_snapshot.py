"""The code that queued jobs run: a copy of the package, made at submission and named after its content."""

import hashlib
import importlib.util
import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from retain.sweeps.base.files import sync_folder, write_json

ROOMS = ("sweeps", "datamodules", "lightning_modules", "launchers", "results")
"""Folders that lie beside the package in a checkout, and inside it where it is installed."""
SUFFIXES = (".py", ".yaml", ".yml", ".json")


def snapshot_code(store: Path) -> Path:
    """Copy the running code into `<store>/code/<digest>`, once for the same content; returns the folder.

    commit.json in it holds the git commit and the difference from it, if git knows them.
    """
    digest = hashlib.sha256()
    files = sorted(_source_files())
    for name, path in files:
        digest.update(f"{name}\0".encode() + path.read_bytes() + b"\0")
    place = store / "code" / digest.hexdigest()[:20]
    if place.is_dir():
        return place
    beside = place.with_name(f".{place.name}.{os.getpid()}.{os.urandom(3).hex()}")
    for name, path in files:
        (beside / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, beside / name)
    write_json(beside / "commit.json", _commit())
    sync_folder(beside)
    try:
        beside.rename(place)
    except OSError:
        shutil.rmtree(beside)
        if not place.is_dir():
            raise
    return place


def _source_files() -> Iterator[tuple[str, Path]]:
    for path in _folder("retain").glob("*.py"):
        yield f"retain/{path.name}", path
    for room in ROOMS:
        folder = _folder(f"retain.{room}")
        for path in folder.rglob("*"):
            if path.suffix in SUFFIXES and path.is_file() and "__pycache__" not in path.parts:
                yield f"retain/{room}/{path.relative_to(folder)}", path


def _folder(package: str) -> Path:
    spec = importlib.util.find_spec(package)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


def _commit() -> dict[str, str | None]:
    """The commit of the working tree of the code, and the difference from it."""
    root = _folder("retain.launchers").parent

    def git(*arguments: str) -> str | None:
        try:
            done = subprocess.run(
                ["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False, timeout=30
            )
        except (FileNotFoundError, subprocess.TimeoutExpired):
            return None
        return done.stdout if done.returncode == 0 else None

    commit = git("rev-parse", "HEAD")
    return {"commit": commit and commit.strip(), "diff": git("diff", "HEAD", "--", "retain", *ROOMS)}
