"""`retain search` on a Ray cluster: one that runs already (`--address`) goes on running; how many stages a cluster holds."""

import secrets
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from retain.launchers.search.ray.allocation import offered
from retain.launchers.search.ray.cleanup import clean_up
from retain.launchers.search.ray.cluster import answers, room_for
from retain.results.store.runs import Store
from retain.sweeps.base.errors import MissingResourceError
from tests.launchers.search.searches import THEORY, block
from tests.retain import environment, retain_json

OWNER = """
import sys, ray
context = ray.init(num_cpus=2, num_gpus=0, include_dashboard=False, object_store_memory=80 * 2**20,
                   _node_ip_address="127.0.0.1", _temp_dir=sys.argv[1], log_to_driver=False)
print(context.address_info["gcs_address"], flush=True)
sys.stdin.read()
"""


@dataclass(frozen=True)
class Running:
    """A Ray that somebody else has started on this machine."""

    owner: "subprocess.Popen[str]"
    address: str
    folder: Path
    token: str


@pytest.fixture
def running() -> Iterator[Running]:
    token = secrets.token_hex(32)
    folder = Path(tempfile.mkdtemp(prefix="rt-", dir="/tmp"))
    told = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    owner = subprocess.Popen(
        [sys.executable, "-c", OWNER, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=environment(told),
    )
    assert owner.stdout is not None
    try:
        address = next((line.strip() for line in owner.stdout if line.startswith("127.0.0.1:")), "")
        assert address, "Ray has not started"
        yield Running(owner, address, folder, token)
    finally:
        owner.communicate(timeout=60)
        clean_up(folder)


@pytest.mark.slow
def test_a_search_joins_a_running_ray_and_leaves_it_running(running: Running, tmp_path: Path) -> None:
    search = block(axes={"pretrain.exposure": [0.5, 0.9]}, searcher="grid")
    document = retain_json(
        *("search", "theory", search, *THEORY, "--store", tmp_path, "--address", running.address),
        more={"RAY_AUTH_TOKEN": running.token},
    )
    assert [point["state"] for point in document["points"]] == ["done", "done"]
    assert {run.state().state for run in Store(tmp_path).runs()} == {"done"}
    assert running.owner.poll() is None
    assert answers(running.address)
    assert not list((tmp_path / "studies" / "theory").glob("tune*"))


def test_a_stage_needs_room_on_one_node() -> None:
    two, gpus = {"CPU": 2.0}, {"CPU": 1.0, "GPU": 2.0}
    nodes = [{"CPU": 3.0}, {"CPU": 3.0, "GPU": 4.0}]
    assert room_for(nodes, [two], "the allocation") == 2
    assert room_for(nodes, [two, gpus], "the allocation") == 2
    with pytest.raises(
        MissingResourceError, match="the allocation: a stage needs 4 CPUs, and the largest node has 3 CPUs"
    ):
        room_for(nodes, [two, {"CPU": 4.0}], "the allocation")


def test_an_allocation_offers_what_slurm_gave_not_what_the_machine_has() -> None:
    given = {"SLURM_CPUS_PER_TASK": "6", "SLURM_CPUS_ON_NODE": "64", "CUDA_VISIBLE_DEVICES": "2,5"}
    assert offered(given) == (6, 2)
    assert offered({"SLURM_CPUS_ON_NODE": "8", "CUDA_VISIBLE_DEVICES": "NoDevFiles"}) == (8, 0)
