"""Damaged files of a store: every verb names the file and the cure, and nothing is trained from it."""

import html
import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from retain.launchers.checks.verify import verify_store
from retain.launchers.cli.app import main
from retain.launchers.jobs.branches import skip_blocked
from retain.launchers.local.devices import Slot
from retain.launchers.local.launcher import WAITING, train
from retain.launchers.local.run import train_missing
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register
from retain.launchers.stage.failures import DAMAGE
from retain.results.store.lease import this_process
from retain.results.store.runs import Store
from retain.results.store.state import State
from retain.results.store.status import StatusReader
from retain.sweeps.schema.section import STAGE_KINDS
from tests.conftest import Trained
from tests.launchers.cli.test_bad_input import assert_one_sentence
from tests.retain import losses, retain_here, retain_json, train_here, weights
from tests.studies import linear_study, tiny_study


def first_run(store: Path, stage: str) -> Path:
    return next(run.folder for run in Store(store).runs() if run.spec()["stage"] == stage)


def empty_state(store: Path) -> Path:
    return empty(first_run(store, "posttrain") / "state.json")


def empty_losses(store: Path) -> Path:
    return empty(first_run(store, "posttrain") / "losses.json")


def empty_spec(store: Path) -> Path:
    return empty(first_run(store, "posttrain") / "stage.json")


def empty_tokenizer(store: Path) -> Path:
    for path in (store / "tokenizers").glob("*/tokenizer.json"):
        empty(path)
    return store / "tokenizers"


def empty(path: Path) -> Path:
    path.write_text("")
    return path


@pytest.fixture
def copied(trained: Trained, tmp_path: Path) -> Path:
    return Path(shutil.copytree(trained.store, tmp_path / "runs", symlinks=True))


@pytest.mark.parametrize("harm", [empty_state, empty_losses])
def test_a_damaged_file_is_named_with_the_cure(harm: Callable[[Path], Path], trained: Trained, copied: Path) -> None:
    place = harm(copied)
    refused = retain_here("run", trained.study, "--store", copied, code=None)
    assert refused.returncode in (2, 3)
    assert_one_sentence(refused.stderr, [str(place), "delete"])


def cut_tokens(store: Path) -> Path:
    for path in (store / "corpora").glob("*/train.bin"):
        path.write_bytes(path.read_bytes()[:-1])
    return store / "corpora"


@pytest.mark.parametrize("harm", [empty_state, empty_losses, empty_spec])
def test_a_report_shows_the_rest_and_names_a_damaged_run(
    harm: Callable[[Path], Path], trained: Trained, copied: Path
) -> None:
    broken = harm(copied)
    reported = retain_here("report", trained.study, "--store", copied, "--json", code=3)
    document = json.loads(reported.stdout)
    page = html.unescape(Path(document["report"]).read_text())
    assert_one_sentence(
        f"retain: {reported.stderr}", [f"damaged: posttrain {broken.parent.name[:8]}", str(broken), "delete"]
    )
    assert f"{reported.stderr.strip()}.</p>" in page
    # Figures and verdicts lack what they lack without the run, and say so.
    shutil.rmtree(broken.parent)
    without = retain_json("report", trained.study, "--store", copied)
    assert document["missing"] == without["missing"]
    assert document["verdicts"] == without["verdicts"]
    assert [one["missing"] for one in document["figures"]] == [one["missing"] for one in without["figures"]]


@pytest.mark.parametrize("verb", ["results", "report"])
def test_a_theory_shows_the_rest_and_names_a_run_whose_recipe_cannot_be_read(verb: str, tmp_path: Path) -> None:
    study, store = linear_study(tmp_path), tmp_path / "runs"
    train_here(study, store)
    broken = empty(first_run(store, "finetune") / "stage.json")
    shown = retain_here(verb, study, "--store", store, code=3)
    assert_one_sentence(
        f"retain: {shown.stderr}", [f"damaged: finetune {broken.parent.name[:8]}", str(broken), "delete"]
    )
    assert (store / "studies" / "linear" / "theory.png").exists()


def test_a_chain_that_goes_on_after_finetuning_shows_the_rest_too(tmp_path: Path) -> None:
    extra = {"corpus": "music", "tokens": 2560, "lr": 1e-3, "warmup": 2, "batch": 8}
    chain = {"stages": ["pretrain", "posttrain", "finetune", "extra"], "extra": extra}
    study, store = tiny_study(tmp_path, grid={"finetune.lr": [5e-4, 2e-3]}, **chain), tmp_path / "runs"
    train_here(study, store)
    broken = next(run for run in Store(store).runs() if run.spec().get("name") == "extra")
    empty(broken.folder / "stage.json")
    shown = retain_here("results", study, "--store", store, "--json", code=3)
    assert f"damaged: extra {broken.key[:8]}" in shown.stderr
    lost, whole = sorted(json.loads(shown.stdout)["trials"], key=lambda row: row["keys"]["extra"] != broken.key)
    assert (lost["finetuning_loss"], lost["losses"]["extra"]) == (None, {})
    assert lost["losses"]["finetune"]["music"] > 0
    assert whole["finetuning_loss"] > 0


def test_damaged_data_is_prepared_again_and_nothing_is_retrained(trained: Trained, copied: Path) -> None:
    before = retain_json("results", trained.study, "--store", trained.store)["trials"]
    for harm in (empty_tokenizer, cut_tokens):
        harm(copied)
    assert "is damaged" in retain_here("data", trained.study, "--store", copied).stderr
    assert retain_json("verify", "--store", copied)["problems"] == []
    assert retain_json("results", trained.study, "--store", copied)["trials"] == before


def test_the_cure_of_a_damaged_run_retrains_it_bit_exactly(trained: Trained, copied: Path) -> None:
    shutil.rmtree(empty_state(copied).parent)
    retain_here("run", trained.study, "--store", copied)
    assert weights(copied) == weights(trained.store)
    assert losses(copied) == losses(trained.store)


def test_verify_reports_all_damage(trained: Trained, copied: Path) -> None:
    damaged = empty_state(copied).parent
    corpus = next((copied / "corpora").iterdir())
    (corpus / "train.bin").write_bytes((corpus / "train.bin").read_bytes()[:-1])
    state = first_run(copied, "pretrain") / "checkpoint" / "step-000000005"
    state.mkdir(parents=True)
    (state / "state.json").write_text("{")
    problems = retain_json("verify", "--store", copied, code=1)["problems"]
    places = {problem["where"] for problem in problems}
    assert {damaged.name, f"corpora/{corpus.name}", state.parent.parent.name} <= places
    assert any(f"{state.name} is damaged" in problem["what"] for problem in problems)


@pytest.mark.parametrize("verb", ["status", "verify", "gc", "cancel laptop", "retry 0f4d", "logs 0f4d", "export 0f4d"])
def test_a_missing_store_is_an_error_and_not_an_empty_store(tmp_path: Path, verb: str) -> None:
    refused = retain_here(*verb.split(), "--store", tmp_path / "none", code=3)
    assert_one_sentence(refused.stderr, ["store not found", "none"])


def test_nothing_is_trained_from_damaged_weights(trained: Trained, copied: Path) -> None:
    parent = first_run(copied, "posttrain")
    children = [run.folder for run in Store(copied).runs() if run.spec()["parent"] == parent.name]
    for child in children:
        shutil.rmtree(child)
    file = parent / "model" / "model.safetensors"
    content = bytearray(file.read_bytes())
    content[-5] ^= 64
    file.write_bytes(content)
    failed = retain_here("run", trained.study, "--store", copied, code=1)
    assert f"{parent.name}: model/model.safetensors is damaged; delete this folder" in failed.stderr
    states = [json.loads((child / "state.json").read_text())["state"] for child in children]
    assert set(states) == {"failed"}


READING = ("results", "report", "status", "verify", "gc", "cancel")


@pytest.mark.parametrize("change", ["touched", "deleted", "packed data deleted"])
def test_what_is_trained_stays_readable_when_its_sources_are_not_what_they_were(
    trained: Trained,
    copied: Path,
    capsys: pytest.CaptureFixture[str],
    change: str,
) -> None:
    study = Path(shutil.copytree(trained.study.parent, copied.parent / "study")) / trained.study.name
    main(["data", str(study), "--store", str(copied)])
    source = study.parent / "chemistry.jsonl"
    if change == "touched":
        os.utime(source, (1, 1))
    elif change == "deleted":
        source.unlink()
    else:
        shutil.rmtree(copied / "corpora")
    for verb in READING if change == "deleted" else ("results", "verify"):
        capsys.readouterr()
        assert main([verb, str(study), "--store", str(copied)]) == (
            verb == "verify" and change == "packed data deleted"
        )
        notices = [line for line in capsys.readouterr().err.splitlines() if "corpora." in line]
        assert notices, verb
        for message in notices:
            assert message.startswith("retain: tiny.yaml: corpora.")
            assert message.endswith("showing stages that were trained on the data as last prepared")
    capsys.readouterr()
    main(["results", str(study), "--store", str(copied), "--json"])
    rows = json.loads(capsys.readouterr().out)["trials"]
    assert all(row["retained_posttraining_loss"] is not None for row in rows)


def test_a_store_without_the_data_of_a_study_says_that_its_keys_are_provisional(trained: Trained, copied: Path) -> None:
    shutil.rmtree(copied / "prepared")
    for verb in ("status", "results"):
        assert "stage keys are provisional" in retain_here(verb, trained.study, "--store", copied).stderr


def test_a_child_of_a_damaged_parent_fails_as_damaged_and_is_trained_after_the_repair(tmp_path: Path) -> None:
    study = linear_study(tmp_path, grid={})
    store = tmp_path / "runs"
    opened = prepare_study(str(study), (), store)
    (trial,) = opened.tree.trials
    register(opened.tree, opened.file, opened.facts, opened.store)
    train_missing(opened, replace(opened.tree, stages={key: opened.tree.stages[key] for key in trial.path[:-1]}))
    parent, child = (opened.store.run(key) for key in trial.path[1:])
    empty(next(parent.model.iterdir()))
    assert train_missing(opened, opened.tree)[child.key].state == "failed"
    assert child.state().attempts[-1].failure == DAMAGE
    assert "is damaged; delete this folder" in (child.state().reason or "")
    assert skip_blocked(opened.store, [child.key]) == []
    assert child.state().state == "planned"
    shutil.rmtree(parent.folder)
    assert {state.state for state in train_missing(opened, opened.tree).values()} == {"done"}


def test_a_done_run_without_its_stage_json_is_a_problem_and_run_writes_it_again(tmp_path: Path) -> None:
    study = linear_study(tmp_path, grid={})
    store = tmp_path / "runs"
    train_here(study, store)
    run = Store(store).runs()[0]
    weights_before = weights(store)
    (run.folder / "stage.json").unlink()
    checked, problems = verify_store(Store(store), None)
    assert checked == 3
    assert [(one.where, "stage.json is missing; run its study again" in one.what) for one in problems] == [
        (run.key, True)
    ]
    assert {row.key: row.state for row in StatusReader(Store(store)).of_store()}[run.key] == "damaged"
    opened = prepare_study(str(study), (), store)
    train_missing(opened, opened.tree)
    assert verify_store(Store(store), None) == (3, [])
    assert weights(store) == weights_before


def test_a_folder_in_the_place_of_a_table_is_named_by_verify_and_by_what_writes_the_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = linear_study(tmp_path, grid={})
    store = tmp_path / "runs"
    train_here(study, store)
    table = store / "studies" / "linear" / "losses.csv"
    table.mkdir(parents=True)
    assert [one.what for one in verify_store(Store(store), None)[1]] == [f"{table} is not a file; delete it"]
    assert main(["run", str(study), "--store", str(store)]) == 3
    assert capsys.readouterr().err == f"retain: {table} is not a file; delete it and try again\n"


@pytest.mark.parametrize(
    "content",
    ["{", json.dumps(asdict(replace(this_process(), host="elsewhere", job_id="7")))],
    ids=["a damaged lease", "a lease of another node"],
)
def test_run_says_for_what_it_waits_and_until_when(content: str, tmp_path: Path) -> None:
    study = linear_study(tmp_path, grid={})
    opened = prepare_study(str(study), (), tmp_path / "runs")
    register(opened.tree, opened.file, opened.facts, opened.store)
    run = opened.store.run(opened.tree.trials[0].path[0])
    claim = run.folder / "lease.1.json"
    claim.write_text(content)
    said: list[str] = []

    def watch(states: Mapping[str, State]) -> None:
        if (reason := states[run.key].reason or "").startswith(WAITING):
            said.append(reason)
            claim.unlink(missing_ok=True)  # as its owner does at the end, or the user who is told so

    states = train(opened.tree, opened.store, [Slot(dict.fromkeys(STAGE_KINDS, 1))], watch)
    assert {state.state for state in states.values()} == {"done"}
    assert ("on elsewhere (job 7) holds the lease" if "job_id" in content else f"{claim} cannot be read") in said[0]
    assert "no sign of life for 10 minutes" in said[0]
