"""The golden stage keys of a few studies on data that does not exist. If one changes, users lose the runs they have trained.

To change keys deliberately, raise FORMAT in sweeps/tree/keys.py if old runs would be wrong, and run
`python -m tests.sweeps.write_golden_keys` in the project's root. The commit must say which keys changed and why.
"""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from retain.sweeps.schema.read import check_study
from retain.sweeps.tree.data_facts import HeldoutValues, TaskFacts
from retain.sweeps.tree.evaluation_runs import asked_evaluations
from retain.sweeps.tree.tree import Axes, expand
from tests.studies import made_up_facts, replaced

GOLDEN = Path(__file__).with_name("golden_keys.json")
COMMAND = "python -m tests.sweeps.write_golden_keys"

LAPTOP: dict[str, Any] = {
    "study": "laptop",
    "model": "laptop",
    "tokenizer": {"train": 2048},
    "sequence_length": 128,
    "corpora": {
        "general": {"package": "docstrings"},
        "music": {"package": "music21"},
        "chemistry": {"package": "chemicals"},
    },
    "pretrain": {"corpus": "general", "tokens": "1M", "lr": 2e-3, "min_lr": 2e-4, "warmup": 20, "batch": 32},
    "posttrain": {"corpus": "music", "tokens": "200k", "max_tokens": "800k", "lr": 1e-3, "warmup": 20, "batch": 32},
    "finetune": {"corpus": "chemistry", "tokens": "150k", "lr": 5e-5, "warmup": 5, "batch": 32},
    "grid": {"pretrain.exposure": [0, 0.5, 1], "finetune.lr": [5e-5, 2e-4]},
}

PAPER: dict[str, Any] = {
    "study": "paper",
    "model": "smollm2-135m",
    "tokenizer": {"hf": "HuggingFaceTB/SmolLM2-135M"},
    "sequence_length": 1024,
    "corpora": {
        "c4": {"hf": "allenai/c4", "config": "en"},
        "music": {"hf": "m-a-p/MusicPile"},
        "chemistry": {"hf": "jablonkagroup/chempile-education"},
    },
    "pretrain": {"corpus": "c4", "tokens": "8.7B", "lr": 3e-3, "min_lr": 3e-4, "warmup": 1000, "batch": 512},
    "posttrain": {"corpus": "music", "tokens": "300M", "max_tokens": "2B", "lr": 5e-4, "warmup": 500, "batch": 480},
    "finetune": {"corpus": "chemistry", "tokens": "200M", "lr": 5e-5, "warmup": 100, "batch": 192},
    "seed": 42,
    "grid": {"pretrain.exposure": [0, 1]},
}

STUDIES: dict[str, dict[str, Any]] = {
    "laptop": LAPTOP,
    "laptop, early stopping": replaced(LAPTOP, {"posttrain.early_stopping": {"every": 50, "patience": 3}}),
    "laptop, replay and dropout": replaced(LAPTOP, {"posttrain.replay": 0.01, "posttrain.dropout": 0.05}),
    "laptop, matched": replaced(LAPTOP, {"allocation": "matched"}),
    "laptop, seeds and lengths": replaced(LAPTOP, {"grid": {"seed": [1, 2], "sequence_length": [64, 128]}}),
    "laptop, own numbers": replaced(
        LAPTOP,
        {
            "model": {"preset": "laptop", "layers": 2, "tied": False, "vocabulary": 4096},
            "subset_seed": 3,
            "finetune.seed": 4,
            "finetune.betas": [0.9, 0.99],
            "finetune.clip": 0.5,
            "finetune.weight_decay": 0,
            "grid": {"pretrain.exposure": [2.5], "pretrain.repeat": [True]},
            "pretrain.repeat": True,
        },
    ),
    "laptop, adapters": replaced(
        LAPTOP,
        {
            "posttrain.method": "lora",
            "finetune.method": "lora",
            "finetune.lora": {"rank": 8, "alpha": 16, "dropout": 0.1, "targets": ["o_proj", "lm_head"]},
            "grid": {"pretrain.exposure": [0, 1]},
        },
    ),
    "laptop, exposure schedules": replaced(
        LAPTOP, {"grid": {"pretrain.exposure": [0, 1], "pretrain.exposure_schedule": ["early", "late", [0.2, 0.6]]}}
    ),
    "laptop, mixtures": replaced(
        LAPTOP,
        {
            "pretrain.exposure_schedule": "late",
            "pretrain.mix": {
                "chemistry": [
                    {"passes": 3, "of": "20k", "window": [0, 0.7]},
                    {"passes": 8, "of": "20k", "window": [0.7, 1], "replaces": True},
                ]
            },
            "posttrain.mix": {"general": {"tokens": "50k", "skip": "1M"}},
            "finetune.mix.music": {"share": 0},
            "grid": {"pretrain.exposure": [0, 1], "finetune.mix.music.share": [0, 0.01]},
        },
    ),
    "laptop, anchors": replaced(LAPTOP, {"grid": {"pretrain.exposure": [0, 1], "finetune.anchor.l2sp": [0, 1e-3]}}),
    "laptop, EWC": replaced(
        LAPTOP,
        {
            "finetune.anchor": {"l2sp": 0.01, "sequences": 64, "ewc": 0},
            "grid": {"pretrain.exposure": [0, 1], "finetune.anchor.ewc": [0, 10]},
        },
    ),
    "laptop, DPO": replaced(
        LAPTOP,
        {
            "corpora.pairs": {"files": "p.jsonl", "prompt": "{q}", "chosen": "{a}", "rejected": "{b}"},
            "posttrain.corpus": "pairs",
            "pretrain.exposure": 1,
            "finetune.objective": {"dpo": 0.1},
            "finetune.corpus": "pairs",
            "grid": {"posttrain.objective": [None, {"dpo": 0.5}], "finetune.objective.dpo": [0.1, 0.5]},
        },
    ),
    "laptop, attention within documents": replaced(LAPTOP, {"documents": {"attention": "within"}}),
    "laptop, a chain of five stages": replaced(
        LAPTOP,
        {
            "stages": ["pretrain", "midtrain", "posttrain", "finetune", "finetune2"],
            "pretrain.min_lr": 2e-3,
            "midtrain": {
                "corpus": "general",
                "tokens": "100k",
                "skip": "1M",
                "lr": 2e-3,
                "batch": 32,
                "start": {"optimizer": "carry"},
            },
            "finetune2": {
                "corpus": "music",
                "tokens": "100k",
                "lr": 1e-4,
                "batch": 32,
                "early_stopping": {"every": 5, "patience": 2},
            },
            "finetune.passes": 2,
            "grid": {"midtrain.min_lr": [0, 2e-4], "finetune2.passes": [1, 2]},
        },
    ),
    "135M": PAPER,
    "135M, sizes of D_post": replaced(
        PAPER, {"grid": {"pretrain.exposure": [0, 0.25, 1], "posttrain.tokens": ["30M", "150M", "300M"]}}
    ),
    "1B, floor above peak": replaced(
        PAPER,
        {
            "model": "smollm2-1b",
            "pretrain.tokens": "19.7B",
            "posttrain.min_lr": 5e-5,
            "posttrain.batch": 512,
            "grid": {"posttrain.lr": [1e-5, 2e-5, 1e-4]},
        },
    ),
    "laptop, schedules": replaced(
        LAPTOP,
        {
            "pretrain.min_lr": 2e-4,
            "posttrain.floor": "rise",
            "posttrain.min_lr": 2e-3,
            "grid": {"pretrain.schedule": ["cosine", "linear", "constant", {"wsd": 0.2}]},
        },
    ),
    "laptop, optimisers": replaced(
        LAPTOP,
        {
            "posttrain.early_stopping": {"every": 10, "patience": 3, "after_warmup": True, "split": "tune"},
            "grid": {"pretrain.optimizer": ["adamw", "muon"], "pretrain.decay": ["matrices", "all"]},
        },
    ),
}


MEASURED: dict[str, Any] = replaced(
    LAPTOP,
    {"corpora.code": {"files": "code.jsonl"}, "evaluate": {"corpora": ["code"], "at": ["posttrain", "finetune"]}},
)
"""The laptop study with evaluations: its stages have the keys of `laptop`."""


VALUES = {("code", LAPTOP["sequence_length"]): HeldoutValues("0123456789", ("python", "rust"))}
"""The values of the corpus that is only measured."""


TASKS = {
    "arc_easy": TaskFacts(
        {"task": {"name": "arc_easy", "version": 1.0}, "harness": "0.4.13", "seed": 1234, "shots": 0, "limit": 500},
        {"acc": True, "acc_norm": True},
    ),
    "mine": TaskFacts(
        {"task": {"fingerprint": "0123456789"}, "harness": "0.4.13", "seed": 7, "shots": 2}, {"perplexity": False}
    ),
}
"""A task of the harness and one of the user's own."""


def _label(axes: Axes) -> str:
    """Axes as the file has them: Python's words for values, so that keys alone decide whether it changes."""
    return " ".join(f"{name}={value}" for name, value in axes.items()) or "-"


def golden_keys() -> dict[str, list[str]]:
    """The stages of each study, in the order of the tree, as `key stage axes`."""
    keys = {}
    for name, fields in STUDIES.items():
        file = check_study(fields, Path("golden.yaml"))
        tree = expand(file, made_up_facts(file))
        keys[name] = [f"{stage.key} {stage.stage} {_label(stage.axes)}" for stage in tree.stages.values()]
    file = check_study(MEASURED, Path("golden.yaml"))
    evaluations = asked_evaluations(expand(file, made_up_facts(file)))
    keys["laptop, evaluations"] = [f"{one.key} {one.stage} {_label(one.axes)}" for one in evaluations.values()]
    by = asked_evaluations(replace(expand(file, made_up_facts(file)), values=VALUES))
    keys["laptop, evaluations by value"] = [f"{one.key} {one.stage} {_label(one.axes)}" for one in by.values()]
    file = check_study(replaced(LAPTOP, {"grid": {"finetune.average": [0.5, 1]}}), Path("golden.yaml"))
    tree = replace(expand(file, made_up_facts(file)), measured={"finetune": ()}, tasks={"finetune": TASKS})
    found = [one for one in asked_evaluations(tree).values() if "evaluate.tasks" in one.axes]
    keys["laptop, tasks"] = [f"{one.key} {one.stage} {_label(one.axes)}" for one in found]
    return keys


if __name__ == "__main__":
    GOLDEN.write_text(json.dumps(golden_keys(), indent=1) + "\n")
