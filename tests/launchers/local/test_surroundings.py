"""`retain run` where the user's own surroundings are in its way."""

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from retain.launchers.stage.signals import ALL_SIGNALS, StopRequest
from retain.results.store.runs import Store
from tests.retain import environment, retain
from tests.studies import linear_study

OWN = "import pathlib\npathlib.Path(__file__).with_suffix('.imported').touch()\n"
"""A module of the user's that leaves a file when it is imported."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a linear study, and with modules named like those of Python, of libraries and of Retain."""
    folder = tmp_path_factory.mktemp("mine")
    linear_study(folder, grid={"pretrain.exposure": [1]})
    for place, names in (
        (folder, ["token", "random", "results", "numpy", "torch"]),
        (folder / "src", ["numpy", "torch"]),
    ):
        place.mkdir(exist_ok=True)
        for name in names:
            (place / f"{name}.py").write_text(OWN)
    return folder


def test_modules_of_the_user_replace_none_of_python_libraries_or_retain(folder: Path, tmp_path: Path) -> None:
    """The temporary folder has too long a name for sockets as well."""
    long = tmp_path / ("long" * 25)
    long.mkdir()
    # As the console script starts it: without the current folder in the path.
    command = [
        sys.executable,
        "-P",
        "-m",
        "retain.launchers.cli.app",
        "run",
        "linear.yaml",
        "--store",
        str(tmp_path / "runs"),
    ]
    own = environment({"PYTHONPATH": str(folder / "src"), "TMPDIR": str(long)})
    done = subprocess.run(command, cwd=folder, env=own, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert not list(folder.rglob("*.imported"))
    assert {run.state().state for run in Store(tmp_path / "runs").runs()} == {"done"}


@pytest.mark.parametrize(
    ("broken", "code", "where"),
    [("raise ImportError('half installed')", 1, "log"), ("raise OSError('half installed')", 3, "terminal")],
)
def test_a_worker_that_cannot_start_says_why_where_its_message_says(
    broken: str, code: int, where: str, tmp_path: Path
) -> None:
    # An entry with installed packages is used, as module systems set it.
    (tmp_path / "site" / "broken.dist-info").mkdir(parents=True)
    (tmp_path / "site" / "safetensors.py").write_text(f"{broken}\n")
    study, store = linear_study(tmp_path, grid={"pretrain.exposure": [1]}), tmp_path / "runs"
    done = retain("run", study, "--store", store, code=code, more={"PYTHONPATH": str(tmp_path / "site")})
    if where == "terminal":
        assert "half installed" in done.stderr
        assert "worker processes cannot be started" in done.stderr.splitlines()[-1]
        return
    failed = next(run for run in Store(store).runs() if run.state().state == "failed")
    assert "half installed" in retain("logs", failed.key, "--store", store).stdout


def test_a_run_under_nohup_does_not_hear_that_its_terminal_closes() -> None:
    before = {number: signal.getsignal(number) for number in ALL_SIGNALS}
    try:
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        StopRequest().install()
        assert signal.getsignal(signal.SIGHUP) == signal.SIG_IGN
        signal.signal(signal.SIGHUP, signal.SIG_DFL)
        stop = StopRequest()
        stop.install()
        signal.raise_signal(signal.SIGHUP)
        assert stop.signal == "SIGHUP"
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
