"""What `retain gc` removes, and what it never touches."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterable
from pathlib import Path

import pytest

from retain.launchers.planning.register import register
from retain.results.store.disk import used_bytes
from retain.results.store.garbage import (
    CHECKPOINT,
    LEFTOVER,
    WEIGHTS,
    Waste,
    check_starts,
    find_waste,
    free,
    is_pinned,
    set_pin,
)
from retain.results.store.lease import take_lease
from retain.results.store.runs import Run, Store
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.base.processes.names import process_name
from retain.sweeps.tree.evaluation_runs import asked_evaluations
from retain.sweeps.tree.tree import Stage, Tree, expand
from tests.conftest import Prepared
from tests.results.runs import finish, finish_all, kinds, problems, registered, write_model
from tests.results.store.processes import HOLDER, next_line, start_python
from tests.retain import pid_of_dead_process, retain_here, retain_json


@pytest.fixture
def planned(tmp_path: Path) -> tuple[Tree, Store]:
    """The tiny study, registered: two pretrainings, each with a post-training with two fine-tunings."""
    return registered(tmp_path / "runs")


def add_checkpoint(run: Run, size: int = 100) -> Path:
    """Give a run a checkpoint of this many bytes."""
    folder = run.folder / "checkpoint" / "step-000000010"
    folder.mkdir(parents=True)
    (folder / "rank-00000.safetensors").write_bytes(b"s" * size)
    return folder


def age(path: Path, hours: float) -> Path:
    """Make everything below a path look unchanged for this many hours."""
    then = time.time() - 3600 * hours
    for place in (path, *path.rglob("*")):
        os.utime(place, (then, then))
    return path


def gc(store: Store, weights: bool = False, keys: Iterable[str] | None = None) -> list[Waste]:
    """Remove all waste, which must succeed for each item."""
    found = find_waste(store, None if keys is None else set(keys), weights)
    assert [free(store, waste) for waste in found] == [None] * len(found)
    assert not any(waste.path.exists() and waste.kind != WEIGHTS for waste in found)
    return found


def content(root: Path) -> set[Path]:
    """Every path of a store except those of leases."""
    return {path for path in root.rglob("*") if not path.name.startswith("lease.")}


def test_checkpoints_are_removed_from_done_runs_only(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    first, second = kinds(tree, store, "pretrain")
    for run in (first, second):
        add_checkpoint(run)
    second.begin(1)
    assert find_waste(store, None, weights=False) == []
    finish(first)
    add_checkpoint(first)
    (waste,) = gc(store)
    assert (waste.path, waste.run, waste.kind, waste.bytes) == (first.checkpoint, first.key, CHECKPOINT, 100)
    assert (second.checkpoint / "step-000000010" / "rank-00000.safetensors").exists()
    assert (len(store.runs()), problems(store)) == (8, {})
    assert find_waste(store, None, weights=False) == []
    add_checkpoint(first)
    found = find_waste(store, None, weights=False)
    assert first.retry(reopen=True)  # as another process may meanwhile
    assert [free(store, waste) for waste in found] == ["the run is no longer done"]
    assert first.checkpoint.exists()


def test_a_dry_run_lists_what_would_be_freed_and_changes_nothing(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    for run in kinds(tree, store, "finetune"):
        add_checkpoint(run, size=1000)
    before = content(store.root)
    document = retain_json("gc", "--store", store.root, "--dry-run")
    assert content(store.root) == before
    assert (document["dry_run"], document["bytes"], document["kept"]) == (True, 4000, [])
    assert all(set(row) >= {"path", "run", "bytes", "reason"} for row in document["freed"])
    assert "would free 4 items, 4 kB" in retain_here("gc", "--store", store.root, "--dry-run").stdout
    assert "freed 4 items, 4 kB" in retain_here("gc", "--store", store.root).stdout
    assert "freed 0 items, 0 B" in retain_here("gc", "--store", store.root).stdout
    assert content(store.root) == {path for path in before if "checkpoint" not in path.parts}


def test_half_written_files_of_a_dead_attempt_are_removed_and_its_checkpoints_stay(
    planned: tuple[Tree, Store],
) -> None:
    tree, store = planned
    run = kinds(tree, store, "pretrain")[0]
    whole = add_checkpoint(run)
    halves = [run.checkpoint / name for name in (".step-000000020", ".tmp7ufoNf", "sums.safetensors.partial")]
    for half in (*halves, run.folder / "model.partial"):
        write_model(half)
    holder = start_python(HOLDER, run.lease)
    assert next_line(holder) == "True"
    assert find_waste(store, None, weights=True) == []
    holder.kill()
    holder.communicate()
    found = gc(store)
    assert {waste.kind for waste in found} == {LEFTOVER}
    assert {waste.path for waste in found} == {*halves, run.folder / "model.partial"}
    assert [path.name for path in run.checkpoint.iterdir()] == [whole.name]
    assert not run.is_running()


def test_half_written_sums_of_a_dead_attempt_are_removed_and_the_saved_ones_stay(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    run = kinds(tree, store, "pretrain")[0]
    run.checkpoint.mkdir()
    for name in (
        "sums.safetensors",
        "sums.safetensors.partial",
        ".tmp7ufoNf",
        "answers.json",
        ".answers.json.7.0a1b2c",
    ):
        (run.checkpoint / name).write_bytes(b"s" * 100)
    assert {waste.kind for waste in gc(store)} == {LEFTOVER}
    assert {path.name for path in run.checkpoint.iterdir()} == {"sums.safetensors", "answers.json"}


def test_nothing_is_removed_from_a_run_that_a_process_has_leased_meanwhile(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    first, second = kinds(tree, store, "pretrain")
    write_model(first.folder / "model.partial")
    finish(second)
    add_checkpoint(second)
    found = find_waste(store, None, weights=False)
    leases = [take_lease(run.lease) for run in (first, second)]
    assert all(leases)
    assert [free(store, waste) for waste in found] == ["a process is working on the run"] * 2
    assert all(waste.path.exists() for waste in found)


def test_only_old_temporary_files_of_dead_processes_are_removed(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    run = kinds(tree, store, "pretrain")[0]
    (store.root / "studies" / "tiny").mkdir(parents=True)
    dead = pid_of_dead_process()
    old = [
        *(run.folder / f".{name}.{dead}.0123456789abcdef" for name in ("state.json", "lease.json")),
        store.root / "studies" / "tiny" / f".trials.json.{dead}.0a1b2c",
        store.root / ".probe.n1.123456",
    ]
    kept = [run.folder / f".state.json.{os.getpid()}.0a1b2c", run.folder / ".hidden", run.folder / "notes.txt"]
    new = run.folder / f".state.json.{dead}.ffffff"
    for path in (*old, *kept):
        path.write_text("{}")
        age(path, 2)
    new.write_text("{}")
    assert {waste.path for waste in gc(store)} == set(old)
    assert all(path.exists() for path in (*kept, new))


def test_half_prepared_data_is_removed_once_its_process_is_gone_and_it_has_not_changed_for_long(tmp_path: Path) -> None:
    store, dead = Store(tmp_path), pid_of_dead_process()
    here = process_name().split(".")[0]
    hours = {
        f"{here}.{dead}.5-01234567": 2.0,
        f"{here}.{dead}.5-11111111": 0.1,
        f"{process_name()}-22222222": 2.0,
        f"abc.{dead}.5-33333333": 2.0,
        f"abc.{dead}.5-44444444": 25.0,
        "mine": 100.0,
    }
    for name in hours:
        (tmp_path / "building" / name).mkdir(parents=True)
        (tmp_path / "building" / name / "train.bin").write_bytes(b"12345")
    for name, old in hours.items():
        age(tmp_path / "building" / name, old)
    found = gc(store)
    assert {waste.path.name for waste in found} == {f"{here}.{dead}.5-01234567", f"abc.{dead}.5-44444444"}
    assert {waste.bytes for waste in found} == {5}


def test_gc_weights_frees_the_weights_of_runs_whose_children_are_all_done(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    assert find_waste(store, None, weights=False) == []
    inner = [*kinds(tree, store, "pretrain"), *kinds(tree, store, "posttrain")]
    size = sum(used_bytes(run.model / "model.safetensors") for run in inner)
    found = gc(store, weights=True)
    assert {waste.run for waste in found} == {run.key for run in inner}
    assert sum(waste.bytes for waste in found) == size
    for run in inner:
        assert not (run.model / "model.safetensors").exists()
        assert (run.model / "config.json").exists()
        state = run.state()
        assert state.weights_freed
        assert set(state.checksums) == {"losses.json", "model/config.json", "model/tokenizer.json"}
        assert run.losses()["splits"]
    for run in kinds(tree, store, "finetune"):
        assert (run.model / "model.safetensors").exists()
    assert (len(store.runs()), problems(store)) == (8, {})
    assert find_waste(store, None, weights=True) == []


def test_verify_finds_damage_in_a_run_whose_weights_were_freed(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    gc(store, weights=True)
    run = kinds(tree, store, "pretrain")[0]
    (run.folder / "losses.json").write_text("{}")
    ((key, (problem,)),) = problems(store).items()
    assert key == run.key
    assert "losses.json is damaged" in problem


def test_the_weights_of_a_run_with_an_unfinished_child_stay(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    registered(store.root, grid={"pretrain.exposure": [0, 1], "finetune.lr": [7e-3]})
    freed = {waste.run for waste in gc(store, weights=True)}
    assert freed == {run.key for run in kinds(tree, store, "pretrain")}


def test_pinned_weights_stay_until_they_are_unpinned(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    run = kinds(tree, store, "posttrain")[1]
    assert "is pinned" in retain_here("pin", run.key[:9], "--store", store.root).stdout
    assert is_pinned(run)
    assert run.key not in {waste.run for waste in gc(store, weights=True)}
    assert "no longer pinned" in retain_here("pin", run.key, "--off", "--store", store.root).stdout
    (waste,) = gc(store, weights=True)
    assert waste.run == run.key
    with pytest.raises(StudyError, match=f"{run.key}: the weights have been freed already; delete "):
        set_pin(run, True)


def test_a_pin_that_is_set_just_before_the_removal_counts(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    found = find_waste(store, None, weights=True)
    for run in (store.run(waste.run) for waste in found if waste.run):
        set_pin(run, True)
    assert {free(store, waste) for waste in found} == {"it is pinned"}
    assert (len(store.runs()), problems(store)) == (8, {})


def test_a_killed_gc_leaves_a_valid_store_and_the_next_gc_completes_it(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    code = (
        "import os, sys; from pathlib import Path\n"
        "from retain.results.store.garbage import find_waste, free\nfrom retain.results.store.runs import Store\n"
        "store = Store(Path(sys.argv[1])); found = find_waste(store, None, True)\n"
        "sys.addaudithook(lambda event, _: event == 'os.remove' and os.kill(os.getpid(), 9))\n"
        "free(store, found[0])"
    )
    assert subprocess.run([sys.executable, "-c", code, str(store.root)], check=False).returncode == -9
    assert sum(run.state().weights_freed for run in store.runs()) == 1
    assert (len(store.runs()), problems(store)) == (8, {})
    assert len(gc(store, weights=True)) == 4
    assert (len(store.runs()), problems(store)) == (8, {})


def test_the_error_for_freed_weights_names_the_folders_to_delete(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    gc(store, weights=True)
    check_starts(store, tree.stages, store.states(tree.stages))
    larger, _ = registered(store.root, grid={"pretrain.exposure": [0], "finetune.lr": [5e-4, 7e-3]})
    with pytest.raises(MissingResourceError) as caught:
        check_starts(store, larger.stages, store.states(larger.stages))
    (post,) = kinds(larger, store, "posttrain")
    (pre,) = kinds(larger, store, "pretrain")
    assert f"delete {post.folder} {pre.folder} and run the study" in str(caught.value)
    for run in (post, pre):
        shutil.rmtree(run.folder)
    check_starts(store, larger.stages, store.states(larger.stages))


def test_export_of_freed_weights_fails_with_a_cure(planned: tuple[Tree, Store], tmp_path: Path) -> None:
    tree, store = planned
    finish_all(tree, store)
    gc(store, weights=True)
    run = kinds(tree, store, "pretrain")[0]
    printed = retain_here("export", run.key, "--store", store.root, "--to", tmp_path / "hf", code=3).stderr
    assert printed.startswith("retain: retain gc --weights has freed")
    assert str(run.folder) in printed


def test_gc_of_one_study_does_not_touch_the_runs_of_another(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    first, second = kinds(tree, store, "pretrain")
    for run in (first, second):
        finish(run)
        add_checkpoint(run)
    assert [waste.run for waste in gc(store, keys=[first.key])] == [first.key]
    assert second.checkpoint.exists()


def test_unknown_files_and_files_behind_links_are_not_touched(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    unknown = [
        store.root / "notes" / "checkpoint" / "mine.txt",
        store.root / "notes" / "model.partial" / "mine.txt",
        store.root / "corpora" / "abc" / "train.bin",
        kinds(tree, store, "pretrain")[0].folder / "analysis" / "model.safetensors",
    ]
    for path in unknown:
        path.parent.mkdir(parents=True)
        path.write_text("mine")
        age(path, 1000)
    elsewhere = store.root.parent / "scratch"
    elsewhere.mkdir()
    (elsewhere / "state").touch()
    kinds(tree, store, "finetune")[0].checkpoint.symlink_to(elsewhere)
    gc(store, weights=True)
    assert all(path.exists() for path in unknown)
    assert (elsewhere / "state").exists()


def test_gc_removes_nothing_from_a_run_whose_folder_is_a_link(planned: tuple[Tree, Store]) -> None:
    tree, store = planned
    finish_all(tree, store)
    run = kinds(tree, store, "pretrain")[0]
    (run.folder / "model.partial").mkdir()
    (run.folder / "model.partial" / "model.safetensors").touch()
    age(run.folder / "model.partial", 1000)
    elsewhere = store.root.parent / "archive"
    run.folder.rename(elsewhere)
    run.folder.symlink_to(elsewhere)
    before = sorted(elsewhere.rglob("*"))
    gc(store, weights=True)
    assert sorted(elsewhere.rglob("*")) == before


def test_run_refuses_to_start_from_freed_weights_before_it_trains_anything(prepared: Prepared, tmp_path: Path) -> None:
    store = Store(tmp_path / "runs")
    shutil.copytree(prepared.store, store.root)
    tree = expand(prepared.file, prepared.facts)
    register(tree, prepared.file, prepared.facts, store)
    finish_all(tree, store)
    gc(store, weights=True)
    study = prepared.file.path
    printed = retain_here("run", study, "finetune.weight_decay=0.2", "--store", store.root, code=3).stderr
    assert printed.startswith("retain: retain gc --weights has freed weights that are needed to start from; delete ")
    assert all(str(run.folder) in printed for stage in ("pretrain", "posttrain") for run in kinds(tree, store, stage))
    assert len(store.runs()) == 8


def test_weights_stay_until_the_averages_and_estimates_that_need_them_are_done(tmp_path: Path) -> None:
    anchor = {"finetune.anchor": {"ewc": 1, "sequences": 8}, "grid": {"finetune.average": [0.5, 1]}}
    tree, store = registered(tmp_path / "runs", **anchor)
    first, second, estimate, last = tree.stages
    averages = asked_evaluations(tree)

    def freed(stages: dict[str, Stage] | None = None) -> set[str | None]:
        return {waste.run for waste in find_waste(store, None, True, stages)}

    finish_all(tree, store, lambda stage: stage != "finetune")
    assert freed() == {first}
    finish(store.run(last))
    assert freed() == {first, estimate}
    for key in averages:
        assert second not in freed()  # an average is measured between the start of the last stage and its end
        store.run(key).cancel("by you")
    # A cancelled measurement needs nothing, unless a study asks for it.
    assert freed() == {first, second, estimate}
    assert freed(tree.stages | averages) == {first, estimate}
    shutil.rmtree(store.root / next(iter(averages)))
    assert freed(tree.stages | averages) == {first, estimate}
