"""Corpora that are prepared by jobs on a real SLURM."""

import functools
import gzip
import json
import random
import subprocess
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml

from retain.datamodules.corpora.parts.stored import is_part, open_part
from retain.datamodules.corpora.tokenizer import train_tokenizer
from retain.launchers.stage.failures import DISK
from retain.results.store.runs import Store
from retain.results.store.state import PART
from retain.results.store.study_files import preparation_keys
from tests.datamodules.servers import running as serving
from tests.disks import small_disk_at
from tests.launchers.local.test_preparation import calm, done_parts, fingerprint, large_study, parts, preparation_of
from tests.retain import losses, retain_json, train_here, weights
from tests.slurm.chaos import Chaos, kill_process, node_death
from tests.slurm.cluster.cluster import Cluster, call, wait_until
from tests.slurm.cluster.jobs import queue
from tests.studies import documents_of, replaced

pytestmark = pytest.mark.slurm

EXECUTION: dict[str, Any] = {
    "accelerator": "cpu",
    "data": {"part": 20_000, "slurm": {"cpus": 1, "partition": "low", "minutes": 10}},
    "slurm": {"minutes": 10, "cpus": 1, "partition": "low"},
}


def prepared(cluster: Cluster, folder: Path, **overrides: Any) -> Chaos:
    study = large_study(folder / "study", execution=EXECUTION, **overrides)
    return Chaos(cluster, study, folder / "runs", random.Random(1))


def padded(study: Path, first: int, last: int) -> None:
    """Let some records of music be four times as long, by a field that no document has: their parts have fewer tokens."""
    file = study.parent / "music.jsonl"
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    for line in lines[first:last]:
        line["more"] = "x" * 3 * len(line["text"])
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def tokenised(store: Path) -> dict[str, int]:
    """The tokens of each part of music that was tokenised."""
    made = {run.key: run.folder / PART for run in parts(store) if is_part(run.folder / PART)}
    return {key: open_part(folder).manifest["tokens"] for key, folder in made.items()}


def ended(chaos: Chaos) -> bool:
    return not queue(chaos.cluster)


@pytest.mark.slow
def test_a_study_that_is_submitted_without_its_data_ends_finished_after_logging_off(
    slurm: Cluster, tmp_path: Path
) -> None:
    grid = {"pretrain.exposure": [1]}
    chaos = prepared(slurm, tmp_path, grid=grid, **{"corpora.music.tokens": 60_000})
    said = chaos.retain("submit", chaos.study).stdout
    assert "that prepare data" in said
    assert "a job submits the study's stages once its data is prepared" in said
    stages = {run.spec()["stage"] for run in Store(chaos.store).runs()}
    assert {"prepare", "assemble", "continue"} <= stages
    wait_until(lambda: ended(chaos), "the end of all jobs", 500)
    rows = chaos.status()
    assert {row["stage"] for row in rows} == {"pretrain", "posttrain", "finetune"}
    assert {row["state"] for row in rows} == {"done"}
    train_here(chaos.study, tmp_path / "calm")
    assert weights(chaos.store) == weights(tmp_path / "calm")
    assert losses(chaos.store) == losses(tmp_path / "calm")


def test_a_study_is_submitted_by_its_jobs_where_they_cannot_reach_the_servers_of_its_small_corpora(
    slurm: Cluster, tmp_path: Path
) -> None:
    grid = {"pretrain.exposure": [1], "finetune.lr": [2e-3]}
    chaos = prepared(slurm, tmp_path, grid=grid)
    served = tmp_path / "served"
    served.mkdir()
    (chaos.study.parent / "general.txt").rename(served / "general.txt")
    handler = functools.partial(SimpleHTTPRequestHandler, directory=str(served))
    with serving(ThreadingHTTPServer(("127.0.0.1", 0), handler)) as port:
        fields = yaml.safe_load(chaos.study.read_text())
        fields["corpora"]["general"]["files"] = f"http://127.0.0.1:{port}/general.txt"
        fields["execution"]["data"]["slurm"]["extra"] = {"hold": True}
        chaos.study.write_text(yaml.safe_dump(fields))
        chaos.retain("submit", chaos.study)
    assert {row["stage"] for row in chaos.status()} >= {"prepare", "assemble", "continue"}
    call(slurm, "scontrol", "release", *queue(slurm))
    stages = {"pretrain", "posttrain", "finetune"}
    wait_until(lambda: {row["stage"] for row in chaos.status() if row["job_id"]} == stages, "the study's own jobs", 300)


@pytest.mark.slow
def test_forty_parts_survive_a_kill_and_the_death_of_a_node(slurm: Cluster, tmp_path: Path) -> None:
    execution = replaced(EXECUTION, {"data.part": 7_500, "data.slurm.at_a_time": 20})
    study = large_study(tmp_path / "study", execution=execution)
    chaos = Chaos(slurm, study, tmp_path / "runs", random.Random(1))
    chaos.retain("data", study, "--launcher", "slurm")
    assert len(parts(chaos.store)) >= 39
    wait_until(lambda: kill_process(chaos), "a part that is being made", 120)
    before = done_parts(chaos.store)
    assert node_death(chaos)
    wait_until(lambda: ended(chaos), "the end of all jobs", 900)
    again = chaos.retain("data", study, "--launcher", "slurm")
    wait_until(lambda: ended(chaos), "the end of all jobs", 500)
    assert not [run for run in parts(chaos.store) if not run.is_done()], again.stdout
    assert before.items() <= done_parts(chaos.store).items()
    document = retain_json("data", study, "--store", chaos.store)
    assert fingerprint(document) == calm(study, tmp_path / "calm")


def test_the_cause_of_a_failed_preparation_is_recorded_where_the_study_was_to_begin(
    slurm: Cluster, tmp_path: Path
) -> None:
    chaos = prepared(slurm, tmp_path, tokenizer={"hf": "tok"})
    train_tokenizer(documents_of("general"), 320).save(chaos.study.parent / "tok")
    file = chaos.study.parent / "music.jsonl"
    lines = file.read_text().splitlines()
    file.write_text("\n".join([*lines[:2999], '{"txt": "a"}', *lines[3000:]]))
    chaos.retain("submit", chaos.study)
    wait_until(lambda: ended(chaos), "the end of all jobs", 500)
    rows = [row for row in chaos.status() if row["state"] != "done"]
    of_data = {row["stage"]: row for row in rows if row["stage"] in ("prepare", "assemble", "continue")}
    assert of_data["prepare"]["state"] == "failed"
    assert of_data["prepare"]["failure"] == "bad recipe"
    for stage in ("prepare", "assemble", "continue"):
        assert "music.jsonl, line 3000" in of_data[stage]["reason"]
    assert of_data["continue"]["state"] == "skipped"


@pytest.mark.slow
@pytest.mark.parametrize("sparse", [(1000, 4000), (0, 500)], ids=["fewer tokens behind", "fewer tokens at first"])
def test_a_budget_is_reached_in_rounds_that_jobs_submit_with_little_surplus_though_all_parts_start_at_once(
    slurm: Cluster, tmp_path: Path, sparse: tuple[int, int]
) -> None:
    budget = 60_000
    chaos = prepared(slurm, tmp_path, **{"corpora.music.tokens": budget})
    padded(chaos.study, *sparse)
    chaos.retain("data", chaos.study, "--launcher", "slurm")
    at_first = len(parts(chaos.store))
    wait_until(lambda: ended(chaos), "the end of all jobs", 500)
    made = parts(chaos.store)
    assert len(made) > at_first
    assert all(run.is_done() for run in made)
    trained = [one.trained for one in preparation_of(chaos.study, chaos.store).made(Store(chaos.store)).values()]
    assert len(trained) == len(made)
    needed = next(number for number in range(1, len(trained) + 1) if sum(trained[:number]) >= budget)
    assert len(trained) <= needed + 1 or sum(trained[needed:]) < 0.05 * budget
    (assembly,) = (run for run in Store(chaos.store).runs() if made[0].key in run.needs())
    log = assembly.log.read_text()
    assert 1 <= log.count("as estimated from them: submitted") <= 6
    assert "it is prepared here" not in log
    assert {run.key for run in made} <= set(preparation_keys(Store(chaos.store), "tiny"))
    document = retain_json("data", chaos.study, "--store", chaos.store)
    assert fingerprint(document) == calm(chaos.study, tmp_path / "calm")
    assert retain_json("verify", "--store", chaos.store)["problems"] == []


@pytest.mark.slow
def test_parts_that_fill_the_disk_say_so_and_a_larger_disk_continues(slurm: Cluster, tmp_path: Path) -> None:
    # Compressed, so that nobody knows before how much there is.
    music = {"corpora.music": {"files": "music-*.jsonl.gz", "heldout": 0.1}, "tokenizer": {"train": 300}}
    study = large_study(tmp_path / "study", execution=EXECUTION, **music)
    lines = [json.dumps({"text": text}) + "\n" for text in documents_of("music", 200_000)]
    for number in range(8):
        with gzip.open(study.parent / f"music-{number}.jsonl.gz", "wt") as file:
            file.writelines(lines[number::8])
    megabytes = 10
    with small_disk_at(tmp_path / "disk", megabytes) as disk:
        chaos = Chaos(slurm, study, disk / "runs", random.Random(1))
        chaos.retain("data", study, "--launcher", "slurm")
        wait_until(lambda: full(chaos.store), "a part that finds the disk full", 300)
        said = full(chaos.store)
        chaos.retain("cancel", study, code=None)  # which may find no room to mark the runs
        wait_until(lambda: ended(chaos), "the end of all jobs", 120)
        assert all("No space left on device" in reason or "are needed and" in reason for reason in said)
        left = [place for run in parts(chaos.store) for place in run.folder.iterdir() if place.is_dir()]
        assert all(place.name == PART and is_part(place) for place in left)
        before = done_parts(chaos.store)
        subprocess.run(["mount", "-o", f"remount,size={8 * megabytes}m", str(disk)], check=True)
        chaos.retain("retry", study)
        chaos.retain("data", study, "--launcher", "slurm")
        wait_until(lambda: ended(chaos), "the end of all jobs", 500)
        assert before.items() <= done_parts(chaos.store).items()
        document = retain_json("data", study, "--store", chaos.store)
        assert fingerprint(document) == calm(study, tmp_path / "calm")
        assert sum(tokenised(chaos.store).values()) * 2 > megabytes * 2**20  # whatever the order, the disk ran full


def test_a_disk_that_cannot_hold_the_data_refuses_a_submission(slurm: Cluster, tmp_path: Path) -> None:
    study = large_study(tmp_path / "study", execution=EXECUTION)
    lines = [json.dumps({"text": text}) + "\n" for text in documents_of("music", 40_000)]
    (study.parent / "music.jsonl").write_text("".join(lines))
    with small_disk_at(tmp_path / "disk", 1) as disk:
        chaos = Chaos(slurm, study, disk / "runs", random.Random(1))
        for command in (["submit", study], ["data", study, "--launcher", "slurm"]):
            assert "to prepare the data, about" in chaos.retain(*command, code=3).stderr
        assert not chaos.store.exists()


def full(store: Path) -> list[str]:
    """Why parts failed that found the disk full."""
    states = [run.state() for run in parts(store)]
    return [state.reason or "" for state in states if any(attempt.failure == DISK for attempt in state.attempts)]
