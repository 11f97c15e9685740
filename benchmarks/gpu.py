"""Training on one GPU: tokens per second, share of the bf16 peak, memory and the stall of saving; Retain and a plain loop.

    python -m benchmarks.gpu [--model smollm2-135m] [--seconds 25] [--smoke]

It takes under 8 minutes for both models. Where Retain is not installed, run it in a checkout with torch, lightning and
transformers as `python tools/typing_path.py && PYTHONPATH=.typing:. python -m benchmarks.gpu`. --smoke runs the same code with
a tiny model on the CPU, where its numbers mean nothing.

The share counts 6 FLOPs for each matrix parameter and 12 · layers · hidden · length for each token, as llm-foundry does, over
the vendor's dense bf16 peak.
"""

import argparse
import gc
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

# Before torch: cuBLAS is deterministic with a fixed workspace only.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from lightning.pytorch import Callback, LightningDataModule
from transformers import LlamaForCausalLM

from benchmarks.harness import Option, Page, log, run_benchmark, table_of
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.training.micro_batch import fits_on_gpu, largest_that_fits
from retain.launchers.stage.training.trainer import fit, stage_trainer
from retain.lightning_modules.models import build_model
from retain.lightning_modules.stage import StageModule
from retain.sweeps.schema.models import PRESETS, Architecture, flops_per_token, parameters
from retain.sweeps.tree.throughput import PEAK_FLOPS, device_of

Tick = Callable[[LlamaForCausalLM], None]
WARM_UP = 3
PLAIN_SEQUENCES = 8
"""Sequences that the plain loop trains at a time, because it needs all their logits at once."""
RECIPE: Mapping[str, Any] = {
    "seed": 0, "sequences": 10**12, "steps": 10**6, "lr": 1e-4, "min_lr": 1e-5, "warmup": 10, "weight_decay": 0.1,
    "betas": [0.9, 0.95], "clip": 1.0, "dropout": 0.0,
}  # fmt: skip
MODELS = ("smollm2-135m", "smollm2-1b")
TINY = replace(PRESETS["smollm2-135m"], layers=2, hidden=36, heads=3, kv_heads=1, mlp=64, vocabulary=512)


@dataclass(frozen=True)
class Case:
    """What a loop trains, and for how long."""

    model: Architecture
    batch: int
    """Sequences in a step."""
    length: int
    """Tokens of a sequence."""
    seconds: float
    compiled: bool
    device: torch.device

    def build(self) -> LlamaForCausalLM:
        """The model on its device. Memory that the loop before left in cycles is freed first."""
        _reset_peak()
        model = build_model(self.model, seed=0)
        model.to(self.device)  # type: ignore[arg-type]
        return model

    def batches(self) -> Iterator[torch.Tensor]:
        """Made-up batches, pinned, until the time is over."""
        draw, end = torch.Generator().manual_seed(0), time.monotonic() + self.seconds
        for done in itertools.count():
            if done >= 2 * WARM_UP and time.monotonic() >= end:
                return
            tokens = torch.randint(0, self.model.vocabulary, (self.batch, self.length), generator=draw)
            yield tokens.pin_memory() if self.device.type == "cuda" else tokens


@dataclass(frozen=True)
class Measured:
    """What one loop took."""

    name: str
    sequences: int
    """Trained at a time."""
    tokens_per_second: float
    peak_bytes: int
    first_seconds: float
    """Of the first steps: compiling and allocating."""
    stalls: Sequence[float] = ()
    """Seconds for which a copy of the checkpoint's tensors stops the training loop."""


class Timer(Callback):
    """Notes when each step ended and, after the last one, how long a copy of all the checkpoint's tensors takes."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.stalls: list[float] = []

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        # The CPU runs ahead of the GPU otherwise.
        settle()
        self.times.append(time.perf_counter())

    def on_train_end(self, trainer: Any, module: Any) -> None:
        state = trainer.optimizers[0].state
        moments = (part for parameter in module.model.parameters() for part in state[parameter].values())
        tensors = [part.detach() for part in (*module.model.parameters(), *moments) if part.dim()]
        copies: list[torch.Tensor] = []
        for _ in range(3):
            settle()
            begin = time.perf_counter()
            if not copies:
                copies = [torch.empty_like(part, device="cpu", pin_memory=part.is_cuda) for part in tensors]
            for copy, part in zip(copies, tensors, strict=True):
                copy.copy_(part)
            self.stalls.append(time.perf_counter() - begin)


class Batches(LightningDataModule):
    """The batches of a case."""

    def __init__(self, case: Case) -> None:
        super().__init__()
        self.case = case

    def train_dataloader(self) -> Iterator[torch.Tensor]:
        return self.case.batches()


def retain(case: Case) -> Measured:
    """A stage's module in its Trainer, with the micro-batch that a stage would find."""
    gpu = case.device.type == "cuda"
    model = case.build()
    size = case.batch
    if gpu:
        size = largest_that_fits(size, fits_on_gpu(model, {"sequence_length": case.length}, True, case.device))[0]
    recipe = {**RECIPE, "batch": case.batch, "sequence_length": case.length}
    module, timer = StageModule(model, recipe, size, compiled=case.compiled), Timer()
    _reset_peak()
    began = time.perf_counter()
    fit(stage_trainer(Path(tempfile.gettempdir()), Ranks(), gpu, True, False, [timer]), module, Batches(case))
    return _measured("Retain, bf16", case, size, [began, *timer.times], timer.stalls)


def plain(case: Case) -> Measured:
    """A plain PyTorch loop with bf16 autocast."""
    model, times = case.build(), [time.perf_counter()]

    def tick(_: LlamaForCausalLM) -> None:
        settle()
        times.append(time.perf_counter())

    train_plainly(model, RECIPE, case.batches(), tick, True, case.compiled, PLAIN_SEQUENCES)
    return _measured("plain loop, bf16", case, min(case.batch, PLAIN_SEQUENCES), times)


def train_plainly(
    model: LlamaForCausalLM,
    recipe: Mapping[str, Any],
    batches: Iterable[torch.Tensor],
    tick: Tick,
    bf16: bool = False,
    compiled: bool = False,
    micro_batch: int | None = None,
) -> LlamaForCausalLM:
    """Train with autocast, transformers' own loss, AdamW, and the gradients of micro-batches added up."""
    called: Any = torch.compile(model) if compiled else model
    optimizer = adamw(model, recipe)
    for batch in batches:
        parts = batch.to(model.device).split(micro_batch or len(batch))  # type: ignore[no-untyped-call]
        for part in parts:
            with torch.autocast(model.device.type, torch.bfloat16, enabled=bf16):
                loss = called(input_ids=part, labels=part).loss / len(parts)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe["clip"])
        optimizer.step()
        optimizer.zero_grad()
        tick(model)
    return model


def adamw(model: torch.nn.Module, recipe: Mapping[str, Any]) -> torch.optim.Optimizer:
    """AdamW with the constant rate of a recipe."""
    rate, betas, decay = recipe["lr"], tuple(recipe["betas"]), recipe["weight_decay"]
    return torch.optim.AdamW(model.parameters(), lr=rate, betas=betas, weight_decay=decay)


def _measured(name: str, case: Case, size: int, times: Sequence[float], stalls: Sequence[float] = ()) -> Measured:
    """times: of the beginning, and of the end of each step."""
    steps = [after - before for before, after in itertools.pairwise(times)][WARM_UP:]
    rate = case.batch * case.length / median(steps)
    peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    name += ", compiled" if case.compiled else ""
    log(f"{name}: {rate:,.0f} tokens/s, {peak / 2**30:.1f} GiB")
    return Measured(name, size, rate, peak, times[WARM_UP] - times[0], stalls)


def settle() -> None:
    """Wait for the GPU, so that its work is not counted for what comes next."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def section(title: str, case: Case, peak: float | None) -> str:
    """Measure one model, and describe it."""
    found = [loop(replace(case, compiled=compiled)) for loop in (plain, retain) for compiled in (False, True)]
    flops, count = flops_per_token(case.model, case.length), parameters(case.model)
    columns: dict[str, Callable[[Measured], str]] = {
        "": lambda loop: loop.name,
        "at a time": lambda loop: str(loop.sequences),
        "tokens/s": lambda loop: f"{loop.tokens_per_second:,.0f}",
        "of plain": lambda loop: f"{loop.tokens_per_second / found[0].tokens_per_second:.2f}",
        "of bf16 peak": lambda loop: f"{loop.tokens_per_second * flops / peak:.1%}" if peak else "",
        "memory, GiB": lambda loop: f"{loop.peak_bytes / 2**30:.1f}",
        "first steps, s": lambda loop: f"{loop.first_seconds:.0f}",
        "stall of a save, ms": lambda loop: f"{median(loop.stalls) * 1e3:.0f}" if loop.stalls else "",
    }
    return (
        f"## {title}: {count:,} parameters\n\n"
        f"In fp32: weights {4 * count / 2**30:.2f} GiB, gradients the same, AdamW's moments {8 * count / 2**30:.2f} GiB. "
        f"A token takes {flops / 1e9:.3f} GFLOP.\n\n{table_of(found, columns)}"
    )


def measure(options: argparse.Namespace) -> Page:
    """Each model in four loops."""
    gpu = torch.cuda.is_available() and not options.smoke
    if not gpu and not options.smoke:
        sys.exit("no GPU found, so nothing was measured; --smoke runs the same code with a tiny model on the CPU")
    names = [options.model] if options.model else MODELS
    models = {"tiny (smoke)": TINY} if options.smoke else {name: PRESETS[name] for name in names}
    name, device = (torch.cuda.get_device_name() if gpu else "CPU"), torch.device("cuda" if gpu else "cpu")
    known = device_of(name)
    peak = PEAK_FLOPS[known] if known else None
    case = Case(TINY, options.batch, options.length, options.seconds, False, device)
    sections = [section(title, replace(case, model=model), peak) for title, model in models.items()]
    return Page([f"trains on: {name}", f"{options.batch} sequences of {options.length} in a step"], sections)


if __name__ == "__main__":
    run_benchmark(
        measure,
        "Training on one GPU",
        ("torch", "lightning", "transformers"),
        Option("model", None, None, "the model; by default both", choices=MODELS),
        Option("length", 1024, 32, "tokens of a sequence", int),
        Option("batch", 128, 4, "sequences in a step", int),
        Option("seconds", 25.0, 0.0, "how long each loop trains", float),
    )
