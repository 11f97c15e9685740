"""Tiny corpora of pairs, and studies that learn from them."""

import json
import random
from pathlib import Path
from typing import Any

from tests.studies import WORDS, tiny_study

PAIRS: dict[str, Any] = {
    "files": "pairs.jsonl",
    "prompt": "Q {question}:",
    "chosen": " {good}",
    "rejected": " {bad}",
    "heldout": 0.1,
}
DPO: dict[str, Any] = {
    "corpora.pairs": PAIRS,
    "sequence_length": 48,
    "pretrain.tokens": 3840,
    "posttrain.tokens": 1920,
    "posttrain.max_tokens": None,
    "finetune.corpus": "pairs",
    "finetune.tokens": 5760,
    "finetune.objective": {"dpo": 0.1},
    "grid": {"finetune.objective.dpo": [0.1, 1]},
    "execution": {"accelerator": "cpu"},
}
"""Overrides of the tiny study: a fine-tuning on 60 pairs, with two β. Good answers are music, and bad ones chemistry."""


def record(draw: random.Random, number: int) -> dict[str, str]:
    music, chemistry = (WORDS[name].split() for name in ("music", "chemistry"))
    question = f"{number} {' '.join(draw.choices(music, k=3))}"
    return {
        "question": question,
        "good": " ".join(draw.choices(music, k=6)),
        "bad": " ".join(draw.choices(chemistry, k=3)),
    }


def write_pairs(folder: Path, count: int = 200, *more: dict[str, Any]) -> Path:
    """Write generated pairs of distinct prompts, and more records after them. Returns the path of the file."""
    folder.mkdir(parents=True, exist_ok=True)
    draw = random.Random("pairs")
    records = [*(record(draw, number) for number in range(count)), *more]
    path = folder / "pairs.jsonl"
    path.write_text("".join(json.dumps(one) + "\n" for one in records))
    return path


def pair_study(folder: Path, **overrides: Any) -> Path:
    """Write a study that learns from pairs; overrides as in `tiny_study`."""
    write_pairs(folder)
    return tiny_study(folder, **DPO | overrides)
