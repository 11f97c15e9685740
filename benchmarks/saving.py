"""What a resumable state costs: how long the steps wait for it, and how much its writing slows them down.

    python -m benchmarks.saving [--model smollm2-135m] [--saves 5] [--write]

The parts are those of a run: its model, AdamW, data, callbacks, `Resume` and `StateWriter`, in Lightning's loop. Steps
with and without a write beside them alternate; so does the peer, a blocking `torch.save` of the same tensors. The data
is made up, which no timing here depends on.
"""

import argparse
import json
import logging
import math
import random
import resource
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

import torch
import yaml
from lightning.pytorch import LightningModule, Trainer

from benchmarks.report import circumstances, file_system, markdown_table, seconds_of_others, write_results
from retain.datamodules.order.stage_data import StageData
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register
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
"""Steps before the first that counts."""
QUIET = 3
"""Steps without a write before each save; as many as the last write lasted, where that is more."""
MOST_STEPS = 20_000
NEVER = Cadence(math.inf, None)
AT_ONCE = Cadence(0.0, None)
PACKAGES = ("torch", "lightning", "transformers", "safetensors")


@dataclass(frozen=True)
class Case:
    """What is trained. Sequences are those of one step, in one micro-batch."""

    model: str
    sequences: int
    length: int
    """Tokens of a sequence."""
    saves: int
    best: bool = False
    """Whether the best weights of early stopping are part of the state."""


CASES = {
    "laptop": Case("laptop", sequences=8, length=128, saves=30),
    "smollm2-135m": Case("smollm2-135m", sequences=1, length=512, saves=6),
}


@dataclass(frozen=True)
class Step:
    """One step of the loop, without what saving makes it wait. Seconds."""

    seconds: float
    beside: float
    """How long of it a state was being written."""
    saves: int
    """The saves before it."""
    told: float
    """How long of it the curves' callback took, which tells the progress in state.json."""


@dataclass(frozen=True)
class Peer:
    """One blocking `torch.save`. Seconds."""

    cached: float
    """Until the call returns, the file being in the system's memory: what a peer that does not sync waits."""
    on_disk: float
    """Until the file is on the disk too."""


@dataclass(frozen=True)
class Measured:
    """Of one case. Seconds and bytes."""

    parameters: int
    bytes: int
    """Of a state on disk."""
    steps: Sequence[Step]
    stalls: Sequence[float]
    """How long the loop waited at each save."""
    writes: Sequence[float]
    """From the end of the stall until the state was on disk under its name."""
    peers: Sequence[Peer]
    peak_bytes: int
    """Of the process's memory, all models so far."""
    others: float
    """Cores that other processes kept busy meanwhile, on average."""


class TimedWriter(CheckpointWriter):
    """Notes when the latest write began and ended, in seconds of `time.perf_counter`."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, rank=0, world=1, may_write=lambda: True)
        self.begun = self.ended = -math.inf
        self.watches: list[threading.Thread] = []

    def save(self, snapshot: Snapshot) -> None:
        self.begun, self.ended = time.perf_counter(), math.inf
        super().save(snapshot)
        assert self.thread is not None
        self.watches.append(threading.Thread(target=self._note_end, args=(self.thread,), daemon=True))
        self.watches[-1].start()

    def _note_end(self, thread: threading.Thread) -> None:
        thread.join()
        self.ended = time.perf_counter()

    @property
    def busy(self) -> bool:
        return self.ended == math.inf

    def overlap(self, begin: float, end: float) -> float:
        """Seconds of a span in which the latest write was going on."""
        return max(0.0, min(end, self.ended) - max(begin, self.begun))


class TimedCurves(Curves):
    """Curves, with the seconds that its part of the latest step took."""

    told = 0.0

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        assert isinstance(module, StageModule)
        _settle(module)
        begin = time.perf_counter()
        super().on_train_batch_end(trainer, module, outputs, batch, index)
        self.told = time.perf_counter() - begin


class TimedResume(Resume):
    """Resume, told when to save: rounds of quiet steps, a save, the steps until it is on disk, and the peer."""

    writer: TimedWriter
    curves: TimedCurves

    def start(self, saves: int, peer: Callable[[], Peer]) -> None:
        """What to measure: so many rounds, and the peer once in each."""
        self.saves, self.peer = saves, peer
        self.steps: list[Step] = []
        self.stalls: list[float] = []
        self.writes: list[float] = []
        self.peers: list[Peer] = []
        self.quiet = self.loud = 0
        self.resumed_at = math.nan

    def on_train_start(self, trainer: Trainer, module: LightningModule) -> None:
        super().on_train_start(trainer, module)
        self.resumed_at = time.perf_counter()

    def on_train_batch_end(
        self, trainer: Trainer, module: LightningModule, outputs: Any, batch: Any, index: int
    ) -> None:
        assert isinstance(module, StageModule)
        _settle(module)
        now = time.perf_counter()
        if module.step > WARM_UP:
            beside = self.writer.overlap(self.resumed_at, now)
            self._note(Step(now - self.resumed_at, beside, len(self.stalls), self.curves.told))
        if len(self.writes) < len(self.stalls) and not self.writer.busy:
            self.writes.append(self.writer.ended - self.writer.begun)
            self.peers.append(self.peer())
            trainer.should_stop = len(self.writes) == self.saves
        due = not self.writer.busy and self.quiet >= max(QUIET, self.loud)
        self.cadence = AT_ONCE if due else NEVER
        begin = time.perf_counter()
        super().on_train_batch_end(trainer, module, outputs, batch, index)
        if due:
            self.stalls.append(time.perf_counter() - begin)
            self.quiet = self.loud = 0
        self.resumed_at = time.perf_counter()

    def _note(self, step: Step) -> None:
        self.steps.append(step)
        if step.beside:
            self.loud += 1
        else:
            self.quiet += 1


def _settle(module: StageModule) -> None:
    """Wait for what the device has still to do, so that no time is booked on what comes next."""
    if module.device.type == "cuda":
        torch.cuda.synchronize(module.device)


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parsed(arguments)
    torch.set_num_threads(options.threads)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    names = [options.model] if options.model else list(CASES)
    sections = []
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        device = torch.cuda.get_device_name() + ", bf16 autocast" if torch.cuda.is_available() else "CPU, fp32"
        head = circumstances(
            PACKAGES,
            f"trains on: {device}, threads: {options.threads}; states on: {file_system(Path(folder))}",
        )
        for name in names:
            given = {field: getattr(options, field) for field in ("sequences", "length", "saves")}
            case = replace(CASES[name], best=options.best, **{field: n for field, n in given.items() if n is not None})
            sections.append(section(case, measure(case, Path(folder) / name)))
            print(f"measured {name}", file=sys.stderr)
    text = "\n\n".join(["# What a resumable state costs", head, *sections]) + "\n"
    print(text, end="")
    if options.write:
        print(write_results("saving", text), file=sys.stderr)


def measure(case: Case, folder: Path) -> Measured:
    """Train and save in `folder`, in rounds, until every save of the case is measured."""
    run, recipe = _made_up_run(case, folder)
    gpu = torch.cuda.is_available()
    model = build_model(replace(PRESETS[case.model], vocabulary=_vocabulary(case)), seed=0)
    module = StageModule(model, recipe)
    data = StageData(recipe, folder / "store")
    curves = TimedCurves(run, Heldout({}, module, gpu, 0, 1), None, None)
    best = KeepBest(lambda step: float(step), 1, MOST_STEPS, MOST_STEPS) if case.best else None
    writer = TimedWriter(run.checkpoint)
    resume = TimedResume(None, data, curves, best, writer, StopRequest(), NEVER, holds_all=True)
    resume.start(case.saves, lambda: _torch_save(resume_tensors(trainer, module, best), folder / "peer.pt"))
    trainer = stage_trainer(folder, Ranks(), gpu, gpu, False, [*([best] if best else []), curves, resume])
    begin, busy = time.perf_counter(), seconds_of_others()
    fit(trainer, module, data)
    others = (seconds_of_others() - busy) / (time.perf_counter() - begin)
    assert len(resume.writes) == case.saves, f"{MOST_STEPS} steps were too few"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
    size = used_bytes(checkpoint_folders(run.checkpoint)[0])
    count = sum(parameter.numel() for parameter in model.parameters())
    return Measured(count, size, resume.steps, resume.stalls, resume.writes, resume.peers, peak, others)


def resume_tensors(trainer: Trainer, module: StageModule, best: KeepBest | None) -> dict[str, Any]:
    """What a plain training script saves: the same tensors as a state holds."""
    saved = {"model": module.model.state_dict(), "optimizer": trainer.optimizers[0].state_dict()}
    return saved | ({"best": best.weights} if best else {})


def section(case: Case, measured: Measured) -> str:
    """The table of one case, below what it is about."""
    still = [step for step in measured.steps if not step.beside]
    quiet = [step.seconds for step in still]
    loud = [step for step in measured.steps if step.beside]
    usual = median(quiet)
    delays = [sum(step.seconds - usual for step in loud if step.saves == number) for number in range(1, case.saves + 1)]
    covered = sum(step.beside for step in loud) / sum(step.seconds for step in loud)
    first, *later = measured.stalls
    rows = [
        ("step, nothing being written", quiet),
        (f"step, a state being written beside it ({covered:.0%} of its time)", [step.seconds for step in loud]),
        ("of a step: its progress told in state.json, nothing being written", [step.told for step in still]),
        ("of a step: its progress told in state.json, a state being written", [step.told for step in loud]),
        ("stall: the step loop waits for the first copy, which makes its buffers", [first]),
        ("stall: the step loop waits for a later copy", later or [first]),
        ("state on disk: written, checksummed, synced, beside the steps", measured.writes),
        ("delay of the steps beside one write, all of them together", delays),
        (
            "what one save costs training: its stall and that delay",
            [stall + delay for stall, delay in zip(measured.stalls, delays, strict=True)],
        ),
        ("peer: blocking torch.save, left in the system's memory", [peer.cached for peer in measured.peers]),
        ("peer: blocking torch.save, then synced", [peer.on_disk for peer in measured.peers]),
    ]
    table = markdown_table(
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
            for name, seconds in rows
        ],
    )
    holds = "weights, two moments" + (" and the best weights" if case.best else "")
    return "\n".join(
        [
            f"## {case.model}: {measured.parameters:,} parameters",
            "",
            f"A state holds {holds}: {measured.bytes:,} bytes ({format_bytes(measured.bytes)}). "
            f"A step trains {case.sequences} x {case.length} tokens. {case.saves} saves; {len(quiet)} steps without and "
            f"{len(loud)} with a write beside them, alternating. Peak memory of the process: "
            f"{format_bytes(measured.peak_bytes)}; other processes kept {max(measured.others, 0):.2f} cores busy meanwhile. "
            "A negative delay is noise.",
            "",
            table,
        ]
    )


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.saving", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--model", choices=list(CASES), help="the preset; without it, each in turn")
    parser.add_argument("--sequences", type=int, help="of one step")
    parser.add_argument("--length", type=int, help="tokens of a sequence")
    parser.add_argument("--saves", type=int, help="how many saves to measure")
    parser.add_argument("--best", action="store_true", help="add the best weights of early stopping to the state")
    parser.add_argument("--threads", type=int, default=Execution().threads, help="of torch; by default a run's")
    parser.add_argument("--folder", type=Path, help="where the states go, for a moment; the system's temporary folder")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/saving.md")
    return parser.parse_args(arguments)


def _made_up_run(case: Case, folder: Path) -> tuple[Run, Mapping[str, Any]]:
    """A post-training over one small corpus of made-up words, entered into a store of its own; the run and its recipe."""
    folder.mkdir()
    draw = random.Random(0)
    words = ["".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=6)) for _ in range(500)]
    with (folder / "text.jsonl").open("w") as stream:
        for number in range(2 * case.length):
            stream.write(json.dumps({"text": f"{number} " + " ".join(draw.choices(words, k=50))}) + "\n")
    stage = {"corpus": "text", "lr": 1e-4, "batch": case.sequences}
    budget = max(32, case.sequences) * case.length
    fields = {
        "study": "saving",
        "model": {"preset": case.model, "vocabulary": _vocabulary(case)},
        "tokenizer": {"train": 320},
        "sequence_length": case.length,
        "corpora": {"text": {"files": "text.jsonl", "heldout": 0.1}},
        "pretrain": stage | {"tokens": budget},
        "posttrain": stage | {"tokens": budget, "max_tokens": MOST_STEPS * case.sequences * case.length},
        "finetune": stage | {"tokens": budget},
    }
    (folder / "saving.yaml").write_text(yaml.safe_dump(fields))
    opened = prepare_study(str(folder / "saving.yaml"), (), folder / "store")
    register(opened.tree, opened.file, opened.facts, opened.store)
    key = opened.tree.trials[0].posttrain
    assert key is not None
    run = opened.store.run(key)
    return run, run.spec()["recipe"]


def _vocabulary(case: Case) -> int:
    """Entries: the preset's, or the laptop study's where it takes its tokeniser's."""
    return PRESETS[case.model].vocabulary or 2048


def _torch_save(tensors: Mapping[str, Any], path: Path) -> Peer:
    begin = time.perf_counter()
    torch.save(tensors, path)
    cached = time.perf_counter() - begin
    sync_path(path)
    on_disk = time.perf_counter() - begin
    path.unlink()
    return Peer(cached, on_disk)


if __name__ == "__main__":
    main()
