"""How the ranks of one stage connect."""

import subprocess
import sys

from retain.launchers.stage.ranks import free_port, loopback_interface

MEETING = """
import os
import torch
from retain.launchers.stage.training.distributed import gather, join_ranks
join_ranks(2, gpu=False)
assert gather(int(os.environ["RANK"]), 2) == [0, 1]
port = f"{int(os.environ['MASTER_PORT']):04X}"
lines = [line.split() for name in ("tcp", "tcp6") for line in open(f"/proc/net/{name}")]
print([fields[1] for fields in lines if fields[3] == "0A" and fields[1].endswith(port)])
gather(0, 2)
# A rank's threads would otherwise be cut off by the interpreter's end.
torch.distributed.destroy_process_group()
"""


def test_ranks_of_one_machine_meet_where_nobody_else_can_reach_them() -> None:
    shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": "2"}
    shared |= {"GLOO_SOCKET_IFNAME": loopback_interface(), "PYTHONPATH": ":".join(sys.path)}
    command = [sys.executable, "-c", MEETING]
    ranks = [
        subprocess.Popen(command, env=shared | {"RANK": str(rank)}, stdout=subprocess.PIPE, text=True)
        for rank in range(2)
    ]
    printed = [rank.communicate(timeout=120)[0].strip() for rank in ranks]
    assert [rank.returncode for rank in ranks] == [0, 0]
    port = f"{int(shared['MASTER_PORT']):04X}"
    assert printed == [f"['0100007F:{port}']"] * 2
