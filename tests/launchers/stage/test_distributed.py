"""How the ranks of one stage connect, and what a signal to one of them does."""

from tests.launchers.stage.ranks_of_a_script import printed_by_two_ranks

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

# Rank 1 gets TERM when Lightning is about to train, just before it meets rank 0 in a barrier.
TERMINATED = """
import os
import signal
from pathlib import Path
import torch
from lightning.pytorch import LightningDataModule, LightningModule
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import StopRequest
from retain.launchers.stage.training.distributed import join_ranks
from retain.launchers.stage.training.trainer import fit, stage_trainer

class Line(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
    def training_step(self, batch, index):
        return self.layer(batch).square().mean()
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)

class Data(LightningDataModule):
    def train_dataloader(self):
        if rank == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return torch.utils.data.DataLoader(torch.ones(6, 2), 2)

rank, stop = int(os.environ["RANK"]), StopRequest()
stop.install()
join_ranks(2, gpu=False)
trainer = stage_trainer(Path("."), Ranks(rank, 2), gpu=False, bf16=False, sharded=False, callbacks=[])
fit(trainer, Line(), Data())
print(stop.signal, trainer.global_step)
torch.distributed.destroy_process_group()
"""


def test_ranks_of_one_machine_meet_where_nobody_else_can_reach_them() -> None:
    rank, other = printed_by_two_ranks(MEETING)
    assert rank == other
    assert rank.startswith("['0100007F:")
    assert rank.count(":") == 1


def test_a_stop_signal_to_one_rank_as_training_begins_does_not_hang_the_ranks() -> None:
    assert printed_by_two_ranks(TERMINATED) == ["None 3", "SIGTERM 3"]
