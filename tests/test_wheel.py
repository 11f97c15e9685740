"""The wheel, installed outside a checkout beside packages that have the names of Retain's folders."""

import json
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.retain import environment
from tests.slurm.cluster.cluster import Cluster, wait_until
from tests.slurm.cluster.jobs import queue
from tests.studies import linear_study, tiny_study

ROOT = Path(__file__).parents[1]
CLASHING = ("sweeps", "results", "launchers", "datamodules", "lightning_modules")
pytestmark = pytest.mark.slow


@dataclass(frozen=True)
class Installed:
    """An environment with the wheel, and a folder to work in."""

    python: Path
    folder: Path

    def call(self, *command: str | Path, more: Mapping[str, str] | None = None) -> str:
        """What a command of this environment prints; it must succeed."""
        done = subprocess.run(
            [str(self.python.with_name(str(command[0]))), *map(str, command[1:])],
            cwd=self.folder,
            env=environment(more),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        return done.stdout

    def json(self, *command: str | Path, more: Mapping[str, str] | None = None) -> Any:
        return json.loads(self.call("retain", *command, "--json", more=more))


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    """The wheel in a new environment, which also sees the packages that Retain depends on, and modules in the way."""
    folder = tmp_path_factory.mktemp("wheel")
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
    (folder / "work").mkdir()
    for name in CLASHING:
        (site / name).mkdir()
        (site / name / "__init__.py").write_text("raise ImportError('a package of somebody else')\n")
        (folder / "work" / f"{name}.py").write_text("raise ImportError('a module of the user')\n")
    return Installed(python, folder / "work")


def test_the_wheel_brings_the_package_and_nothing_else_to_the_top_of_site_packages(installed: Installed) -> None:
    code = "from importlib.metadata import files; print(*{file.parts[0] for file in files('retain-lm')})"
    tops = {name for name in installed.call("python", "-c", code).split() if not name.endswith(".dist-info")}
    assert tops == {"retain", ".."}  # the script in bin
    where = installed.call("python", "-c", "import retain.sweeps; print(retain.sweeps.__file__)")
    assert str(installed.folder.parent / "venv") in where
    assert installed.call("retain", "--version").startswith("retain ")


def test_a_study_is_planned_trained_and_reported_outside_a_checkout(installed: Installed) -> None:
    study = tiny_study(installed.folder / "study", grid={"pretrain.exposure": [1]})
    assert installed.json("plan", study)["totals"]["stages"] == 3
    (trial,) = installed.json("run", study)["trials"]
    assert trial["retained_posttraining_loss"] > 0
    page = Path(installed.json("report", study)["report"])
    assert "<script>" in (installed.folder / page).read_text()
    assert installed.json("plan", "laptop")["totals"]["trials"] == 9


@pytest.mark.slurm
def test_a_slurm_job_runs_the_installed_package(installed: Installed, slurm: Cluster) -> None:
    study = linear_study(installed.folder / "linear", execution={"accelerator": "cpu", "slurm": {"minutes": 5}})
    installed.json("submit", study, more=slurm.environment)
    wait_until(lambda: not queue(slurm), "queue empty", 120)
    rows = installed.json("status", study, more=slurm.environment)["runs"]
    assert {row["state"] for row in rows} == {"done"}
