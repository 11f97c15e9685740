"""A small store with what studies of checkpoints leave: the checkpoint, a mask, an optimizer, evaluations, launches, probes."""

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from retain.datamodules.order.batches import recipe_digest
from retain.datamodules.order.digest import as_text
from retain.launchers.planning.opened_study import prepare_study
from retain.launchers.planning.register import register, register_evaluations
from retain.launchers.stage.on_end import begin_launch
from retain.results.store.runs import LOSSES
from retain.results.store.state import OPTIMIZER
from retain.sweeps.base.documents import write_document
from retain.sweeps.tree.evaluation_runs import asked_evaluations
from tests.families import tiny_checkpoint, tiny_tokenizer
from tests.launchers.checks.damages import Kind, Place, in_store, of_run
from tests.studies import tiny_study

STUDY: dict[str, Any] = {
    "study": "model",
    "model": {"hf": "checkpoint"},
    "corpora.music": {"files": "music.jsonl", "prompt": "Q: {text}", "response": " {text}", "heldout": 0.1},
    "stages": ["pretrain", "decay"],
    "pretrain": {"corpus": "general", "tokens": 2560, "lr": 1e-3, "batch": 8},
    "decay": {"corpus": "music", "tokens": 2560, "lr": 1e-3, "batch": 8, "start": {"optimizer": "carry"}},
    "evaluate": {"corpora": ["chemistry"], "at": ["pretrain"]},
    "grid": {},
    "execution": {"accelerator": "cpu", "on_end": "true"},
}
LOSS = {"loss": 1.0, "tokens": 310, "sequences": 10}


def make_model_place(folder: Path) -> Place:
    """A store with a prepared study of a checkpoint. Its first stage and the evaluation of it are done, without training."""
    checkpoint = tiny_checkpoint(folder / "study" / "checkpoint", "llama", tiny_tokenizer())
    for path in checkpoint.iterdir():
        path.chmod(0o644)  # transformers writes weights for their owner alone
    study = tiny_study(folder / "study", **STUDY)
    fields = yaml.safe_load(study.read_text())
    left_out = ("tokenizer", "posttrain", "finetune")
    study.write_text(yaml.safe_dump({name: value for name, value in fields.items() if name not in left_out}))
    opened = prepare_study(str(study), (), folder / "runs")
    register(opened.tree, opened.file, opened.facts, opened.store)
    evaluations = asked_evaluations(opened.tree, opened.facts.heldout_tokens)
    register_evaluations(evaluations, opened.tree, opened.file, opened.facts, opened.store)
    (evaluated,), (first, decay) = evaluations, opened.tree.trials[0].path
    run = opened.store.run(first)
    recipe = run.spec()["recipe"]
    model = run.folder / "new"
    model.mkdir()
    weights = next((opened.store.root / "checkpoints").glob("*/model.safetensors"))
    for name in ("model.safetensors", OPTIMIZER):
        shutil.copy(weights, model / name)
    digest = as_text(recipe_digest(recipe, opened.store.root, recipe["steps"]))
    losses = {"splits": dict.fromkeys(run.spec()["evaluation"], LOSS), "steps": recipe["steps"]}
    run.begin(1)
    run.finish(model, {LOSSES: losses | {"trained_tokens": 2560, "token_digest": digest}})
    write_document(run.folder / "probe-0123456789ab.json", {"settings": {}, "share": 0.5})
    measured = opened.store.run(evaluated)
    measured.begin(1)
    split = LOSS | {"corpus": measured.spec()["recipe"]["corpus"]}
    measured.finish(None, {LOSSES: {"splits": {"heldout": split}, "steps": 0, "trained_tokens": 0}})
    begin_launch(opened.store, opened.tree, "true")
    return Place(opened.store.root, study, study, measured.key, run.key, decay)


SHOWN = ("status tiny", "results tiny", "plan tiny")
MODEL_KINDS: Mapping[str, Kind] = {
    "checkpoint.json": Kind(in_store("checkpoints/*/checkpoint.json"), SHOWN),
    "config.json": Kind(in_store("checkpoints/*/config.json"), SHOWN, foreign=True, sealed=True),
    "weights of a checkpoint": Kind(in_store("checkpoints/*/model.safetensors"), SHOWN, json=False),
    "optimizer": Kind(of_run("trained", f"model/{OPTIMIZER}"), ("results tiny", "gc"), json=False),
    "mask": Kind(in_store("corpora/*/train.mask"), (*SHOWN, "data"), json=False),
    "last prepared": Kind(in_store("prepared/last/*.json"), SHOWN, optional=True),
    "stage.json of an evaluation": Kind(of_run("done", "stage.json"), ("status", *SHOWN, "gc", "cancel tiny")),
    "state.json of an evaluation": Kind(of_run("done", "state.json"), ("status", *SHOWN, "gc", "retry tiny")),
    "losses.json of an evaluation": Kind(of_run("done", "losses.json"), SHOWN, sealed=True),
    "probe": Kind(of_run("trained", "probe-*.json"), ("status tiny", "gc"), optional=True),
    "launch.json": Kind(in_store("studies/*/on_end/launch.json"), ("status tiny", "retry tiny"), optional=True),
    "study.json": Kind(in_store("studies/*/study.json"), SHOWN, optional=True),
}
"""The kinds of files of that store; its study takes the place of both studies of a `Place`."""
