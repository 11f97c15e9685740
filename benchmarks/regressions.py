"""Compare what a processor needs, as ratios to peers, with the committed ratios; warn about what became worse.

    python -m benchmarks.regressions [--write]

It takes under two minutes and never fails. The committed ratios are in benchmarks/results/watch.json, by kind of processor:
ratios of another kind are not compared. `--write` replaces those of this kind.

Both sides of a ratio take turns in one run, so that the machine's speed and other load affect both. Compared is processor
time, of all threads and children together, except for what a step waits for the loader. The least of all rounds counts,
because another process on the same core only adds to it.
"""

import argparse
import functools
import itertools
import json
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from statistics import median

import torch

from benchmarks import loading, startup
from benchmarks.corpora import packing
from benchmarks.harness import RESULTS, bf16_support, cpu_model, log, run_child, run_function
from benchmarks.loops import PEER, WARM_UP, racing, take_turns
from benchmarks.made_up import made_store
from benchmarks.scale import verb
from benchmarks.training import BIG, COMPILED, EAGER, prepared
from retain.sweeps.base.files import write_json

SECONDS = 100
"""When the last turns of training end; the rest of two minutes is for a busy machine."""
PLACE = RESULTS / "watch.json"
STARTS = 2
STEP_S = 0.03
"""A step of the loader's, longer than it takes to read ahead."""


@dataclass(frozen=True)
class Ratio:
    """Something of Retain's as a multiple of something else that ran beside it."""

    name: str
    of: str
    value: float
    tolerance: float = 0.10
    """By how much it may be worse than the committed one."""
    more_is_better: bool = False


def all_ratios(folder: Path, end: float) -> Iterator[Ratio]:
    """Each ratio as soon as it is known. folder: empty; end: when training ends, on the monotonic clock."""
    root, keys = startup.made_up_store(folder, STARTS)
    (tokenizer,) = (root / "tokenizers").iterdir()
    work = prepared(root, BIG, 150, str(folder / "startup.yaml"))
    with racing([(name, work) for name in (PEER, EAGER, COMPILED)], threads=1) as racers:
        with ThreadPoolExecutor() as pool:
            warm = pool.map(lambda racer: racer.take(WARM_UP), racers)
            # Prepared while one of the loops compiles; nothing is measured before it has.
            made = made_store(1_000, folder / "made")
            start_peer = _loaders(folder / "loading")
            assert all(warm)
        libraries = "torch, lightning, transformers"
        value = ratio(lambda: startup.start_job(root, keys.pop()).cpu, lambda: _imports(libraries), rounds=STARTS)
        # There are two rounds only, because each takes ten seconds.
        yield Ratio("a job's start to its first step", f"the imports of {libraries}", value, tolerance=0.20)
        libraries = "numpy, pydantic, rich, typer"
        value = ratio(lambda: verb(made, "status", "--json").cpu_seconds, lambda: _imports(libraries), seconds=4)
        # The imports take a tenth of a second, and their least differs between runs.
        yield Ratio("status of 1,000 runs", f"the imports of {libraries}", value, tolerance=0.20)
        arguments = (folder / "text.jsonl", tokenizer, folder)
        value = ratio(lambda: _pack(packing.LIBRARY, *arguments), lambda: _pack(packing.RETAIN, *arguments), seconds=8)
        yield Ratio("packing", "the tokeniser library's rate", value, more_is_better=True)
        yield from loading_ratios(folder / "loading", start_peer, 9)
        take_turns(racers, end)
    peer, *own = (min(racer.steps) for racer in racers)
    for name, step in zip((EAGER, COMPILED), own, strict=True):
        yield Ratio(name, "Trainer's speed", peer / step, more_is_better=True)


def ratio(ours: Callable[[], float], theirs: Callable[[], float], seconds: float = 0.0, rounds: int = 3) -> float:
    """The least value of ours over the least of theirs, which take turns."""
    pairs = [(ours(), theirs()) for _ in _rounds(seconds, rounds)]
    least, their_least = map(min, zip(*pairs, strict=True))
    return least / their_least


def loading_ratios(folder: Path, start_peer: loading.Start, seconds: float) -> Iterator[Ratio]:
    """What a step waits for its batch, and that with the loader's processor time."""
    torch.set_num_threads(1)
    start = functools.partial(loading.start_retain, folder, loading.recipes()["pretraining, exposure"], 1000)
    sides: list[list[loading.Cost]] = [[], []]
    for _ in _rounds(seconds, 3):
        sides[0].append(loading.measure_steps("Retain", "", start, 30, STEP_S))
        sides[1].append(loading.measure_steps("datasets", "", lambda: start_peer(0, 0), 20, STEP_S))
    waits = [median(cost.wait_us for cost in side) for side in sides]
    totals = [min(cost.wait_us + cost.beside_us for cost in side) for side in sides]
    # These are so few microseconds that both differ by 20% between runs, depending on when the system wakes which thread.
    yield Ratio("the loader, what a step waits", "that for `datasets`", waits[0] / waits[1], tolerance=0.30)
    yield Ratio("the loader, wait and processor time", "those of `datasets`", totals[0] / totals[1], tolerance=0.30)


def _loaders(folder: Path) -> loading.Start:
    """Retain's corpora in a new folder, and the peer's loader."""
    folder.mkdir()
    loading.make_store(folder, {name: count for name, count in loading.CORPORA.items() if name != "disk"})
    return loading.datasets_loader(folder, parts=1)


def _imports(libraries: str) -> float:
    return run_child([sys.executable, "-c", f"import {libraries}"]).cpu_seconds


def _pack(name: str, *arguments: Path) -> float:
    return float(run_function(packing.pack, name, *arguments).result["cpu_seconds"])


def _rounds(seconds: float, least: int) -> Iterator[int]:
    """Some rounds, and more until so many seconds have passed."""
    end = time.monotonic() + seconds
    return itertools.takewhile(lambda number: number < least or time.monotonic() < end, itertools.count())


def compared(found: Ratio, committed: Mapping[str, float]) -> str:
    """A line about a ratio; it begins with WARNING if the ratio is worse than the committed one by more than its tolerance."""
    line = f"{found.name}: {found.value:.3g} of {found.of}"
    if found.name not in committed:
        return f"{line} (nothing to compare with)"
    change = found.value / committed[found.name] - 1
    worse = -change if found.more_is_better else change
    mark = "WARNING: " if worse > found.tolerance else ""
    return f"{mark}{line}, {change:+.0%} from the committed {committed[found.name]:.3g}"


def main() -> None:
    description = (__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog="python -m benchmarks.regressions", description=description)
    parser.add_argument("--write", action="store_true", help="commit today's ratios: write them to watch.json")
    options = parser.parse_args()
    begin = time.monotonic()
    committed: dict[str, dict[str, float]] = json.loads(PLACE.read_text()) if PLACE.exists() else {}
    # A processor's name may not say whether it has AMX.
    device, today = f"{cpu_model()}, {bf16_support()}", {}
    if device not in committed:
        print(f"nothing is committed for this kind of processor ({device}), so nothing can be compared")
    os.environ["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory() as folder:
        # An empty cache, so that no run is faster than the one before it.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "inductor")
        for found in all_ratios(Path(folder), begin + SECONDS):
            today[found.name] = float(f"{found.value:.3g}")
            print(compared(found, committed.get(device, {})), flush=True)
    print(f"{time.monotonic() - begin:.0f} s; load average at the end {os.getloadavg()[0]:.1f}")
    if options.write:
        write_json(PLACE, committed | {device: today})
        log(f"written: {PLACE}")


if __name__ == "__main__":
    main()
