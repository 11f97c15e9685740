"""How many tokens a core prepares in a second: Retain in one process and in parts, the tokeniser library alone, and peers.

    python -m benchmarks.corpora.preparation --tokenizer FOLDER [--peers-python PATH] [--write]

All ways read the same jsonl file, use one thread, and are compared by seconds of the processor, in turns. The library encodes
the documents from memory. Retain does all of `retain data`: it reads, drops duplicates, holds out, encodes, hashes, writes and
packs. Its parts are runs that one process does one after the other, as the job of a pack does, and then the run that puts them
together.
"""

import argparse
import contextlib
import io
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.corpora.packing import documents_in, write_text
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

LIBRARY, SLOW_LIBRARY = "the library: encode_batch_fast, from memory", "the library: encode_batch, from memory"
RETAIN, IN_PARTS = "Retain: one process", "Retain: in parts"
LENGTH = 1024
PARTS = 8
Work = Callable[[], int]
"""Prepares a text; returns the number of tokens."""
COLUMNS = (
    "",
    "text, MB",
    "processor s",
    "tokens per processor s",
    "of the library's rate",
    "least to most",
    "peak memory, MB",
)


def measure(options: argparse.Namespace) -> Page:
    """Every way once in each round; then Retain in parts of the default size on a larger text, once."""
    folder, peers = options.folder, Peers(options.peers_python)
    text, large = folder / "text.jsonl", folder / "large.jsonl"
    write_text(text, options.megabytes * 1e6)
    busy = watch_other_processes()
    runs: dict[str, list[Child]] = {}
    for _ in range(options.rounds):
        for name in OWN:
            runs.setdefault(name, []).append(run_function(prepare, name, text, options.tokenizer, folder, PARTS))
            log(f"{name}: {runs[name][-1].result['cpu_seconds']:.1f} s")
    for name, (packages, _) in PEERS.items():
        made = [
            peers.run(name, packages, prepare, name, text, options.tokenizer, folder, PARTS)
            for _ in range(options.rounds)
        ]
        if done := [one for one in made if one is not None]:
            runs[name] = done
    rows = [_cells(name, text, children, runs[LIBRARY]) for name, children in runs.items()]
    write_text(large, options.large * 1e6)
    parts = max(2, round(large.stat().st_size / options.part))
    whole = run_function(prepare, IN_PARTS, large, options.tokenizer, folder, parts)
    name = f"{IN_PARTS}, {parts} of them, {whole.result['tokens'] / 1e6:.0f}M tokens"
    cells = _cells(name, large, [whole], runs[LIBRARY])
    rows.append([*cells[:4], "", "", cells[-1]])  # the library has not encoded this text
    return Page(
        [f"tokeniser: {options.tokenizer.name}; one thread"],
        [
            markdown_table(COLUMNS, rows),
            f"Medians of {options.rounds} rounds in turns, sequences of {LENGTH:,} tokens, {PARTS} parts unless the row says "
            f"otherwise, and the last row once; other processes kept {busy():.1f} cores busy meanwhile, so seconds of the "
            "processor are compared. They count all threads and child processes, without imports. *Least to most* are the "
            "rates of the rounds, in thousands of tokens. The library's process holds the text in memory.",
            bullets(dict.fromkeys(peers.notes)),
        ],
    )


def _cells(name: str, text: Path, own: Sequence[Child], library: Sequence[Child]) -> list[str]:
    """A row of the table. own, library: the runs of this way and of the library."""
    rates, known = ([child.result["tokens"] / child.result["cpu_seconds"] for child in runs] for runs in (own, library))
    return [
        name,
        f"{text.stat().st_size / 1e6:,.0f}",
        f"{median(child.result['cpu_seconds'] for child in own):.1f}",
        f"{median(rates):,.0f}",
        f"{median(rates) / median(known):.0%}",
        f"{min(rates) / 1000:.0f} to {max(rates) / 1000:.0f}",
        f"{max(child.peak_bytes for child in own) / 2**20:,.0f}",
    ]


def prepare(name: str, text: str, tokenizer: str, folder: str, parts: int) -> Mapping[str, float]:
    """Prepare a text in one way, in this process and with one thread: processor seconds, and tokens."""
    os.environ |= {"RAYON_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
    place = Path(folder) / f"prepared-{os.getpid()}"
    place.mkdir()
    work = (OWN | {peer: function for peer, (_, function) in PEERS.items()})[name](
        Path(text), Path(tokenizer), place, parts
    )
    used = cpu_seconds()
    with contextlib.redirect_stdout(io.StringIO()):
        tokens = work()
    return {"cpu_seconds": cpu_seconds() - used, "tokens": tokens}


def _library(method: str, text: Path, tokenizer: Path) -> Work:
    from retain.datamodules.corpora.parts.batches import batch_documents
    from retain.datamodules.corpora.tokenizer import load_tokenizer

    core = load_tokenizer(tokenizer).core
    core.encode_special_tokens = True
    encode = getattr(core, method)
    batches = list(batch_documents(documents_in(text)))
    encode(["import"])
    return lambda: sum(len(one) for batch in batches for one in encode(batch, add_special_tokens=False))


def library(text: Path, tokenizer: Path, folder: Path, parts: int) -> Work:
    """The tokeniser library alone, with the documents in memory; without offsets."""
    return _library("encode_batch_fast", text, tokenizer)


def slow_library(text: Path, tokenizer: Path, folder: Path, parts: int) -> Work:
    """The same with offsets, as `encode_batch` has them."""
    return _library("encode_batch", text, tokenizer)


def _study(text: Path, tokenizer: Path, folder: Path, part: int) -> Any:
    from benchmarks.made_up import one_corpus_study
    from retain.sweeps.schema.read import read_study

    stage = {"batch": 1, "tokens": LENGTH}
    fields = {"model": "laptop", "tokenizer": {"hf": str(tokenizer)}, "sequence_length": LENGTH}
    fields["execution"] = {"data": {"part": part}}
    return read_study(str(one_corpus_study(folder / "preparation.yaml", text, stage, **fields)))


def retain(text: Path, tokenizer: Path, folder: Path, parts: int) -> Work:
    """`retain data` of a study with this text as its corpus, which a single process prepares."""
    return _retain(text, tokenizer, folder, 10**12, None)


def retain_in_parts(text: Path, tokenizer: Path, folder: Path, parts: int) -> Work:
    """`retain data` in parts, which are runs, one after the other in this process."""
    return _retain(text, tokenizer, folder, text.stat().st_size // parts, _one_after_the_other)


def _retain(text: Path, tokenizer: Path, folder: Path, part: int, in_parts: Any) -> Work:
    import retain.launchers.stage.preparation.assembly
    import retain.launchers.stage.preparation.part  # noqa: F401
    from retain.datamodules.corpora.prepare import prepare
    from retain.datamodules.corpora.prepared import open_packed
    from retain.datamodules.corpora.reading.report import ignore_progress
    from retain.launchers.planning import preparation  # noqa: F401

    file = _study(text, tokenizer, folder, part)

    def work() -> int:
        prepare(file, folder, ignore_progress, in_parts)
        (packed,) = (open_packed(place) for place in (folder / "corpora").iterdir())
        return sum(packed.manifest[split]["tokens"] for split in ("train", "heldout"))

    return work


def _one_after_the_other(file: Any, store: Path, cuts: Any, report: Any) -> bool:
    """Do the runs of the parts, and then that of the assembly, in this process: an `InParts`."""
    from retain.launchers.planning.preparation import Preparation
    from retain.launchers.stage.attempt import make_attempt
    from retain.launchers.stage.ranks import Ranks
    from retain.launchers.stage.signals import StopRequest
    from retain.results.store.runs import Store

    for cut, lengths in cuts.values():
        preparation = Preparation(file, cut, lengths)
        stages = preparation.part_stages(cut.keys)
        stages |= preparation.assemblies(list(stages))
        preparation.register(stages, Store(store), file.study.execution.of_data().model_dump(mode="json"))
        for key in stages:
            make_attempt(Store(store), key, Ranks(0, 1), StopRequest())
    return True


def with_datatrove(text: Path, tokenizer: Path, folder: Path, parts: int) -> Work:
    """JsonlReader and DocumentTokenizer, one task: tokens of each document with an end token, documents shuffled."""
    from datatrove.executor import LocalPipelineExecutor
    from datatrove.pipeline.readers import JsonlReader
    from datatrove.pipeline.tokens import DocumentTokenizer

    (folder / "in").mkdir()
    (folder / "in" / "text.jsonl").symlink_to(text)
    steps = [
        JsonlReader(str(folder / "in")),
        DocumentTokenizer(str(folder / "out"), str(tokenizer / "tokenizer.json"), eos_token="<|endoftext|>"),
    ]
    executor = LocalPipelineExecutor(steps, tasks=1, workers=1, logging_dir=str(folder / "logs"))

    def work() -> int:
        executor.run()
        return sum(path.stat().st_size for path in (folder / "out").glob("*.ds")) // 2

    return work


def with_datasets(text: Path, tokenizer: Path, folder: Path, parts: int) -> Work:
    """load_dataset, and map with the fast tokeniser of transformers, batched; one process."""
    import datasets
    from transformers import PreTrainedTokenizerFast

    datasets.disable_progress_bars()
    fast = PreTrainedTokenizerFast(tokenizer_file=str(tokenizer / "tokenizer.json"))

    def tokens(batch: dict[str, list[str]]) -> dict[str, list[list[int]]]:
        return {"tokens": fast(batch["text"], add_special_tokens=False, return_attention_mask=False)["input_ids"]}

    def work() -> int:
        texts = datasets.load_dataset("json", data_files=str(text), split="train", cache_dir=str(folder / "cache"))
        made = texts.map(tokens, batched=True, remove_columns=texts.column_names)
        return sum(int(chunk.value_lengths().sum().as_py()) for chunk in made.data.column("tokens").chunks)

    return work


OWN: dict[str, Callable[[Path, Path, Path, int], Work]] = {
    LIBRARY: library,
    SLOW_LIBRARY: slow_library,
    RETAIN: retain,
    IN_PARTS: retain_in_parts,
}
PEERS: dict[str, tuple[tuple[str, ...], Callable[[Path, Path, Path, int], Work]]] = {
    "datatrove: DocumentTokenizer": (("datatrove", "tokenizers"), with_datatrove),
    "`datasets`: map with the fast tokeniser": (("datasets", "transformers", "tokenizers"), with_datasets),
}


if __name__ == "__main__":
    run_benchmark(
        measure,
        "How many tokens a core prepares in a second",
        ("tokenizers", "numpy"),
        Option("tokenizer", None, None, "a tokeniser's folder", Path),
        Option("megabytes", 12.0, 1.0, "size of the text", float),
        Option("rounds", 3, 1, "how often all ways take turns", int),
        Option("large", 100.0, 2.0, "size of the larger text in MB", float),
        Option("part", 25e6, 1e6, "bytes of a part of the larger text", float),
        Option("peers_python", None, None, "an interpreter that has datatrove"),
    )
