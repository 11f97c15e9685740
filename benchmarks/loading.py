"""What the loader takes from a step at 500,000 tokens a second, beside other loaders.

    python -m benchmarks.loading [--peers-python PATH] [--write]

The corpus has 20 billion tokens in sequences of 1,024: a sparse file, so a sequence is not cached when it is asked for, but
costs no disk either. One row reads a real file instead, of which nothing is cached. The step is a sleep of the right
length, as that of a process that waits for its GPU. Peers run in the interpreter that `--peers-python` names.
"""

import argparse
import json
import os
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch

from benchmarks.loading_peers import BATCH, LENGTH, PART, SEQUENCES, Taken, measure
from benchmarks.peers import PeerFailedError, last_line_of
from benchmarks.report import circumstances, markdown_table, write_results
from retain.datamodules.order.stage_data import StageData

TOKENS_A_SECOND = 500_000
POST = 1_000_000
"""Sequences of the post-training corpus."""
ON_DISK = 250_000
"""Sequences of the corpus that is really written: 512 MB."""
CORPORA = {"main": SEQUENCES, "post": POST, "disk": ON_DISK}
COLUMNS = (
    "loader", "position", "first batch, ms", "the step waits, µs a sequence", "share of a step",
    "processor beside it, µs a sequence", "share were nothing beside", "memory to the first batch, MB", "in all, MB",
)  # fmt: skip
PEERS = {"datasets": "`datasets` + DataLoader", "litdata": "litdata", "streaming": "mosaicml-streaming"}


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parsed(arguments)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        head = circumstances(
            ("torch", "numpy"),
            f"{BATCH} sequences of {LENGTH:,} a step and process: {BATCH * LENGTH / TOKENS_A_SECOND * 1e3:.0f} ms",
            f"corpus: {SEQUENCES:,} sequences, {SEQUENCES * LENGTH / 1e9:.0f}B tokens, a sparse file; a peer's: "
            f"{PART:,} sequences, named again and again; *from disk*: {ON_DISK:,} sequences",
        )
        rows = _our_rows(Path(folder), options.steps)
        print("measured ours", file=sys.stderr)
        notes = []
        for name, shown in PEERS.items():
            python = None if name == "datasets" else options.peers_python  # which this project has too
            found, note = _peer_rows(python, name, shown, Path(folder) / name, options.steps)
            rows += found
            notes.append(note)
            print(f"measured {name}", file=sys.stderr)
        lost = _interpreter_share(Path(folder), options.pairs)
    text = "\n\n".join(
        [
            "# What the loader takes from a step",
            head,
            markdown_table(COLUMNS, rows),
            f"A step of {TOKENS_A_SECOND:,} tokens a second has {1e6 * LENGTH / TOKENS_A_SECOND:,.0f} µs a sequence; 1% of "
            f"them are {1e4 * LENGTH / TOKENS_A_SECOND:.1f} µs. *The step waits* is the time of the training thread, with the "
            "token proof handed on; medians over steps. *Processor beside it* is what the loader's threads and processes use "
            "meanwhile; the share after it is as if none of that ran beside the step. Ours hashes what it reads (the token "
            f"proof), which no peer does. A step of small torch calls, which shares the interpreter with the loader's "
            f"threads all along, took {lost:+.2%} with the loader beside it (median of {options.pairs} pairs of steps).",
            "Reads of a sparse file do not touch the disk: what a disk takes is in the rows *from disk* alone, whose "
            f"{ON_DISK * LENGTH * 2 / 1e6:,.0f} MB are really written, and not in the system's memory when a measurement "
            "starts. Peers' sequences have just been written, so they are.",
            "\n".join(f"- {note}" for note in notes),
        ]
    )
    print(text)
    if options.write:
        print(write_results("loading", text + "\n"), file=sys.stderr)


def _our_rows(folder: Path, steps: int) -> list[list[str]]:
    make_store(folder)
    rows = []
    for name, recipe in recipes().items():
        total = len(StageData(recipe, folder).batches)
        for where, first in (("start", 0), ("middle", total // 2), ("end", total - steps - 8)):
            if name.startswith("from disk"):
                _forget(folder / "corpora" / "disk" / "train.bin")
            rows.append(_row(f"ours: {name}", where, measure_ours(folder, recipe, first, steps)))
    return rows


def measure_ours(
    folder: Path, recipe: Mapping[str, Any], first: int, steps: int, seconds: float = BATCH * LENGTH / TOKENS_A_SECOND
) -> Taken:
    """What our loader takes from step `first` on, of steps that last so many seconds."""

    def start() -> Callable[[], object]:
        data = StageData(recipe, folder)
        data.next_step = first
        batches = iter(data.train_dataloader())
        return lambda: data.on_before_batch_transfer(next(batches), 0)

    return measure(start, steps, seconds)


def recipes() -> dict[str, dict[str, Any]]:
    """By the names of the rows."""
    common = {"subset_seed": 0, "seed": 0, "batch": BATCH}
    main = common | {"corpus": "main", "distinct": SEQUENCES}
    exposed = {"corpus": "post", "distinct": POST, "sequences": POST}
    mixed = {"exposure": exposed, "sequences": SEQUENCES + POST}
    window = exposed | {"window": [SEQUENCES // 4, 3 * SEQUENCES // 4]}
    replay = {"corpus": "main", "distinct": SEQUENCES, "fraction": 0.1}
    post = {"corpus": "post", "distinct": POST, "sequences": 4 * POST, "early_stopping": {}, "replay": replay}
    return {
        "pretraining, exposure": main | mixed,
        "pretraining, exposure in a window": main | mixed | {"exposure": window},
        "post-training, replay": common | post,
        "from disk, nothing cached": common | {"corpus": "disk", "distinct": ON_DISK, "sequences": ON_DISK},
    }


def make_store(folder: Path, corpora: Mapping[str, int] = CORPORA) -> None:
    """Corpora of so many sequences each, of which only `disk` is really written."""
    for name, count in corpora.items():
        place = folder / "corpora" / name
        place.mkdir(parents=True)
        split = {"sequences": count}
        manifest = {"fingerprint": name, "sequence_length": LENGTH, "dtype": "<u2", "train": split, "heldout": split}
        (place / "manifest.json").write_text(json.dumps(manifest))
        with (place / "train.bin").open("wb") as stream:
            if name != "disk":
                stream.truncate(count * LENGTH * 2)
                continue
            draw = np.random.default_rng(0)
            for _ in range(100):
                stream.write(draw.integers(0, 2**16, count // 100 * LENGTH, np.uint16).tobytes())
            stream.flush()
            os.fsync(stream.fileno())


def _forget(path: Path) -> None:
    """Have the system drop what it has cached of a file."""
    with path.open("rb") as stream:
        os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _interpreter_share(folder: Path, pairs: int) -> float:
    """How much longer a step of small torch calls takes beside the loader, as it needs the interpreter all along."""
    weights = torch.randn(8, 8)

    def work(calls: int) -> float:
        begin = perf_counter()
        for _ in range(calls):
            weights.add(weights)
        return perf_counter() - begin

    work(20_000)
    calls = int(20_000 * BATCH * LENGTH / TOKENS_A_SECOND / work(20_000))
    data = StageData(recipes()["pretraining, exposure"], folder)
    batches = iter(data.train_dataloader())
    ratios = []
    for _ in range(pairs):
        alone = work(calls)
        data.on_before_batch_transfer(next(batches), 0)
        beside = work(calls)
        _ = data.digest
        ratios.append(beside / alone - 1)
    return median(ratios)


def _peer_rows(python: str | None, name: str, shown: str, folder: Path, steps: int) -> tuple[list[list[str]], str]:
    """The rows of a peer, and a line about it."""
    folder.mkdir()
    seconds = BATCH * LENGTH / TOKENS_A_SECOND
    command = [python or sys.executable, "-m", "benchmarks.loading_peers", name, str(folder), str(steps), str(seconds)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1])}
    try:
        said = json.loads(last_line_of(command, environment))
    except PeerFailedError as error:
        return [[shown, "not measured", *[""] * (len(COLUMNS) - 2)]], f"{shown}: not measured ({error})"
    return [_row(f"{shown}, {how}", where, Taken(**taken)) for how, where, taken in said["rows"]], said["note"]


def _row(name: str, where: str, taken: Taken) -> list[str]:
    step = 1e6 * LENGTH / TOKENS_A_SECOND
    return [
        name,
        where,
        f"{taken.first_ms:,.0f}",
        f"{taken.wait_us:,.2f}",
        f"{taken.wait_us / step:.2%}",
        f"{taken.beside_us:,.1f}",
        f"{(taken.wait_us + taken.beside_us) / step:.2%}",
        f"{taken.index_bytes / 1e6:,.1f}",
        f"{taken.process_bytes / 1e6:,.0f}",
    ]


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.loading", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--peers-python", help="an interpreter with litdata and mosaicml-streaming; this one")
    parser.add_argument("--steps", type=int, default=24, help="to measure of each row")
    parser.add_argument("--pairs", type=int, default=40, help="of steps with and without the loader beside them")
    parser.add_argument("--folder", type=Path, help="where the corpora go, for a moment; the system's temporary folder")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/loading.md")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
