"""Tiny studies on generated corpora. All three stages train in about a second."""

import json
import random
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import yaml

from retain.sweeps.schema.read import StudyFile, check_study
from retain.sweeps.tree.data_facts import CorpusFacts, Facts, Reading
from retain.sweeps.tree.tree import Tree, expand

WORDS = {
    "general": "the model of a river and its bank under old rain where time will pass over every stone",
    "music": "C D E F G A B c d e f g a b |: :| M:3/4 K:D L:1/8 z2 G2A2 B3c",
    "chemistry": "methyl ethyl propan benzene oxide chloride acid amine sulfate C6H6 NaCl H2O CO2 mol",
}
DOCUMENTS = 400

TINY: dict[str, Any] = {
    "study": "tiny",
    "model": {
        "layers": 2,
        "hidden": 32,
        "heads": 2,
        "kv_heads": 2,
        "mlp": 64,
        "vocabulary": 0,
        "tied": True,
        "context": 64,
    },
    "tokenizer": {"train": 320},
    "sequence_length": 32,
    "corpora": {
        "general": {"files": "general.txt", "separator": "\n\n", "heldout": 0.1},
        "music": {"files": "music.jsonl", "heldout": 0.1},
        "chemistry": {"files": "chemistry.jsonl", "heldout": 0.1},
    },
    "pretrain": {"corpus": "general", "tokens": 7680, "lr": 3e-3, "warmup": 5, "batch": 8},
    "posttrain": {"corpus": "music", "tokens": 2560, "max_tokens": 5120, "lr": 1e-3, "warmup": 2, "batch": 8},
    "finetune": {"corpus": "chemistry", "tokens": 5120, "lr": 1e-3, "warmup": 2, "batch": 8},
    "grid": {"pretrain.exposure": [0, 1], "finetune.lr": [5e-4, 2e-3]},
}

LINEAR: dict[str, Any] = {
    "study": "linear",
    "model": {
        "linear": {
            "features": 3,
            "inconsistent": 1,
            "start": 4,
            "invariant": 1.0,
            "pre": 0.5,
            "post": 0.05,
            "ft": 0.55,
            "beta": 0.21,
            "c": 0.43,
        }
    },
    "pretrain": {"time": 20, "lr": 0.01},
    "posttrain": {"time": 20, "lr": 0.01},
    "finetune": {"time": 20, "lr": 0.01},
    "grid": {"pretrain.exposure": [0, 1], "finetune.lr": [0.005, 0.01]},
    "execution": {"accelerator": "cpu"},
}
"""2,000 steps of numpy in a stage: for tests of what launches stages, and not of training."""
SECOND = 150_000
"""Steps of a linear stage that take about a second."""


def linear_study(folder: Path, **overrides: Any) -> Path:
    """Write a linear study with two exposures and two fine-tuning rates; overrides as in `tiny_study`.

    A stage takes `time` / `lr` steps; with `lr` above 3 it diverges. It reads no data and saves no checkpoints.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{overrides.get('study', LINEAR['study'])}.yaml"
    path.write_text(yaml.safe_dump(replaced(LINEAR, overrides), sort_keys=False))
    return path


def tiny_study(folder: Path, **overrides: Any) -> Path:
    """Write a study with two exposures and two fine-tuning rates, and its corpora. Returns the path of the study file.

    overrides: fields of the study by name or by dotted path, as in `**{"pretrain.lr": 1e-2}`. Replace `grid` as a whole, as
    its axes have dots in their names.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name in WORDS:
        write_corpus(folder, name)
    path = folder / f"{overrides.get('study', TINY['study'])}.yaml"
    path.write_text(yaml.safe_dump(tiny_fields(**overrides), sort_keys=False))
    return path


def leave_out(study: Path, *sections: str) -> Path:
    """Remove sections from a study file, such as those of stages that its chain does not name. Returns its path."""
    fields = yaml.safe_load(study.read_text())
    study.write_text(
        yaml.safe_dump({name: part for name, part in fields.items() if name not in sections}, sort_keys=False)
    )
    return study


def tiny_fields(**overrides: Any) -> dict[str, Any]:
    """The tiny study as a plain mapping, with overrides as in `tiny_study`."""
    return replaced(TINY, overrides)


def replaced(fields: Mapping[str, Any], overrides: Mapping[str, Any]) -> dict[str, Any]:
    """A copy of a nested mapping with other values at some dotted paths; a mapping takes the place of a number on the way."""
    copy = deepcopy(dict(fields))
    for field, value in overrides.items():
        *sections, last = field.split(".")
        place = copy
        for section in sections:
            if not isinstance(place.setdefault(section, {}), dict):
                place[section] = {}
            place = place[section]
        place[last] = deepcopy(value)
    return copy


def documents_of(name: str, count: int = DOCUMENTS) -> list[str]:
    """Distinct documents of about a hundred characters. Every call returns the same ones."""
    draw, words = random.Random(name), WORDS[name].split()
    return [f"{number} " + " ".join(draw.choices(words, k=22)) for number in range(count)]


def write_corpus(folder: Path, name: str, count: int = DOCUMENTS) -> Path:
    """Write a generated corpus: `general` as plain text, the others as jsonl. Returns the path of its file."""
    documents = documents_of(name, count)
    if name == "general":
        path = folder / "general.txt"
        path.write_text("\n\n".join(documents))
    else:
        path = folder / f"{name}.jsonl"
        path.write_text("".join(json.dumps({"text": document}) + "\n" for document in documents))
    return path


def made_up_facts(
    file: StudyFile,
    train: int | None = 10**9,
    heldout: int | None = 100,
    mark: str = "",
    reading: Reading | None = None,
) -> Facts:
    """Facts of data that does not exist, for planning.

    train, heldout: the number of sequences in each split; mark: the beginning of every fingerprint; reading: what came of
    reading each corpus.
    """
    lengths = file.values("sequence_length")
    corpora = {
        (name, length): CorpusFacts(f"{mark}{name}-{length}", train, heldout, reading=reading)
        for name in file.study.corpora
        for length in lengths
    }
    return Facts(f"{mark}tokenizer", file.study.tokenizer.train or 49_152, corpora)


def tiny_tree(**overrides: Any) -> Tree:
    """The tree of the tiny study, with overrides as in `tiny_study`, on data that does not exist."""
    file = check_study(tiny_fields(**overrides), Path("tiny.yaml"))
    return expand(file, made_up_facts(file))
