"""How other ways to tokenise and pack are measured, in an interpreter that has them.

    python -m benchmarks.packing_peers NAME TEXT TOKENIZER FOLDER        prints one JSON document

Needs `tokenizers` and the peer, and nothing of the project. Each uses all cores, as its documentation shows it.
"""

import functools
import importlib.metadata
import itertools
import json
import os
import resource
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import tokenizers

LENGTH = 1024
CORES = len(os.sched_getaffinity(0))
PEERS = {
    "datasets": "`datasets`: map, batched, a process a core",
    "litdata": "litdata: optimize, a process a core",
    "streaming": "mosaicml-streaming: MDSWriter",
}


@dataclass(frozen=True)
class Packed:
    """One way to pack one text. Processor seconds and memory count its child processes; memory is the largest of them."""

    seconds: float
    processor_s: float
    tokens: int
    megabytes: float
    peak_mb: float
    note: str = ""


def documents_in(text: Path) -> Iterator[str]:
    """The documents of a jsonl file."""
    with text.open() as lines:
        for line in lines:
            yield json.loads(line)["text"]


def _tokenizer(folder: Path) -> tokenizers.Tokenizer:
    return tokenizers.Tokenizer.from_file(str(folder / "tokenizer.json"))


def with_datasets(text: Path, tokenizer: Path, folder: Path) -> int:
    """load_dataset, map to blocks of one length as transformers' run_clm does, save_to_disk; returns the tokens."""
    import datasets

    datasets.disable_progress_bars()
    core = _tokenizer(tokenizer)

    def pack(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        encoded = core.encode_batch_fast(batch["text"], add_special_tokens=False)
        joined = list(itertools.chain.from_iterable([*document.ids, 0] for document in encoded))
        return {"tokens": [joined[at : at + LENGTH] for at in range(0, len(joined) - LENGTH + 1, LENGTH)]}

    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    texts = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=str(folder / "cache"))
    features = datasets.Features({"tokens": datasets.Sequence(datasets.Value("uint16"), length=LENGTH)})
    made = texts.map(pack, batched=True, num_proc=CORES, remove_columns=texts.column_names, features=features)
    made.save_to_disk(folder / "saved")
    return len(made) * LENGTH


def _encoded(tokenizer: Path, part: str) -> Iterator[Any]:
    """The tokens of each document in a part of the file."""
    import torch

    core = _tokenizer(tokenizer)
    documents = documents_in(Path(part))
    while batch := list(itertools.islice(documents, 1000)):
        for document in core.encode_batch_fast(batch, add_special_tokens=False):
            yield torch.tensor([*document.ids, 0], dtype=torch.int32)


def with_litdata(text: Path, tokenizer: Path, folder: Path) -> int:
    """optimize over parts of the file, a process a core, with the TokensLoader of its tutorial; returns the tokens."""
    from litdata import StreamingDataset, TokensLoader, optimize  # type: ignore[import-not-found]

    parts = _parts(text, folder)
    os.environ["TOKENIZERS_PARALLELISM"] = "false"
    loader = TokensLoader(block_size=LENGTH)
    optimize(
        functools.partial(_encoded, tokenizer),
        parts,
        str(folder / "made"),
        chunk_bytes="64MB",
        num_workers=CORES,
        item_loader=loader,
    )
    return len(StreamingDataset(str(folder / "made"), item_loader=loader)) * LENGTH


def with_streaming(text: Path, tokenizer: Path, folder: Path) -> int:
    """llm-foundry's way: encode in the library's threads, join, cut, write each sequence; returns the tokens."""
    import numpy as np
    from streaming import MDSWriter  # type: ignore[import-not-found]

    core = _tokenizer(tokenizer)
    documents, waiting, tokens = documents_in(text), [], 0
    with MDSWriter(
        out=str(folder / "made"), columns={"tokens": f"ndarray:uint16:{LENGTH}"}, size_limit="64mb"
    ) as writer:
        while batch := list(itertools.islice(documents, 1000)):
            for document in core.encode_batch_fast(batch, add_special_tokens=False):
                waiting += [*document.ids, 0]
            whole = len(waiting) // LENGTH * LENGTH
            for at in range(0, whole, LENGTH):
                writer.write({"tokens": np.array(waiting[at : at + LENGTH], np.uint16)})
            waiting, tokens = waiting[whole:], tokens + whole
    return tokens


def _parts(text: Path, folder: Path) -> list[str]:
    """The file cut into four for each core, as litdata hands out files."""
    paths = [folder / f"part-{number}.jsonl" for number in range(4 * CORES)]
    streams = [path.open("w") for path in paths]
    with text.open() as lines:
        for stream, line in zip(itertools.cycle(streams), lines, strict=False):
            stream.write(line)
    for stream in streams:
        stream.close()
    return list(map(str, paths))


WAYS: dict[str, tuple[str, Callable[[Path, Path, Path], int]]] = {
    "datasets": ("datasets", with_datasets),
    "litdata": ("litdata", with_litdata),
    "streaming": ("mosaicml-streaming", with_streaming),
}


def main() -> None:
    name, text, tokenizer, folder = sys.argv[1], *map(Path, sys.argv[2:])
    package, way = WAYS[name]
    note = f"{package} {importlib.metadata.version(package)}, tokenizers {importlib.metadata.version('tokenizers')}"
    folder = folder / name
    folder.mkdir()
    begin = time.perf_counter()
    tokens = way(text, tokenizer, folder)
    seconds = time.perf_counter() - begin
    uses = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    processor = sum(use.ru_utime + use.ru_stime for use in uses)
    peak = max(use.ru_maxrss for use in uses) / 1024
    print(json.dumps(asdict(Packed(seconds, processor, tokens, text.stat().st_size / 1e6, peak, note))))


if __name__ == "__main__":
    main()
