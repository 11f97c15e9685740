"""The training loops that are compared, Retain's and peers' as their documentation writes them, and how they take turns.

Each calls `tick(model)` after every step. A tick may wait, so the measuring side decides whose turn it is. All loops start from
the same weights and train at one constant rate, without weight decay, because the peers differ in what they decay.
"""

import contextlib
import functools
import logging
import math
import multiprocessing
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader, TensorDataset
from transformers import LlamaForCausalLM

from benchmarks.gpu import Tick, adamw, train_plainly
from benchmarks.harness import LIMIT_S, cpu_seconds, log
from retain.datamodules.order.stage_data import StageData, heldout_sequences
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import StopRequest
from retain.launchers.stage.training.checkpoints import CheckpointWriter
from retain.launchers.stage.training.curves import Curves, Heldout
from retain.launchers.stage.training.resume import Cadence, Resume
from retain.launchers.stage.training.trainer import fit, stage_trainer
from retain.lightning_modules.compiled import attend_in_fp32
from retain.lightning_modules.models import build_model
from retain.lightning_modules.objective import heldout_loss
from retain.lightning_modules.stage import StageModule
from retain.results.store.runs import Store
from retain.sweeps.schema.models import Architecture

WARM_UP = 2
TURN = 2
"""Steps of one turn."""
MARKS = (20, 50, 100, 200)
"""The steps after which the held-out loss is measured."""
OTHER_WEIGHTS = ", other initial weights"


@dataclass(frozen=True)
class Work:
    """A registered run of a store; all loops train on its batches."""

    store: Path
    key: str
    seed: int = 0
    """Of the initial weights."""

    @property
    def recipe(self) -> dict[str, Any]:
        found: dict[str, Any] = Store(self.store).run(self.key).spec()["recipe"]
        return found

    def model(self) -> LlamaForCausalLM:
        return build_model(Architecture(**self.recipe["model"]), self.seed)

    def batches(self) -> Iterator[torch.Tensor]:
        batches = StageData(self.recipe, self.store).batches
        return (torch.from_numpy(batches.tokens(step)) for step in range(len(batches)))


Loop = Callable[[Work, Tick], LlamaForCausalLM]
"""Trains to the end, unless a tick raises, and returns the model."""


def plain(work: Work, tick: Tick, bf16: bool = False, compiled: bool = False) -> LlamaForCausalLM:
    """A plain PyTorch loop."""
    return train_plainly(work.model(), work.recipe, work.batches(), tick, bf16, compiled)


def transformers_trainer(work: Work, tick: Tick, bf16: bool = False, compiled: bool = False) -> LlamaForCausalLM:
    """transformers.Trainer with its defaults, except for the recipe's fields."""
    import transformers

    class TrainerTicks(transformers.TrainerCallback):
        def on_step_end(self, *_: Any, **more: Any) -> None:
            tick(more["model"])

    recipe = work.recipe
    arguments = transformers.TrainingArguments(
        output_dir=str(work.store / f"trainer-{os.getpid()}"),
        per_device_train_batch_size=recipe["batch"],
        num_train_epochs=1,
        learning_rate=recipe["lr"],
        lr_scheduler_type="constant",
        adam_beta1=recipe["betas"][0],
        adam_beta2=recipe["betas"][1],
        weight_decay=recipe["weight_decay"],
        max_grad_norm=recipe["clip"],
        train_sampling_strategy="sequential",
        bf16=bf16,
        torch_compile=compiled,
        use_cpu=True,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    model = work.model()
    rows: Any = [{"input_ids": sequence, "labels": sequence} for batch in work.batches() for sequence in batch]
    trainer = transformers.Trainer(model, arguments, train_dataset=rows, callbacks=[TrainerTicks()])
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    return model


class Documented(LightningModule):
    """A LightningModule as Lightning's documentation writes one."""

    def __init__(self, work: Work) -> None:
        super().__init__()
        self.model, self.recipe = work.model(), work.recipe

    def training_step(self, batch: Sequence[torch.Tensor], batch_idx: int) -> torch.Tensor:
        loss: torch.Tensor = self.model(input_ids=batch[0], labels=batch[0]).loss
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return adamw(self, self.recipe)


class Ticks(Callback):
    """Calls a tick after every step."""

    def __init__(self, tick: Tick) -> None:
        self.tick = tick

    def on_train_batch_end(self, trainer: Trainer, module: Any, *_: Any) -> None:
        self.tick(module.model)


def lightning_loop(work: Work, tick: Tick, bf16: bool = False, compiled: bool = False) -> LlamaForCausalLM:
    """Lightning's Trainer with its defaults, without its progress bar, log and checkpoints."""
    _quiet()
    module = Documented(work)
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        precision="bf16-mixed" if bf16 else "32-true",
        max_epochs=1,
        gradient_clip_val=work.recipe["clip"],
        callbacks=[Ticks(tick)],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    loader = DataLoader(TensorDataset(torch.cat(list(work.batches()))), batch_size=work.recipe["batch"])
    called: Any = torch.compile(module) if compiled else module
    trainer.fit(called, loader)
    return module.model


def retain(work: Work, tick: Tick, bf16: bool = False, compiled: bool = False) -> LlamaForCausalLM:
    """A stage as an attempt trains it: with its data, its curves and checkpoints that are never due."""
    _quiet()
    recipe, run = work.recipe, Store(work.store).run(work.key)
    model = work.model()
    if bf16:
        attend_in_fp32(model)
    module = StageModule(model, recipe, compiled=compiled)
    data = StageData(recipe, work.store)
    curves = Curves(run, Heldout({}, {}, module, bf16, 0, 1), None, None)
    writer = CheckpointWriter(run.checkpoint, 0, 1, lambda: True)
    resume = Resume(None, None, data, curves, None, writer, StopRequest(), Cadence(math.inf, None), holds_all=True)
    fit(stage_trainer(run.folder, Ranks(), False, bf16, False, [curves, resume, Ticks(tick)]), module, data)
    return module.model


def _quiet() -> None:
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.simplefilter("ignore")


TOOLS: dict[str, Callable[..., LlamaForCausalLM]] = {
    "plain PyTorch loop": plain,
    "transformers Trainer": transformers_trainer,
    "Lightning loop": lightning_loop,
    "Retain": retain,
}
SETTINGS: dict[str, tuple[bool, bool]] = {
    "fp32": (False, False),
    "bf16": (True, False),
    "fp32, compiled": (False, True),
    "bf16, compiled": (True, True),
}
"""Whether steps are in bf16, and whether they are compiled."""
LOOPS: dict[str, Loop] = {
    f"{tool}, {setting}": functools.partial(train, bf16=bf16, compiled=compiled)
    for setting, (bf16, compiled) in SETTINGS.items()
    for tool, train in TOOLS.items()
}
PEER = "transformers Trainer, fp32"


@dataclass
class Racer:
    """A loop in its own process, which trains when it is asked to."""

    name: str
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    all_steps: list[float] = field(default_factory=list)
    """Processor seconds of each step so far."""
    losses: list[float] = field(default_factory=list)
    """On held-out text after the steps of MARKS, nats per token."""

    @property
    def steps(self) -> list[float]:
        """Processor seconds of each step after the warm-up."""
        return self.all_steps[WARM_UP:]

    @property
    def before_first(self) -> float:
        """Processor seconds of the warm-up, compilers included, beyond those of as many later steps."""
        return max(0.0, sum(self.all_steps[:WARM_UP]) - WARM_UP * median(self.steps))

    def take(self, steps: int) -> bool:
        """Do so many steps, or fewer if the loop ends; return whether it did them all."""
        return all(self._step() for _ in range(steps))

    def _step(self) -> bool:
        self.begin()
        return self.finish()

    def begin(self) -> None:
        """Start a step."""
        self.pipe.send("step")

    def finish(self) -> bool:
        """Wait for the end of a step; return False if the loop has ended instead."""
        if not self.pipe.poll(LIMIT_S):
            raise TimeoutError(f"{self.name}: a step did not end within {LIMIT_S:g} s")
        if (done := self.pipe.recv()) is None:
            return False
        seconds, loss = done
        self.all_steps.append(seconds)
        self.losses += [] if loss is None else [loss]
        return True


@contextlib.contextmanager
def racing(entries: Iterable[tuple[str, Work]], threads: int) -> Iterator[list[Racer]]:
    """Loops that wait for their first turns, each a name of LOOPS and its work; all of them end with the block."""
    # Forked from a process that has imported everything and has no threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.loops"])
    racers = []
    try:
        for name, work in entries:
            own, other = context.Pipe()
            process = context.Process(target=_race, args=(name, work, threads, other))
            process.start()
            other.close()
            racers.append(Racer(name, process, own))
        yield racers
    finally:
        for racer in racers:
            racer.pipe.close()
            racer.process.terminate()
            racer.process.join()


def _race(name: str, work: Work, threads: int, pipe: Connection) -> None:
    torch.set_num_threads(threads)
    text = heldout_sequences(work.store, Store(work.store).run(work.key).spec()["evaluation"]["pretraining"])[:64]
    done, began = 0, cpu_seconds()

    def tick(model: LlamaForCausalLM) -> None:
        nonlocal done, began
        seconds = cpu_seconds() - began
        done += 1
        loss = heldout_loss(model, text, torch.device("cpu"), bf16=False).loss if done in MARKS else None
        # Waiting takes no processor time, but a loader that reads ahead meanwhile does: it counts for the next step.
        began = cpu_seconds()
        pipe.send((seconds, loss))
        pipe.recv()

    with contextlib.suppress(EOFError), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        pipe.recv()
        LOOPS[name.removesuffix(OTHER_WEIGHTS)](work, tick)
        pipe.send(None)
    os._exit(0)


def take_turns(racers: Sequence[Racer], until: float = math.inf) -> None:
    """Let loops that have warmed up take turns until a moment of the monotonic clock, or until all have ended.

    The next turn is that of the loop that has had the least time, so slow loops take fewer steps.
    """
    left = list(racers)
    while left and (time.monotonic() < until or any(len(racer.steps) < 2 * TURN for racer in left)):
        racer = min(left, key=lambda racer: sum(racer.steps))
        if not racer.take(TURN):
            left.remove(racer)


def race(entries: Mapping[str, Work], threads: int, seconds: float = math.inf) -> list[Racer]:
    """Warm up loops one after the other, then let them take turns for so many seconds, or until all have ended."""
    with racing(entries.items(), threads) as racers:
        for racer in racers:
            racer.take(WARM_UP)
            log(f"warm: {racer.name}, {sum(racer.all_steps):.0f} s")
        take_turns(racers, time.monotonic() + seconds)
    return racers
