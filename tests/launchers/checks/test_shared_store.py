"""A store that several people of a group share."""

import os
import re
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from retain.results.store.runs import Store
from tests.conftest import Trained
from tests.retain import environment, retain
from tests.studies import linear_study
from tests.users import COLLEAGUE, GROUP, MEMBER, NAMELESS, give_to, needs_root, retain_as

FINDINGS = """
import sys
from pathlib import Path
from retain.launchers.checks.doctor import sharing_findings
for finding in sharing_findings(Path(sys.argv[1])):
    print(finding.level, finding.what)
"""


def findings(store: Path, umask: int) -> str:
    """What the doctor says to a member of the group about sharing a store."""
    command = [*MEMBER, sys.executable, "-c", FINDINGS, str(store)]
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=True,
        env=environment(),
        umask=umask,
        cwd=Path(__file__).parents[3],
    ).stdout


@pytest.fixture(scope="module")
def half_trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A linear study, and a store whose group shares it: a colleague has trained half of the study there."""
    folder = tmp_path_factory.mktemp("shared")
    study, store = linear_study(folder / "mine", grid={"pretrain.exposure": [0, 1]}), folder / "runs"
    store.mkdir()
    os.chown(store, -1, GROUP)
    store.chmod(0o2775)
    retain_as(MEMBER, "run", study, "pretrain.exposure=0", "--store", store)
    give_to(COLLEAGUE, store)
    return study, store


@pytest.fixture
def shared(half_trained: tuple[Path, Path], tmp_path: Path) -> tuple[Path, Path]:
    """The study, and a copy of the store with the same owners and modes."""
    study, store = half_trained
    subprocess.run(["cp", "-a", store, tmp_path / "runs"], check=True)
    return study, tmp_path / "runs"


@pytest.mark.slow
@needs_root
def test_two_users_of_a_group_share_a_store(shared: tuple[Path, Path]) -> None:
    study, store = shared
    retain_as(MEMBER, "run", study, "--store", store)
    runs = Store(store).runs()
    assert {run.state().state for run in runs} == {"done"}
    assert {run.folder.stat().st_uid for run in runs} == {COLLEAGUE, os.getuid()}
    for path in (path for run in runs for path in (run.folder, *run.folder.rglob("*"))):
        mode = path.stat().st_mode
        assert path.stat().st_gid == GROUP, path
        wanted = stat.S_IRGRP if path.is_file() else stat.S_IRGRP | stat.S_IWGRP | stat.S_ISGID
        assert mode & wanted == wanted, path
    theirs = next(run.key for run in runs if run.folder.stat().st_uid == COLLEAGUE)
    for verb in (("results", study), ("report", study), ("verify",), ("pin", theirs), ("gc",)):
        retain_as(MEMBER, *verb, "--store", store)


@needs_root
def test_the_doctor_says_what_a_shared_store_needs(shared: tuple[Path, Path]) -> None:
    _, store = shared
    assert findings(store, 0o002).startswith("ok the group")
    assert "set umask 002" in findings(store, 0o022)
    hidden = Store(store).runs()[0].folder
    hidden.chmod(0o700)
    assert f"cannot read or write 1 place there, such as {hidden}; ask {COLLEAGUE}" in findings(store, 0o002)
    store.chmod(0o775)
    assert "chmod g+s" in findings(store, 0o002)
    store.chmod(0o755)
    assert "chgrp -R GROUP" in findings(store, 0o022)


@needs_root
def test_what_may_only_be_read_is_refused_in_one_sentence(shared: tuple[Path, Path]) -> None:
    study, store = shared
    key = Store(store).runs()[0].key
    for path in (store, *store.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)
    before = {path: path.stat().st_mtime_ns for path in store.rglob("*")}
    assert "L_ret" in retain_as(MEMBER, "results", study, "--store", store).stdout
    for verb in (("pin", key), ("run", study), ("report", study)):
        refused = retain_as(MEMBER, *verb, "--store", store, code=3).stderr
        assert refused.startswith("retain: "), refused
        assert refused.count("\n") == 1, refused
        assert "Permission denied" in refused
    assert before == {path: path.stat().st_mtime_ns for path in store.rglob("*")}


@pytest.mark.slow
@needs_root
def test_a_user_without_a_home_and_a_name_trains() -> None:
    # The folders of pytest are closed to others.
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        study = linear_study(folder, grid={})
        folder.chmod(0o777)
        retain_as(NAMELESS, "run", study, "--store", folder / "runs", without=["HOME"])
        assert {run.state().state for run in Store(folder / "runs").runs()} == {"done"}
        doctor = retain_as(NAMELESS, "doctor", "--store", folder / "runs", without=["HOME"], code=None).stdout
        assert re.search("^site +ok ", doctor, re.MULTILINE)


def test_weights_and_exports_have_the_mode_that_the_umask_gives(trained: Trained, tmp_path: Path) -> None:
    mask = os.umask(0)
    os.umask(mask)
    weights = [file for run in Store(trained.store).runs() for file in run.model.iterdir()]
    retain("export", Store(trained.store).runs()[0].key, "--store", trained.store, "--to", tmp_path / "exported")
    modes = {stat.S_IMODE(file.stat().st_mode) for file in [*weights, *(tmp_path / "exported").iterdir()]}
    assert modes == {0o666 & ~mask}
