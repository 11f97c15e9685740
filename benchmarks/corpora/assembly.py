"""What putting the parts of a large corpus together takes: memory and speed, and what grows with the number of documents.

    python -m benchmarks.corpora.assembly [--folder FOLDER] [--write]

The parts are made up: random tokens, lengths and hashes, in the files that a part of a real corpus has. A part is checked, and
the parts are put together, by the code of a run of the kind `assemble`. 2B tokens need 8 GB of disk at once: parts, and packed
corpus. One row has as many documents as 20B tokens of text from the web, but short ones, as memory depends on their number.
"""

import argparse
import hashlib
import json
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.harness import (
    Child,
    Option,
    Page,
    cpu_seconds,
    log,
    markdown_table,
    run_benchmark,
    run_function,
    watch_other_processes,
)

LENGTH = 1024
"""Tokens of a packed sequence."""
HELDOUT = 0.001
"""The share of documents that is held out."""
LARGE = 20_000_000_000
"""Tokens of the corpus for which the memory is calculated."""
COLUMNS = (
    "tokens", "documents", "tokens of a document", "streams", "parts", "processor s", "tokens per processor s",
    "peak memory, MB", "of it not of files, MB",
)  # fmt: skip


@dataclass(frozen=True)
class Case:
    """A corpus that is put together."""

    tokens: int
    each: int
    """The mean number of tokens in a document."""
    streams: int = 1

    @property
    def documents(self) -> int:
        return self.tokens // self.each


def measure(options: argparse.Namespace) -> Page:
    """Assemble each corpus once, the largest last."""
    most, each = options.tokens, options.each
    cases = [Case(most // 4, each), Case(most, each), Case(most, each, options.streams)]
    cases.append(Case(options.documents * options.short, options.short))
    busy = watch_other_processes()
    rows = []
    for case in cases:
        folder = options.folder / "corpus"
        made = run_function(make_parts, str(folder), case.tokens, case.each, options.part).result
        rows.append((case, made, run_function(assembled, str(folder), case.streams)))
        log(f"{case}: {rows[-1][2].cpu_seconds:.0f} s of the processor, {rows[-1][2].peak_bytes / 2**20:,.0f} MB")
        shutil.rmtree(folder)
    return Page(
        [f"sequences of {LENGTH:,} tokens; parts of {options.part:,} tokens; {HELDOUT:.1%} of the documents held out"],
        [markdown_table(COLUMNS, [_cells(*row) for row in rows]), _arithmetic(rows, each, busy())],
    )


def _cells(case: Case, made: int, child: Child) -> list[str]:
    result, mega = child.result, 2**20
    return [
        f"{result['tokens']:,}",
        f"{case.documents:,}",
        f"{case.each}",
        f"{case.streams}",
        f"{made}",
        f"{result['cpu_seconds']:.1f}",
        f"{result['tokens'] / result['cpu_seconds']:,.0f}",
        f"{child.peak_bytes / mega:,.0f}",
        f"{result['anonymous'] / mega:,.0f}",
    ]


def _arithmetic(rows: Sequence[tuple[Case, int, Child]], each: int, others: float) -> str:
    """What the rows say of memory at 20B tokens."""
    (few, _, small), (many, _, large) = rows[0], max(rows, key=lambda row: row[0].documents)
    bytes_ = (large.result["anonymous"] - small.result["anonymous"]) / max(1, many.documents - few.documents)
    documents = LARGE // each
    total = small.result["anonymous"] + bytes_ * (documents - few.documents)
    return (
        f"Processor seconds are those of all threads, with reading each part once to check its SHA-256; other processes kept "
        f"{others:.1f} cores busy meanwhile. *Of it not of files* is without the pages of mapped files, which the system takes "
        f"back when memory is short. Between the first row and the one with the most documents, that memory grows by "
        f"{bytes_:.0f} bytes a document: by arithmetic, 20B tokens in {documents / 1e6:.1f}M documents of {each} tokens take "
        f"{total / 2**30:.2f} GiB."
    )


def make_parts(folder: str, tokens: int, each: int, size: int) -> int:
    """Write made-up parts of `size` tokens, in the files of retain.datamodules.corpora.parts.stored; returns their number."""
    from retain.datamodules.corpora.parts.stored import DOCUMENT

    draw, number = np.random.default_rng(each), 0
    for number, first in enumerate(range(0, tokens, size), 1):
        own = min(size, tokens - first)
        documents = np.zeros(max(1, own // each), DOCUMENT)
        documents["hash"] = draw.integers(1, 2**64, len(documents), np.uint64)
        documents["length"] = np.maximum(1, draw.gamma(2, each / 2, len(documents)))
        total = int(documents["length"].sum())
        place = Path(folder) / f"{number:04}"
        place.mkdir(parents=True)
        ids = draw.integers(0, 2**16, total, np.uint16)
        blocks = {"tokens.bin": ids.data, "documents.bin": documents.tobytes()}
        for name, block in blocks.items():
            (place / name).write_bytes(block)
        manifest = {
            "tokenizer": "made up",
            "dtype": "<u2",
            "documents": len(documents),
            "tokens": total,
            "counts": {},
            "sha256": {name: hashlib.sha256(block).hexdigest() for name, block in blocks.items()},
            "format": 1,
        }
        (place / "part.json").write_text(json.dumps(manifest))
    return number


def assembled(folder: str, streams: int) -> dict[str, Any]:
    """Check the parts of a folder and put them together in this process: tokens, seconds, and memory that is not of files."""
    from retain.datamodules.corpora.packing import Division
    from retain.datamodules.corpora.parts.assemble import assemble
    from retain.datamodules.corpora.parts.stored import StoredPart, open_part

    places = sorted(Path(folder).iterdir())
    most = 0

    def opened(own: Sequence[Path]) -> Iterator[StoredPart]:
        for place in own:
            part = open_part(place)
            part.check()
            yield part

    def watch(documents: int, tokens: int) -> None:
        nonlocal most
        most = max(most, _anonymous())

    size = -(-len(places) // streams)
    shares = [places[first : first + size] for first in range(0, len(places), size)]
    begin, used = time.perf_counter(), cpu_seconds()
    packed = assemble(
        [opened(share) for share in shares],
        _tokenizer(),
        LENGTH,
        Division(HELDOUT, HELDOUT),
        None,
        Path(folder) / "packed",
        watch,
    )
    tokens = sum(packed.manifest[split]["tokens"] for split in ("train", "heldout"))
    seconds = time.perf_counter() - begin
    return {"tokens": tokens, "seconds": seconds, "cpu_seconds": cpu_seconds() - used, "anonymous": most}


def _tokenizer() -> Any:
    """A tokeniser whose tokens take two bytes; nothing is encoded with it."""
    from tokenizers import Tokenizer as Core
    from tokenizers import models

    from retain.datamodules.corpora.tokenizer import END_OF_TEXT, Tokenizer

    core = Core(models.WordLevel({END_OF_TEXT: 0}, END_OF_TEXT))
    return Tokenizer(core, END_OF_TEXT)


def _anonymous() -> int:
    """Bytes of this process's memory that are not pages of files."""
    for line in Path(f"/proc/{os.getpid()}/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    return 0


if __name__ == "__main__":
    run_benchmark(
        measure,
        "What putting the parts of a large corpus together takes",
        ("numpy", "tokenizers"),
        Option("tokens", 2_000_000_000, 2_000_000, "tokens of the largest corpus", int),
        Option("each", 700, 70, "mean tokens of a document", int),
        Option("documents", LARGE // 700, 30_000, "documents of the corpus with many short ones", int),
        Option("short", 20, 20, "mean tokens of a document there", int),
        Option("part", 64_000_000, 50_000, "tokens of a part; of 256 MB of text by default", int),
        Option("streams", 16, 2, "streams whose documents are taken in turn in one row", int),
    )
