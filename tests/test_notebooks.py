"""The notebooks of `examples/`, run from the first cell to the last as a reader does, in one folder."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.retain import environment

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.mark.slow
def test_every_example_notebook_runs_and_draws_its_figure(tmp_path: Path) -> None:
    shutil.copy(EXAMPLES / "tiny.yaml", tmp_path)
    printed = {}
    for path in sorted(EXAMPLES.glob("*.ipynb")):  # first_study comes before two_methods, which reads its store
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert all(cell["outputs"] == [] for cell in cells), f"{path.name}: clear its outputs"
        (tmp_path / "cells.py").write_text("\n".join("".join(cell["source"]) for cell in cells))
        done = subprocess.run(
            [sys.executable, "cells.py"],
            cwd=tmp_path,
            env=environment({"MPLBACKEND": "Agg"}),
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{path.name}\n{done.stdout}\n{done.stderr}"
        printed[path.stem] = done.stdout
    assert "4 trials, 8 stages" in printed["first_study"]
    assert "16 stages, of which to train: 8" in printed["two_methods"]
    assert printed["two_methods"].count("L_ret differs by") == 2
    assert {path.name for path in tmp_path.glob("*.png")} == {"frontier.png", "differences.png"}
