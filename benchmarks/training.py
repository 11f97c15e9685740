"""Tokens per second of a training step on this machine's processor: Retain and peers, on the same batches of real text.

    python -m benchmarks.training [--threads 1] [--seconds 80] [--write]

Every loop is a process of its own. The loops take turns of a few steps, so that other load on the machine affects all of them.
A step counts as the processor time of all threads of its process: on a quiet machine, with one thread, that is its wall time.
The curves are those of the same loops over the same batches in small steps, each to the end.
"""

import argparse
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from statistics import median

import retain
from benchmarks.harness import Option, Page, bf16_support, markdown_table, run_benchmark, table_of
from benchmarks.loops import LOOPS, MARKS, OTHER_WEIGHTS, PEER, SETTINGS, TOOLS, Racer, Work, race
from benchmarks.made_up import registered

LENGTH = 128
BIG, SMALL = 32, 8
"""Sequences in a step: as in the notes on speed, and as in the laptop study."""
EAGER, COMPILED = "Retain, fp32", "Retain, fp32, compiled"
BF16, BF16_COMPILED = "Retain, bf16", "Retain, bf16, compiled"
CURVES = (
    *(PEER, "transformers Trainer, bf16", "plain PyTorch loop, fp32", f"plain PyTorch loop, fp32{OTHER_WEIGHTS}"),
    *(f"Retain, {setting}" for setting in SETTINGS),
)
STUDIES = ("laptop", "laptop-figure2", "laptop-figure3a")
PACK = 8


def prepared(store: Path, batch: int, steps: int, study: str = "laptop") -> Work:
    """The pretraining of a study, as a registered run to train on."""
    fields = {"batch": batch, "tokens": batch * LENGTH * steps, "min_lr": 1e-3, "lr": 1e-3}
    fields |= {"warmup": 0, "weight_decay": 0}
    opened = registered(study, [f"pretrain.{name}={value}" for name, value in fields.items()], store)
    return Work(store, opened.tree.trials[0].path[0])


def speed_table(racers: Sequence[Racer], batch: int) -> str:
    """Medians, and ratios to transformers' Trainer."""
    usual = {racer.name: median(racer.steps) for racer in racers}
    eager = usual.get(EAGER, usual[PEER])

    def trainers(racer: Racer) -> str:
        setting = racer.name.partition(", ")[2].removesuffix(OTHER_WEIGHTS)
        own = usual.get(f"transformers Trainer, {setting}")
        return f"{own / usual[racer.name]:.2f}" if own else ""

    def pays_after(racer: Racer) -> str:
        if "compiled" not in racer.name or usual[racer.name] >= eager:
            return ""
        return f"{racer.before_first / (eager - usual[racer.name]) * batch * LENGTH / 1e6:.1f}M"

    columns: dict[str, Callable[[Racer], str]] = {
        "": lambda racer: racer.name,
        "steps": lambda racer: str(len(racer.steps)),
        "step, ms": lambda racer: f"{usual[racer.name] * 1e3:.0f}",
        "tokens/s": lambda racer: f"{batch * LENGTH / usual[racer.name]:,.0f}",
        "of Trainer's in fp32": lambda racer: f"{usual[PEER] / usual[racer.name]:.2f}",
        "of Trainer's at this setting": trainers,
        "before the first steps, s": lambda racer: f"{racer.before_first:.0f}",
        "pays after, tokens": pays_after,
    }
    return table_of(racers, columns)


def curve_table(racers: Sequence[Racer]) -> str:
    """Held-out losses on the way, and how far the last is from that of transformers' Trainer."""
    trainers = next(racer.losses for racer in racers if racer.name == PEER)
    columns: dict[str, Callable[[Racer], str]] = {"held-out loss": lambda racer: racer.name}
    for number, step in enumerate(MARKS[: len(trainers)]):
        columns[f"step {step}"] = lambda racer, number=number: f"{racer.losses[number]:.4f}"  # type: ignore[misc]
    return table_of(racers, columns | {"from Trainer's": lambda racer: f"{racer.losses[-1] - trainers[-1]:+.4f}"})


def equal_settings(racers: Sequence[Racer]) -> str:
    """Retain's speed at each setting as a multiple of each peer's at the same setting."""
    usual = {racer.name: median(racer.steps) for racer in racers}
    peers = [tool for tool in TOOLS if tool != "Retain"]
    rows = [
        [setting, *(f"{usual[f'{peer}, {setting}'] / usual[f'Retain, {setting}']:.2f}" for peer in peers)]
        for setting in SETTINGS
        if f"Retain, {setting}" in usual
    ]
    return markdown_table(["Retain's speed, as a multiple of", *peers], rows)


def study_row(study: str, store: Path, small: Sequence[Racer], cached: Mapping[str, float]) -> list[str]:
    """A study as `retain plan` counts it, and Retain's speed over it in several ways, as multiples of the Trainer's in fp32.

    store: one that has none of its runs. cached: the seconds before the first steps of a process that finds its code compiled,
    by loop.
    """
    totals = retain.plan(study, [f"execution.pack={PACK}"], store).totals
    token = {racer.name: median(racer.steps) / (SMALL * LENGTH) for racer in small}
    start = {racer.name: racer.before_first for racer in small}
    trainer = totals.tokens * token[PEER] + totals.stages * start[PEER]

    def uncompiled(name: str) -> float:
        return totals.tokens * token[name] + totals.stages * start[name]

    def compiled(name: str, processes: int) -> float:
        return totals.tokens * token[name] + start[name] + (processes - 1) * cached[name]

    ways = [uncompiled(EAGER), uncompiled(BF16)]
    ways += [compiled(name, count) for name in (COMPILED, BF16_COMPILED) for count in (totals.stages, totals.jobs)]
    return [study, f"{totals.stages:,}", f"{totals.tokens / 1e6:.1f}M", *(f"{trainer / each:.2f}" for each in ways)]


STUDY_COLUMNS = (
    "of Trainer's speed in fp32", "stages", "tokens", "fp32", "bf16", "fp32, compiled", f"fp32, compiled, packs of {PACK}",
    "bf16, compiled", f"bf16, compiled, packs of {PACK}",
)  # fmt: skip


def measure(options: argparse.Namespace) -> Page:
    """Speeds in large and in small steps, losses in the latter, and what both mean for whole studies."""
    # An empty cache, so that the cost of compiling is seen.
    os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache = str(options.folder / "inductor")
    store, threads = options.store or options.folder / "store", options.threads
    work = prepared(store, BIG, 150)
    big = race(dict.fromkeys(LOOPS, work), threads, options.seconds)
    shutil.rmtree(cache)
    work = prepared(store, SMALL, options.steps)
    other = replace(work, seed=1)
    small = race({name: other if name.endswith(OTHER_WEIGHTS) else work for name in CURVES}, threads)
    cached = {
        racer.name: racer.before_first for racer in race(dict.fromkeys((COMPILED, BF16_COMPILED), work), threads, 1)
    }
    studies = [study_row(study, options.folder / "none", small, cached) for study in STUDIES]
    loading = ", ".join(f"{seconds:.1f} s in {name.split(', ')[1]}" for name, seconds in cached.items())
    return Page(
        [f"threads: {threads}; {bf16_support()}", f"load average at the end: {os.getloadavg()[0]:.1f}"],
        [
            f"The laptop model (1.05M parameters, vocabulary 2,048), sequences of {LENGTH}. All loops take turns on the same "
            f"batches, each in the same time, and seconds are those of the processor. Steps of {BIG} sequences:",
            speed_table(big, BIG),
            equal_settings(big),
            "*Pays after* is the number of tokens of one stage after which compiling has saved the time that it took, compared "
            "with Retain in fp32 without compiling.",
            f"Steps of {SMALL} sequences, {options.steps} of them: speed, and losses in nats per token.",
            speed_table(small, SMALL),
            curve_table(small),
            f"Whole studies at those speeds, since their steps have {SMALL} sequences, as multiples of the Trainer's speed in "
            "fp32, its default. Counted are the seconds of all steps of all stages, and those before the first steps of each "
            "process, for the Trainer too, which has a process for each stage. So has Retain, unless siblings share one in a "
            f"pack. The first process compiles; the others find its code, which takes {loading}; the later stages of a pack "
            "need neither. `precision: auto` and `compile: auto` take bf16 where it is measured to be 1.15 times as fast, and "
            "compile where that repays itself. Imports, which all processes have, are not counted.",
            markdown_table(STUDY_COLUMNS, studies),
            NOTES,
        ],
    )


NOTES = """\
Kept after trials: computing the logits of a few hundred tokens at a time and dropping them, with the loss and its gradient
written out (2% of a step, 4% of a compiled one); seeding random numbers only on the device that is used (1%); keeping freed
memory for the next step (2 to 4%); in bf16, attention in fp32, whose backward pass in bf16 takes three times as long at 128
tokens (a quarter of a step). All rows of Retain have these. With compiling, each layer is compiled separately, and so is the
norm after the layers (1%). Rejected: compiling the model as a whole, which made steps hardly faster than compiling its layers
and took several times as long before the first one; bf16 by the names of the processor's instructions, which do not say how
fast a step is; huge pages (no faster once memory is kept); computing several projections in one product, attention as plain
products, micro-batches of 4 to 16 sequences, and torch's C++ wrapper (no faster); the head's products without autograd, and
transposed gradients of the weights (1% each, for code of our own)."""


if __name__ == "__main__":
    run_benchmark(
        measure,
        "Training on a processor",
        ("torch", "lightning", "transformers", "accelerate"),
        Option("threads", 1, 1, "threads of each loop", int),
        Option("seconds", 80.0, 0.0, "how long the loops take turns at the large batch", float),
        Option("steps", 200, 20, "steps of each loop at the small batch", int),
        Option("store", None, None, "a store that has the laptop study's data, so that it is not prepared again", Path),
    )
