"""A whole study on all cores of this machine: `retain run`, and a transformers Trainer for each of its stages.

    python -m benchmarks.whole_study [--study laptop] [--steps 40] [--write]

The study is trained from prepared data to its table, with held-out losses, checkpoints and its figure. The Trainer's time is
that of its steps alone: the median of some before the study and of some after it, by the token, for the tokens that the study
has trained. Its batches are those of the study's first stage.
"""

import argparse
import os
import subprocess
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

from benchmarks.harness import RETAIN, Option, Page, log, markdown_table, run_benchmark, watch_other_processes
from benchmarks.loops import PEER, WARM_UP, Work, racing
from benchmarks.made_up import registered
from retain.launchers.planning.opened_study import OpenedStudy

SMOKE = (
    "pretrain.warmup=0 posttrain.warmup=0 finetune.warmup=0 posttrain.early_stopping=null "
    "pretrain.tokens=40k posttrain.tokens=4k posttrain.max_tokens=4k finetune.tokens=4k"
)
CORES = len(os.sched_getaffinity(0))


@dataclass(frozen=True)
class Way:
    """How Trainers use the cores."""

    name: str
    side_by_side: int
    threads: int
    """Of each."""


WAYS = tuple(
    dict.fromkeys(
        (
            Way("one after the other, of one thread", 1, 1),
            Way("one after the other, with a thread for each core", 1, CORES),
            Way("one for each core, of one thread, all of them always at work", CORES, 1),
        )
    )
)


def seconds_per_token(way: Way, work: Work, steps: int) -> float:
    """Wall seconds of the steps of all Trainers that are side by side, over their tokens."""
    recipe = work.recipe
    walls = []
    with racing([(PEER, work)] * way.side_by_side, way.threads) as racers:
        for number in range(WARM_UP + steps):
            begin = time.perf_counter()
            for racer in racers:
                racer.begin()
            for racer in racers:
                racer.finish()
            if number >= WARM_UP:
                walls.append(time.perf_counter() - begin)
    tokens = recipe["batch"] * len(next(work.batches())[0])
    return median(walls) / (tokens * way.side_by_side)


def run_whole(study: Sequence[str], store: Path) -> float:
    """Wall seconds of `retain run` of a study with overrides."""
    begin = time.perf_counter()
    subprocess.run([*RETAIN, "run", *study, "--store", str(store)], check=True, capture_output=True)
    return time.perf_counter() - begin


def measure(options: argparse.Namespace) -> Page:
    """The Trainers, the study, and the Trainers again, because a machine may be faster at one time than at another."""
    store = options.folder / "store"
    overrides = options.overrides.split()
    opened = registered(options.study, overrides, store)
    work = Work(store, opened.tree.trials[0].path[0])
    found: dict[Way, list[float]] = {way: [] for way in WAYS}
    busy = watch_other_processes()
    for way in WAYS:
        found[way].append(seconds_per_token(way, work, options.steps))
        log(f"{way.name}: {1 / found[way][-1]:,.0f} tokens/s")
    retain = run_whole([options.study, *overrides], store)
    log(f"retain run: {retain:.0f} s")
    for way in WAYS:
        found[way].append(seconds_per_token(way, work, options.steps))
    others = busy()
    tree, (shared, apart) = opened.tree, trained_tokens(opened)
    return Page(
        [f"load average at the end: {os.getloadavg()[0]:.1f}"],
        [
            f"The study {tree.study}: {len(tree.trials)} trials of {len(tree.stages)} stages, {shared / 1e6:.1f}M tokens; "
            f"{apart / 1e6:.1f}M if every trial trained its stages for itself. `retain run`, from prepared data to its table, "
            f"with held-out losses, checkpoints and figure: **{retain:.0f} s**. Of transformers' Trainer, the steps alone are "
            "counted, in fp32, its default.",
            table((shared, apart), found, retain),
            f"The ranges are from {options.steps} steps before the study and as many after it. On average {others:.1f} cores "
            "were busy, those of the study and the Trainers included.",
        ],
    )


def trained_tokens(opened: OpenedStudy) -> tuple[int, int]:
    """The tokens that all stages have trained, each once, and those of all trials had each trained its stages for itself."""
    tree = opened.tree
    done = {key: state.attempts[-1].tokens for key, state in opened.store.states(tree.stages).items()}
    return sum(done.values()), sum(done[key] for trial in tree.trials_without_sharing for key in trial.path)


def table(tokens: Sequence[int], found: dict[Way, list[float]], retain: float) -> str:
    """What Trainers would take for so many tokens, and that over what `retain run` took."""
    rows = []
    for way, both in found.items():
        row = [way.name, f"{1 / max(both):,.0f} to {1 / min(both):,.0f}"]
        for count in tokens:
            seconds = [count * each for each in both]
            row += [
                f"{min(seconds):.0f} to {max(seconds):.0f}",
                f"{min(seconds) / retain:.2f} to {max(seconds) / retain:.2f}",
            ]
        rows.append(row)
    columns = ("Trainers", "tokens/s", "each stage once, s", "x", "each trial for itself, s", "x")
    return markdown_table(columns, rows)


if __name__ == "__main__":
    run_benchmark(
        measure,
        "A whole study on all cores",
        ("torch", "lightning", "transformers", "accelerate"),
        Option("study", "laptop", "laptop", "the study that is run"),
        Option("overrides", "", SMOKE, "fields of the study with other values, separated by spaces"),
        Option("steps", 40, 2, "steps of each way of using the Trainer, before the study and after it", int),
    )
