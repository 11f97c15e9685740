"""The wheel in an environment of its own."""

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.retain import environment

ROOT = Path(__file__).parents[1]
CLASHING = ("sweeps", "results", "launchers", "datamodules", "lightning_modules")

EXTRAS = ("ray", "optuna", "wandb", "trackio")
HIDING = """
import sys
from importlib.machinery import PathFinder


class Finder(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.partition(".")[0] in {hidden} else super().find_spec(name, path, target)


sys.meta_path[sys.meta_path.index(PathFinder)] = Finder
"""
"""A sitecustomize.py that hides the packages of Retain's extras, as in an installation without them."""


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and a folder to work in."""

    python: Path
    folder: Path

    def call(self, *command: str | Path, more: Mapping[str, str] | None = None, code: int = 0) -> str:
        """What a command of this environment prints, on standard error if it must fail with a code."""
        done = subprocess.run(
            [str(self.python.with_name(str(command[0]))), *map(str, command[1:])],
            cwd=self.folder,
            env=environment(more),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == code, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stderr if code else done.stdout

    def json(self, *command: str | Path, more: Mapping[str, str] | None = None) -> Any:
        return json.loads(self.call("retain", *command, "--json", more=more))


def install_wheel(folder: Path) -> Installed:
    """The wheel in a new environment, which also sees the packages that Retain itself depends on, and modules in the way."""
    # A copy of what git tracks, as files left over from other builds would be packed too.
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    for name in listed.stdout.splitlines():
        if (ROOT / name).exists():
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / "source" / name)
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    build = [*pip, "wheel", "--no-deps", "--wheel-dir", str(folder / "dist"), str(folder / "source")]
    subprocess.run(build, check=True)
    shutil.rmtree(folder / "source")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder / "venv")], check=True)
    python = folder / "venv" / "bin" / "python"
    (wheel,) = (folder / "dist").glob("retain_lm-*.whl")
    subprocess.run([*pip, "--python", str(python), "install", "--no-deps", str(wheel)], check=True)
    site = Path(sysconfig.get_path("purelib", vars={"base": str(folder / "venv"), "platbase": str(folder / "venv")}))
    (site / "dependencies.pth").write_text(f"{sysconfig.get_path('purelib')}\n")
    (site / "sitecustomize.py").write_text(HIDING.format(hidden=EXTRAS))
    (folder / "work").mkdir()
    for name in CLASHING:
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("raise ImportError('a package of somebody else')\n")
        (folder / "work" / f"{name}.py").write_text("raise ImportError('a module of the user')\n")
    return Installed(python, folder / "work")
