"""The ratios that the watch looks at: each of two things that take turns in one run, so that what else the machine does meets
both, and neither its speed nor another process's share of it counts.

What is compared is processor time, all threads and children together, but for what a step waits for the loader.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.loading import CORPORA, make_store, measure_ours, recipes
from benchmarks.loading_peers import datasets_loader, measure
from benchmarks.made_store import made_store
from benchmarks.packing import LIBRARY, OURS, packed_by
from benchmarks.planning import watch
from benchmarks.scale import run
from benchmarks.startup import job, made_up_store
from benchmarks.training import BIG, WARM_UP, Racer, prepared, racing, ratios, take_turns
from benchmarks.training_loops import PEER

STARTS = 2
STEP_S = 0.03
"""A step of the loader's, longer than it takes to read ahead."""


@dataclass(frozen=True)
class Ratio:
    """Something of ours as a multiple of something else that ran beside it."""

    name: str
    of: str
    value: float
    more_is_better: bool
    tolerance: float = 0.10
    """How much worse it may be than the committed one."""


Measure = Callable[[], list[Ratio]]
"""Of one part, once it is prepared: all prepare first, beside what compiles, then one after the other measures."""


def training(study: Path, store: Path, stack: ExitStack) -> list[Racer]:
    """The loops that are compared, the compiled one compiling already."""
    work = prepared(store, BIG, 150, str(study))
    names = (PEER, "Retain, fp32", "Retain, fp32, compiled")
    racers = stack.enter_context(racing([(name, work) for name in names], threads=1))
    for racer in racers:
        racer.pipe.send(WARM_UP)
    return racers


def loading(folder: Path, seconds: float) -> Measure:
    """What a step waits for its batch, and what the loader takes in all."""
    torch.set_num_threads(1)
    folder.mkdir()
    theirs = datasets_loader(folder, parts=1)
    make_store(folder, {name: count for name, count in CORPORA.items() if name != "disk"})
    recipe = recipes()["pretraining, exposure"]

    def measured() -> list[Ratio]:
        pairs = [
            (measure_ours(folder, recipe, 1000, 30, STEP_S), measure(lambda: theirs(0, 0), 20, STEP_S))
            for _ in _rounds(seconds)
        ]
        waits = [median(each.wait_us for each in side) for side in zip(*pairs, strict=True)]
        totals = [min(each.wait_us + each.beside_us for each in side) for side in zip(*pairs, strict=True)]
        return [
            # So few microseconds that they differ by 20% between runs: it counts when the system wakes which thread.
            Ratio("the loader, what a step waits", "that for `datasets`", waits[0] / waits[1], False, tolerance=0.30),
            Ratio("the loader, wait and processor time", "those of `datasets`", totals[0] / totals[1], False),
        ]

    return measured


def packing(text: Path, tokenizer: Path, seconds: float) -> Measure:
    """The rate at which text becomes packed tokens."""

    def measured() -> list[Ratio]:
        pairs = [(packed_by(OURS, text, tokenizer), packed_by(LIBRARY, text, tokenizer)) for _ in _rounds(seconds)]
        ours, theirs = (min(each.processor_s for each in side) for side in zip(*pairs, strict=True))
        return [Ratio("packing", "the tokeniser library's rate", theirs / ours, True)]

    return measured


def starting(root: Path, keys: Sequence[str]) -> Measure:
    """A job from its start to its first step; trains runs of a store that are not begun."""
    imports = [sys.executable, "-c", "import torch, lightning, transformers"]

    def measured() -> list[Ratio]:
        pairs = [(job(root, key)["processor"], watch(imports).cpu_seconds) for key in keys]
        ours, theirs = map(min, zip(*pairs, strict=True))
        name = "a job's start to its first step"
        return [Ratio(name, "the imports of torch, lightning, transformers", ours / theirs, False)]

    return measured


def looking(folder: Path, stack: ExitStack, seconds: float) -> Measure:
    """`retain status` of a thousand runs."""
    made = stack.enter_context(made_store(1_000, folder))
    imports = [sys.executable, "-c", "import numpy, pydantic, rich, typer"]

    def measured() -> list[Ratio]:
        pairs = [(run(made, "status", "--json"), watch(imports)) for _ in _rounds(seconds)]
        ours, theirs = (min(each.cpu_seconds for each in side) for side in zip(*pairs, strict=True))
        return [Ratio("status of 1,000 runs", "the imports of numpy, pydantic, rich, typer", ours / theirs, False)]

    return measured


def all_ratios(folder: Path, end: float) -> Iterator[Ratio]:
    """Each as soon as it is known; `folder` is empty, and training takes turns until `end` of the monotonic clock."""
    root, keys = made_up_store(folder, STARTS)
    (tokenizer,) = (root / "tokenizers").iterdir()
    with ExitStack() as stack:
        racers = training(folder / "startup.yaml", root, stack)
        parts = [
            starting(root, keys),
            looking(folder / "looking", stack, 4),
            packing(folder / "text.jsonl", tokenizer, 8),
            loading(folder / "loading", 9),
        ]
        for racer in racers:
            racer.hear()
        for measured in parts:
            yield from measured()
        take_turns(racers, end - time.monotonic())
    for name, value in ratios(racers).items():
        if name != PEER:
            yield Ratio(name, "Trainer's speed", value, True)


def _rounds(seconds: float, least: int = 3) -> Iterator[int]:
    """Rounds until so many seconds have passed, and not fewer than `least`."""
    end = time.monotonic() + seconds
    for number in itertools.count():
        if number >= least and time.monotonic() >= end:
            return
        yield number
