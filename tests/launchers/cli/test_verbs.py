"""The verbs that read a trained store."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from retain.results.store.runs import Store
from tests.conftest import Trained
from tests.retain import retain_here, retain_json
from tests.studies import tiny_study

PLAN_TOTALS = {
    "stages", "trials", "to_train", "tokens", "tokens_without_sharing", "flops", "gpu_hours", "disk_bytes", "jobs",
}  # fmt: skip


def test_plan_prints_the_documented_fields_before_and_after_training(trained: Trained, tmp_path: Path) -> None:
    fresh = retain_json("plan", trained.study, "--store", tmp_path / "none")
    document = retain_json("plan", trained.study, "--store", trained.store)
    for plan in (fresh, document):
        assert plan["study"] == "tiny"
        assert set(plan["totals"]) >= PLAN_TOTALS
        assert all(set(stage) >= {"key", "stage", "parent", "axes", "tokens", "state"} for stage in plan["stages"])
        assert (plan["totals"]["stages"], plan["totals"]["trials"]) == (8, 4)
    assert fresh["provisional"]
    assert not (tmp_path / "none").exists()
    assert fresh["totals"]["to_train"] == 8
    assert {stage["state"] for stage in document["stages"]} == {"done"}
    assert document["totals"]["to_train"] == document["totals"]["tokens_to_train"] == 0
    assert "8 stages, 0 to train" in retain_here("plan", trained.study, "--store", trained.store).stdout


def test_status_prints_the_documented_fields_for_a_study_and_for_a_store(trained: Trained) -> None:
    of_study = retain_json("status", trained.study, "--store", trained.store)
    of_store = retain_json("status", "--store", trained.store)
    assert (of_study["study"], of_store["study"]) == ("tiny", None)
    for document in (of_study, of_store):
        assert len(document["runs"]) == 8
        for run in document["runs"]:
            assert set(run) >= {"key", "stage", "state", "attempts", "progress", "job_id", "reason"}
            assert (run["state"], run["attempts"], run["progress"]) == ("done", 1, 1.0)
    assert "8 done" in retain_here("status", "--store", trained.store).stdout


def test_results_work_on_partial_results_and_write_csv(trained: Trained, tmp_path: Path) -> None:
    more = "finetune.lr=[5e-4, 2e-3, 7e-3]"
    rows = retain_json("results", trained.study, more, "--store", trained.store, "--csv", tmp_path / "rows.csv")[
        "trials"
    ]
    assert len(rows) == 6
    assert sum(row["retained_posttraining_loss"] is None for row in rows) == 2
    assert all(row["immediate_posttraining_loss"] > 0 for row in rows)
    lines = (tmp_path / "rows.csv").read_text().splitlines()
    assert len(lines) == 7
    assert lines[0].startswith("pretrain.exposure,finetune.lr,immediate_posttraining_loss,")


def test_why_names_the_fields_in_which_two_stages_differ(trained: Trained) -> None:
    rows = retain_json("results", trained.study, "--store", trained.store)["trials"]
    same_rate = [row["keys"]["finetune"] for row in rows if row["axes"]["finetune.lr"] == 5e-4]
    document = retain_json("why", trained.study, *same_rate, "--store", trained.store)
    fields = {difference["field"] for difference in document["differences"]}
    assert "pretrain.exposure.sequences" in fields
    assert not any(field.startswith(("posttrain.", "finetune.")) for field in fields)


def test_why_finds_the_nearest_run_and_the_one_field_that_an_edit_changed(trained: Trained) -> None:
    change = "finetune.weight_decay=0.3"
    planned = retain_json("plan", trained.study, change, "--store", trained.store)["stages"]
    leaf = next(stage for stage in planned if stage["stage"] == "finetune")
    document = retain_json("why", trained.study, leaf["key"][:10], change, "--store", trained.store)
    (difference,) = document["differences"]
    assert difference == {"field": "finetune.weight_decay", "here": 0.3, "there": 0.1}
    assert document["fields"]["finetune.weight_decay"] == 0.3
    assert (
        "finetune.weight_decay"
        in retain_here("why", trained.study, leaf["key"], change, "--store", trained.store).stdout
    )


def test_why_explains_each_key_that_status_shows_also_of_an_evaluation_to_come(tmp_path: Path) -> None:
    code = {"files": "general.txt", "separator": "\n\n", "heldout": 0.2}
    study = tiny_study(tmp_path, grid={}, evaluate={"corpora": ["code"]}, **{"corpora.code": code})
    runs = retain_json("status", study, "--store", tmp_path / "runs")["runs"]
    asked = {run["key"]: run["stage"] for run in runs}
    explained = {key: retain_json("why", study, key, "--store", tmp_path / "runs")["stage"] for key in asked}
    assert explained == asked
    assert "evaluate" in asked.values()


def test_export_makes_a_folder_that_transformers_loads_with_the_same_loss(trained: Trained, tmp_path: Path) -> None:
    run = next(run for run in Store(trained.store).runs() if run.spec()["stage"] == "finetune")
    assert retain_here("export", run.key[:9], "--store", trained.store, "--to", tmp_path / "hf").stdout.strip() == str(
        tmp_path / "hf"
    )
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "hf")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "hf")
    tokens = torch.tensor([tokenizer("methyl acid amine sulfate")["input_ids"]])
    assert model(input_ids=tokens, labels=tokens).loss.isfinite()
    assert tokenizer.decode(tokens[0]) == "methyl acid amine sulfate"
    assert tokenizer.eos_token_id == model.config.eos_token_id
    assert run.key in (tmp_path / "hf" / "README.md").read_text()
    assert (
        "exists already"
        in retain_here("export", run.key, "--store", trained.store, "--to", tmp_path / "hf", code=2).stderr
    )


def test_logs_print_the_log_of_a_run(trained: Trained) -> None:
    key = Store(trained.store).runs()[0].key
    assert "rank 0 of 1" in retain_here("logs", key, "--store", trained.store).stdout
    assert "rank 0: done" in retain_here("logs", key[:10], "-f", "--store", trained.store).stdout
    assert "run not found" in retain_here("logs", "zzzz", "--store", trained.store, code=2).stderr


@pytest.mark.parametrize("damage", ["flip", "truncate", "remove", "recipe"])
def test_verify_finds_damage_and_names_the_run_and_the_file(damage: str, trained: Trained, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    shutil.copytree(trained.store, store)
    assert "8 runs checked, 0 problems" in retain_here("verify", "--store", store).stdout
    run = Store(store).runs()[3]
    file = run.model / "model.safetensors"
    content = bytearray(file.read_bytes())
    if damage == "flip":
        content[-5] ^= 1
        file.write_bytes(content)
    elif damage == "truncate":
        file.write_bytes(content[:-1])
    elif damage == "remove":
        file.unlink()
    else:
        spec = run.spec()
        spec["recipe"]["lr"] *= 2
        (run.folder / "stage.json").write_text(json.dumps(spec))
    document = retain_json("verify", trained.study, "--store", store, code=1)
    (problem,) = document["problems"]
    assert problem["where"] == run.key
    assert ("model.safetensors" in problem["what"]) == (damage != "recipe")
    assert ("run its study again" if damage == "recipe" else "train it again") in problem["what"]


def test_verify_finds_a_damaged_corpus(trained: Trained, tmp_path: Path) -> None:
    store = tmp_path / "runs"
    shutil.copytree(trained.store, store)
    file = next((store / "corpora").glob("*/heldout.bin"))
    content = bytearray(file.read_bytes())
    content[7] ^= 4
    file.write_bytes(content)
    (problem,) = retain_json("verify", "--store", store, code=1)["problems"]
    assert problem["where"] == f"corpora/{file.parent.name}"


def test_a_study_with_more_seeds_shares_what_is_trained(trained: Trained) -> None:
    totals = retain_json("plan", trained.study, "seed=[0, 1]", "--store", trained.store)["totals"]
    assert (totals["stages"], totals["to_train"]) == (16, 8)


def test_data_is_prepared_once(tmp_path: Path) -> None:
    study = tiny_study(tmp_path / "study")
    document = retain_json("data", study, "--store", tmp_path / "runs")
    assert {corpus["name"] for corpus in document["corpora"]} == {"general", "music", "chemistry"}
    assert all(corpus["train_tokens"] > corpus["heldout_tokens"] > 0 for corpus in document["corpora"])
    before = sorted(path for path in (tmp_path / "runs").rglob("*") if path.is_file())
    again = retain_here("data", study, "--store", tmp_path / "runs")
    assert "preparing" not in again.stderr
    assert sorted(path for path in (tmp_path / "runs").rglob("*") if path.is_file()) == before
