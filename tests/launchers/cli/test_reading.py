"""Reading a store changes nothing that somebody else reads there."""

import json
import shutil
from pathlib import Path

import pytest

import retain
from retain.launchers.cli.app import main
from retain.launchers.planning.opened_study import open_study
from retain.results.store.study_files import LONGEST_NAME, study_folder
from retain.results.tensorboard.views import link_runs
from tests.conftest import Trained
from tests.retain import retain_here as printed_by
from tests.retain import retain_json
from tests.studies import leave_out, linear_study, tiny_study

CUT = "pretrain.exposure=0"


@pytest.fixture(scope="module")
def ran(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A linear study, and its store after `retain run` and `retain report`."""
    folder = tmp_path_factory.mktemp("reading")
    study, store = linear_study(folder), folder / "runs"
    retain.run(str(study), store=store)
    assert main(["report", str(study), "--store", str(store)]) == 0
    return study, store


def files(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_results_with_overrides_are_only_printed(ran: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    study, store = ran
    before = files(store)
    assert main(["results", str(study), CUT, "--store", str(store), "--json"]) == 0
    document = json.loads(capsys.readouterr().out)
    assert (len(document["trials"]), document["files"]) == (2, [])
    assert files(store) == before
    assert len(retain.load("linear", store)) == 4


def test_rows_that_are_not_shown_are_said_to_be_where_they_are(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = linear_study(tmp_path, **{"pretrain.time": 1, "posttrain.time": 1, "finetune.time": 1})
    call = [str(study), "--store", str(tmp_path / "runs")]
    for verb, where in (
        ("run", f"in {study_folder(tmp_path / 'runs', 'linear') / 'losses.csv'}"),
        ("results", "with --csv"),
    ):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("retain.launchers.cli.views.results.MOST_ROWS", 3)
            assert main([verb, *call]) == 0
        assert f"1 more trial {where}" in capsys.readouterr().out


def test_results_count_the_trials_that_are_missing(ran: tuple[Path, Path], capsys: pytest.CaptureFixture[str]) -> None:
    study, store = ran
    for overrides, said in (([], False), (["seed=[0,7]"], True)):
        assert main(["results", str(study), *overrides, "--store", str(store)]) == 0
        assert ("4 of 8 trials are missing" in capsys.readouterr().out) == said


def test_a_report_with_overrides_leaves_that_of_the_study(
    ran: tuple[Path, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    study, store = ran
    before = files(store)
    assert main(["report", str(study), CUT, "--store", str(store)]) == 0
    page = Path(capsys.readouterr().out.strip())
    assert page == store / "studies" / "linear" / "with" / CUT / "report.html"
    after = files(store)
    assert {path: after[path] for path in before} == before
    assert set(after) - set(before) == set(files(page.parent))


def test_a_view_with_overrides_leaves_that_of_the_study(ran: tuple[Path, Path]) -> None:
    study, store = ran
    opened = open_study(str(study), [CUT], store)
    whole = store / "studies" / "linear" / "tensorboard"
    shown = set(whole.iterdir())
    assert link_runs(opened.tree, opened.store, overrides=[CUT]) != whole
    assert set(whole.iterdir()) == shown


def test_the_table_outlives_the_data_that_it_was_made_from(trained: Trained, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    shutil.copytree(trained.store, store, symlinks=True)
    before = {name: (store / "studies" / "tiny" / name).read_bytes() for name in ("losses.csv", "trials.json")}
    for folder in ("tokenizers", "corpora", "prepared"):
        shutil.rmtree(store / folder)
    for verb in ("report", "results"):
        main([verb, str(trained.study), "--store", str(store)])
    assert before == {name: (store / "studies" / "tiny" / name).read_bytes() for name in before}
    assert not retain.load("tiny", store)["retained_posttraining_loss"].isna().any()


@pytest.mark.parametrize("verb", ["status", "results", "report"])
def test_keys_of_unprepared_data_are_said_to_be_provisional(verb: str, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    for store, missing in (("none", "none not found, so stage keys"), ("empty", "not prepared in")):
        error = printed_by(verb, tiny_study(tmp_path), "--store", tmp_path / store).stderr
        assert missing in error
        assert "stage keys are provisional" in error
        assert error.count("\n") == 1


def test_every_document_about_a_study_names_it_as_its_file_does(trained: Trained) -> None:
    for verb in ("plan", "status", "results", "verify"):
        assert retain_json(verb, trained.study, "--store", trained.store)["study"] == "tiny"


def test_a_plan_says_that_evaluations_on_unprepared_corpora_are_not_counted_yet(tmp_path: Path) -> None:
    study = tiny_study(tmp_path, **{"finetune.average": 0.5})
    said = printed_by("plan", study, "--store", tmp_path / "runs").stdout
    assert "0 tokens, 0 FLOPs; corpora that are not prepared count as 0" in said


@pytest.mark.parametrize("verb", ["plan", "status", "results", "report", "verify"])
def test_a_store_that_is_a_file_is_refused_in_one_sentence(verb: str, tmp_path: Path) -> None:
    store = tmp_path / "store"
    store.write_text("")
    error = printed_by(verb, tiny_study(tmp_path), "--store", store, code=3).stderr
    assert error == f"retain: --store {store}: {store} is a file; choose another with --store or RETAIN_STORE\n"


@pytest.mark.parametrize(
    ("stages", "losses"),
    [
        (["pretrain", "posttrain"], ["L_im", "L_pre"]),
        (["pretrain", "decay"], ["pretrain/general", "decay/general"]),
    ],
)
def test_a_chain_with_no_loss_of_the_paper_but_l_pre_shows_the_loss_matrix(
    stages: list[str], losses: list[str], tmp_path: Path
) -> None:
    decay = {"corpus": "general", "tokens": 1280, "lr": 1e-3, "batch": 8}
    study = tiny_study(tmp_path, stages=stages, grid={}, **({"decay": decay} if "decay" in stages else {}))
    leave_out(study, *{"posttrain", "finetune"}.difference(stages))
    header = printed_by("results", study, "--store", tmp_path / "none").stdout.splitlines()[0].split()
    assert header == [*losses, "tokens"]


def test_a_loss_that_the_chain_does_not_have_is_refused_with_those_that_it_has(tmp_path: Path) -> None:
    study = leave_out(tiny_study(tmp_path, stages=["pretrain", "posttrain"], grid={}), "finetune")
    for option, verb, asked in (("--losses", "results", "L_ret"), ("--plane", "report", "L_ret,L_im")):
        said = printed_by(verb, study, "--store", tmp_path / "none", option, asked, code=2).stderr
        assert "unknown loss 'L_ret'" in said
        assert "the losses of this study are L_im, L_pre, pretrain/general, " in said


def test_load_reads_what_the_store_has_now(ran: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    study, store = ran
    monkeypatch.setenv("RETAIN_STORE", str(store))
    assert len(retain.load(str(study))) == 4
    assert len(retain.load(str(study), overrides=[CUT])) == 2
    more = retain.load(str(study), overrides=["seed=[0, 1]"])
    assert more["finetuning_loss"].isna().tolist() == [seed == 1 for seed in more["seed"]]


def test_load_says_what_is_missing(ran: tuple[Path, Path], tmp_path: Path) -> None:
    with pytest.raises(
        FileNotFoundError, match=r"mine/trials.json: not found \(there are linear\); name the study's file"
    ):
        retain.load("mine", ran[1])
    with pytest.raises(FileNotFoundError, match=r"store .*absent not found; name another with store= or RETAIN_STORE"):
        retain.load("linear", tmp_path / "absent")
    with pytest.warns(UserWarning, match="not prepared"):
        retain.load(str(tiny_study(tmp_path)), tmp_path)


def test_folders_for_many_overrides_have_names_of_their_own(tmp_path: Path) -> None:
    many = [study_folder(tmp_path, "s", [f"seed={list(range(count))}"]) for count in (200, 201)]
    assert len(set(many)) == 2
    assert all(len(folder.name.encode()) <= LONGEST_NAME for folder in many)
