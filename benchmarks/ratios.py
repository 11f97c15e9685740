"""The ratios that the watch looks at: each of two things that take turns in one run, so that what else the machine does meets
both, and neither its speed nor another process's share of it counts.

What is compared is processor time, all threads and children together, but for what a step waits for the loader; the least of
all rounds, as another process on the same core only adds to it.
"""

import itertools
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks.loading import CORPORA, make_store, measure_ours, recipes
from benchmarks.loading_peers import datasets_loader, measure
from benchmarks.packing import LIBRARY, OURS, packed_by
from benchmarks.planning import watch
from benchmarks.scale import run
from benchmarks.startup import job, made_up_store
from benchmarks.synthetic_store import MadeStore, made_store
from benchmarks.training import BIG, COMPILED, WARM_UP, prepared, racing, take_turns
from benchmarks.training_loops import PEER

LOOPS = (PEER, "Retain, fp32", COMPILED)
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


def all_ratios(folder: Path, end: float) -> Iterator[Ratio]:
    """Each as soon as it is known; `folder` is empty, and training takes turns until `end` of the monotonic clock."""
    root, keys = made_up_store(folder, STARTS)
    (tokenizer,) = (root / "tokenizers").iterdir()
    work = prepared(root, BIG, 150, str(folder / "startup.yaml"))
    with racing([(name, work) for name in LOOPS], threads=1) as racers:
        for racer in racers:
            racer.pipe.send(WARM_UP)
        # Prepared while one of the loops compiles; nothing is measured before it has.
        made = made_store(1_000, folder / "made")
        theirs = _loaders(folder / "loading")
        for racer in racers:
            racer.hear()
        yield starting(root, keys)
        yield looking(made, 4)
        yield packing(folder / "text.jsonl", tokenizer, 8)
        yield from loading(folder / "loading", theirs, 9)
        take_turns(racers, end - time.monotonic())
    peer, *ours = (min(racer.steps) for racer in racers)
    for name, step in zip(LOOPS[1:], ours, strict=True):
        yield Ratio(name, "Trainer's speed", peer / step, True)


def starting(root: Path, keys: Sequence[str]) -> Ratio:
    """A job from its start to its first step; trains runs of a store that are not begun."""
    imports = [sys.executable, "-c", "import torch, lightning, transformers"]
    pairs = [(job(root, key)["processor"], watch(imports).cpu_seconds) for key in keys]
    ours, theirs = map(min, zip(*pairs, strict=True))
    name, of = "a job's start to its first step", "the imports of torch, lightning, transformers"
    # Of two rounds only: each takes ten seconds.
    return Ratio(name, of, ours / theirs, False, tolerance=0.20)


def looking(made: MadeStore, seconds: float) -> Ratio:
    """`retain status` of a thousand runs."""
    imports = [sys.executable, "-c", "import numpy, pydantic, rich, typer"]
    pairs = [(run(made, "status", "--json").cpu_seconds, watch(imports).cpu_seconds) for _ in _rounds(seconds)]
    ours, theirs = map(min, zip(*pairs, strict=True))
    name, of = "status of 1,000 runs", "the imports of numpy, pydantic, rich, typer"
    # The imports take a tenth of a second, whose least differs between runs.
    return Ratio(name, of, ours / theirs, False, tolerance=0.20)


def packing(text: Path, tokenizer: Path, seconds: float) -> Ratio:
    """The rate at which text becomes packed tokens."""
    pairs = [
        (packed_by(OURS, text, tokenizer).processor_s, packed_by(LIBRARY, text, tokenizer).processor_s)
        for _ in _rounds(seconds)
    ]
    ours, theirs = map(min, zip(*pairs, strict=True))
    return Ratio("packing", "the tokeniser library's rate", theirs / ours, True)


def loading(folder: Path, theirs: Callable[[int, int], Callable[[], object]], seconds: float) -> Iterator[Ratio]:
    """What a step waits for its batch, and what the loader takes in all."""
    torch.set_num_threads(1)
    recipe = recipes()["pretraining, exposure"]
    pairs = [
        (measure_ours(folder, recipe, 1000, 30, STEP_S), measure(lambda: theirs(0, 0), 20, STEP_S))
        for _ in _rounds(seconds)
    ]
    waits = [median(taken.wait_us for taken in side) for side in zip(*pairs, strict=True)]
    # So few microseconds that both differ by 20% between runs: it counts when the system wakes which thread.
    yield Ratio("the loader, what a step waits", "that for `datasets`", waits[0] / waits[1], False, tolerance=0.30)
    totals = [min(taken.wait_us + taken.beside_us for taken in side) for side in zip(*pairs, strict=True)]
    yield Ratio(
        "the loader, wait and processor time", "those of `datasets`", totals[0] / totals[1], False, tolerance=0.30
    )


def _loaders(folder: Path) -> Callable[[int, int], Callable[[], object]]:
    """The corpora of ours in a folder, and the peer's loader."""
    folder.mkdir()
    make_store(folder, {name: count for name, count in CORPORA.items() if name != "disk"})
    return datasets_loader(folder, parts=1)


def _rounds(seconds: float) -> Iterator[None]:
    """Three rounds, and more until so many seconds have passed."""
    end = time.monotonic() + seconds
    for number in itertools.count():
        if number >= 3 and time.monotonic() >= end:
            return
        yield
