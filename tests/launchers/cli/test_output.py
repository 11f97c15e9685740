"""What a user names as output is written as any program does, and output that is lost changes no work."""

import os
import subprocess
import threading
from pathlib import Path

import pytest

from retain.launchers.cli.app import main
from retain.launchers.cli.streams import Output
from retain.results.store.runs import Store
from tests.retain import COMMAND, environment, train_here
from tests.studies import linear_study

HEADER = "pretrain.exposure,finetune.lr,immediate_posttraining_loss,"


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a linear study and its store."""
    folder = tmp_path_factory.mktemp("output")
    train_here(linear_study(folder), folder / "runs")
    return folder


def shell(place: Path, script: str, **more: str) -> subprocess.CompletedProcess[str]:
    """Run a script of bash in a folder, where `retain` is the command."""
    head = f'set -o pipefail; retain() {{ {" ".join(COMMAND)} "$@"; }}\n'
    variables = environment(
        {"PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[3]), *more.pop("path", [])]), **more}
    )
    return subprocess.run(
        ["bash", "-c", head + script],
        cwd=place,
        capture_output=True,
        text=True,
        env=variables,
        timeout=300,
        check=False,
    )


def csv(place: Path, target: Path) -> int:
    return main(["results", str(place / "linear.yaml"), "--store", str(place / "runs"), "--csv", str(target)])


def test_standard_output_has_either_the_csv_or_the_document(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    study, store = str(place / "linear.yaml"), str(place / "runs")
    assert main(["results", study, "--store", store, "--csv", "-", "--json"]) == 2
    printed = capsys.readouterr()
    assert printed.err.startswith(
        "retain: --csv -: with --json, standard output has the document; write the CSV to a file"
    )
    assert printed.out == ""


def test_a_link_keeps_its_target_and_gets_the_rows(place: Path, tmp_path: Path) -> None:
    (tmp_path / "rows.csv").symlink_to(tmp_path / "kept.csv")
    assert csv(place, tmp_path / "rows.csv") == 0
    assert (tmp_path / "rows.csv").is_symlink()
    assert (tmp_path / "kept.csv").read_text().startswith(HEADER)


def test_a_pipe_stays_a_pipe_and_its_reader_gets_the_rows(place: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    got: list[str] = []
    reader = threading.Thread(target=lambda: got.append((tmp_path / "pipe").read_text()), daemon=True)
    reader.start()
    assert csv(place, tmp_path / "pipe") == 0
    reader.join(20)
    assert got[0].startswith(HEADER)
    assert (tmp_path / "pipe").is_fifo()


@pytest.mark.parametrize(
    ("target", "why"), [("/dev/full", "No space left"), (".", "Is a directory"), ("no/where", "No such file")]
)
def test_rows_that_cannot_be_written_are_one_sentence(
    place: Path, target: str, why: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert csv(place, Path(target)) == 3
    error = capsys.readouterr().err
    assert error.startswith(f"retain: --csv {target}: cannot be written ({why}")
    assert error.count("\n") == 1
    assert Path("/dev/full").is_char_device()


@pytest.mark.parametrize("target", ["/dev/stdout", "-"])
def test_rows_and_table_share_standard_output(place: Path, target: str) -> None:
    done = shell(place, f"retain results linear.yaml finetune.lr=0.005 --csv {target} > both.txt")
    assert done.returncode == 0, done.stderr
    text = (place / "both.txt").read_text()
    assert text.startswith(HEADER.replace("finetune.lr,", ""))
    assert "L_im" in text
    assert not (place / "-").exists()


def test_a_tilde_that_the_shell_leaves_is_the_home_folder(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    store = ["--store", str(place / "runs")]
    assert main(["results", str(place / "linear.yaml"), "finetune.lr=0.005", "--csv=~/rows.csv", *store]) == 0
    assert (tmp_path / "rows.csv").exists()
    assert main(["export", Store(place / "runs").runs()[0].key, "--to=~nobody-here/x", *store]) == 2


def test_a_reader_that_closes_the_pipe_changes_no_exit_code(place: Path) -> None:
    for verb in ("status", "status --json"):
        done = shell(place, f"retain {verb} | true")
        assert (done.returncode, done.stderr) == (0, ""), verb


def test_a_full_standard_output_is_one_sentence(place: Path) -> None:
    for verb in ("status", "status --json"):
        done = shell(place, f"retain {verb} > /dev/full")
        assert done.returncode == 3
        assert done.stderr == "retain: standard output cannot be written (No space left on device)\n"


@pytest.mark.parametrize("streams", [pytest.param("2> /dev/full", marks=pytest.mark.slow), "<&- >&- 2>&-"])
def test_training_needs_no_standard_streams(tmp_path: Path, streams: str) -> None:
    linear_study(tmp_path, grid={})
    assert shell(tmp_path, f"retain run linear.yaml {streams}").returncode == 0
    assert [run.state().state for run in Store(tmp_path / "runs").runs()] == ["done"] * 3


def test_a_terminal_that_another_program_made_non_blocking_gets_everything() -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    content = bytes(range(256)) * 2000  # more than a pipe holds
    got = bytearray()

    def read() -> None:
        while block := os.read(reading, 1000):
            got.extend(block)

    reader = threading.Thread(target=read)
    reader.start()
    with open(writing, "wb", buffering=0), Output(writing, "w", closefd=False) as raw:
        left = memoryview(content)
        while left:
            left = left[raw.write(left) :]
        assert raw.error is None
    reader.join()
    assert bytes(got) == content


def test_a_deleted_working_directory_is_one_sentence(place: Path) -> None:
    done = shell(place, "mkdir gone; cd gone; rmdir ../gone; retain plan laptop")
    assert done.returncode == 3
    assert done.stderr == "retain: the working directory has been deleted; change to another folder\n"


def test_python_without_docstrings_is_refused(place: Path) -> None:
    done = shell(place, "retain status", PYTHONOPTIMIZE="2")
    assert done.returncode == 3
    assert "unset PYTHONOPTIMIZE" in done.stderr


def test_names_and_signs_that_the_locale_lacks_are_printed(place: Path) -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    script = "cp linear.yaml étude.yaml; retain run étude.yaml; retain plan só.yaml; retain status --store dépôt"
    done = shell(place, script, **ascii_only)
    assert "L_ret" in done.stdout
    assert "\\u2016" in done.stdout  # ‖
    assert "só.yaml: not found" in done.stderr
    assert "retain: --store dépôt: this locale cannot read all bytes of the path" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_study_in_a_folder_whose_name_is_no_text_is_trained_reported_and_checked(tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"caf\xe9")
    study, store = str(linear_study(folder, grid={})), ["--store", str(tmp_path / "runs")]
    train_here(Path(study), tmp_path / "runs")
    for verb in ("report", "status", "verify", "gc", "cancel"):
        assert main([verb, study, *store]) == 0, verb
