"""Exact resume: what a checkpoint holds, when one is saved, and how a stage resumes from it.

A checkpoint is taken between two steps, or in a held-out evaluation that a signal stops. It holds the trained weights (a
frozen base is read from the parent again), the moments of the optimiser, the best weights of early stopping, and the points of
the curves so far, so that curves resume without a gap or an overlap. The order of the data, the learning rate and dropout are
functions of the step, so nothing of them is saved. AdamW's step count is the stage's step, plus the steps of the stages before
that AdamW was carried through (`carried.py`). The fields `execution.save_minutes` and `save_steps` say how often checkpoints
are taken.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import distributed
from torch.distributed.tensor import DTensor

from retain.datamodules.order.digest import add_digests, as_text
from retain.datamodules.order.stage_data import StageData
from retain.launchers.stage.signals import AttemptStopped, StopRequest
from retain.launchers.stage.training.carried import CarriedOptimizer
from retain.launchers.stage.training.checkpoints import CheckpointWriter, SavedCheckpoint, Snapshot
from retain.launchers.stage.training.curves import Curves, finite
from retain.lightning_modules.early_stopping import KeepBest
from retain.lightning_modules.models import trained_parameters
from retain.lightning_modules.optimisation import MOMENTS
from retain.lightning_modules.shards import first_row, local_part
from retain.lightning_modules.stage import StageModule

CONTINUE, SAVE, STOP = 0, 1, 2
"""What a rank wishes at a step boundary; the largest wish of all ranks counts."""


@dataclass(frozen=True)
class Cadence:
    """How often a checkpoint is saved without a stop signal."""

    seconds: float
    steps: int | None
    """None: by the clock alone."""


class Agreement:
    """What the ranks agree to do at a step boundary.

    With several ranks, the answer is that of the previous boundary, so that no step waits for the exchange.
    """

    def __init__(self, world: int) -> None:
        self.group = distributed.new_group(backend="gloo") if world > 1 else None
        self.asked: tuple[torch.Tensor, distributed.Work] | None = None

    def settle(self, wish: int) -> int:
        """Ask all ranks for their wishes, and return the largest."""
        if self.group is None:
            return wish
        answer = CONTINUE
        if self.asked is not None:
            self.asked[1].wait()
            answer = int(self.asked[0].item())
        wishes = torch.tensor(wish)
        work = distributed.all_reduce(wishes, distributed.ReduceOp.MAX, self.group, async_op=True)
        assert work is not None
        self.asked = (wishes, work)
        return answer


class StopEvaluation:
    """Stops an evaluation before its next batch once a rank has received a stop signal. Every rank calls it equally often."""

    def __init__(self, stop: StopRequest, world: int) -> None:
        self.stop, self.agreement = stop, Agreement(world)

    def __call__(self, done: int) -> None:
        if self.agreement.settle(CONTINUE if self.stop.signal is None else STOP) == STOP:
            raise _stopped(self.stop)


class Resume(Callback):
    """Restores `saved`, or else the optimizer that is carried over, when the stage starts; and saves checkpoints.

    Checkpoints are saved at step boundaries: periodically, and on a stop signal. They are also saved when a stop signal ends an
    evaluation: the next attempt begins with the evaluations of that step that are not in the curves.
    """

    def __init__(
        self,
        saved: SavedCheckpoint | None,
        carried: CarriedOptimizer | None,
        data: StageData,
        curves: Curves,
        best: KeepBest | None,
        writer: CheckpointWriter,
        stop: StopRequest,
        cadence: Cadence,
        holds_all: bool,
    ) -> None:
        self.carried = carried
        self.saved, self.data, self.curves, self.best, self.writer = saved, data, curves, best, writer
        self.stop, self.cadence = stop, cadence
        self.holds_all = holds_all
        """Whether every rank holds all weights, so that only rank 0 writes them."""
        self.saved_at = time.monotonic()
        self.buffers: dict[str, torch.Tensor] = {}

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        assert isinstance(module, StageModule)
        self.agreement = Agreement(trainer.world_size)
        if self.saved is not None:
            self._restore(self.saved, trainer, module)
            self._finish_step(trainer, module)
        elif self.carried is not None:
            self.carried.restore(trainer.optimizers[0], module)
        self.saved_at = time.monotonic()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        assert isinstance(module, StageModule)
        self.writer.raise_error()
        # 1. The ranks agree. After the last step the results are written, and no checkpoint is needed.
        decision = self.agreement.settle(self._wish(trainer, module))
        if decision == CONTINUE or trainer.should_stop or module.step == module.recipe["steps"]:
            return
        # 2. A stop signal ends the attempt, which saves a checkpoint (`on_exception`).
        if decision == STOP:
            raise _stopped(self.stop)
        self._save(trainer, module)

    def on_train_end(self, trainer: Trainer, module: LightningModule) -> None:
        self.writer.wait()

    def on_exception(self, trainer: Trainer, module: LightningModule, exception: BaseException) -> None:
        if isinstance(exception, AttemptStopped):
            assert isinstance(module, StageModule)
            self._save(trainer, module)
            self.writer.wait()
        else:
            self.writer.abandon()

    def _save(self, trainer: Trainer, module: StageModule) -> None:
        """Copy the state once the previous checkpoint is written, as its copy uses the same memory; write in a thread."""
        self.writer.wait()
        self.writer.save(self._snapshot(trainer, module))
        self.saved_at = time.monotonic()

    def _finish_step(self, trainer: Trainer, module: StageModule) -> None:
        """Make the evaluations after the restored step that a stop signal prevented; end the stage if the step is its last."""
        for callback in (self.best, self.curves):
            if callback is not None:
                callback.on_train_batch_end(trainer, module, None, None, 0)
        if module.step == module.recipe["steps"] or (self.best is not None and self.best.is_over):
            trainer.should_stop = True

    def _wish(self, trainer: Trainer, module: StageModule) -> int:
        if self.stop.signal is not None:
            return STOP
        if trainer.global_rank != 0:
            return CONTINUE
        due = time.monotonic() - self.saved_at >= self.cadence.seconds
        due = due or (self.cadence.steps is not None and module.step % self.cadence.steps == 0)
        if due:
            self.saved_at = time.monotonic()  # several ranks save one step later: do not ask again until then
        return SAVE if due else CONTINUE

    def _snapshot(self, trainer: Trainer, module: StageModule) -> Snapshot:
        tensors: dict[str, torch.Tensor] = {}
        rows: dict[str, tuple[int, int]] = {}
        first = trainer.global_rank == 0
        if first or not self.holds_all:
            for name, tensor, parameter in _state_tensors(trainer.optimizers, module, self.best):
                tensors[name] = self._copied(name, local_part(tensor))
                if isinstance(parameter, DTensor):
                    rows[name] = (first_row(parameter), parameter.shape[0])
        own = {
            "digest": as_text(self.data.digest),
            "loss_sum": finite(module.loss_sum.item(), "training loss", module.step),
        }
        shared: dict[str, Any] = {"curves": self.curves.state()} if first else {}
        if first and self.best is not None:
            shared["early_stopping"] = self.best.state()
        return Snapshot(module.step, tensors, rows, own, shared)

    def _copied(self, name: str, tensor: torch.Tensor) -> torch.Tensor:
        """A copy on the CPU, in memory that every checkpoint uses again: the writer has finished before the next one."""
        if name not in self.buffers:
            self.buffers[name] = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=tensor.is_cuda)
        return self.buffers[name].copy_(tensor)

    def _restore(self, saved: SavedCheckpoint, trainer: Trainer, module: StageModule) -> None:
        """Put module, optimizer, early stopping and data digest into the state of the checkpoint."""
        # 1. Weights and the optimiser's moments: this rank's rows of each, whichever ranks wrote them.
        module.step = saved.step
        optimizers = _optimizer_of_each(trainer.optimizers)
        steps = saved.step + (self.carried.steps if self.carried else 0)
        best: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for name, parameter in trained_parameters(module.model):
                part = local_part(parameter)
                row = first_row(parameter) if isinstance(parameter, DTensor) else None
                saved.copy_into(f"model/{name}", part, row)
                state = optimizers[parameter].state[parameter]
                if isinstance(optimizers[parameter], torch.optim.AdamW):
                    state["step"] = torch.tensor(float(steps), dtype=torch.float32, device=part.device)
                for moment in MOMENTS:
                    if saved.has(moment_name(name, moment)):
                        state[moment] = torch.zeros_like(parameter)
                        saved.copy_into(moment_name(name, moment), local_part(state[moment]), row)
                if saved.has(f"best/{name}"):
                    best[name] = torch.empty_like(part, device="cpu")
                    saved.copy_into(f"best/{name}", best[name], row)
        # 2. The best weights of early stopping.
        if self.best is not None:
            self.best.restore(saved.shared["early_stopping"], best)
        # 3. The values of this rank alone.
        self.data.digest, loss_sum = _own_values(saved, trainer.global_rank, trainer.world_size)
        module.loss_sum = torch.tensor(loss_sum)


def _stopped(stop: StopRequest) -> AttemptStopped:
    return AttemptStopped(stop.signal or "a stop signal on another rank")


def _own_values(saved: SavedCheckpoint, rank: int, world: int) -> tuple[int, float]:
    """A rank's share of the data digest, and of the loss since the last point of the curve.

    If the number of ranks has changed, rank 0 takes the whole digest, and every rank the mean of the losses.
    """
    shares = [(int(written["own"]["digest"], 16), float(written["own"]["loss_sum"])) for written in saved.ranks]
    if world == saved.world:
        return shares[rank]
    mean = sum(loss for _, loss in shares) / len(shares)
    return (add_digests(digest for digest, _ in shares) if rank == 0 else 0), mean


def moment_name(parameter: str, moment: str) -> str:
    """The name in a checkpoint of a tensor that an optimiser keeps for a parameter."""
    return f"{'muon' if moment == 'momentum_buffer' else 'adamw'}/{parameter}/{moment}"


def _optimizer_of_each(optimizers: Sequence[torch.optim.Optimizer]) -> dict[torch.Tensor, torch.optim.Optimizer]:
    """The optimiser of each trained parameter."""
    return {
        parameter: optimizer
        for optimizer in optimizers
        for group in optimizer.param_groups
        for parameter in group["params"]
    }


def _state_tensors(
    optimizers: Sequence[torch.optim.Optimizer], module: StageModule, best: KeepBest | None
) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
    """The tensors of a checkpoint: name, tensor, and the parameter that the tensor belongs to."""
    optimizer_of = _optimizer_of_each(optimizers)
    for name, parameter in trained_parameters(module.model):
        yield f"model/{name}", parameter.detach(), parameter
        state = optimizer_of[parameter].state[parameter]
        for moment in MOMENTS:
            if moment in state:
                yield moment_name(name, moment), state[moment], parameter
        if best is not None and name in best.weights:
            yield f"best/{name}", best.weights[name], parameter
