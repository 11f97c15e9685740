"""What a checkpoint costs: how long the steps wait for it, and how much its writing slows them down.

    python -m benchmarks.saving [--model smollm2-135m] [--saves 5] [--write]

The parts are those of a run: its model, AdamW, data, callbacks, `Resume` and `CheckpointWriter`, in Lightning's loop. Steps
with and without a write beside them alternate. In each round the peer saves too: a blocking `torch.save` of the same tensors.
The data is made up; no timing here depends on it.
"""

import argparse
import logging
import math
import resource
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer

from benchmarks.gpu import settle
from benchmarks.harness import Option, Page, log, markdown_table, run_benchmark, watch_other_processes
from benchmarks.made_up import one_corpus_study, registered, write_words
from retain.datamodules.order.stage_data import StageData
from retain.launchers.checks.doctor import file_system
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import StopRequest
from retain.launchers.stage.training.checkpoints import CheckpointWriter, Snapshot, checkpoint_folders
from retain.launchers.stage.training.curves import Curves, Heldout
from retain.launchers.stage.training.resume import Cadence, Resume
from retain.launchers.stage.training.trainer import fit, stage_trainer
from retain.lightning_modules.early_stopping import KeepBest
from retain.lightning_modules.models import build_model
from retain.lightning_modules.stage import StageModule
from retain.results.store.disk import used_bytes
from retain.results.store.runs import Run
from retain.sweeps.base.files import sync_path
from retain.sweeps.base.units import format_bytes
from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.models import PRESETS

INTERVAL_S = Execution().save_minutes * 60
"""Between two saves, by default."""
WARM_UP = 2
"""Steps before the first one that counts."""
QUIET = 3
"""Steps without a write before each save; if the last write took more steps, as many as those."""
MOST_STEPS = 20_000
NEVER = Cadence(math.inf, None)
AT_ONCE = Cadence(0.0, None)


@dataclass(frozen=True)
class Case:
    """What is trained."""

    model: str
    sequences: int
    """In one step, which is one micro-batch."""
    length: int
    """Tokens of a sequence."""
    saves: int
    best: bool = False
    """Whether the best weights of early stopping are part of the checkpoint."""

    @property
    def vocabulary(self) -> int:
        """Entries of the preset's vocabulary, or of the laptop study's tokeniser if the preset has none."""
        return PRESETS[self.model].vocabulary or 2048


CASES = {
    "laptop": Case("laptop", sequences=8, length=128, saves=30),
    "smollm2-135m": Case("smollm2-135m", sequences=1, length=512, saves=6),
}


@dataclass(frozen=True)
class Step:
    """One step of the loop, without the time that it waits for saving. Seconds."""

    seconds: float
    writing: float
    """How long a checkpoint was being written meanwhile."""
    saves: int
    """The number of saves before this step."""
    reporting: float
    """How long the curves' callback took, which reports progress in state.json."""


class TimedWriter(CheckpointWriter):
    """Notes when the latest write began and ended, in seconds of `time.perf_counter`."""

    begun = ended = -math.inf

    def save(self, snapshot: Snapshot) -> None:
        self.begun, self.ended = time.perf_counter(), math.inf
        super().save(snapshot)

    def _run(self, snapshot: Snapshot) -> None:
        super()._run(snapshot)
        self.ended = time.perf_counter()

    @property
    def is_busy(self) -> bool:
        return self.ended == math.inf

    def overlap(self, begin: float, end: float) -> float:
        """For how many seconds of a span the latest write was going on."""
        return max(0.0, min(end, self.ended) - max(begin, self.begun))


class TimedCurves(Curves):
    """Notes how many seconds its part of the latest step took."""

    seconds = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        settle()
        begin = time.perf_counter()
        super().on_train_batch_end(trainer, module, outputs, batch, index)
        self.seconds = time.perf_counter() - begin


class TimedResume(Resume):
    """Saves in rounds: quiet steps, a save, the steps until the checkpoint is on disk, and the peer."""

    writer: TimedWriter
    curves: TimedCurves

    def start(self, saves: int, peer: Callable[[], tuple[float, float]]) -> None:
        """Set the number of rounds, and the peer, which returns its seconds without and with syncing."""
        self.saves, self.peer = saves, peer
        self.steps: list[Step] = []
        self.stalls: list[float] = []
        """For how long the loop waited at each save."""
        self.writes: list[float] = []
        """From the end of the stall until the checkpoint was on disk under its name."""
        self.peers: list[tuple[float, float]] = []
        self.quiet = self.loud = 0
        self.resumed_at = math.nan

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        self.resumed_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        settle()
        now = time.perf_counter()
        # 1. Note the step.
        if index >= WARM_UP:
            writing = self.writer.overlap(self.resumed_at, now)
            self.steps.append(Step(now - self.resumed_at, writing, len(self.stalls), self.curves.seconds))
            self.loud += writing > 0
            self.quiet += writing == 0
        # 2. When a write has ended, it is the peer's turn.
        if len(self.writes) < len(self.stalls) and not self.writer.is_busy:
            self.writes.append(self.writer.ended - self.writer.begun)
            self.peers.append(self.peer())
            trainer.should_stop = len(self.writes) == self.saves
        # 3. After enough quiet steps, save.
        due = not self.writer.is_busy and self.quiet >= max(QUIET, self.loud)
        self.cadence = AT_ONCE if due else NEVER
        begin = time.perf_counter()
        super().on_train_batch_end(trainer, module, outputs, batch, index)
        if due:
            self.stalls.append(time.perf_counter() - begin)
            self.quiet = self.loud = 0
        self.resumed_at = time.perf_counter()


def measure(options: argparse.Namespace) -> Page:
    """Each case in turn."""
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    chosen = {field: getattr(options, field) for field in ("sequences", "length", "saves") if getattr(options, field)}
    sections = []
    for name in [options.model] if options.model else CASES:
        sections.append(section(replace(CASES[name], best=options.best, **chosen), options.folder / name))
        log(f"measured {name}")
    device = f"{torch.cuda.get_device_name()}, bf16 autocast" if torch.cuda.is_available() else "CPU, fp32"
    circumstances = f"threads: {options.threads}; checkpoints on: {file_system(options.folder)}"
    return Page([f"trains on: {device}, {circumstances}"], sections)


def section(case: Case, folder: Path) -> str:
    """Train in rounds until every save of the case is measured, and describe what was measured."""
    folder.mkdir()
    run, recipe = _made_up_run(case, folder)
    gpu = torch.cuda.is_available()
    model = build_model(replace(PRESETS[case.model], vocabulary=case.vocabulary), seed=0)
    module = StageModule(model, recipe)
    data = StageData(recipe, folder / "store")
    curves = TimedCurves(run, Heldout({}, {}, module, gpu, 0, 1), None, None)
    best = KeepBest(lambda step: float(step), 1, MOST_STEPS, MOST_STEPS) if case.best else None
    writer = TimedWriter(run.checkpoint, 0, 1, lambda: True)
    resume = TimedResume(None, data, curves, best, writer, StopRequest(), NEVER, holds_all=True)

    def peer() -> tuple[float, float]:
        tensors = {"model": model.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
        return _torch_save(tensors | ({"best": best.weights} if best else {}), folder / "peer.pt")

    resume.start(case.saves, peer)
    trainer = stage_trainer(folder, Ranks(), gpu, gpu, False, [*([best] if best else []), curves, resume])
    others = watch_other_processes()
    fit(trainer, module, data)
    assert len(resume.writes) == case.saves, f"{MOST_STEPS} steps were too few"
    size = used_bytes(checkpoint_folders(run.checkpoint)[0])
    loud = sum(step.writing > 0 for step in resume.steps)
    return (
        f"## {case.model}: {sum(parameter.numel() for parameter in model.parameters()):,} parameters\n\n"
        f"A checkpoint holds weights, two moments{' and the best weights' if case.best else ''}: {size:,} bytes "
        f"({format_bytes(size)}). A step trains {case.sequences} x {case.length} tokens. {case.saves} saves; "
        f"{len(resume.steps) - loud} steps without and {loud} with a write beside them, alternating. Peak memory of the "
        f"process: {format_bytes(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024)}; other processes kept "
        f"{others():.2f} cores busy meanwhile. A negative delay is noise.\n\n{_table(resume)}"
    )


def _table(resume: TimedResume) -> str:
    quiet = [step for step in resume.steps if not step.writing]
    loud = [step for step in resume.steps if step.writing]
    usual = median(step.seconds for step in quiet)
    delays = [sum(step.seconds - usual for step in loud if step.saves == save + 1) for save in range(resume.saves)]
    covered = sum(step.writing for step in loud) / sum(step.seconds for step in loud)
    first, *later = resume.stalls
    cached, on_disk = zip(*resume.peers, strict=True)
    rows: Mapping[str, Sequence[float]] = {
        "step, nothing being written": [step.seconds for step in quiet],
        f"step, a checkpoint being written beside it ({covered:.0%} of its time)": [step.seconds for step in loud],
        "of a step: progress reported in state.json, nothing being written": [step.reporting for step in quiet],
        "of a step: progress reported in state.json, a checkpoint being written": [step.reporting for step in loud],
        "stall: the loop waits for the first copy, which allocates its buffers": [first],
        "stall: the loop waits for a later copy": later or [first],
        "checkpoint on disk: written, checksummed, synced, beside the steps": resume.writes,
        "delay of all steps beside one write together": delays,
        "cost of one save for training: its stall and that delay": [
            stall + delay for stall, delay in zip(resume.stalls, delays, strict=True)
        ],
        "peer: blocking torch.save, left in the system's memory": cached,
        "peer: blocking torch.save, then synced": on_disk,
    }
    return markdown_table(
        ("", "n", "median, ms", "max, ms", "of a step", f"of {INTERVAL_S / 60:g} min"),
        [
            (
                name,
                str(len(seconds)),
                f"{median(seconds) * 1e3:,.1f}",
                f"{max(seconds) * 1e3:,.1f}",
                f"{median(seconds) / usual:.1%}",
                "" if name.startswith(("step", "of a step")) else f"{median(seconds) / INTERVAL_S:.4%}",
            )
            for name, seconds in rows.items()
        ],
    )


def _made_up_run(case: Case, folder: Path) -> tuple[Run, Mapping[str, Any]]:
    """A registered post-training on made-up words, and its recipe."""
    study = one_corpus_study(
        folder / "saving.yaml",
        write_words(folder / "text.jsonl", documents=2 * case.length, words=50, vocabulary=500),
        {"batch": case.sequences, "tokens": max(32, case.sequences) * case.length},
        heldout=0.1,
        model={"preset": case.model, "vocabulary": case.vocabulary},
        tokenizer={"train": 320},
        sequence_length=case.length,
    )
    most = MOST_STEPS * case.sequences * case.length
    opened = registered(study, (f"posttrain.max_tokens={most}",), folder / "store")
    key = opened.tree.trials[0].key("posttrain")
    assert key is not None
    run = opened.store.run(key)
    return run, run.spec()["recipe"]


def _torch_save(tensors: Mapping[str, Any], path: Path) -> tuple[float, float]:
    """Seconds until torch.save returns, and until the file is also synced to the disk."""
    begin = time.perf_counter()
    torch.save(tensors, path)
    cached = time.perf_counter() - begin
    sync_path(path)
    on_disk = time.perf_counter() - begin
    path.unlink()
    return cached, on_disk


if __name__ == "__main__":
    run_benchmark(
        measure,
        "What a checkpoint costs",
        ("torch", "lightning", "transformers", "safetensors"),
        Option("model", None, "laptop", "the preset; by default each of them", choices=list(CASES)),
        Option("sequences", None, None, "sequences in a step", int),
        Option("length", None, 32, "tokens of a sequence", int),
        Option("saves", None, 2, "saves to measure", int),
        Option("best", False, True, "add the best weights of early stopping to the checkpoint"),
        Option("threads", Execution().threads, 1, "threads of torch; by default those of a run", int),
    )
