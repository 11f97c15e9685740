"""On several ranks, Lightning's loop adds no waiting for the device to that of a step."""

from tests.launchers.stage.ranks_of_a_script import printed_by_two_ranks

# The optimiser is left out: AdamW's step counter is on the CPU. Sharded, because DDP reads a table of its own on the CPU.
SHARDED = """
import os
from pathlib import Path
import torch
from lightning.pytorch import Callback, LightningDataModule
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.training.distributed import join_ranks
from retain.launchers.stage.training.trainer import fit, stage_trainer
from retain.lightning_modules.stage import StageModule
from tests.lightning_modules.tiny_models import RECIPE, Waits, random_sequences, small_model

class Steps(Callback):
    counts = []
    def on_before_optimizer_step(self, trainer, module, optimizer):
        self.before = len(waits.found)
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        del waits.found[self.before :]
        self.counts.append(len(waits.found))

class Data(LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(list(random_sequences(24).split(4)), batch_size=None)

rank, waits, steps = int(os.environ["RANK"]), Waits(), Steps()
join_ranks(2, gpu=False)
trainer = stage_trainer(Path("."), Ranks(rank, 2), gpu=False, bf16=False, sharded=True, callbacks=[steps])
module = StageModule(small_model(), RECIPE | {"steps": 6, "sequences": 48}, sharded=True)
with waits:
    fit(trainer, module, Data())
print([after - before for before, after in zip(steps.counts, steps.counts[1:])])
torch.distributed.destroy_process_group()
"""


def test_a_sharded_step_waits_once_for_the_device_and_the_loop_around_it_never() -> None:
    # transformers asks once for each micro-batch whether it holds several documents.
    assert printed_by_two_ranks(SHARDED) == [str([1] * 5)] * 2
