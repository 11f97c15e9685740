"""Two ranks of one stage, each a process that runs a script."""

import subprocess
import sys

from retain.launchers.stage.ranks import LOOPBACK, Ranks, free_port, loopback_interface


def printed_by_two_ranks(script: str) -> list[str]:
    """The last line that each of two ranks prints."""
    port = free_port()
    shared = {"GLOO_SOCKET_IFNAME": loopback_interface(), "PYTHONPATH": ":".join(sys.path)}
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", script],
            env=shared | Ranks(rank, 2).rendezvous(LOOPBACK, port, local_rank=rank),
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    try:
        printed = [rank.communicate(timeout=120)[0].splitlines() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    assert [rank.returncode for rank in ranks] == [0, 0]
    return [lines[-1] for lines in printed]
