"""Invalid input is one sentence with the field and the cure, with exit code 2 or 3; nothing is started or left behind."""

from pathlib import Path

import pytest

from retain.launchers.cli.app import main
from tests.results.runs import registered
from tests.retain import retain_here
from tests.studies import linear_study, tiny_study

INVALID_STUDIES = {
    "unknown field": (["pretrain.exposur=0.5"], 2, ["pretrain.exposur", "did you mean exposure"]),
    "unknown section": (["pretrian.lr=1"], 2, ["pretrian", "did you mean pretrain"]),
    "exposure beyond one pass": (["pretrain.exposure=1.5"], 2, ["pretrain.exposure", "1.5", "repeat"]),
    "negative exposure": (["pretrain.exposure=-1"], 2, ["pretrain.exposure", "at least 0"]),
    "invalid point of the grid": (["finetune.lr=[1e-3, -1]"], 2, ["finetune.lr", "greater than 0"]),
    "not a size": (["pretrain.tokens=many"], 2, ["pretrain.tokens", "300M"]),
    "not an override": (["exposure"], 2, ["path=value"]),
    "corpus not listed": (["pretrain.corpus=books"], 2, ["pretrain.corpus", "general"]),
    "batch not divided": (["execution.devices=3"], 2, ["pretrain.batch", "execution.devices"]),
    "warm-up too long": (["finetune.warmup=999"], 2, ["finetune.warmup", "shorten"]),
    "missing device": (["execution.accelerator=gpu"], 3, ["execution.devices", "cpu"]),
    "missing file": (["corpora.general.files=nowhere.txt"], 3, ["nowhere.txt", "correct the path"]),
    "corpus too small": (["pretrain.tokens=9M"], 2, ["pretrain.tokens", "general", "lower the budget"]),
    "held-out split empty": (["corpora.music.heldout=1e-9"], 2, ["corpora.music.heldout", "raise the share"]),
    "too few tokeniser entries": (["tokenizer.train=20"], 2, ["tokenizer.train", "300"]),
}


@pytest.mark.parametrize("case", INVALID_STUDIES)
def test_an_invalid_study_is_refused_with_the_field_and_the_cure(case: str, tmp_path: Path) -> None:
    overrides, code, words = INVALID_STUDIES[case]
    study = tiny_study(tmp_path / "study")
    refused = retain_here("run", study, *overrides, "--store", tmp_path / "runs", code=code)
    assert_one_sentence(refused.stderr, words)
    assert refused.stdout == ""
    assert not list((tmp_path / "runs").glob("*/stage.json"))
    assert not (tmp_path / "runs" / "building").exists() or not list((tmp_path / "runs" / "building").iterdir())


def test_an_unknown_study_is_refused_with_the_nearest_name() -> None:
    assert_one_sentence(retain_here("plan", "labtop", code=2).stderr, ["labtop", "did you mean laptop"])


def test_a_file_with_invalid_yaml_is_refused(tmp_path: Path) -> None:
    wrong = tmp_path / "wrong.yaml"
    wrong.write_text("pretrain: {lr: 1\n")
    assert_one_sentence(retain_here("plan", wrong, code=2).stderr, ["wrong.yaml", "invalid YAML"])
    wrong.write_text("seed: 1\nseed: 2\n")
    assert_one_sentence(retain_here("plan", wrong, code=2).stderr, ["seed", "twice"])


def test_a_store_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    study = tiny_study(tmp_path / "study")
    refused = retain_here("run", study, "--store", tmp_path / "file" / "runs", code=3)
    assert_one_sentence(refused.stderr, ["--store", "is a file", "RETAIN_STORE"])


@pytest.mark.parametrize(
    ("arguments", "page"),
    [
        (["plan"], "retain plan --help"),
        (["why", "laptop"], "retain why --help"),
        (["plann", "laptop"], "retain --help"),
        (["plan", "laptop", "--devise", "H100"], "retain plan --help"),
        (["power", "laptop", "--most", "1"], "retain power --help"),
    ],
)
def test_an_unknown_verb_or_option_is_refused_with_code_2_and_names_its_page_of_help(
    arguments: list[str], page: str
) -> None:
    assert_one_sentence(retain_here(*arguments, code=2).stderr, [f"; see {page}"])


def test_an_unknown_device_is_refused() -> None:
    assert_one_sentence(retain_here("plan", "laptop", "--device", "TPU", code=2).stderr, ["TPU", "H100"])


def assert_one_sentence(stderr: str, words: list[str]) -> None:
    lines = [line for line in stderr.strip().splitlines() if "preparing" not in line]
    assert len(lines) == 1, stderr
    assert lines[0].startswith("retain: ")
    assert "Traceback" not in stderr
    for word in words:
        assert word in lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["status", "--watch", "--json"], ["--json", "--watch"]),
        (["submit", "--dry-run", "--json"], ["--json", "--dry-run"]),
        (["submit", "--launcher", "local", "--json"], ["--json", "--launcher local"]),
        (["submit", "--launcher", "local", "--site", "north"], ["--site north", "--launcher local"]),
        (["data", "--site", "north"], ["--site north", "--launcher local"]),
        (["data", "--check", "--download-only"], ["--check: cannot be combined with --download-only"]),
        (["data", "--check", "--show", "music"], ["--check: cannot be combined with --show"]),
        (["data", "--download-only", "--show", "music"], ["--download-only: cannot be combined with --show"]),
        (["data", "--check", "--launcher", "slurm"], ["--check: cannot be combined with --launcher slurm"]),
        (["data", "--show", "music", "--launcher", "slurm"], ["--show: cannot be combined with --launcher slurm"]),
        (["drill", "--site", "north"], ["--site north", "--launcher local"]),
        (["search", "--site", "north"], ["--site north", "--launcher ray"]),
        (["retry", "--site", "north"], ["--site north", "needs SLURM"]),
    ],
    ids=lambda given: " ".join(given),
)
def test_an_option_that_would_do_nothing_is_refused(
    arguments: list[str],
    words: list[str],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("PATH", "/nowhere")  # without SLURM
    verb, *options = arguments
    assert main([verb, str(linear_study(tmp_path)), "--store", str(tmp_path / "runs"), *options]) == 2
    assert_one_sentence(capsys.readouterr().err, words)
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["retry", "--site", "north"], ["--site north", "of a study"]),
        (["retry", "finetune.lr=1"], ["finetune.lr=1: overrides change a study"]),
        (["cancel", "finetune.lr=1"], ["finetune.lr=1: overrides change a study"]),
    ],
    ids=lambda given: " ".join(given),
)
def test_what_can_only_be_asked_of_a_study_is_refused_for_a_run(
    arguments: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree, store = registered(tmp_path / "runs")
    verb, *more = arguments
    assert main([verb, tree.trials[0].leaf, *more, "--store", str(store.root)]) == 2
    assert_one_sentence(capsys.readouterr().err, words)
    assert {run.state().state for run in store.runs()} == {"planned"}
