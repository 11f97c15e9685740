"""`retain export`: copy a done run into a new Hugging Face folder."""

import json
import os
import shutil
from pathlib import Path
from typing import Any

from retain.results.store.garbage import freed_sentence
from retain.results.store.runs import Run, Store
from retain.results.store.state import OPTIMIZER
from retain.results.store.verify import damaged_files
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.base.files import sync_folder, writing
from retain.sweeps.tree.key_diff import stage_name
from retain.sweeps.tree.linear_stage import LINEAR_METHOD


def export_run(store: Store, run: Run, to: Path) -> Path:
    """Copy a run's weights and tokeniser, with a model card, to a new folder.

    Raises StudyError, MissingResourceError.
    """
    if not run.is_done():
        raise StudyError(
            f"{run.key}: the run is {run.state().state}, and only a done run has final weights; train it first"
        )
    if "measure" in (spec := run.spec())["recipe"]:
        raise StudyError(
            f"{run.key}: the run is no model but a measurement of {spec['parent'] or 'a checkpoint'}; export that run, or a "
            "stage of a study"
        )
    if spec["recipe"].get("method") == LINEAR_METHOD:
        raise StudyError(f"{run.key}: a linear model has no Hugging Face form; its matrices are in {run.model}")
    if run.state().weights_freed:
        raise MissingResourceError(freed_sentence([run]))
    if damaged := damaged_files(run):
        raise MissingResourceError(f"{run.key}: {damaged[0]}; delete the run's folder and train it again")
    if to.exists():
        raise StudyError(f"--to {to}: exists already; name a new folder")
    beside = to.with_name(f".{to.name}.{os.getpid()}")
    try:
        with writing(f"--to {to}", "choose another folder"):
            to.parent.mkdir(parents=True, exist_ok=True)
            beside.mkdir()
            for file in (file for file in run.model.iterdir() if file.name != OPTIMIZER):
                shutil.copyfile(file, beside / file.name)  # not the modes of the store, which may be another user's
            (beside / "README.md").write_text(model_card(store, run), encoding="utf-8")
            sync_folder(beside)
            beside.rename(to)
    finally:
        shutil.rmtree(beside, ignore_errors=True)
    return to


def model_card(store: Store, run: Run) -> str:
    """Where the weights come from: the path of stages with their recipes, and the held-out losses."""
    path: list[dict[str, Any]] = [run.spec()]
    while parent := path[0]["parent"]:
        path.insert(0, store.run(parent).spec())
    losses = run.losses()["splits"]
    lines = ["---", "library_name: transformers", "---", ""]
    lines += [f"# {path[-1]['study']}: {stage_name(path[-1])} {run.key}", ""]
    lines += ["Trained by Retain in the stages below, each from the weights of the one before.", ""]
    lines += ["| held-out split | loss (nats per token) | tokens |", "|---|---|---|"]
    lines += [f"| {name} | {loss['loss']:.4f} | {loss['tokens']:,} |" for name, loss in losses.items()]
    for stage in path:
        recipe = json.dumps(stage["recipe"], indent=1)
        lines += ["", f"## {stage_name(stage)} {stage['key']}", "", "```json", recipe, "```"]
    return "\n".join(lines) + "\n"
