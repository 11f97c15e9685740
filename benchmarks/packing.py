"""How fast text becomes packed tokens, beside the tokeniser library's own rate and other ways to pack.

    python -m benchmarks.packing [--tokenizer FOLDER] [--peers-python PATH] [--write]

The text is the docstrings of installed packages, repeated with other numbers so that no document is a duplicate. Ours is the
whole path of `retain data`: read jsonl, drop duplicates, hold out, encode, pack, digest, write. The library's rate is that of
`encode_batch_fast` on the same documents in memory, in the same batches. Each line is a process of its own; they take turns.
"""

import argparse
import contextlib
import io
import json
import os
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from statistics import median

from benchmarks.packing_peers import LENGTH, PEERS, Packed, documents_in
from benchmarks.peers import PeerFailedError, last_line_of
from benchmarks.report import circumstances, markdown_table, seconds_of_others, write_results

OURS, LIBRARY = "ours: `retain data`, end to end", "the library: encode_batch_fast, from memory"
COLUMNS = ("", "text, MB", "seconds", "MB/s", "tokens/s", "of the library's rate", "processor s", "peak memory, MB")


def main(arguments: Sequence[str] | None = None) -> None:
    options = _parsed(arguments)
    if options.one:
        way = _library if options.one == LIBRARY else _ours
        print(json.dumps(vars(way(options.text, options.tokenizer))))
        return
    head = circumstances(
        ("tokenizers", "numpy"),
        f"tokeniser: {'trained on the text, 2,048 entries' if options.tokenizer is None else options.tokenizer.name}",
    )
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        small, large = (Path(folder) / f"{size}.jsonl" for size in ("half", "whole"))
        for path, share in ((small, 0.5), (large, 1.0)):
            _write_text(path, options.megabytes * 1e6 * share)
        tokenizer = options.tokenizer or _train(small, Path(folder) / "tokenizer")
        busy, begin = seconds_of_others(), time.perf_counter()
        runs: dict[tuple[str, Path], list[Packed]] = {}
        own = 0.0
        for _ in range(options.rounds):
            for name, text in ((LIBRARY, small), (OURS, small), (LIBRARY, large), (OURS, large)):
                packed = packed_by(name, text, tokenizer)
                runs.setdefault((name, text), []).append(packed)
                own += packed.processor_s
                print(f"{name}: {packed.seconds:.1f} s", file=sys.stderr)
        notes = []
        for name, shown in PEERS.items():
            try:
                python = sys.executable if name == "datasets" else options.peers_python  # this project has it too
                made = _in_process(python, "benchmarks.packing_peers", name, small, tokenizer, Path(folder))
                runs[shown, small] = [made]
                own += made.processor_s
                notes.append(f"- {shown}: {made.note}")
            except PeerFailedError as error:
                notes.append(f"- {shown}: not measured ({error})")
            print(notes[-1], file=sys.stderr)
        others = (seconds_of_others() - busy - own) / (time.perf_counter() - begin)
        rows = [_row(name, text, runs) for name, text in runs]
    page = "\n\n".join(
        [
            "# How fast text becomes packed tokens",
            head,
            markdown_table(COLUMNS, rows),
            f"Medians of {options.rounds} rounds (peers: one), sequences of {LENGTH:,} tokens; other processes kept "
            f"{max(0.0, others):.1f} cores busy meanwhile. Processor seconds count all threads and child processes. Memory is "
            "that of the largest process; the library's holds the text.",
            "\n".join(notes),
        ]
    )
    print(page)
    if options.write:
        print(write_results("packing", page + "\n"), file=sys.stderr)


def _row(name: str, text: Path, runs: dict[tuple[str, Path], list[Packed]]) -> list[str]:
    made = runs[name, text]
    seconds, raw = (median(packed.seconds for packed in some) for some in (made, runs[LIBRARY, text]))
    size = text.stat().st_size / 1e6 if text.exists() else made[0].megabytes
    return [
        name,
        f"{size:,.0f}",
        f"{seconds:.1f}",
        f"{size / seconds:.2f}",
        f"{made[0].tokens / seconds:,.0f}",
        f"{raw / seconds:.0%}",
        f"{median(packed.processor_s for packed in made):.1f}",
        f"{median(packed.peak_mb for packed in made):,.0f}",
    ]


def _library(text: Path, tokenizer: Path) -> Packed:
    from retain.datamodules.corpora.packing import batch_documents
    from retain.datamodules.corpora.tokenizer import load_tokenizer

    core = load_tokenizer(tokenizer).core
    batches = list(batch_documents(documents_in(text)))
    tokens = 0

    def encode() -> None:
        nonlocal tokens
        for batch in batches:
            tokens += sum(len(encoded) for encoded in core.encode_batch_fast(batch, add_special_tokens=False))

    seconds, processor = _timed(encode)
    return Packed(seconds, processor, tokens, text.stat().st_size / 1e6, _peak())


def _ours(text: Path, tokenizer: Path) -> Packed:
    from retain.datamodules.corpora.packing import open_packed
    from retain.datamodules.corpora.prepare import prepare
    from retain.sweeps.schema.read import read_study

    with tempfile.TemporaryDirectory(dir=text.parent) as folder:
        stage = {"corpus": "text", "lr": 1e-4, "batch": 1, "tokens": LENGTH}
        fields = {
            "study": "packing",
            "model": "laptop",
            "tokenizer": {"hf": str(tokenizer)},
            "sequence_length": LENGTH,
            "corpora": {"text": {"files": str(text), "heldout": 0.01}},
            "pretrain": stage,
            "posttrain": stage,
            "finetune": stage,
        }
        path = Path(folder) / "packing.yaml"
        path.write_text(json.dumps(fields))  # JSON is YAML
        file, store = read_study(str(path)), Path(folder) / "store"
        seconds, processor = _timed(lambda: prepare(file, store))
        (packed,) = (open_packed(place) for place in (store / "corpora").iterdir())
        tokens = sum(packed.manifest[split]["tokens"] for split in ("train", "heldout"))
    return Packed(seconds, processor, tokens, text.stat().st_size / 1e6, _peak())


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds, and processor seconds of all threads."""
    begin, busy = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - begin, time.process_time() - busy


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def packed_by(name: str, text: Path, tokenizer: Path) -> Packed:
    """What ours or the library makes of a text, in a process of its own."""
    arguments = ("--one", name, "--text", text, "--tokenizer", tokenizer)
    return _in_process(sys.executable, "benchmarks.packing", *arguments)


def _in_process(python: str | None, module: str, *arguments: object) -> Packed:
    command = [python or sys.executable, "-m", module, *map(str, arguments)]
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[1]), "TOKENIZERS_PARALLELISM": "true"}
    return Packed(**json.loads(last_line_of(command, environment)))


def _texts() -> Iterator[str]:
    from retain.datamodules.corpora.packages import read_docstrings, read_instructions

    documents = [*read_docstrings(), *read_instructions()]
    number = 0
    while True:
        yield from (f"{document}\n{number}" for document in documents)
        number += 1


def _write_text(path: Path, size: float) -> None:
    with path.open("w") as stream:
        for document in _texts():
            stream.write(json.dumps({"text": document}) + "\n")
            if stream.tell() >= size:
                return


def _train(text: Path, folder: Path) -> Path:
    from retain.datamodules.corpora.tokenizer import train_tokenizer

    with contextlib.redirect_stdout(io.StringIO()):
        train_tokenizer((document for document, _ in zip(documents_in(text), range(4000), strict=False)), 2048).save(
            folder
        )
    return folder


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.packing", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--tokenizer", type=Path, help="a tokeniser's folder; without it, one is trained on the text")
    parser.add_argument("--megabytes", type=float, default=50, help="of text; the first half is packed by itself too")
    parser.add_argument("--rounds", type=int, default=3, help="in which ours and the library take turns")
    parser.add_argument("--peers-python", help="an interpreter with datasets, litdata and mosaicml-streaming; this one")
    parser.add_argument("--folder", type=Path, help="where the text goes, for a moment; the system's temporary folder")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/packing.md")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    parser.add_argument("--text", type=Path, help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


if __name__ == "__main__":
    main()
