"""The wheel, installed outside a checkout beside packages that have the names of Retain's folders."""

from pathlib import Path

import pytest

from tests.studies import tiny_study
from tests.wheel import Installed, install_wheel

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Installed:
    return install_wheel(tmp_path_factory.mktemp("wheel"))


def test_the_wheel_brings_the_package_and_nothing_else_to_the_top_of_site_packages(installed: Installed) -> None:
    code = "from importlib.metadata import files; print(*{file.parts[0] for file in files('retain-lm')})"
    tops = {name for name in installed.call("python", "-c", code).split() if not name.endswith(".dist-info")}
    assert tops == {"retain", ".."}  # the script in bin
    where = installed.call("python", "-c", "import retain.sweeps; print(retain.sweeps.__file__)")
    assert str(installed.folder.parent / "venv") in where
    assert installed.call("retain", "--version").startswith("retain ")


def test_a_bare_install_plans_trains_and_reports_outside_a_checkout_and_names_what_a_search_lacks(
    installed: Installed,
) -> None:
    search = {"axes": {"finetune.lr": [5e-4]}}
    study = tiny_study(installed.folder / "study", grid={"pretrain.exposure": [1]}, search=search)
    assert installed.json("plan", study)["totals"]["stages"] == 3
    (trial,) = installed.json("run", study)["trials"]
    assert trial["retained_posttraining_loss"] > 0
    page = Path(installed.json("report", study)["report"])
    assert "<script>" in (installed.folder / page).read_text()
    assert installed.json("plan", "laptop")["totals"]["trials"] == 9
    lacking = installed.call("retain", "search", study, code=3)
    assert lacking == "retain: retain search: ray and optuna are not installed; run pip install 'retain-lm[search]'\n"
    assert [run["state"] for run in installed.json("status", study)["runs"]] == ["done"] * 3
