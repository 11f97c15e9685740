"""Training on one GPU: tokens per second, share of the bf16 peak, memory and the stall of saving, ours beside a plain loop.

    python benchmarks/gpu.py [--model smollm2-135m] [--seconds 25] [--smoke]

Needs torch, lightning and transformers, and the repository that it lies in. Under 8 minutes for both models. --smoke runs
the same code with a tiny model on the CPU, where its numbers mean nothing.

The share counts 6 FLOPs a matrix parameter and 12 · layers · hidden · length a token, as llm-foundry does, over the vendor's
dense bf16 peak.
"""

import argparse
import gc
import itertools
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import torch
from lightning.pytorch import Callback, LightningDataModule

from benchmarks.report import circumstances, markdown_table
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.training.micro_batch import fits_on_gpu, largest_that_fits
from retain.launchers.stage.training.trainer import fit, stage_trainer
from retain.lightning_modules.models import build_model
from retain.lightning_modules.stage import StageModule
from retain.sweeps.schema.models import PRESETS, Architecture, flops_per_token, parameters
from retain.sweeps.tree.throughput import PEAK_FLOPS, device_of

WARM_UP = 3
PLAIN_SEQUENCES = 8
"""That the plain loop takes at a time: all its logits at once."""


@dataclass(frozen=True)
class Measured:
    name: str
    sequences: int
    """At a time."""
    tokens_per_second: float
    peak_bytes: int
    first_seconds: float
    """Of the first steps: compiling, and allocating."""
    stalls: tuple[float, ...] = ()
    """Seconds that a copy of the state for saving takes of the training loop."""


class Steps(LightningDataModule):
    """Made-up batches, pinned, until the time is over."""

    def __init__(self, batch: int, length: int, vocabulary: int, seconds: float) -> None:
        super().__init__()
        self.batch, self.length, self.vocabulary, self.seconds = batch, length, vocabulary, seconds

    def train_dataloader(self) -> Iterator[torch.Tensor]:
        draw, end = torch.Generator().manual_seed(0), time.monotonic() + self.seconds
        done = 0
        while done < 2 * WARM_UP or time.monotonic() < end:
            tokens = torch.randint(0, self.vocabulary, (self.batch, self.length), generator=draw)
            yield tokens.pin_memory() if torch.cuda.is_available() else tokens
            done += 1


class Watch(Callback):
    """When each step was through; near the end, how long copies of all that a state holds make the loop wait."""

    def __init__(self) -> None:
        self.times: list[float] = []
        self.stalls: list[float] = []
        self.copies: dict[str, torch.Tensor] = {}

    def on_train_batch_end(self, trainer: Any, module: Any, *_: Any) -> None:
        # Not a part of training: it would otherwise run ahead of the clock.
        _settle()
        self.times.append(time.perf_counter())

    def on_train_end(self, trainer: Any, module: Any) -> None:
        optimizer = trainer.optimizers[0]
        for _ in range(3):
            _settle()
            begin = time.perf_counter()
            for name, parameter in module.model.named_parameters():
                for part, tensor in {"weight": parameter, **optimizer.state[parameter]}.items():
                    if not torch.is_tensor(tensor) or tensor.dim() == 0:
                        continue
                    key = f"{name}/{part}"
                    if key not in self.copies:
                        self.copies[key] = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                    self.copies[key].copy_(tensor.detach())
            self.stalls.append(time.perf_counter() - begin)


def ours(model: Architecture, batch: int, length: int, seconds: float, gpu: bool, compiled: bool) -> Measured:
    """A stage's module in its Trainer, its micro-batch found as a stage finds it."""
    _reset_peak()
    device = torch.device("cuda" if gpu else "cpu")
    llama = build_model(model, seed=0).to(device)  # type: ignore[arg-type]
    size = largest_that_fits(batch, fits_on_gpu(llama, length, True, device))[0] if gpu else batch
    recipe: dict[str, Any] = {
        "seed": 0,
        "batch": batch,
        "sequences": 10**12,
        "steps": 10**6,
        "lr": 1e-4,
        "min_lr": 1e-5,
        "warmup": 10,
    }
    recipe |= {"weight_decay": 0.1, "betas": [0.9, 0.95], "clip": 1.0, "dropout": 0.0, "sequence_length": length}
    module = StageModule(llama, recipe, size, compiled=compiled)
    watch = Watch()
    _reset_peak()
    began = time.perf_counter()
    data = Steps(batch, length, model.vocabulary, seconds)
    fit(stage_trainer(Path(tempfile.gettempdir()), Ranks(), gpu, True, False, [watch]), module, data)
    name = "Retain, bf16" + (", compiled" if compiled else "")
    return _measured(name, size, batch * length, began, watch.times, tuple(watch.stalls))


def plain(model: Architecture, batch: int, length: int, seconds: float, gpu: bool, compiled: bool) -> Measured:
    """A plain PyTorch loop: bf16 autocast, transformers' own loss, AdamW, gradients of micro-batches added up."""
    _reset_peak()
    device = torch.device("cuda" if gpu else "cpu")
    llama = build_model(model, seed=0).to(device)  # type: ignore[arg-type]
    called: Any = torch.compile(llama) if compiled else llama
    optimizer = torch.optim.AdamW(llama.parameters(), lr=1e-4, betas=(0.9, 0.95), weight_decay=0.1)
    began, times = time.perf_counter(), []
    for tokens in Steps(batch, length, model.vocabulary, seconds).train_dataloader():
        parts = tokens.to(device).split(PLAIN_SEQUENCES)  # type: ignore[no-untyped-call]
        for part in parts:
            with torch.autocast(device.type, torch.bfloat16):
                loss = called(input_ids=part, labels=part).loss / len(parts)
            loss.backward()
        torch.nn.utils.clip_grad_norm_(llama.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        _settle()
        times.append(time.perf_counter())
    name = "plain loop, bf16" + (", compiled" if compiled else "")
    return _measured(name, min(batch, PLAIN_SEQUENCES), batch * length, began, times)


def _measured(
    name: str, size: int, tokens: int, began: float, times: Sequence[float], stalls: tuple[float, ...] = ()
) -> Measured:
    steps = [after - before for before, after in itertools.pairwise(times)][WARM_UP - 1 :]
    peak = torch.cuda.max_memory_reserved() if torch.cuda.is_available() else 0
    return Measured(name, size, tokens / median(steps), peak, times[WARM_UP - 1] - began, stalls)


def _settle() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _reset_peak() -> None:
    # The loop before lies in cycles: its model would count as this one's, and leave it less room.
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def rows(model: Architecture, length: int, found: Sequence[Measured], peak: float | None) -> list[list[str]]:
    base = found[0].tokens_per_second
    return [
        [
            it.name,
            str(it.sequences),
            f"{it.tokens_per_second:,.0f}",
            f"{it.tokens_per_second / base:.2f}",
            f"{it.tokens_per_second * flops_per_token(model, length) / peak:.1%}" if peak else "",
            f"{it.peak_bytes / 2**30:.1f}",
            f"{it.first_seconds:.0f}",
            f"{median(it.stalls) * 1e3:.0f}" if it.stalls else "",
        ]
        for it in found
    ]


COLUMNS = (
    "",
    "at a time",
    "tokens/s",
    "of plain",
    "of bf16 peak",
    "memory, GiB",
    "first steps, s",
    "stall of a save, ms",
)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python benchmarks/gpu.py", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=["smollm2-135m", "smollm2-1b"], help="without it, both")
    parser.add_argument("--length", type=int, default=1024, help="tokens of a sequence")
    parser.add_argument("--batch", type=int, default=128, help="sequences of a step")
    parser.add_argument("--seconds", type=float, default=25, help="of each loop")
    parser.add_argument("--smoke", action="store_true", help="a tiny model on the CPU, to see that this runs")
    options = parser.parse_args(arguments)
    gpu = torch.cuda.is_available() and not options.smoke
    if not gpu and not options.smoke:
        sys.exit("No GPU is here: nothing was measured. --smoke runs the same code with a tiny model on the CPU.")
    models = {name: PRESETS[name] for name in ([options.model] if options.model else ["smollm2-135m", "smollm2-1b"])}
    batch, length, seconds = options.batch, options.length, options.seconds
    if options.smoke:
        tiny = replace(PRESETS["smollm2-135m"], layers=2, hidden=36, heads=3, kv_heads=1, mlp=64, vocabulary=512)
        models, batch, length, seconds = {"tiny (smoke)": tiny}, 4, 32, 0.0
    name = torch.cuda.get_device_name() if gpu else "CPU"
    device = device_of(name)
    peak = PEAK_FLOPS[device] if device else None
    print("# Training on one GPU\n")
    print(
        circumstances(
            ("torch", "lightning", "transformers"), f"trains on: {name}", f"{batch} sequences of {length} a step"
        )
    )
    loops: list[Callable[[Architecture], Measured]] = [
        lambda model: plain(model, batch, length, seconds, gpu, False),
        lambda model: plain(model, batch, length, seconds, gpu, True),
        lambda model: ours(model, batch, length, seconds, gpu, False),
        lambda model: ours(model, batch, length, seconds, gpu, True),
    ]
    for title, model in models.items():
        count = parameters(model)
        print(f"\n## {title}: {count:,} parameters\n")
        print(
            f"In fp32: weights {4 * count / 2**30:.2f} GiB, gradients as much, AdamW's moments {8 * count / 2**30:.2f} GiB. "
            f"A token takes {flops_per_token(model, length) / 1e9:.3f} GFLOP.\n"
        )
        print(markdown_table(COLUMNS, rows(model, length, [loop(model) for loop in loops], peak)), flush=True)


if __name__ == "__main__":
    main()
