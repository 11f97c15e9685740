"""What the ranks of one job agree on before they train."""

import subprocess
import sys
from pathlib import Path

from retain.launchers.jobs.submissions import new_submission, write_submission
from tests.results.runs import kinds, registered
from tests.retain import environment

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


def test_no_rank_decides_by_itself_what_becomes_of_a_run(tmp_path: Path) -> None:
    """One that sees older states of the needed runs than rank 0 does would leave rank 0 waiting for it."""
    tree, store = registered(tmp_path / "runs")
    run = kinds(tree, store, "posttrain")[0]  # its parent is not done, and has no job
    submission = new_submission([run.key])
    write_submission(store, submission)
    run.queue(submission.token)

    def start(rank: int) -> subprocess.Popen[bytes]:
        of_a_job = {"SLURM_JOB_ID": "7", "SLURM_LOCALID": str(rank), "SLURM_NODEID": "0"}
        command = [sys.executable, "-c", RANK, str(store.root), run.key, submission.token, str(rank)]
        return subprocess.Popen(command, env=environment(of_a_job))

    with start(1) as second:
        while not run.log.exists() or "rank 1: waits" not in run.log.read_text():
            assert second.poll() is None
        with start(0) as first:
            assert (first.wait(60), second.wait(60)) == (0, 0)
    assert run.state().state == "skipped"
    assert "has no job; submit the study again" in (run.state().reason or "")
