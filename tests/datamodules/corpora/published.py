"""Small copies of the published corpora, with the files, formats, configurations and fields of the real ones."""

import gzip
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pyarrow
import pyarrow.parquet

from retain.sweeps.schema.published_corpora import PUBLISHED

Records = list[dict[str, str]]
RECORDS_PER_FILE = 40


def records(name: str, file: int, count: int = RECORDS_PER_FILE) -> Records:
    """Return the records of one file of a published corpus, with the fields of the real corpus."""
    makers: dict[str, Callable[[int], dict[str, str]]] = {
        "c4": lambda n: {"text": f"page {n} of the web", "timestamp": "2019-04-25T12:57:54Z", "url": f"http://a/{n}"},
        "musicpile": lambda n: {"id": str(n), "text": f"X:{n}\nK:D\n|: d2 f{n} :|", "src": "irishman"},
        "chempile": lambda n: {"text": f"We report the synthesis of compound {n}.", "pmid": str(n)},
        "flan": lambda n: {"inputs": f"What is {n} + 1?", "targets": str(n + 1), "task": f"math_{file}"},
    }
    return [makers[name](1000 * file + number) for number in range(count)]


def document(name: str, record: Mapping[str, str]) -> str:
    """Return the document that Retain should read from a record."""
    return f"{record['inputs']}\n{record['targets']}" if name == "flan" else record["text"]


def publish(name: str, root: Path, files: int = 2) -> Path:
    """Write a corpus below <root>/datasets/ in the layout of its repository on the hub; return the repository's folder."""
    folder = root / "datasets" / str(PUBLISHED[name]["hf"])
    config = PUBLISHED[name].get("config")
    file_names = {
        "c4": "en/c4-train.{:05d}-of-{:05d}.json.gz",
        "musicpile": "data/train-{:05d}-of-{:05d}.parquet",
        "chempile": f"{config}/train-{{:05d}}-of-{{:05d}}.parquet",
        "flan": "train/task_{:05d}_10templates_train.jsonl",
    }
    for number in range(files):
        path = folder / file_names[name].format(number, files)
        path.parent.mkdir(parents=True, exist_ok=True)
        _write(path, records(name, number))
    pattern = file_names[name].partition("{")[0] + "*"
    card = (
        f"configs:\n- config_name: {config}\n  data_files:\n  - split: train\n    path: {pattern}\n" if config else ""
    )
    (folder / "README.md").write_text(f"---\nlanguage: en\n{card}---\n# {name}\n")
    return folder


def _write(path: Path, rows: Sequence[Mapping[str, str]]) -> None:
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if path.suffix == ".parquet":
        pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), path)
    else:
        path.write_bytes(gzip.compress(lines) if path.suffix == ".gz" else lines)
