"""What loading data costs a step at 500,000 tokens per second: Retain's loader and others.

    python -m benchmarks.loading [--peers-python PATH] [--write]

The corpus has 20 billion tokens in sequences of 1,024. It is a sparse file, so that it needs no disk and its sequences are not
cached. One row reads a real file instead, of which nothing is cached. A step is a sleep of the right length, as in a process
that waits for its GPU. A peer's corpus is a part of PART sequences on disk, which its index repeats up to 20 billion tokens.
"""

import argparse
import functools
import itertools
import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.harness import (
    Option,
    Page,
    Peers,
    bullets,
    log,
    markdown_table,
    run_benchmark,
    run_function,
    tree_cpu_seconds,
    tree_memory,
)

# A peer's interpreter imports this file too, so other packages are imported where they are used.

TOKENS_PER_SECOND = 500_000
LENGTH, BATCH = 1024, 64
STEP_S = BATCH * LENGTH / TOKENS_PER_SECOND
SEQUENCES = 20_000_000_000 // LENGTH
PART = 2**16
"""Sequences of a peer's corpus that are on disk."""
PARTS = -(-SEQUENCES // PART)
POST = 1_000_000
"""Sequences of the post-training corpus."""
ON_DISK = 250_000
"""Sequences of the corpus that is really written: 512 MB."""
CORPORA = {"main": SEQUENCES, "post": POST, "disk": ON_DISK}
OURS = "Retain"
COLUMNS = (
    "loader", "position", "first batch, ms", "the step waits, µs per sequence", "share of a step",
    "processor time beside the step, µs per sequence", "share with that time", "memory until the first batch, MB",
    "memory in all, MB",
)  # fmt: skip
NextBatch = Callable[[], object]
Start = Callable[[int, int], NextBatch]
"""Make a loader that begins at a step and has a number of worker processes; returns what fetches the next batch."""


@dataclass(frozen=True)
class Cost:
    """What a loader costs. Microseconds are per sequence, medians over steps."""

    loader: str
    position: str
    first_ms: float
    """From making the loader to its first batch."""
    wait_us: float
    """Of the thread that trains."""
    beside_us: float
    """Processor time of the loader's threads and processes; a mean, because they work in bursts."""
    index_bytes: int
    """Memory at the first batch, less the memory before the loader was made."""
    process_bytes: int
    """Memory of the process and its children, without mapped files."""


def measure(options: argparse.Namespace) -> Page:
    """Every loader, each in an interpreter that has it."""
    peers, rows = Peers(options.peers_python), []
    for name, packages in {OURS: ("torch", "numpy"), **{name: (name, "torch") for name in PEERS}}.items():
        child = peers.run(name, packages, measure_loader, name, options.folder / name, options.steps)
        rows += [_cells(Cost(**cost)) for cost in child.result] if child else [[name, "not measured"]]
        log(f"finished {name}")
    slower = run_function(interpreter_share, options.folder / OURS, options.pairs).result
    return Page(
        [
            f"{BATCH} sequences of {LENGTH:,} in each step of a process: {STEP_S * 1e3:.0f} ms",
            f"corpus: {SEQUENCES:,} sequences, {SEQUENCES * LENGTH / 1e9:.0f}B tokens, a sparse file; a peer's: {PART:,} "
            f"sequences, repeated by its index; *from disk*: {ON_DISK:,} sequences",
        ],
        [
            markdown_table(COLUMNS, rows),
            f"At {TOKENS_PER_SECOND:,} tokens per second, a step has {1e6 * LENGTH / TOKENS_PER_SECOND:,.0f} µs for each "
            f"sequence; 1% of that is {1e4 * LENGTH / TOKENS_PER_SECOND:.1f} µs. *The step waits* is the time of the training "
            "thread, passing on the data digest included; medians over steps. *Processor time beside the step* is what the "
            "loader's threads and processes use meanwhile; the share after it is what a step would lose if it had to wait for "
            "that work too. Retain hashes what it reads (the data digest), and no peer does. A step of small torch calls, "
            "which shares the interpreter with the loader's threads all the time, changed by "
            f"{slower:+.2%} with the loader beside it (median of {options.pairs} pairs of steps).",
            "Reads of a sparse file do not touch the disk. Only the rows *from disk* include the disk: their "
            f"{ON_DISK * LENGTH * 2 / 1e6:,.0f} MB are really written, and are not in the system's memory when a measurement "
            "starts. Peers' sequences have just been written, so they are in memory.",
            bullets(peers.notes),
        ],
    )


def _cells(cost: Cost) -> list[str]:
    step = 1e6 * LENGTH / TOKENS_PER_SECOND
    return [
        cost.loader,
        cost.position,
        f"{cost.first_ms:,.0f}",
        f"{cost.wait_us:,.2f}",
        f"{cost.wait_us / step:.2%}",
        f"{cost.beside_us:,.1f}",
        f"{(cost.wait_us + cost.beside_us) / step:.2%}",
        f"{cost.index_bytes / 1e6:,.1f}",
        f"{cost.process_bytes / 1e6:,.0f}",
    ]


def measure_loader(name: str, folder: str, steps: int) -> list[Cost]:
    """All configurations and positions of one loader, in this process, with its corpora in a new folder."""
    place = Path(folder)
    place.mkdir()
    found = _own_loaders(place, steps) if name == OURS else _peer_loaders(name, place)
    return [measure_steps(loader, position, start, steps) for loader, position, start in found]


def measure_steps(
    loader: str, position: str, start: Callable[[], NextBatch], steps: int, seconds: float = STEP_S
) -> Cost:
    """Fetch a batch for each of some steps of so many seconds, in a fork: every measurement starts with the same memory."""
    receive, send = multiprocessing.Pipe(duplex=False)
    measured = functools.partial(_measure_steps, start, steps, seconds)
    child = multiprocessing.get_context("fork").Process(target=lambda: send.send(measured()))
    child.start()
    send.close()
    try:
        return Cost(loader, position, *receive.recv())
    except EOFError:
        raise RuntimeError(f"{loader}: the measurement died without a result") from None
    finally:
        child.join(10)
        child.kill()


def _measure_steps(start: Callable[[], NextBatch], steps: int, seconds: float) -> tuple[float, float, float, int, int]:
    before, begin = tree_memory(), time.perf_counter()
    next_batch = start()
    next_batch()
    first = time.perf_counter() - begin
    index = max(0, tree_memory() - before)
    for _ in range(4):
        time.sleep(seconds)
        next_batch()
    waits = []
    others, own = tree_cpu_seconds(), time.thread_time()
    for _ in range(steps):
        time.sleep(seconds)
        begin = time.perf_counter()
        next_batch()
        waits.append(time.perf_counter() - begin)
    time.sleep(seconds)
    beside = max(0.0, tree_cpu_seconds() - others - (time.thread_time() - own))
    return first * 1e3, median(waits) / BATCH * 1e6, beside / steps / BATCH * 1e6, index, tree_memory()


def interpreter_share(folder: str, pairs: int) -> float:
    """How much longer a step of small torch calls takes beside Retain's loader: both need the interpreter all the time."""
    import torch

    torch.set_num_threads(1)
    weights = torch.randn(8, 8)

    def work(calls: int) -> float:
        begin = time.perf_counter()
        for _ in range(calls):
            weights.add(weights)
        return time.perf_counter() - begin

    work(20_000)
    calls = int(20_000 * STEP_S / work(20_000))
    next_batch = start_retain(Path(folder), recipes()["pretraining, exposure"], 0)
    ratios = []
    for _ in range(pairs):
        alone = work(calls)
        next_batch()
        ratios.append(work(calls) / alone - 1)
    return median(ratios)


def _own_loaders(folder: Path, steps: int) -> Iterator[tuple[str, str, Callable[[], NextBatch]]]:
    import torch

    from retain.datamodules.order.stage_data import StageData

    torch.set_num_threads(1)
    make_store(folder)
    for name, recipe in recipes().items():
        total = len(StageData(recipe, folder).batches)
        for position, first in (("start", 0), ("middle", total // 2), ("end", total - steps - 8)):
            _forget(folder / "corpora" / _manifest("disk")["fingerprint"] / "train.bin")
            yield f"{OURS}: {name}", position, functools.partial(start_retain, folder, recipe, first)


def _peer_loaders(name: str, folder: Path) -> Iterator[tuple[str, str, Callable[[], NextBatch]]]:
    start = PEERS[name](folder)
    for workers, (position, first) in itertools.product((0, 2), (("start", 0), ("middle", SEQUENCES // BATCH // 2))):
        how = f"{workers} workers" if workers else "in the process"
        yield f"{name}, {how}", position, functools.partial(start, first, workers)


def start_retain(folder: Path, recipe: Mapping[str, Any], first: int) -> NextBatch:
    """Retain's loader of a recipe, from a step on, with its data in a folder of `make_store`."""
    from retain.datamodules.order.stage_data import StageData

    data = StageData(recipe, folder)
    data.next_step = first
    batches = iter(data.train_dataloader())
    return lambda: data.on_before_batch_transfer(next(batches), 0)


def recipes() -> dict[str, dict[str, Any]]:
    """By the names of the rows."""
    corpora = {name: _manifest(name)["fingerprint"] for name in CORPORA}
    common = {"subset_seed": 0, "seed": 0, "batch": BATCH}
    main = common | {"corpus": corpora["main"], "distinct": SEQUENCES}
    exposed = {"corpus": corpora["post"], "distinct": POST, "sequences": POST}
    mixed = {"exposure": exposed, "sequences": SEQUENCES + POST}
    window = exposed | {"window": [SEQUENCES // 4, 3 * SEQUENCES // 4]}
    replay = {"corpus": corpora["main"], "distinct": SEQUENCES, "fraction": 0.1}
    post = {"corpus": corpora["post"], "distinct": POST, "sequences": 4 * POST, "early_stopping": {}, "replay": replay}
    three = [
        exposed | {"first": 0, "sequences": 3 * POST, "window": [0, SEQUENCES // 2]},
        exposed | {"first": 0, "sequences": 8 * POST, "window": [SEQUENCES // 2, SEQUENCES]},
        {"corpus": corpora["disk"], "first": 0, "distinct": ON_DISK, "sequences": ON_DISK},
    ]
    mixture = {"distinct": SEQUENCES - 11 * POST - ON_DISK, "sequences": SEQUENCES, "mix": three}
    return {
        "pretraining, exposure": main | mixed,
        "pretraining, exposure in a window": main | mixed | {"exposure": window},
        "pretraining, mixture of three components": main | mixture,
        "post-training, replay": common | post,
        "from disk, nothing cached": common | {"corpus": corpora["disk"], "distinct": ON_DISK, "sequences": ON_DISK},
    }


def make_store(folder: Path, corpora: Mapping[str, int] = CORPORA) -> None:
    """Corpora of so many sequences each; only `disk` is really written."""
    for name, count in corpora.items():
        manifest = _manifest(name)
        place = folder / "corpora" / manifest["fingerprint"]
        place.mkdir(parents=True)
        (place / "manifest.json").write_text(json.dumps(manifest))
        (place / "heldout.bin").touch()
        with (place / "train.bin").open("wb") as stream:
            stream.truncate(count * LENGTH * 2)
            if name == "disk":
                draw = np.random.default_rng(0)
                for _ in range(100):
                    stream.write(draw.integers(0, 2**16, count // 100 * LENGTH, np.uint16).tobytes())
                stream.flush()
                os.fsync(stream.fileno())


def _manifest(name: str) -> dict[str, Any]:
    """The manifest of a corpus of CORPORA, whose name stands for the digest of its sequences."""
    from retain.datamodules.corpora.prepared import fingerprint_of

    train, heldout = (
        {"documents": count, "sequences": count, "tokens": count * LENGTH, "sha256": name}
        for count in (CORPORA[name], 0)
    )
    manifest = {"tokenizer": "", "sequence_length": LENGTH, "dtype": "<u2", "train": train, "heldout": heldout}
    return manifest | {"fingerprint": fingerprint_of(manifest)}


def _forget(path: Path) -> None:
    """Have the system drop what it has cached of a file."""
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _numbers() -> Iterator[np.ndarray[Any, np.dtype[np.uint16]]]:
    """The sequences of a peer's part."""
    draw = np.random.default_rng(0)
    for _ in range(PART):
        yield draw.integers(0, 49152, LENGTH, np.uint16)


def datasets_loader(folder: Path, parts: int = PARTS) -> Start:
    """A map-style table in a shuffling DataLoader; it resumes by skipping batches, as transformers' Trainer does."""
    import datasets
    import torch
    from torch.utils.data import BatchSampler, DataLoader, RandomSampler

    datasets.disable_progress_bars()
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint16"), length=LENGTH)})
    with datasets.arrow_writer.ArrowWriter(path=str(folder / "part.arrow"), features=features) as writer:
        for numbers in _numbers():
            writer.write({"tokens": numbers})
        writer.finalize()
    part = datasets.Dataset.from_file(str(folder / "part.arrow"))
    table = datasets.concatenate_datasets([part] * parts).with_format("torch")

    def start(first: int, workers: int) -> NextBatch:
        sampler = RandomSampler(table, generator=torch.Generator().manual_seed(0))
        skipping = itertools.islice(BatchSampler(sampler, BATCH, drop_last=True), first, None)
        batches = iter(DataLoader(table, batch_sampler=skipping, num_workers=workers))
        return lambda: next(batches)["tokens"]

    return start


def litdata_loader(folder: Path) -> Start:
    """A shuffled StreamingDataset of tokens; it resumes from a state_dict."""
    import torch
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader  # type: ignore[import-not-found]
    from litdata.streaming.cache import Cache  # type: ignore[import-not-found]

    cache = Cache(str(folder), chunk_bytes="64MB", item_loader=TokensLoader(block_size=LENGTH))
    for number, numbers in enumerate(_numbers()):
        cache[number] = torch.from_numpy(numbers.astype(np.int32))
    cache.done()
    cache.merge()
    index = json.loads((folder / "index.json").read_text())
    chunks, index["chunks"] = index["chunks"], []
    for copy, chunk in itertools.product(range(PARTS), chunks):
        name = f"{copy}-{chunk['filename']}"
        os.link(folder / chunk["filename"], folder / name)
        index["chunks"].append(chunk | {"filename": name})
    (folder / "index.json").write_text(json.dumps(index))

    def start(first: int, workers: int) -> NextBatch:
        data = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=LENGTH), shuffle=True, seed=0)
        loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=workers)
        if first:
            state = data.state_dict(num_samples_yielded=first * BATCH, num_workers=workers, batch_size=BATCH)
            place = {"current_epoch": 1, "num_samples_yielded": first * BATCH, "latest_worker_idx": 0}
            loader.load_state_dict({"dataset": state, **place})
        return functools.partial(next, iter(loader))

    return start


def streaming_loader(folder: Path) -> Start:
    """mosaicml-streaming's shuffled StreamingDataset over MDS shards; it resumes from a state_dict."""
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # type: ignore[import-not-found]
    from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found]

    with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{LENGTH}"}, size_limit="64mb") as writer:
        for numbers in _numbers():
            writer.write({"tokens": numbers})
    index = json.loads((folder / "index.json").read_text())
    index["shards"] *= PARTS
    (folder / "index.json").write_text(json.dumps(index))

    def start(first: int, workers: int) -> NextBatch:
        clean_stale_shared_memory()
        data = StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=0, batch_size=BATCH)
        loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=workers)
        if first:
            loader.load_state_dict(data.state_dict(first * BATCH, from_beginning=True))
        batches = iter(loader)
        return lambda: next(batches)["tokens"]

    return start


PEERS: dict[str, Callable[[Path], Start]] = {
    "datasets": datasets_loader,
    "litdata": litdata_loader,
    "mosaicml-streaming": streaming_loader,
}


if __name__ == "__main__":
    run_benchmark(
        measure,
        "What the loader takes from a step",
        ("torch", "numpy"),
        Option("steps", 24, 2, "steps to measure for each row", int),
        Option("pairs", 40, 2, "pairs of steps with and without the loader beside them", int),
        Option("peers_python", None, None, "an interpreter that has litdata and mosaicml-streaming"),
    )
