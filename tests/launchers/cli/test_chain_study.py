"""A study of four stages from the command line: every verb goes by its chain."""

import json
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.planning.opened_study import open_study, prepare_study
from retain.results.store.runs import Store
from retain.results.tensorboard.views import link_runs
from tests.retain import retain_here, retain_json, train_here
from tests.studies import tiny_fields, tiny_study

CHAIN = ["pretrain", "midtrain", "posttrain", "finetune", "finetune2"]
SECTION = {"corpus": "general", "tokens": 1280, "lr": 1e-3, "batch": 8}
STUDY: dict[str, Any] = {
    "study": "chain",
    "stages": CHAIN,
    "pretrain.tokens": 2560,
    "midtrain": SECTION | {"skip": 2560, "start": {"optimizer": "carry"}},
    "posttrain": SECTION | {"corpus": "music", "passes": 2},
    "finetune": SECTION | {"corpus": "chemistry"},
    "finetune2": SECTION | {"early_stopping": {"every": 2, "patience": 2}},
    "grid": {"finetune2.lr": [1e-4, 1e-3]},
    "execution": {"stages": {"midtrain": {"heldout_every": 2}}},
}


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tiny_study(tmp_path_factory.mktemp("chain"), **STUDY)
    train_here(path, path.parent / "runs")
    return path


def verb(name: str, study: Path, *arguments: str) -> Any:
    return retain_json(name, study, *arguments, "--store", study.parent / "runs")


def test_plan_and_status_show_the_stages_in_the_order_of_the_chain(study: Path) -> None:
    plan, status = verb("plan", study), verb("status", study)
    assert plan["chain"] == CHAIN
    assert [stage["stage"] for stage in plan["stages"]] == [*CHAIN, "finetune2"]
    assert {run["state"] for run in status["runs"]} == {"done"}
    assert [run["stage"] for run in status["runs"]] == [*CHAIN, "finetune2"]
    assert plan["totals"]["tokens_without_sharing"] > plan["totals"]["tokens"]
    printed = retain_here("plan", study, "--store", study.parent / "runs").stdout
    assert [line.split()[0] for line in printed.splitlines()[2:7]] == CHAIN


def test_results_have_the_keys_of_every_stage_and_the_losses_of_the_chain(study: Path) -> None:
    rows = verb("results", study)["trials"]
    store = Store(study.parent / "runs")
    for row in rows:
        assert list(row["keys"]) == ["pretrain", "posttrain", "finetune", "midtrain", "finetune2"]
        last, post = (store.run(row["keys"][stage]).losses()["splits"] for stage in ("finetune2", "posttrain"))
        assert set(last) == {"pretraining", "midtrain", "posttraining", "finetuning", "finetune2"}
        assert row["immediate_posttraining_loss"] == post["posttraining"]["loss"]
        assert row["retained_posttraining_loss"] == last["posttraining"]["loss"]
        assert row["finetuning_loss"] == last["finetune2"]["loss"]
        assert row["retained_pretraining_loss"] == last["pretraining"]["loss"]


def test_a_further_stage_stops_early_on_the_held_out_split_of_its_own_corpus(study: Path) -> None:
    store = Store(study.parent / "runs")
    leaf = store.run(verb("results", study)["trials"][0]["keys"]["finetune2"])
    curves = {json.loads(line)["curve"] for line in (leaf.folder / "curves.jsonl").read_text().splitlines()}
    assert "heldout/finetune2" in curves
    assert "finetune2/loss" in curves


def test_the_report_the_board_and_why_name_every_stage(study: Path) -> None:
    page = Path(verb("report", study)["report"]).read_text()
    assert all(f">{stage}<" in page for stage in CHAIN)
    opened = open_study(str(study), (), study.parent / "runs")
    shown = link_runs(opened.tree, opened.store)
    assert {path.name.split()[0] for path in shown.iterdir() if path.is_dir()} == set(CHAIN)
    key = opened.tree.trials[0].leaf
    document = verb("why", study, key[:10])
    assert document["stage"] == "finetune2"
    assert document["payload"]["stage"] == "further"
    assert {"midtrain.start.optimizer", "finetune2.early_stopping.every"} <= set(document["fields"])
    assert [one["field"] for one in document["differences"]] == ["finetune2.lr"]


def test_verify_finds_no_problem_in_a_chain(study: Path) -> None:
    assert "0 problems" in retain_here("verify", study, "--store", study.parent / "runs").stdout


def test_a_study_that_names_its_stages_otherwise_finds_them_trained(study: Path) -> None:
    sections = {"midtrain": "anneal", "finetune2": "domain"}
    fields = json.loads(json.dumps(tiny_fields(**STUDY)))
    fields = {sections.get(name, name): part for name, part in fields.items()}
    fields |= {"study": "renamed", "stages": [sections.get(name, name) for name in CHAIN]}
    fields |= {"grid": {"domain.lr": [1e-4, 1e-3]}, "execution": {}}
    path = study.parent / "renamed.yaml"
    path.write_text(json.dumps(fields))
    assert verb("plan", path)["totals"]["to_train"] == 0
    rows, before = verb("results", path)["trials"], verb("results", study)["trials"]
    assert [row["finetuning_loss"] for row in rows] == [row["finetuning_loss"] for row in before]


def test_a_chain_without_the_papers_stages_has_a_table_and_a_report(study: Path) -> None:
    fields = tiny_fields(**STUDY) | {
        "study": "short",
        "stages": ["midtrain"],
        "grid": {"midtrain.lr": [1e-3, 2e-3], "seed": [0, 1]},
        "execution": {},
    }
    kept = {name: part for name, part in fields.items() if name not in CHAIN or name == "midtrain"}
    kept["midtrain"] = SECTION
    path = study.parent / "short.yaml"
    path.write_text(json.dumps(kept))
    rows = verb("run", path)["trials"]
    assert [row["keys"]["posttrain"] for row in rows] == [None] * 4
    assert all(row["finetuning_loss"] is None and row["immediate_posttraining_loss"] is None for row in rows)
    report = verb("report", path)
    page = Path(report["report"]).read_text()
    assert ">midtrain<" in page
    # Its axes have effects with intervals.
    effects = {one["loss"]: one for one in report["axes"]}
    for loss in [f"midtrain/{corpus}" for corpus in rows[0]["losses"]["midtrain"]]:
        by_seed = {row["axes"]["seed"]: [] for row in rows}
        for row in rows:
            by_seed[row["axes"]["seed"]].append(row["losses"]["midtrain"][loss.partition("/")[2]])
        differences = [after - before for before, after in by_seed.values()]
        assert effects[loss]["mean"] == pytest.approx(sum(differences) / 2)
        assert effects[loss]["low"] <= effects[loss]["mean"] <= effects[loss]["high"]
        assert (effects[loss]["value"], effects[loss]["against"], effects[loss]["seeds"]) == (2e-3, 1e-3, 2)
    assert "What each axis changes" in page


def test_a_corpus_that_no_stage_names_is_said_to_be_unused_and_changes_nothing(study: Path, tmp_path: Path) -> None:
    fields = tiny_fields(**STUDY)
    files = {name: str(study.parent / corpus["files"]) for name, corpus in fields["corpora"].items()}
    fields["corpora"] = {name: corpus | {"files": files[name]} for name, corpus in fields["corpora"].items()}
    path = tmp_path / "chain.yaml"
    path.write_text(json.dumps(fields))
    plain = prepare_study(str(path), (), tmp_path / "runs")
    fields["corpora"]["law"] = {"files": str(tmp_path / "not there.jsonl")}
    path.write_text(json.dumps(fields))
    opened = prepare_study(str(path), (), tmp_path / "runs")
    assert opened.file.unused == ("law",)
    assert (opened.facts, list(opened.tree.stages)) == (plain.facts, list(plain.tree.stages))
    assert "corpora.law: no stage uses this corpus" in retain_here("plan", path, "--store", tmp_path / "runs").stdout


def test_a_plan_names_a_corpus_of_which_less_is_read_than_a_stage_takes(tmp_path: Path) -> None:
    study, store = tiny_study(tmp_path, **{"corpora.general.tokens": 2000}), tmp_path / "runs"
    said = "corpora.general.tokens: reading stops at 2,000 training tokens, and pretrain takes 7,680; raise the limit"
    assert retain_here("plan", study, "--store", store).stdout.count(said) == 1
    assert said not in retain_here("plan", study, "pretrain.tokens=1984", "--store", store).stdout


def test_a_plan_says_that_early_stopping_never_looks(tmp_path: Path) -> None:
    study, store = (
        tiny_study(tmp_path, **{"posttrain.early_stopping": {"every": 100, "patience": 1}}),
        tmp_path / "runs",
    )
    said = "posttrain.early_stopping.every: 100 steps, and the stage has at most 20 steps, so it never stops early"
    assert retain_here("plan", study, "--store", store).stdout.count(said) == 1
    assert said not in retain_here("plan", study, "posttrain.early_stopping.every=5", "--store", store).stdout
    axis = retain_here("plan", study, "posttrain.early_stopping.every=[100,5,200]", "--store", store).stdout
    assert axis.count(said) == axis.count(said.replace("100", "200")) == 1
    assert axis.count("so it never stops early") == 2


def test_narrowing_an_axis_over_corpora_keeps_the_tokeniser(tmp_path: Path) -> None:
    path = tiny_study(tmp_path, grid={"finetune.corpus": ["chemistry", "music"]})
    whole = prepare_study(str(path), (), tmp_path / "runs")
    one = prepare_study(str(path), ["finetune.corpus=music"], tmp_path / "runs")
    assert one.facts == whole.facts
    assert set(one.tree.stages) < set(whole.tree.stages)
