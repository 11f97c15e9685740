"""Large corpora are prepared in parts by processes of this machine, to the fingerprint of a single process."""

import contextlib
import json
import os
import random
import shutil
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from retain.datamodules.corpora.parts.plan import cut_corpus
from retain.datamodules.corpora.parts.stored import is_part
from retain.datamodules.corpora.prepare import known_facts, prepare
from retain.launchers.planning.preparation import Preparation
from retain.launchers.stage.attempt import make_attempt
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import StopRequest
from retain.results.store.lease import read_owner
from retain.results.store.runs import Run, Store
from retain.results.store.state import PART
from retain.sweeps.base.processes.names import is_alive
from retain.sweeps.schema.read import read_study
from tests.disks import small_disk_at
from tests.retain import retain_here, retain_json, start
from tests.studies import documents_of, tiny_study

DOCUMENTS = 4000
PARTS = {"data": {"part": 20_000}}


def large_study(folder: Path, **overrides: Any) -> Path:
    """The tiny study, whose corpus music is 400 kB, in parts of 20 kB."""
    study = tiny_study(folder, **{"execution": PARTS} | overrides)
    lines = [json.dumps({"text": text}) + "\n" for text in documents_of("music", DOCUMENTS)]
    (folder / "music.jsonl").write_text("".join(lines))
    return study


def calm(study: Path, store: Path) -> str:
    """The fingerprint of music, prepared by this process alone."""
    return prepare(read_study(str(study)), store).corpora["music", 32].fingerprint


def fingerprint(document: Any) -> str:
    return str(next(one["fingerprint"] for one in document["corpora"] if one["name"] == "music"))


def parts(store: Path) -> list[Run]:
    """Those of music."""
    specs = [(run, run.spec()) for run in Store(store).runs()]
    return [run for run, spec in specs if spec["stage"] == "prepare" and spec["axes"]["corpus"] == "music"]


def preparation_of(study: Path, store: Path, overrides: Sequence[str] = ()) -> Preparation:
    """That of music, with the tokeniser that is prepared."""
    file = read_study(str(study), overrides)
    cut = cut_corpus(file, "music", known_facts(file, store).tokenizer, file.study.corpora["music"])
    return Preparation(file, cut, (32,))


def done_parts(store: Path) -> dict[str, int]:
    """The number of attempts of each part that is done."""
    return {run.key: len(run.state().attempts) for run in parts(store) if run.is_done()}


def test_the_parts_of_a_corpus_are_runs_and_end_in_the_fingerprint_of_a_single_process(tmp_path: Path) -> None:
    study = large_study(tmp_path / "study")
    document = retain_json("data", study, "--store", tmp_path / "runs")
    assert fingerprint(document) == calm(study, tmp_path / "calm")
    rows = retain_json("status", "--store", tmp_path / "runs")["runs"]
    assert {row["state"] for row in rows} == {"done"}
    of_music = [row["stage"] for row in rows if row["axes"]["corpus"] == "music"]
    assert of_music.count("prepare") > 15
    assert of_music.count("assemble") == 1
    assert retain_json("verify", "--store", tmp_path / "runs")["problems"] == []
    assert "documents" in retain_here("logs", parts(tmp_path / "runs")[0].key, "--store", tmp_path / "runs").stdout
    before = done_parts(tmp_path / "runs")
    less = retain_json("data", study, "corpora.music.tokens=50k", "--store", tmp_path / "runs")
    assert fingerprint(less) != fingerprint(document)
    assert done_parts(tmp_path / "runs") == before


def test_a_plan_says_what_parts_take_until_the_data_is_prepared(tmp_path: Path) -> None:
    study, store = large_study(tmp_path / "study"), tmp_path / "runs"
    size = (tmp_path / "study" / "music.jsonl").stat().st_size
    totals = retain_json("plan", study, "--store", store)["totals"]
    assert size // 2 <= totals["parts_bytes"] <= size
    assert totals["disk_peak_bytes"] >= totals["parts_bytes"] + totals["data_bytes"]
    said = " ".join(retain_here("plan", study, "--store", store).stdout.split())
    assert "by gc, once the corpora are packed" in said
    assert "tokens per second per core (modelled)" in said
    calm(study, store)
    assert retain_json("plan", study, "--store", store)["totals"]["parts_bytes"] == 0


@pytest.mark.parametrize("verb", ["data", "run", "search"])
@pytest.mark.parametrize("part", ["100k", "256M"])
def test_a_disk_that_cannot_hold_the_data_is_refused_before_anything_is_written(
    tmp_path: Path, verb: str, part: str
) -> None:
    search = {"axes": {"pretrain.exposure": {"uniform": [0, 1]}}}
    study = large_study(tmp_path / "study", execution={"data": {"part": part}}, search=search)
    lines = [json.dumps({"text": text}) + "\n" for text in documents_of("music", 40_000)]
    (tmp_path / "study" / "music.jsonl").write_text("".join(lines))
    with small_disk_at(tmp_path / "disk", 1) as disk:
        refused = retain_here(verb, study, "--store", disk / "runs", code=3)
        assert "to prepare the data, about" in refused.stderr.splitlines()[-1]
        assert "free space, or choose another disk with --store" in refused.stderr.splitlines()[-1]
        assert not (disk / "runs").exists()


def test_a_plan_says_how_long_preparing_takes_and_what_takes_disk_until_when(tmp_path: Path) -> None:
    study, store = large_study(tmp_path / "study"), tmp_path / "runs"
    plan = retain_json("plan", study, "--store", store)
    totals, disk = plan["totals"], {one["what"]: one for one in plan["disk"]}
    assert sum(one["bytes"] for one in disk.values()) == totals["disk_peak_bytes"]
    assert disk["parts of corpora"]["bytes"] == totals["parts_bytes"] > 0
    assert disk["parts of corpora"]["freed"] == "by gc, once the corpora are packed"
    assert not totals["preparation_measured"]
    hours = totals["preparation_tokens"] / totals["preparation_speed"] / 3600
    assert totals["preparation_core_hours"] == pytest.approx(hours)
    retain_here("data", study, "--store", store)
    assert retain_json("plan", study, "--store", store)["totals"]["preparation_tokens"] == 0
    less = retain_json("plan", study, "corpora.music.tokens=50k", "--store", store)["totals"]
    assert less["preparation_measured"]
    assert less["preparation_tokens"] == 50_000


@pytest.mark.slow
def test_a_plan_takes_the_bytes_of_a_token_from_the_parts_that_are_prepared(tmp_path: Path) -> None:
    study, store = large_study(tmp_path / "study", **{"corpora.music.tokens": 20_000}), tmp_path / "runs"
    assert "tokens (at 4 bytes of source per token)" in " ".join(
        retain_here("plan", study, "--store", store).stdout.split()
    )
    retain_here("data", study, "--store", store)
    whole = (study, "corpora.music.tokens=null", "--store", store)
    totals = retain_json("plan", *whole)["totals"]
    assert totals["preparation_sized_by"] == ["music"]
    said = " ".join(retain_here("plan", *whole).stdout.split())
    assert "(bytes per token as in the parts of music, 4 in others)" in said
    music = next(one for one in retain_json("data", *whole)["corpora"] if one["name"] == "music")
    tokens = music["reading"]["tokens"]
    size = (tmp_path / "study" / "music.jsonl").stat().st_size
    assert abs(totals["preparation_tokens"] - tokens) < 0.1 * tokens < abs(size / 4 - tokens)


def test_a_small_corpus_makes_no_runs(tmp_path: Path) -> None:
    retain_here("data", tiny_study(tmp_path / "study"), "--store", tmp_path / "runs")
    assert Store(tmp_path / "runs").runs() == []


@pytest.mark.slow
def test_a_budget_makes_hardly_more_parts_than_it_needs(tmp_path: Path) -> None:
    tokens = 100_000
    study = large_study(tmp_path / "study", **{"corpora.music.tokens": tokens, "execution": {"data": {"part": 4000}}})
    document = retain_json("data", study, "--store", tmp_path / "runs")
    assert fingerprint(document) == calm(study, tmp_path / "calm")
    made = sum(json.loads((run.folder / PART / "part.json").read_text())["tokens"] for run in parts(tmp_path / "runs"))
    assert tokens <= made * 0.9 <= tokens * 1.05  # a tenth of the documents is held out


@pytest.mark.slow
def test_a_part_that_starts_once_the_parts_before_it_reach_the_budget_is_left_out_until_it_is_needed(
    tmp_path: Path,
) -> None:
    study, root = large_study(tmp_path / "study", **{"corpora.music.tokens": 60_000}), tmp_path / "runs"
    retain_json("data", study, "--store", root)
    preparation, store = preparation_of(study, root, ["corpora.music.tokens=50k"]), Store(root)
    (last,) = list(preparation.cut.keys)[-1:]
    execution = preparation.file.study.execution.of_data().model_dump(mode="json")
    assemblies = preparation.assemblies([*preparation.made(store), last])
    preparation.register(assemblies, store, execution)
    preparation.register(preparation.part_stages([last]), store, execution, next(iter(assemblies)))
    make_attempt(store, last, Ranks(0, 1), StopRequest())
    assert store.run(last).is_done()
    assert not is_part(store.run(last).folder / PART)
    whole = retain_json("data", study, "corpora.music.tokens=null", "--store", root)
    assert is_part(store.run(last).folder / PART)
    assert fingerprint(whole) == calm(large_study(tmp_path / "whole"), tmp_path / "calm")


@pytest.mark.slow
def test_workers_that_are_killed_lose_only_their_own_part(tmp_path: Path) -> None:
    study, store, draw = large_study(tmp_path / "study"), tmp_path / "runs", random.Random(1)
    killed = 0
    while killed < 4:
        before = done_parts(store) if store.exists() else {}
        process = start("data", study, "--store", store)
        while process.poll() is None and not (killing := running(store)):
            time.sleep(0.01)
        if process.poll() is None:
            time.sleep(draw.random() * 0.3)
            for run in draw.sample(killing, 1):
                killed += kill_owner(run)
        output, errors = process.communicate()
        assert process.returncode in (0, 1), f"{output}\n{errors}"
        assert before.items() <= done_parts(store).items()
        if process.returncode == 0:
            break
        assert "prepare the study's data again, which continues" in errors
    assert killed
    assert fingerprint(retain_json("data", study, "--store", store)) == calm(study, tmp_path / "calm")
    assert all(attempts <= killed + 1 for attempts in done_parts(store).values())


@pytest.mark.slow
def test_a_preparation_that_is_killed_at_any_moment_continues(tmp_path: Path) -> None:
    study, store, draw = large_study(tmp_path / "study"), tmp_path / "runs", random.Random(2)
    for _ in range(4):
        process = start("data", study, "--store", store)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.communicate(timeout=2.5 + 3 * draw.random())
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
    before = done_parts(store)
    assert fingerprint(retain_json("data", study, "--store", store)) == calm(study, tmp_path / "calm")
    assert before.items() <= done_parts(store).items()


@pytest.mark.slow
def test_ctrl_c_leaves_the_rest_of_the_parts_planned(tmp_path: Path) -> None:
    study, store = large_study(tmp_path / "study"), tmp_path / "runs"
    process = start("data", study, "--store", store)
    while process.poll() is None and not (store.exists() and running(store)):
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    process.communicate()
    assert process.returncode not in (0, 1, 2, 3)
    assert {run.state().state for run in parts(store)} <= {"planned", "done"}
    assert fingerprint(retain_json("data", study, "--store", store)) == calm(study, tmp_path / "calm")


@pytest.mark.slow
def test_a_full_disk_keeps_what_is_whole_and_a_larger_one_continues(tmp_path: Path) -> None:
    study = large_study(tmp_path / "study", tokenizer={"train": 300})
    with small_disk_at(tmp_path / "disk", 2) as disk:
        failed = retain_here("data", study, "--store", disk / "runs", code=None)
        assert failed.returncode in (1, 3)
        assert "disk" in failed.stderr or "No space" in failed.stderr
        assert "Traceback" not in failed.stderr
        before = done_parts(disk / "runs")
        assert before
        subprocess.run(["mount", "-o", "remount,size=64m", str(disk)], check=True)
        document = retain_json("data", study, "--store", disk / "runs")
        assert before.items() <= done_parts(disk / "runs").items()
    assert fingerprint(document) == calm(study, tmp_path / "calm")


def test_a_bad_line_of_a_part_is_named_by_its_number_in_the_whole_file_with_the_cure(tmp_path: Path) -> None:
    study, store = large_study(tmp_path / "study", tokenizer={"hf": "tok"}), tmp_path / "runs"
    own_tokenizer(tmp_path / "study")
    file = tmp_path / "study" / "music.jsonl"
    lines = file.read_text().splitlines()
    lines[2999] = '{"txt": "a"}'
    file.write_text("\n".join(lines))
    failed = retain_here("data", study, "--store", store, code=2)
    assert "tiny.yaml: corpora.music: " in failed.stderr
    assert "music.jsonl, line 3000" in failed.stderr
    assert len(failed.stderr.splitlines()[-1].split(";")) > 1  # the cure


@pytest.mark.slow
def test_a_source_that_changes_between_two_parts_is_refused_as_one_that_changes_while_it_is_read(
    tmp_path: Path,
) -> None:
    study, store = large_study(tmp_path / "study"), tmp_path / "runs"
    process = start("data", study, "--store", store)
    while process.poll() is None and not (store.exists() and done_parts(store)):
        time.sleep(0.01)
    with (tmp_path / "study" / "music.jsonl").open("a") as file:
        file.write(json.dumps({"text": "a new line at the end"}) + "\n")
    errors = process.communicate()[1]
    assert process.returncode == 3
    assert "changed while it was" in errors.splitlines()[-1]
    assert fingerprint(retain_json("data", study, "--store", store)) == calm(study, tmp_path / "calm")


@pytest.mark.slow
def test_two_processes_share_the_parts_of_a_corpus(tmp_path: Path) -> None:
    study, store = large_study(tmp_path / "study"), tmp_path / "runs"
    both = [start("data", study, "--store", store, "--json") for _ in range(2)]
    answers = [process.communicate() for process in both]
    assert [process.returncode for process in both] == [0, 0], answers
    assert len({fingerprint(json.loads(output)) for output, _ in answers}) == 1
    assert set(done_parts(store).values()) == {1}


@pytest.mark.slow
def test_parts_of_another_size_of_parts_give_the_same_corpus(tmp_path: Path) -> None:
    study, store = large_study(tmp_path / "study"), tmp_path / "runs"
    first = retain_json("data", study, "--store", store)
    known = {run.key for run in parts(store)}
    shutil.rmtree(store / "corpora" / fingerprint(first))
    other = retain_json("data", study, "execution.data.part=50k", "--store", store)
    assert fingerprint(first) == fingerprint(other)
    more = [run for run in parts(store) if run.key not in known]
    assert 5 < len(more) < len(known)
    assert all(run.is_done() for run in more)
    assembly = next(run for run in Store(store).runs() if {one.key for one in more} & set(run.needs()))
    assert "it is prepared here" not in assembly.log.read_text()


def running(store: Path) -> list[Run]:
    return [run for run in Store(store).runs() if run.is_running()]


def kill_owner(run: Run) -> bool:
    owner = read_owner(run.lease)
    if owner is None or not is_alive(owner.pid, owner.started):
        return False
    os.kill(owner.pid, signal.SIGKILL)
    return True


def own_tokenizer(folder: Path) -> None:
    from retain.datamodules.corpora.tokenizer import train_tokenizer

    train_tokenizer(documents_of("general"), 320).save(folder / "tok")


@pytest.mark.slow
def test_gc_frees_the_parts_of_a_corpus_once_it_is_prepared_and_they_can_be_made_again(tmp_path: Path) -> None:
    study, store = large_study(tmp_path / "study"), tmp_path / "runs"
    first = retain_json("data", study, "--store", store)
    freed = retain_json("gc", "--store", store)
    assert {one["kind"] for one in freed["freed"]} == {"parts"}
    assert parts(store) == []
    assert retain_json("verify", "--store", store)["problems"] == []
    assert retain_json("data", study, "--store", store) == first
    assert parts(store) == []
    retain_json("data", study, "corpora.music.tokens=50k", "--store", store)
    assert parts(store)
