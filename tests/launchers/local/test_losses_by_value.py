"""`by` of a corpus: its held-out losses are also given by value, wherever they are measured."""

import csv
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import retain
from retain.datamodules.corpora.values.labels import read_labels
from retain.datamodules.order.stage_data import heldout_labels, heldout_sequences
from retain.launchers.cli.app import main
from retain.launchers.planning.opened_study import open_study, prepare_study
from retain.lightning_modules.models import load_model
from retain.results.store.runs import Store
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import read_study
from tests.launchers.search.searches import block, finish, searching
from tests.retain import copied_runs, retain_json, train_here
from tests.studies import documents_of, tiny_study

VALUES = ("folk", "jazz, old", "none")
STAGES = ("pretrain", "posttrain", "finetune")


def study(folder: Path, **fields: Any) -> str:
    path = tiny_study(folder, **{"grid": {}, "execution": {"accelerator": "cpu"}, "corpora.music.by": "src", **fields})
    for name in ("music", "extra"):
        records = [
            {"text": text} | ({"src": VALUES[number % 2]} if number % 5 else {})
            for number, text in enumerate(documents_of("music"))
        ]
        if name == "extra":
            records = [record | {"text": record["text"].replace("|", "river")} for record in records]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return str(path)


def splits(store: Path, key: str) -> dict[str, Any]:
    found: dict[str, Any] = Store(store).run(key).losses()["splits"]
    return found


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("values")


@pytest.fixture(scope="module")
def row(folder: Path) -> dict[str, Any]:
    """The trial of the study that is trained in this folder."""
    found = retain.run(study(folder), (), folder / "runs")
    assert not found.failures
    return found.trials[0]


@pytest.fixture(scope="module")
def before_values(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store in which the study was trained while its corpus had no `by`."""
    place = tmp_path_factory.mktemp("before")
    train_here(Path(study(place)), place / "runs", "corpora.music.by=null")
    return place / "runs"


def test_the_losses_by_value_add_up_to_the_whole(folder: Path, row: dict[str, Any]) -> None:
    for stage in STAGES:
        (whole,) = [split for split in splits(folder / "runs", row["keys"][stage]).values() if "by" in split]
        parts = whole["by"]["values"]
        assert set(parts) == set(VALUES)
        assert sum(part["tokens"] for part in parts.values()) == whole["tokens"]
        total = sum(part["loss"] * part["tokens"] for part in parts.values())
        assert total / whole["tokens"] == pytest.approx(whole["loss"], rel=1e-6)
        assert len({part["loss"] for part in parts.values()}) == 3
        assert row["losses"][stage]["music"] == whole["loss"]
        assert {value: row["losses"][stage][f"music[{value}]"] for value in VALUES} == {
            value: part["loss"] for value, part in parts.items()
        }


def test_the_loss_of_a_value_is_that_of_the_tokens_of_its_documents(folder: Path, row: dict[str, Any]) -> None:
    store, tree = Store(folder / "runs"), open_study(str(folder / "tiny.yaml"), (), folder / "runs").tree
    values, corpus = tree.values["music", 32], tree.corpora["music", 32]
    sequences = heldout_sequences(store.root, corpus)
    labels = heldout_labels(store.root, corpus, read_labels(store.root, values.fingerprint))
    model = load_model(store.run(row["keys"]["finetune"]).model).eval()
    with torch.no_grad():
        logits = model(input_ids=sequences).logits[:, :-1]
    losses = torch.nn.functional.cross_entropy(logits.flatten(0, 1), sequences[:, 1:].flatten(), reduction="none")
    for number, value in enumerate(values.names):
        exact = losses[labels[:, 1:].flatten() == number].mean().item()
        assert row["losses"]["finetune"][f"music[{value}]"] == pytest.approx(exact, rel=1e-4)


def test_tables_frames_and_the_report_have_a_column_for_every_value(
    folder: Path, row: dict[str, Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    name, store = str(folder / "tiny.yaml"), str(folder / "runs")
    columns = [f"finetune/music[{value}]" for value in VALUES]
    frame = retain.load(name, folder / "runs")
    assert [frame[column][0] for column in columns] == [row["losses"]["finetune"][column[9:]] for column in columns]
    asked = f"{columns[1]}, finetune/music"
    assert main(["results", name, "--store", store, "--losses", asked, "--csv", str(tmp_path / "rows.csv")]) == 0
    printed = capsys.readouterr().out
    assert f"{row['losses']['finetune']['music[jazz, old]']:.4f}" in printed
    assert f"{row['losses']['finetune']['music[folk]']:.4f}" not in printed
    with (tmp_path / "rows.csv").open(newline="") as stream:
        (kept,) = csv.DictReader(stream)
    assert [float(kept[column]) for column in columns] == [frame[column][0] for column in columns]
    assert main(["results", name, "--store", store, "--losses", "finetune/music[soul]"]) == 2
    told = capsys.readouterr().err
    assert "unknown loss 'finetune/music[soul]' (did you mean finetune/music[folk]?)" in told
    assert "finetune/music[VALUE], " in told
    assert "[jazz, old]" not in told, "there may be thousands of values"
    assert main(["report", name, "--store", store, "--json"]) == 0
    page = Path(json.loads(capsys.readouterr().out)["report"]).read_text()
    assert "posttrain/music[jazz, old]" in page
    assert main(["verify", name, "--store", store]) == 0


def test_a_finished_study_gets_its_losses_by_value_and_trains_nothing(
    tmp_path: Path, row: dict[str, Any], before_values: Path
) -> None:
    name, store = study(tmp_path), copied_runs(before_values, tmp_path / "runs")
    prepare_study(name, ["corpora.music.by=null"], store)
    (before,) = retain_json("results", name, "corpora.music.by=null", "--store", store)["trials"]
    planned = retain.plan(name, store=store)
    assert planned.totals.to_train == 0
    after = retain.run(name, (), store)
    assert after.trials[0]["losses"]["finetune"]["music[folk]"] is None
    assert [reason.partition(":")[0] for reason in after.blanks] == [
        f"{stage}/music[...] is blank for 1 trained run" for stage in STAGES
    ]
    assert main(["evaluate", name, "--store", str(store)]) == 0
    found = retain_json("results", name, "--store", store)
    assert found["trials"][0]["keys"] == before["keys"] == row["keys"]
    assert found["trials"][0]["losses"] == row["losses"]  # to the last bit
    assert before["losses"]["finetune"]["music"] == row["losses"]["finetune"]["music"]
    assert found["blanks"] == []
    assert len([run for run in Store(store).runs() if run.spec()["stage"] in STAGES]) == 3
    evaluated = [run for run in Store(store).runs() if "by" in run.spec()["recipe"]]
    assert [len(run.losses()["splits"]["heldout"]["by"]["values"]) for run in evaluated] == [3, 3, 3]


@pytest.mark.slow
def test_corpora_that_are_only_measured_and_averages_have_losses_by_value(
    tmp_path: Path, folder: Path, row: dict[str, Any]
) -> None:
    fields = {"files": "extra.jsonl", "heldout": 0.2, "by": "src"}
    asked = {"evaluate": {"corpora": ["extra"], "at": ["finetune"]}, "grid": {"finetune.average": [0.5, 1]}}
    name, store = study(tmp_path, **{"corpora.extra": fields, **asked}), copied_runs(folder / "runs", tmp_path / "runs")
    first = retain.run(name, ["corpora.extra.by=null"], store).trials
    half, whole = retain.run(name, (), store).trials
    assert whole["losses"]["finetune"]["extra"] == first[1]["losses"]["finetune"]["extra"]
    for one in (half, whole):
        parts = [one["losses"]["finetune"][f"extra[{value}]"] for value in VALUES]
        assert min(parts) < one["losses"]["finetune"]["extra"] < max(parts)
        assert None not in [one["losses"]["finetune"][f"music[{value}]"] for value in VALUES]
    assert half["losses"]["finetune"]["music[folk]"] != whole["losses"]["finetune"]["music[folk]"]


def test_the_reported_half_has_values_too(tmp_path: Path, folder: Path, row: dict[str, Any]) -> None:
    stopping = {"every": 2, "patience": 2, "split": "tune"}
    name = study(tmp_path, **{"posttrain.early_stopping": stopping})
    (found,) = retain.run(name, (), copied_runs(folder / "runs", tmp_path / "runs")).trials
    own = splits(tmp_path / "runs", found["keys"]["posttrain"])
    for split in ("posttraining", "posttraining-tune"):
        parts = own[split]["by"]["values"].values()
        assert sum(part["tokens"] for part in parts) == own[split]["tokens"]
    assert found["losses"]["posttrain"]["music[folk]"] == own["posttraining"]["by"]["values"]["folk"]["loss"]


@pytest.mark.slow
@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_two_processes_measure_the_same_losses_by_value(tmp_path: Path, row: dict[str, Any], strategy: str) -> None:
    name = study(tmp_path)
    found = retain.run(name, ["execution.devices=2", f"execution.strategy={strategy}"], tmp_path / "runs").trials[0]
    for value in VALUES:
        assert found["losses"]["finetune"][f"music[{value}]"] == pytest.approx(
            row["losses"]["finetune"][f"music[{value}]"], rel=1e-3
        )
    (whole,) = [split for split in splits(tmp_path / "runs", found["keys"]["finetune"]).values() if "by" in split]
    parts = whole["by"]["values"].values()
    assert sum(part["tokens"] for part in parts) == whole["tokens"]
    assert sum(part["loss"] * part["tokens"] for part in parts) == pytest.approx(
        whole["loss"] * whole["tokens"], rel=1e-6
    )


def test_a_search_may_be_for_the_loss_of_a_value(tmp_path: Path, folder: Path, row: dict[str, Any]) -> None:
    wanted = "finetune/music[jazz, old]"
    fields = {
        "axes": {"finetune.lr": [1e-4, 1e-3]},
        "trials": 2,
        "objective": {"loss": wanted},
        "constraints": {"finetune/music[folk]": {"within": 0.5}},
    }
    search = searching(study(tmp_path), copied_runs(folder / "runs", tmp_path / "runs"), block(**fields))
    finish(search)
    assert len(search.results()) == 2
    assert all(set(one.losses) >= {wanted, "finetune/music[folk]"} for one in search.results())
    with pytest.raises(StudyError, match=r"search.objective: unknown loss 'finetune/music\[soul\]'"):
        searching(study(tmp_path), tmp_path / "runs", block(**(fields | {"objective": "finetune/music[soul]"})))


@pytest.mark.parametrize("wanted", ["finetune/chemistry[folk]", "finetune/nosuch[folk]", "nosuch/music[folk]"])
def test_a_search_for_a_value_of_a_corpus_without_by_is_refused_before_any_data_is_read(
    tmp_path: Path, wanted: str
) -> None:
    with pytest.raises(StudyError, match=r"search.objective: unknown loss"):
        read_study(study(tmp_path), [block(axes={"finetune.lr": [1e-4, 1e-3]}, objective=wanted)])


@pytest.mark.slow
def test_a_drill_kills_the_runs_of_a_study_with_losses_by_value(tmp_path: Path) -> None:
    anchor = {"finetune.anchor": {"ewc": 10, "sequences": 8}}
    document = retain_json("drill", study(tmp_path, **anchor), "--kills", "4", "--store", tmp_path / "runs")
    assert document["differences"] == []
    assert document["kills"] == sum(document["by_stage"].values()) == 4
