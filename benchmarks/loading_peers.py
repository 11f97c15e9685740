"""How other loaders are measured, each as its documentation shows it, in an interpreter that has it.

    python -m benchmarks.loading_peers NAME FOLDER STEPS SECONDS        prints one JSON document

Needs numpy, torch and the peer, and nothing of the project. A peer's 20 billion tokens are a part of PART sequences on disk,
which its index names again and again.
"""

import importlib.metadata
import itertools
import json
import multiprocessing
import os
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

LENGTH, BATCH = 1024, 64
SEQUENCES = 20_000_000_000 // LENGTH
PART = 2**16
"""Sequences that a peer's corpus has on disk."""
PARTS = -(-SEQUENCES // PART)


@dataclass(frozen=True)
class Taken:
    """What a loader takes: microseconds are of a sequence, medians over steps."""

    first_ms: float
    """From the loader's construction to its first batch."""
    wait_us: float
    """Of the thread that trains."""
    beside_us: float
    """Processor time of the loader's threads and processes; a mean, as its work comes in bursts."""
    index_bytes: int
    """Memory that is there at the first batch, and was not before the loader."""
    process_bytes: int
    """Memory of the process and its children, files that are mapped left out."""


def measure(start: Callable[[], Callable[[], object]], steps: int, seconds: float) -> Taken:
    """In a fork, so that each measurement starts with the same memory. `start` makes a loader and returns its next()."""
    receive, send = multiprocessing.Pipe(duplex=False)
    child = multiprocessing.get_context("fork").Process(target=lambda: send.send(_measure(start, steps, seconds)))
    child.start()
    send.close()
    try:
        taken: Taken = receive.recv()
    except EOFError:
        raise RuntimeError("the measurement ended without a result") from None
    finally:
        child.join(10)
        child.kill()
    return taken


def _measure(start: Callable[[], Callable[[], object]], steps: int, seconds: float) -> Taken:
    before, begin = _memory(), time.perf_counter()
    following = start()
    following()
    first = time.perf_counter() - begin
    index = max(0, _memory() - before)
    for _ in range(4):
        time.sleep(seconds)
        following()
    waits = []
    others, own = _processor(), time.thread_time()
    for _ in range(steps):
        time.sleep(seconds)
        begin = time.perf_counter()
        following()
        waits.append(time.perf_counter() - begin)
    time.sleep(seconds)
    beside = max(0.0, _processor() - others - (time.thread_time() - own))
    return Taken(first * 1e3, median(waits) / BATCH * 1e6, beside / steps / BATCH * 1e6, index, _memory())


def _tree() -> list[int]:
    """This process and all below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [os.getpid()]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def _processor() -> float:
    """Processor seconds of the tree of processes so far; of a child's, to a hundredth."""
    seconds = time.process_time()
    for process in _tree()[1:]:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def _memory() -> int:
    """Bytes of the tree of processes: what is its own, and what this one shares."""
    total = 0
    for process in _tree():
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon") or (line.startswith("RssShmem") and process == os.getpid()):
                total += int(line.split()[1]) * 1024
    return total


def _numbers() -> Iterator[np.ndarray[Any, np.dtype[np.uint16]]]:
    draw = np.random.default_rng(0)
    for _ in range(PART):
        yield draw.integers(0, 49152, LENGTH, np.uint16)


def datasets_loader(folder: Path, parts: int = PARTS) -> Callable[[int, int], Callable[[], object]]:
    """A map-style table in a DataLoader that shuffles; it goes on as transformers' Trainer does, by skipping batches."""
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

    def start(first: int, workers: int) -> Callable[[], object]:
        sampler = RandomSampler(table, generator=torch.Generator().manual_seed(0))
        skipping = itertools.islice(BatchSampler(sampler, BATCH, drop_last=True), first, None)
        loader = DataLoader(table, batch_sampler=skipping, num_workers=workers)
        batches = iter(loader)
        return lambda: next(batches)["tokens"]

    return start


def litdata_loader(folder: Path) -> Callable[[int, int], Callable[[], object]]:
    """A shuffled StreamingDataset of tokens; it goes on from a state_dict."""
    import torch
    from litdata import StreamingDataLoader, StreamingDataset, TokensLoader  # type: ignore[import-not-found]
    from litdata.streaming.cache import Cache  # type: ignore[import-not-found]

    cache = Cache(str(folder), chunk_bytes="64MB", item_loader=TokensLoader(block_size=LENGTH))
    for number, numbers in enumerate(_numbers()):
        cache[number] = torch.from_numpy(numbers.astype(np.int32))
    cache.done()
    cache.merge()
    index = json.loads((folder / "index.json").read_text())
    chunks = index["chunks"]
    index["chunks"] = []
    for copy, chunk in itertools.product(range(PARTS), chunks):
        name = f"{copy}-{chunk['filename']}"
        os.link(folder / chunk["filename"], folder / name)
        index["chunks"].append(chunk | {"filename": name})
    (folder / "index.json").write_text(json.dumps(index))

    def start(first: int, workers: int) -> Callable[[], object]:
        data = StreamingDataset(str(folder), item_loader=TokensLoader(block_size=LENGTH), shuffle=True, seed=0)
        loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=workers)
        if first:
            state = data.state_dict(num_samples_yielded=first * BATCH, num_workers=workers, batch_size=BATCH)
            place = {"current_epoch": 1, "num_samples_yielded": first * BATCH, "latest_worker_idx": 0}
            loader.load_state_dict({"dataset": state, **place})
        batches = iter(loader)
        return lambda: next(batches)

    return start


def streaming_loader(folder: Path) -> Callable[[int, int], Callable[[], object]]:
    """mosaicml-streaming's shuffled StreamingDataset over MDS shards; it goes on from a state_dict."""
    from streaming import MDSWriter, StreamingDataLoader, StreamingDataset  # type: ignore[import-not-found]
    from streaming.base.util import clean_stale_shared_memory  # type: ignore[import-not-found]

    with MDSWriter(out=str(folder), columns={"tokens": f"ndarray:uint16:{LENGTH}"}, size_limit="64mb") as writer:
        for numbers in _numbers():
            writer.write({"tokens": numbers})
    index = json.loads((folder / "index.json").read_text())
    index["shards"] = index["shards"] * PARTS
    (folder / "index.json").write_text(json.dumps(index))

    def start(first: int, workers: int) -> Callable[[], object]:
        clean_stale_shared_memory()
        data = StreamingDataset(local=str(folder), shuffle=True, shuffle_seed=0, batch_size=BATCH)
        loader = StreamingDataLoader(data, batch_size=BATCH, num_workers=workers)
        if first:
            loader.load_state_dict(data.state_dict(first * BATCH, from_beginning=True))
        batches = iter(loader)
        return lambda: next(batches)["tokens"]

    return start


LOADERS = {
    "datasets": ("datasets", datasets_loader),
    "litdata": ("litdata", litdata_loader),
    "streaming": ("mosaicml-streaming", streaming_loader),
}


def main() -> None:
    name, folder, steps, seconds = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), float(sys.argv[4])
    package, make = LOADERS[name]
    note = f"{package} {importlib.metadata.version(package)}, torch {importlib.metadata.version('torch')}"
    start = make(folder)
    rows = []
    for workers, (where, first) in itertools.product((0, 2), (("start", 0), ("middle", SEQUENCES // BATCH // 2))):
        with_workers = f"{workers} workers" if workers else "in the process"
        taken = measure(lambda first=first, workers=workers: start(first, workers), steps, seconds)  # type: ignore[misc]
        rows.append((with_workers, where, asdict(taken)))
    print(json.dumps({"rows": rows, "note": note}))


if __name__ == "__main__":
    main()
