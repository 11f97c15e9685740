"""What the ranks of one job agree on before they train."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.made_up import registered as registered_with_data
from retain.launchers.jobs.submissions import new_submission, write_submission
from retain.results.store.runs import Run, Store
from tests.launchers.listening import addresses
from tests.results.runs import kinds, registered
from tests.retain import environment
from tests.studies import tiny_study

RANK = """
import sys
from pathlib import Path
from retain.launchers.jobs.job import _do_run
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import StopRequest
from retain.results.store.runs import Store
store, key, token, rank = Store(Path(sys.argv[1])), sys.argv[2], sys.argv[3], int(sys.argv[4])
_do_run(store, token, store.run(key), Ranks(rank, 2), StopRequest(), 1)
"""


def submitted(store: Store, run: Run) -> str:
    """Queue a run as a submission does; returns the token of the submission."""
    submission = new_submission([run.key])
    write_submission(store, submission)
    run.queue(submission.token)
    return submission.token


def start(store: Store, run: Run, token: str, rank: int) -> subprocess.Popen[bytes]:
    """Start one of the two processes of a job on one node."""
    of_a_job = {"SLURM_JOB_ID": "7", "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
    command = [sys.executable, "-c", RANK, str(store.root), run.key, token, str(rank)]
    return subprocess.Popen(command, env=environment(of_a_job))


def test_no_rank_decides_by_itself_what_becomes_of_a_run(tmp_path: Path) -> None:
    """One that sees older states of the needed runs than rank 0 does would leave rank 0 waiting for it."""
    tree, store = registered(tmp_path / "runs")
    run = kinds(tree, store, "posttrain")[0]  # its parent is not done, and has no job
    token = submitted(store, run)
    with start(store, run, token, 1) as second:
        while not run.log.exists() or "rank 1: waits" not in run.log.read_text():
            assert second.poll() is None
        with start(store, run, token, 0) as first:
            assert (first.wait(60), second.wait(60)) == (0, 0)
    assert run.state().state == "skipped"
    assert "has no job; submit the study again" in (run.state().reason or "")


@pytest.mark.slow
def test_ranks_of_one_node_listen_on_no_network(tmp_path: Path) -> None:
    opened = registered_with_data(tiny_study(tmp_path / "study"), ["execution.devices=2"], tmp_path / "runs")
    run = kinds(opened.tree, opened.store, "pretrain")[0]
    token, seen = submitted(opened.store, run), set[str]()
    ranks = [start(opened.store, run, token, rank) for rank in range(2)]
    while any(rank.poll() is None for rank in ranks):
        seen |= addresses(rank.pid for rank in ranks)
    assert [rank.wait() for rank in ranks] == [0, 0]
    assert run.is_done()
    assert seen == {"127.0.0.1"}
