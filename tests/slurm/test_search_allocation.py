"""`retain search --launcher slurm-ray` on a real SLURM: a Ray cluster in an allocation, and nothing of it left afterwards."""

import contextlib
import os
import shutil
import signal
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from retain.launchers.search.ray.cleanup import processes_of
from retain.results.store.runs import Store
from retain.results.store.study_files import search_run
from tests.conftest import Trained
from tests.launchers.listening import addresses
from tests.retain import losses, retain_json, stages_of, train_here, weights
from tests.slurm.chaos import SLOW
from tests.slurm.cluster.cluster import Cluster, call, wait_until
from tests.slurm.cluster.jobs import job, queue, submit, wait_for_state
from tests.slurm.cluster.processes import processes
from tests.studies import replaced, tiny_study

pytestmark = pytest.mark.slurm
GRID: dict[str, Any] = {
    "axes": {"pretrain.exposure": [1], "finetune.lr": [5e-4, 2e-3]},
    "searcher": "grid",
}
"""One pretraining, one post-training, and two fine-tunings, for which there is room side by side."""
ON_CPU: dict[str, Any] = {"accelerator": "cpu", "parallel": 2, "slurm": {"minutes": 10, "cpus": 1, "partition": "low"}}
SLOWLY = SLOW | {
    "execution": replaced(SLOW["execution"], {"parallel": 2}),
    "grid": {"pretrain.exposure": [1], "finetune.lr": [5e-4, 2e-3]},
    "search": GRID,
}
"""The same in stages of some seconds each."""


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Where the nodes keep their temporary files: a path short enough for Ray's sockets."""
    place = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    yield place
    shutil.rmtree(place, ignore_errors=True)


def begin(cluster: Cluster, study: Path, store: Path, temporary: Path, nodes: int) -> str:
    """Submit a search; its job's id."""
    document = retain_json(
        *("search", study, "--store", store, "--launcher", "slurm-ray", "--nodes", str(nodes)),
        more=cluster.environment | {"TMPDIR": str(temporary)},
    )
    assert document["submitted"]
    return str(document["job_id"])


def is_left(cluster: Cluster, temporary: Path) -> bool:
    """Whether anything of the jobs still runs or lies about."""
    running = processes(cluster.folder, lambda process: not process.is_daemon)
    return bool(running or processes_of(temporary) or list(temporary.glob("retain-ray-*")))


def states(store: Path) -> list[str]:
    return [run.state().state for run in stages_of(store)]


def trains(store: Path) -> bool:
    """Whether a run trains that has saved a state."""
    return any(run.checkpoint.exists() and run.is_running() for run in stages_of(store))


def training(cluster: Cluster, temporary: Path, folder: Path) -> tuple[Path, str]:
    """A search on two nodes, once a stage of it has saved a state: its store and its job's id."""
    store = folder / "runs"
    search = begin(cluster, tiny_study(folder / "study", **SLOWLY), store, temporary, nodes=2)
    wait_until(lambda: trains(store), "a state", 300)
    return store, search


def wait_for_the_end(cluster: Cluster, store: Path, seconds: float = 400) -> None:
    wait_until(lambda: not queue(cluster), "queue empty", seconds)
    assert set(states(store)) == {"done"}, search_run(Store(store), "tiny").log.read_text()


@pytest.mark.slow
def test_two_searches_side_by_side_on_one_node_end_with_the_right_results(
    slurm: Cluster, trained: Trained, temporary: Path, tmp_path: Path
) -> None:
    there = replaced(ON_CPU, {"slurm.extra": {"nodelist": "n1,n2"}})
    study = tiny_study(tmp_path / "two nodes", search=GRID, execution=there)
    first = begin(slurm, study, tmp_path / "first", temporary, nodes=2)
    # Its stages take two processes each, two of them side by side, in one allocation.
    here = replaced(ON_CPU, {"devices": 2, "slurm.extra": {"nodelist": "n1"}})
    study = tiny_study(tmp_path / "one node", search=GRID, execution=here)
    second = begin(slurm, study, tmp_path / "second", temporary, nodes=1)
    wait_until(lambda: bool(stages_of(tmp_path / "first") and stages_of(tmp_path / "second")), "both begun", 300)
    assert (job(slurm, first)["NodeList"], job(slurm, second)["NodeList"]) == ("n[1-2]", "n1")
    # Nodes of one machine see each other on localhost.
    assert addresses(processes_of(temporary)) == {"127.0.0.1"}
    wait_for_the_end(slurm, tmp_path / "first")
    wait_for_the_end(slurm, tmp_path / "second")
    assert weights(tmp_path / "first").items() <= weights(trained.store).items()
    for store, world in (("first", 1), ("second", 2)):
        runs = stages_of(tmp_path / store)
        assert [[attempt.world for attempt in run.state().attempts] for run in runs] == [[world]] * 4
    alone, together = losses(tmp_path / "first"), losses(tmp_path / "second")
    assert alone.keys() == together.keys()
    for key, of in alone.items():
        # Two processes sum in another order.
        pairs = [(split["loss"], of["splits"][name]["loss"]) for name, split in together[key]["splits"].items()]
        assert all(ours == pytest.approx(theirs, rel=1e-3) for ours, theirs in pairs)
    wait_until(lambda: not is_left(slurm, temporary), "the nodes empty")


@pytest.mark.slow
def test_a_preempted_allocation_goes_on_and_ends_with_the_same_weights(
    slurm: Cluster, temporary: Path, tmp_path: Path
) -> None:
    train_here(tiny_study(tmp_path / "study", **SLOWLY), tmp_path / "calm")
    store, search = training(slurm, temporary, tmp_path)
    stronger = submit(slurm, "sleep 5", "--partition=high", "--exclusive", "--nodes=4")
    wait_for_state(slurm, stronger, "RUNNING", "COMPLETED", seconds=60)
    assert not processes_of(temporary)
    assert not any(run.is_running() for run in stages_of(store))
    wait_for_the_end(slurm, store)
    assert job(slurm, search)["Restarts"] == "1"
    assert weights(store) == weights(tmp_path / "calm")
    wait_until(lambda: not is_left(slurm, temporary), "the nodes empty")


def test_a_cancelled_allocation_saves_and_leaves_nothing_behind(
    slurm: Cluster, temporary: Path, tmp_path: Path
) -> None:
    store, search = training(slurm, temporary, tmp_path)
    trained = next(run for run in stages_of(store) if run.checkpoint.exists())
    call(slurm, "scancel", search)
    wait_until(lambda: not queue(slurm), "queue empty", 60)
    wait_until(lambda: not processes_of(temporary), "Ray gone")
    assert trained.state().attempts[-1].end is not None
    wait_until(lambda: not is_left(slurm, temporary), "the nodes empty")


def test_the_other_nodes_end_when_the_first_dies_and_the_job_goes_back_to_the_queue(
    slurm: Cluster, temporary: Path, tmp_path: Path
) -> None:
    store, search = training(slurm, temporary, tmp_path)
    tasks = processes(slurm.folder, lambda process: process.name.startswith("python"))
    (first,) = [task.pid for task in tasks if is_first_task(task.pid)]
    os.kill(first, signal.SIGKILL)
    wait_until(lambda: not processes_of(temporary) and not any(run.is_running() for run in stages_of(store)), "end")
    wait_until(lambda: job(slurm, search)["Restarts"] == "1", "a second life", 60)


def is_first_task(pid: int) -> bool:
    with contextlib.suppress(OSError):
        environment = Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
        return b"SLURM_PROCID=0" in environment and b"submitit" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False
