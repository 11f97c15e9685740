"""On several ranks, what Lightning does around a step waits for the device no more often than the step itself."""

from tests.launchers.stage.ranks_of_a_script import printed_by_two_ranks

# Counts what Python reads of tensors, but for AdamW's count of steps, which is on the CPU. Sharded, as DDP reads a table of its
# own on the CPU.
READS = """
import os
from pathlib import Path
import torch
from lightning.pytorch import Callback, LightningDataModule
from torch.utils._python_dispatch import TorchDispatchMode
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.training.distributed import join_ranks
from retain.launchers.stage.training.trainer import fit, stage_trainer
from retain.lightning_modules.stage import StageModule
from tests.lightning_modules.tiny_models import RECIPE, random_sequences, small_model

class Reads(TorchDispatchMode):
    count, counting = 0, True
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        self.count += self.counting and function.name() == "aten::_local_scalar_dense"
        return function(*args, **(kwargs or {}))

class Steps(Callback):
    reads = []
    def on_before_optimizer_step(self, trainer, module, optimizer):
        mode.counting = False
    def on_train_batch_end(self, trainer, module, outputs, batch, index):
        self.reads.append(mode.count)
        mode.counting = True

class Data(LightningDataModule):
    def train_dataloader(self):
        return torch.utils.data.DataLoader(list(random_sequences(24).split(4)), batch_size=None)

rank, mode, steps = int(os.environ["RANK"]), Reads(), Steps()
join_ranks(2, gpu=False)
trainer = stage_trainer(Path("."), Ranks(rank, 2), gpu=False, bf16=False, sharded=True, callbacks=[steps])
module = StageModule(small_model(), RECIPE | {"steps": 6, "sequences": 48}, sharded=True)
with mode:
    fit(trainer, module, Data())
print([after - before for before, after in zip(steps.reads, steps.reads[1:])])
torch.distributed.destroy_process_group()
"""


def test_from_one_step_to_the_next_one_value_is_read_of_a_micro_batch_and_none_by_the_loop() -> None:
    # transformers asks once for each micro-batch whether it holds several documents.
    assert printed_by_two_ranks(READS) == [str([1] * 5)] * 2
