"""Tokens per second of a training step on this machine's processor: ours beside peers, on the same batches of real text.

    python -m benchmarks.training [--threads 1] [--seconds 100] [--write]

Every loop is a process of its own; they take turns of a few steps, so that what else the machine does meets all alike.
What is counted is the processor time of a step, all threads of its process together: on a quiet machine with one thread
that is its wall time. The curves are those of the same loops over the same batches in small steps, each to the end.
"""

import argparse
import contextlib
import multiprocessing
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from multiprocessing.connection import Connection
from pathlib import Path
from statistics import median

import torch
from transformers import LlamaForCausalLM

from benchmarks.report import circumstances, markdown_table, write_results
from benchmarks.startup_amortised import STUDIES, Cost, amortised, counted
from benchmarks.training_loops import LOOPS, PEER, Work
from retain.datamodules.order.stage_data import heldout_sequences
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register
from retain.lightning_modules.objective import heldout_loss
from retain.results.store.runs import Store

PACKAGES = ("torch", "lightning", "transformers", "accelerate")
BIG, SMALL = 32, 8
"""Sequences of 128 tokens in a step: as in the notes on speed, and as in the laptop study."""
WARM_UP = 2
TURN = 2
"""Steps of one turn."""
LIMIT_S = 600.0
"""Of one turn, that which compiles too."""
CURVE_STEPS = 200
MARKS = (20, 50, 100, 200)
COMPILED = "Retain, fp32, compiled"
OTHER = ", other initial weights"
SEEDS = f"plain PyTorch loop, fp32{OTHER}"
CURVES = (
    PEER,
    "plain PyTorch loop, fp32",
    SEEDS,
    "Retain, fp32",
    "Retain, fp32, compiled",
    "Retain, bf16, compiled",
)


@dataclass
class Racer:
    """One loop in its process, which goes on when it is told to."""

    name: str
    process: multiprocessing.process.BaseProcess
    pipe: Connection
    steps: list[float] = field(default_factory=list)
    """Processor seconds of each after the warm-up."""
    losses: list[float] = field(default_factory=list)
    """On held-out text after the steps of MARKS, nats per token."""
    first: float = 0.0
    """Processor seconds of the first steps, with those of the compilers that they start."""

    def take(self, steps: int) -> bool:
        """Let it do some steps; whether more are left."""
        self.pipe.send(steps)
        return self.hear()

    def hear(self) -> bool:
        """Wait for the steps that it was let do; whether more are left."""
        if not self.pipe.poll(LIMIT_S):
            raise TimeoutError(f"{self.name}: its steps have not ended after {LIMIT_S:g} s")
        told = self.pipe.recv()
        self.steps += told["steps"]
        self.losses += told["losses"]
        self.first = told["first"] or self.first
        return not told["ended"]

    @property
    def beforehand(self) -> float:
        """Processor seconds of the first steps beyond those of as many later ones."""
        return max(0.0, self.first - WARM_UP * median(self.steps))

    def stop(self) -> None:
        self.pipe.close()
        self.process.terminate()
        self.process.join()


def start(name: str, work: Work, threads: int) -> Racer:
    """A loop that waits for its first turn."""
    # Forked from a process that has imported everything and started no threads.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.training"])
    ours, theirs = context.Pipe()
    process = context.Process(target=_race, args=(name, work, threads, theirs), daemon=False)
    process.start()
    theirs.close()
    return Racer(name, process, ours)


def _race(name: str, work: Work, threads: int, pipe: Connection) -> None:
    torch.set_num_threads(threads)
    told: dict[str, list[float]] = {"steps": [], "losses": []}
    left, done, first, began = pipe.recv(), 0, 0.0, _processor_seconds()

    text = heldout_sequences(work.store, Store(work.store).run(work.key).spec()["evaluation"]["pretraining"])[:64]

    def tick(model: LlamaForCausalLM) -> None:
        nonlocal left, done, first, began
        now = _processor_seconds()
        done += 1
        if done > WARM_UP:
            told["steps"].append(now - began)
        else:
            first += now - began
        if done in MARKS:
            told["losses"].append(heldout_loss(model, text, torch.device("cpu"), bf16=False).loss)
        left -= 1
        if left == 0:
            pipe.send({**told, "first": first, "ended": False})
            told["steps"], told["losses"] = [], []
            left = pipe.recv()
        began = _processor_seconds()

    with contextlib.suppress(EOFError), open(os.devnull, "w") as nowhere, contextlib.redirect_stdout(nowhere):
        LOOPS[name.removesuffix(OTHER)](work, tick)
        pipe.send({**told, "first": first, "ended": True})
    os._exit(0)


def _processor_seconds() -> float:
    """Of this process and of those it has waited for, such as compilers."""
    times = os.times()
    return time.process_time() + times.children_user + times.children_system


def prepared(folder: Path, batch: int, steps: int, study: str = "laptop") -> Work:
    """The pretraining of a study (by default the laptop study), as a run whose batches are to be trained on."""
    fields = {"batch": batch, "tokens": batch * 128 * steps, "min_lr": 1e-3, "lr": 1e-3, "warmup": 0, "weight_decay": 0}
    overrides = [f"pretrain.{name}={value}" for name, value in fields.items()]
    opened = prepare_study(study, overrides, folder)
    register(opened.tree, opened.file, opened.facts, opened.store)
    return Work(folder, opened.tree.trials[0].pretrain)


def speeds(names: Sequence[str], work: Work, seconds: float, threads: int) -> list[Racer]:
    """The loops in turns, for so many seconds after all have warmed up, one after the other."""
    with racing([(name, work) for name in names], threads) as racers:
        for racer in racers:
            racer.take(WARM_UP)
            print(f"warm: {racer.name}, {racer.first:.0f} s", file=sys.stderr)
        take_turns(racers, seconds)
    return racers


@contextlib.contextmanager
def racing(entries: Sequence[tuple[str, Work]], threads: int) -> Iterator[list[Racer]]:
    """Loops that wait for their first turns; none outlives the block."""
    racers = [start(name, work, threads) for name, work in entries]
    try:
        yield racers
    finally:
        for racer in racers:
            racer.stop()


def take_turns(racers: Sequence[Racer], seconds: float) -> None:
    """Let loops that have warmed up take turns, until the time is over or one has ended."""
    end, left = time.monotonic() + seconds, True
    while left and (time.monotonic() < end or len(racers[0].steps) < 2 * TURN):
        more = [racer.take(TURN) for racer in racers]
        left = all(more)


def curves(work: Work, threads: int) -> list[Racer]:
    """The loops to their ends, in turns."""
    entries = [(name, replace(work, seed=1) if name == SEEDS else work) for name in CURVES]
    with racing(entries, threads) as racers:
        left = list(racers)
        while left:
            left = [racer for racer in left if racer.take(20)]
    return racers


def speed_rows(racers: Sequence[Racer], batch: int) -> list[list[str]]:
    """Medians, and ratios to transformers' Trainer."""
    usual = {racer.name: median(racer.steps) for racer in racers}
    eager = usual["Retain, fp32"] if "Retain, fp32" in usual else usual[PEER]
    rows = []
    for racer in racers:
        step = usual[racer.name]
        pays = racer.beforehand / (eager - step) * batch * 128 if step < eager and "compiled" in racer.name else None
        rows.append(
            [
                racer.name,
                str(len(racer.steps)),
                f"{step * 1e3:.0f}",
                f"{batch * 128 / step:,.0f}",
                f"{usual[PEER] / step:.2f}",
                f"{racer.beforehand:.0f}",
                f"{pays / 1e6:.1f}M" if pays else "",
            ]
        )
    return rows


COLUMNS = ("", "steps", "step, ms", "tokens/s", "of Trainer's", "before the first steps, s", "pays after, tokens")


def curve_rows(racers: Sequence[Racer]) -> list[list[str]]:
    """Held-out losses on the way, and how far the last is from that of transformers' Trainer."""
    own = next(racer.losses[-1] for racer in racers if racer.name == PEER)
    return [
        [racer.name, *(f"{loss:.4f}" for loss in racer.losses), f"{racer.losses[-1] - own:+.4f}"] for racer in racers
    ]


CURVE_COLUMNS = ("held-out loss", *(f"step {step}" for step in MARKS), "from Trainer's")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.training", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--threads", type=int, default=1, help="of each loop")
    parser.add_argument(
        "--seconds", type=float, default=80, help="of the turns at the large batch; the small one's: half"
    )
    parser.add_argument(
        "--store", type=Path, help="with the laptop study's data in it, so that it is not prepared anew"
    )
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/training.md")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        # Compiled anew, so that its cost is seen.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(temporary) / "inductor")
        folder = options.store or Path(temporary) / "store"
        head = circumstances(PACKAGES, f"threads: {options.threads}; {multiplier()}")
        studies = [counted(study, Path(temporary) / "none") for study in STUDIES]
        big = speeds(list(LOOPS), prepared(folder, BIG, 150), options.seconds, options.threads)
        warm = speeds([COMPILED], prepared(folder, BIG, 150), 1, options.threads)
        shutil.rmtree(os.environ["TORCHINDUCTOR_CACHE_DIR"])
        small = curves(prepared(folder, SMALL, CURVE_STEPS), options.threads)
        warm += speeds([COMPILED], prepared(folder, SMALL, CURVE_STEPS), 1, options.threads)
    costs = {racer.name: Cost(median(racer.steps) / (SMALL * 128), racer.beforehand) for racer in small}
    text = "\n\n".join(
        [
            "# Training on a processor",
            head,
            f"The laptop model (1.05M parameters, vocabulary 2,048), sequences of 128. Steps of {BIG} sequences:",
            markdown_table(COLUMNS, speed_rows(big, BIG)),
            f"`Retain, fp32, compiled` with its code in the cache already: {warm[0].beforehand:.0f} s before the first steps. "
            "It pays after so many tokens of one stage against Retain in fp32 without compiling.",
            f"Steps of {SMALL} sequences, {CURVE_STEPS} of them, on the same batches: speed, and losses in nats per token.",
            markdown_table(COLUMNS, speed_rows(small, SMALL)),
            markdown_table(CURVE_COLUMNS, curve_rows(small)),
            f"Whole studies at those speeds, as their steps have {SMALL} sequences: the tokens of all stages, in the seconds "
            "of all steps and of what is before the first steps of each process, Trainer's too. Trainer has a process a "
            "stage; so have we, but for packs of siblings. `compile: auto`, the default, compiles on GPUs alone. In one "
            f"cache the first process compiles, which takes {costs[COMPILED].start:.0f} s, the others find its code, which "
            f"takes {warm[1].beforehand:.1f} s, and the later stages of a pack need neither. Imports, which all have, are "
            "left out.",
            amortised(studies, costs[PEER], costs["Retain, fp32"], costs[COMPILED], warm[1].beforehand),
            NOTES,
        ]
    )
    print(text)
    if options.write:
        print(write_results("training", text + "\n"), file=sys.stderr)


def multiplier() -> str:
    """What the processor multiplies with."""
    flags = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    return "has AMX (bf16)" if " amx_bf16" in flags else "has no AMX: bf16 products are no faster than fp32 ones"


NOTES = """\
Kept after trials: logits made and dropped for some hundred tokens at a time, the loss and the gradient by the logits written
out (2% of a step, 4% of a compiled one), random numbers seeded on the device that is used alone (1%), and freed memory kept
for the next step (2 to 4%), which all rows of ours have; where `compile: true` asks for it, each layer compiled by itself, and
the norm after them (1%). Rejected: compiling the model as a whole, which made steps hardly faster than compiling its layers
and took several times as long before the first one; bf16 by default on a CPU, which is slower than fp32 where the processor
has no bf16 products of its own; compiling by default on a CPU, which short stages do not earn back; huge pages (no faster once
memory is kept); products of several projections at once, attention as plain products, micro-batches of 4 to 16 sequences,
torch's C++ wrapper (no faster); the head's products without autograd, and the weights' gradients transposed (1% each, for
code of our own). What is left of a compiled step in fp32: products, which run at nine tenths of the core's own peak of 160
GFLOP a second, are 62%, attention 15%. Without AMX the aim of 1.5 is missed. Seconds are those of the
processor, not of the wall."""


if __name__ == "__main__":
    main()
