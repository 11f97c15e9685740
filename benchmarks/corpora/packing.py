"""How fast text becomes packed tokens: Retain, the tokeniser library alone, and other ways to pack.

    python -m benchmarks.corpora.packing [--tokenizer FOLDER] [--peers-python PATH] [--write]

The text is the docstrings of installed packages, repeated with a number so that no document is a duplicate. Retain does all
of `retain data`: read jsonl, drop duplicates, hold out, encode, pack, digest, write. The library encodes the same documents
with `encode_batch_fast`, from memory and in the same batches. Peers use all cores, as their documentation shows them.
"""

import argparse
import contextlib
import functools
import io
import itertools
import json
import os
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.harness import (
    Child,
    Option,
    Page,
    Peers,
    bullets,
    cpu_seconds,
    log,
    markdown_table,
    run_benchmark,
    run_function,
    watch_other_processes,
)

# A peer's interpreter imports this file too, so other packages are imported where they are used.

RETAIN, LIBRARY = "Retain: `retain data`, end to end", "the library: encode_batch_fast, from memory"
LENGTH = 1024
BATCH = 1000
"""Documents that the peers encode at a time."""
CORES = len(os.sched_getaffinity(0))
Work = Callable[[], int]
"""Packs a text; returns the number of tokens."""
COLUMNS = ("", "text, MB", "seconds", "MB/s", "tokens/s", "of the library's rate", "processor s", "peak memory, MB")


def measure(options: argparse.Namespace) -> Page:
    """Retain and the library in turns, on the whole text and on its first half; then each peer once, on the half."""
    folder, peers = options.folder, Peers(options.peers_python)
    small, large = (folder / f"{size}.jsonl" for size in ("half", "whole"))
    for path, share in ((small, 0.5), (large, 1.0)):
        write_text(path, options.megabytes * 1e6 * share)
    tokenizer = options.tokenizer or _train_tokenizer(small, folder / "tokenizer")
    busy = watch_other_processes()
    runs: dict[tuple[str, Path], list[Child]] = {}
    for _ in range(options.rounds):
        for name, text in ((LIBRARY, small), (RETAIN, small), (LIBRARY, large), (RETAIN, large)):
            runs.setdefault((name, text), []).append(run_function(pack, name, text, tokenizer, folder))
            log(f"{name}: {runs[name, text][-1].result['seconds']:.1f} s")
    for name, (package, _) in PEERS.items():
        if packed := peers.run(name, (package, "tokenizers"), pack, name, small, tokenizer, folder):
            runs[name, small] = [packed]
    others = busy()
    used = "trained on the text, 2,048 entries" if options.tokenizer is None else options.tokenizer.name
    return Page(
        [f"tokeniser: {used}"],
        [
            markdown_table(
                COLUMNS, [_cells(name, text, packed, runs[LIBRARY, text]) for (name, text), packed in runs.items()]
            ),
            f"Medians of {options.rounds} rounds (peers: one), sequences of {LENGTH:,} tokens; other processes kept "
            f"{others:.1f} cores busy meanwhile. Processor seconds count all threads and child processes. Memory is that of "
            "the largest process; the library's process also holds the text.",
            bullets(peers.notes),
        ],
    )


def _cells(name: str, text: Path, packed: Sequence[Child], library: Sequence[Child]) -> list[str]:
    """A row of the table. packed, library: the runs of this way and of the library on the same text."""
    size, tokens = text.stat().st_size / 1e6, packed[0].result["tokens"]
    seconds, library_seconds = (median(child.result["seconds"] for child in runs) for runs in (packed, library))
    return [
        name,
        f"{size:,.0f}",
        f"{seconds:.1f}",
        f"{size / seconds:.2f}",
        f"{tokens / seconds:,.0f}",
        f"{library_seconds / seconds:.0%}",
        f"{median(child.result['cpu_seconds'] for child in packed):.1f}",
        f"{median(child.peak_bytes for child in packed) / 2**20:,.0f}",
    ]


def pack(name: str, text: str, tokenizer: str, folder: str) -> dict[str, float]:
    """Pack a text in one way, in this process: seconds, processor seconds, tokens."""
    os.environ["TOKENIZERS_PARALLELISM"] = "true"
    places = (Path(text), Path(tokenizer), Path(folder) / f"packed-{os.getpid()}")
    places[-1].mkdir()
    work = OWN[name](*places) if name in OWN else functools.partial(PEERS[name][1], *places)
    begin, used = time.perf_counter(), cpu_seconds()
    tokens = work()
    return {"seconds": time.perf_counter() - begin, "cpu_seconds": cpu_seconds() - used, "tokens": tokens}


def library(text: Path, tokenizer: Path, folder: Path) -> Work:
    """The tokeniser library alone, with the documents in memory."""
    from retain.datamodules.corpora.parts.batches import batch_documents
    from retain.datamodules.corpora.tokenizer import load_tokenizer

    core = load_tokenizer(tokenizer).core
    batches = list(batch_documents(documents_in(text)))
    return lambda: sum(
        len(encoded) for batch in batches for encoded in core.encode_batch_fast(batch, add_special_tokens=False)
    )


def retain(text: Path, tokenizer: Path, folder: Path) -> Work:
    """`retain data` of a study with this text as its corpus."""
    from benchmarks.made_up import one_corpus_study
    from retain.datamodules.corpora.prepare import prepare
    from retain.datamodules.corpora.prepared import open_packed
    from retain.sweeps.schema.read import read_study

    stage = {"batch": 1, "tokens": LENGTH}
    fields = {"model": "laptop", "tokenizer": {"hf": str(tokenizer)}, "sequence_length": LENGTH}
    file = read_study(str(one_corpus_study(folder / "packing.yaml", text, stage, **fields)))

    def work() -> int:
        prepare(file, folder)
        (packed,) = (open_packed(place) for place in (folder / "corpora").iterdir())
        return sum(packed.manifest[split]["tokens"] for split in ("train", "heldout"))

    return work


def with_datasets(text: Path, tokenizer: Path, folder: Path) -> int:
    """load_dataset, map to blocks of one length as transformers' run_clm does, save_to_disk."""
    import datasets

    datasets.disable_progress_bars()
    core = _tokenizer(tokenizer)

    def to_blocks(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = core.encode_batch_fast(batch["text"], add_special_tokens=False)
        joined = list(itertools.chain.from_iterable([*document.ids, 0] for document in encoded))
        return {"tokens": [joined[at : at + LENGTH] for at in range(0, len(joined) - LENGTH + 1, LENGTH)]}

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    texts = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=str(folder / "cache"))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint16"), length=LENGTH)})
    made = texts.map(to_blocks, batched=True, num_proc=CORES, remove_columns=texts.column_names, features=features)
    made.save_to_disk(folder / "saved")
    return len(made) * LENGTH


def with_litdata(text: Path, tokenizer: Path, folder: Path) -> int:
    """optimize over four parts of the file for each core, with the TokensLoader of litdata's tutorial."""
    from litdata import StreamingDataset, TokensLoader, optimize  # type: ignore[import-not-found]

    parts = [folder / f"part-{number}.jsonl" for number in range(4 * CORES)]
    lines = text.read_text().splitlines(keepends=True)
    for number, part in enumerate(parts):
        part.write_text("".join(lines[number :: len(parts)]))
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loader = TokensLoader(block_size=LENGTH)
    optimize(
        functools.partial(_tensors, tokenizer),
        [str(part) for part in parts],
        str(folder / "made"),
        chunk_bytes="64MB",
        num_workers=CORES,
        item_loader=loader,
    )
    return len(StreamingDataset(str(folder / "made"), item_loader=loader)) * LENGTH


def with_streaming(text: Path, tokenizer: Path, folder: Path) -> int:
    """As llm-foundry does: encode in the library's threads, join, cut, write each sequence."""
    import numpy as np
    from streaming import MDSWriter  # type: ignore[import-not-found]

    waiting: list[int] = []
    tokens, columns = 0, {"tokens": f"ndarray:uint16:{LENGTH}"}
    with MDSWriter(out=str(folder / "made"), columns=columns, size_limit="64mb") as writer:
        for encoded in _encoded_batches(text, tokenizer):
            waiting += itertools.chain.from_iterable(encoded)
            whole = len(waiting) // LENGTH * LENGTH
            for at in range(0, whole, LENGTH):
                writer.write({"tokens": np.array(waiting[at : at + LENGTH], np.uint16)})
            waiting, tokens = waiting[whole:], tokens + whole
    return tokens


def _tensors(tokenizer: Path, part: str) -> Iterator[Any]:
    """The tokens of each document in a part of the text."""
    import torch

    for encoded in _encoded_batches(Path(part), tokenizer):
        for ids in encoded:
            yield torch.tensor(ids, dtype=torch.int32)


def _encoded_batches(text: Path, tokenizer: Path) -> Iterator[list[list[int]]]:
    """The tokens of each document, with an end token, for each batch of documents."""
    core, documents = _tokenizer(tokenizer), documents_in(text)
    while batch := list(itertools.islice(documents, BATCH)):
        yield [[*document.ids, 0] for document in core.encode_batch_fast(batch, add_special_tokens=False)]


def _tokenizer(folder: Path) -> Any:
    import tokenizers

    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def documents_in(text: Path) -> Iterator[str]:
    """The documents of a jsonl file."""
    with text.open() as lines:
        for line in lines:
            yield json.loads(line)["text"]


OWN: dict[str, Callable[[Path, Path, Path], Work]] = {LIBRARY: library, RETAIN: retain}
PEERS: dict[str, tuple[str, Callable[[Path, Path, Path], int]]] = {
    "`datasets`: map, batched, a process for each core": ("datasets", with_datasets),
    "litdata: optimize, a process for each core": ("litdata", with_litdata),
    "mosaicml-streaming: MDSWriter": ("mosaicml-streaming", with_streaming),
}


def write_text(path: Path, size: float) -> None:
    """Write documents until the file has `size` bytes."""
    from retain.datamodules.corpora.reading.packages import read_docstrings, read_instructions

    documents = [*read_docstrings(), *read_instructions()]
    with path.open("w") as stream:
        for number in itertools.count():
            for document in documents:
                stream.write(json.dumps({"text": f"{document}\n{number}"}) + "\n")
                if stream.tell() >= size:
                    return


def _train_tokenizer(text: Path, folder: Path) -> Path:
    from retain.datamodules.corpora.tokenizer import train_tokenizer

    with contextlib.redirect_stdout(io.StringIO()):
        train_tokenizer(itertools.islice(documents_in(text), 4000), 2048).save(folder)
    return folder


if __name__ == "__main__":
    run_benchmark(
        measure,
        "How fast text becomes packed tokens",
        ("tokenizers", "numpy"),
        Option("tokenizer", None, None, "a tokeniser's folder; without it, one is trained on the text", Path),
        Option("megabytes", 50.0, 1.0, "size of the text; its first half is also packed separately", float),
        Option("rounds", 3, 1, "how often Retain and the library take turns", int),
        Option("peers_python", None, None, "an interpreter that has litdata and mosaicml-streaming"),
    )
