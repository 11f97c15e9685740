"""In one store a name stands for one study, and a store is where the user says."""

from pathlib import Path

import pytest

import retain
from retain.launchers.cli.app import main
from retain.launchers.planning.opened_study import open_study, prepare_study
from retain.launchers.search.derived_studies import open_search
from retain.sweeps.base.errors import StudyError
from tests.studies import linear_study

SEARCH = {"axes": {"finetune.lr": [0.005, 0.01]}}


@pytest.fixture
def store(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def first(tmp_path: Path, store: Path) -> Path:
    """A study that has its data, and so its name, in the store."""
    path = linear_study(tmp_path / "first", study="s", search=SEARCH)
    prepare_study(str(path), ["pretrain.exposure=0"], store)
    return path


def test_another_study_of_the_same_name_is_refused_in_one_store(first: Path, store: Path, tmp_path: Path) -> None:
    other = linear_study(tmp_path / "other", study="s", search=SEARCH, **{"posttrain.time": 10})
    for action in (
        lambda: open_study(str(other), [], store),
        lambda: prepare_study(str(other), [], store),
        lambda: open_search(str(other), [], store, None),
        lambda: retain.status(str(other), store=store),
    ):
        with pytest.raises(StudyError) as caught:
            action()
        assert str(caught.value) == (
            f"s.yaml: study: another study named s, {first}, has its results in {store}; give this one another name, as in "
            "study=NAME, or another --store"
        )
    assert prepare_study(str(other), ["study=t"], store).tree.study == "t"
    assert prepare_study(str(other), [], tmp_path / "elsewhere").tree.study == "s"


def test_a_study_keeps_its_name_when_it_is_edited_copied_or_moved(first: Path, store: Path, tmp_path: Path) -> None:
    copy = linear_study(tmp_path / "copy", study="s", search=SEARCH, execution={"devices": 1})
    prepare_study(str(copy), [], store)
    prepare_study(str(first), ["seed=[0, 1]"], store)
    linear_study(first.parent, study="s", **{"finetune.time": 10})
    prepare_study(str(first), [], store)
    moved = first.rename(tmp_path / "moved.yaml")
    prepare_study(str(moved), [], store)
    moved.write_text(f"{moved.read_text()}seed: 8\n")
    prepare_study(str(moved), [], store)


def test_a_damaged_note_of_the_owner_of_a_name_is_replaced(first: Path, store: Path) -> None:
    for damage in ("", "null", "[]", '{"path": 1}'):
        (store / "studies" / "s" / "study.json").write_text(damage)
        prepare_study(str(first), [], store)
        assert '"format": 1' in (store / "studies" / "s" / "study.json").read_text()


def test_studies_of_one_name_are_not_planned_together_and_one_study_is_planned_once(tmp_path: Path) -> None:
    one = linear_study(tmp_path / "one", study="s")
    two = linear_study(tmp_path / "two", study="s", **{"posttrain.time": 10})
    with pytest.raises(
        StudyError, match=r"two/s\.yaml: study: .*one/s\.yaml is another study with the same name, s; give one"
    ):
        retain.plan([str(one), str(two)], store=tmp_path / "runs")
    plan = retain.plan([str(one), str(one)], store=tmp_path / "runs")
    assert (plan.study, len(plan.studies), plan.totals.trials) == ("s", 1, 4)
    copy = linear_study(tmp_path / "copy", study="s")
    assert retain.plan([str(one), str(copy)], store=tmp_path / "runs").study == "s"


def test_a_store_may_be_below_the_home_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(linear_study(tmp_path))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.delenv("RETAIN_STORE", raising=False)
    assert main(["data", study, "--store", "~/runs"]) == 0
    monkeypatch.setenv("RETAIN_STORE", "~/more")
    assert main(["data", study]) == 0
    retain.run(study, ["finetune.lr=0.01"], store="~/api")
    assert {"runs", "more", "api"} <= {path.name for path in (tmp_path / "home").iterdir()}
    assert not (tmp_path / "~").exists()
    assert capsys.readouterr().err.count("Traceback") == 0


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["plan", "STUDY", "--store", ""], "--store '': an empty word; write a value, or leave it out"),
        (["plan", "STUDY", "--store="], "--store=: an empty word"),
        (["plan", "STUDY", ""], "STUDY '': an empty word"),
        (["plan", "STUDY", "--device", " "], "--device ' ': an empty word"),
        (["status", ""], "status '': an empty word"),
        (["plan", "STUDY", " finetune.lr = 1e-4"], "' finetune.lr = 1e-4': spaces around the word; remove them"),
        (["plan", "STUDY", "finetune.lr = 1e-4"], "'finetune.lr = 1e-4': spaces or an empty name in the path"),
        (["plan", "STUDY", "--store", "a" * 300], "--store 'aaa"),
        (
            ["plan", "STUDY", "--store", "~nobody-here/runs"],
            "--store '~nobody-here/runs': the home folder of ~ is unknown",
        ),
        (["plan", "a" * 300], "aaaa"),
        (["status", "a" * 300], "aaaa"),
    ],
)
def test_an_empty_padded_or_impossible_word_is_one_sentence(
    words: list[str], sentence: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = str(linear_study(tmp_path))
    assert main([study if word == "STUDY" else word for word in words]) in (2, 3)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"retain: {sentence.replace('STUDY', study)}")


def test_an_override_may_be_as_long_as_a_list_of_120_seeds(tmp_path: Path) -> None:
    seeds = f"seed={list(range(120))}"
    assert main(["plan", str(linear_study(tmp_path)), seeds, "--store", str(tmp_path / "runs")]) == 0
