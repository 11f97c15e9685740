"""`retain probe`: what can be known of retention at θ_post, before any Stage 3 of full length.

Three kinds of predictor: L_im itself; L_ret after a fine-tuning of a small share of the budget, which is a stage like any
other; and the share of the D_ft gradient inside the span of D_post gradients, which is kept beside the weights that it is
of, as probe-<digest>.json.
"""

import hashlib
import json
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retain.launchers.planning.opened_study import OpenedStudy
from retain.results.analysis.methods import pipeline_of
from retain.results.analysis.predictors import Prediction
from retain.results.store.garbage import freed_sentence
from retain.results.store.loss_table import Row, trial_rows
from retain.results.store.runs import Run, Store
from retain.results.store.state import State
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.base.files import read_json, write_json
from retain.sweeps.schema.linear import LinearStudy
from retain.sweeps.tree.keys import canonical, stage_key
from retain.sweeps.tree.tree import Stage, Tree, Trial

POSTTRAINING_BATCHES, FINETUNING_BATCHES, SEQUENCES = 32, 8, 8
"""Of the gradients: batches of D_post and of D_ft, and held-out sequences in each."""
EXACT_PARAMETERS = 2_000_000
"""Gradients of larger models are sketched; exact ones of this size take 256 MB, and for a moment three times that."""
SKETCH = 65_536
"""Numbers of a sketch: shares are off by about 0.6% of themselves, and by 0.05% of the whole at most by chance."""
SEED = 0
FORMAT = 1
NOT_TRAINED = "θ_post is not trained yet: retain run does, and retain probe --train up to it"


@dataclass(frozen=True)
class Probes:
    """The short fine-tunings of a study with all that they start from, as a tree of its own."""

    tree: Tree
    short: Mapping[str, str]
    """The key of the short fine-tuning for that of each trial's own."""
    left_out: Mapping[str, int]
    """Why trials are left out, a sentence, and how many."""

    @property
    def lacks_weights(self) -> bool:
        """Whether trials are left out because the weights that they start from were freed."""
        return any(why != NOT_TRAINED for why in self.left_out)


def short_probes(opened: OpenedStudy, share: float, train_missing: bool) -> Probes:
    """The short fine-tunings of the trials whose θ_post is there, or with `train_missing` of all. Raises StudyError."""
    if not 0 < share < 1:
        raise StudyError(f"--share {share:g}: this is a share of the fine-tuning budget; choose it within 0.01 to 0.05")
    if isinstance(opened.file.study, LinearStudy):
        raise StudyError(f"{opened.tree.study}: probe is for language models, and this is a linear study")
    tree, store = opened.tree, opened.store
    states = store.states(tree.stages)
    stages: dict[str, Stage] = {}
    short: dict[str, str] = {}
    trials: list[Trial] = []
    left_out: dict[str, int] = {}
    for trial in tree.trials:
        stage = short_finetuning(tree.stages[trial.finetune], share)
        if why := _unready(store, stage, states, train_missing):
            left_out[why] = left_out.get(why, 0) + 1
            continue
        short[trial.finetune] = stage.key
        stages |= {key: tree.stages[key] for key in trial.path[:-1]} | {stage.key: stage}
        trials.append(replace(trial, finetune=stage.key))
    return Probes(replace(tree, stages=stages, trials=trials), short, left_out)


def short_finetuning(stage: Stage, share: float) -> Stage:
    """A fine-tuning cut to a share of its budget and warm-up: the stage that a study with these numbers has."""
    recipe = json.loads(stage.recipe)
    length = recipe["sequence_length"]
    sequences = max(1, int(recipe["sequences"] * share))
    steps = -(-sequences // recipe["batch"])
    warmup = min(int(recipe["warmup"] * share), steps - 1)
    recipe |= {"distinct": sequences, "sequences": sequences, "steps": steps, "warmup": warmup}
    text, tokens = canonical(recipe), sequences * length
    axes = stage.axes | {"finetune.tokens": tokens}
    return replace(stage, key=stage_key(stage.stage, stage.parent, text), recipe=text, tokens=tokens, axes=axes)


def predictions(opened: OpenedStudy, probes: Probes, tell: Callable[[str], None]) -> list[Prediction]:
    """What every predictor says of each trial that is probed, and its true L_ret where Stage 3 was trained.

    Measures the gradients that the store lacks, and tells of each. Raises MissingResourceError.
    """
    store = opened.store
    found = []
    for trial, row in zip(opened.tree.trials, trial_rows(opened.tree, store), strict=True):
        if trial.finetune not in probes.short or not store.run(trial.path[-2]).is_done():
            continue
        recipe = json.loads(opened.tree.stages[trial.finetune].recipe)
        gradients = gradient_probe(store, store.run(trial.path[-2]), recipe["corpus"], tell)
        found.append(
            _prediction(trial, row, recipe["lr"], _short_loss(store.run(probes.short[trial.finetune])), gradients)
        )
    return found


def gradient_probe(
    store: Store, start: Run, finetuning: str, tell: Callable[[str], None] = lambda line: None
) -> dict[str, Any] | None:
    """The share of D_ft's gradient inside the span of D_post's at θ_post, measured once and kept in its run's folder.

    start: the run whose weights are θ_post. finetuning: D_ft's fingerprint. Both splits are the held-out ones. None where
    it cannot be known: the weights were freed, or the run is judged on no D_post. Raises MissingResourceError.
    """
    posttraining = start.spec()["evaluation"].get("posttraining")
    if posttraining is None:
        return None
    settings = probe_settings(posttraining, finetuning)
    place = probe_file(start, settings)
    if (kept := _kept(place)) is not None:
        return kept
    if start.state().weights_freed:
        tell(f"its gradients are not known: {freed_sentence([start])}")
        return None
    tell(f"{time.strftime('%H:%M:%S')} gradients at {start.spec()['stage']} {start.key[:8]}")
    measured = {"settings": settings, **_measure(store, start, settings)}
    write_json(place, measured)
    return measured


def probe_settings(posttraining: str, finetuning: str) -> dict[str, Any]:
    """All that a gradient probe depends on beside the weights; the corpora by their fingerprints."""
    return {
        "format": FORMAT,
        "posttraining": posttraining,
        "finetuning": finetuning,
        "split": "heldout",
        "posttraining_batches": POSTTRAINING_BATCHES,
        "finetuning_batches": FINETUNING_BATCHES,
        "sequences": SEQUENCES,
        "exact_parameters": EXACT_PARAMETERS,
        "sketch": SKETCH,
        "seed": SEED,
    }


def probe_file(start: Run, settings: Mapping[str, Any]) -> Path:
    """Where a probe of θ_post lies. No part of the run's result: neither its key nor its checksums know it."""
    return start.folder / f"probe-{hashlib.sha256(canonical(settings).encode()).hexdigest()[:12]}.json"


def _unready(store: Store, short: Stage, states: Mapping[str, State], train_missing: bool) -> str | None:
    """Why a trial cannot be probed now; None where it can. short: its short fine-tuning."""
    assert short.parent is not None
    start = states[short.parent]
    if start.state != "done":
        return None if train_missing else NOT_TRAINED
    if start.weights_freed and not store.run(short.key).is_done():
        return freed_sentence([store.run(short.parent)])
    return None


def _prediction(
    trial: Trial, row: Row, rate: float, short: float | None, gradients: Mapping[str, Any] | None
) -> Prediction:
    immediate = row["immediate_posttraining_loss"]
    predictors = {
        "immediate_posttraining_loss": immediate,
        "short_retained_loss": short,
        "short_forgetting": None if short is None or immediate is None else short - immediate,
        "gradient_share": gradients["share"] if gradients else None,
    }
    return Prediction(trial.axes, trial.path[-2], pipeline_of(row), rate, row["retained_posttraining_loss"], predictors)


def _short_loss(run: Run) -> float | None:
    """L_ret after the short fine-tuning; None where it is not done."""
    if not run.is_done():
        return None
    split = run.losses()["splits"].get("posttraining")
    return None if split is None else float(split["loss"])


def _kept(place: Path) -> dict[str, Any] | None:
    try:
        return dict(read_json(place))
    except (FileNotFoundError, MissingResourceError):  # a damaged one is measured again
        return None


def _measure(store: Store, start: Run, settings: Mapping[str, Any]) -> dict[str, Any]:
    import torch
    from transformers.utils import logging as transformers_logging

    from retain.datamodules.order.stage_data import heldout_sequences
    from retain.launchers.stage.parent import usable_parent
    from retain.lightning_modules.gradient_span import Sketch, share_in_span
    from retain.lightning_modules.models import load_model

    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    execution = start.execution()
    gpu = execution["accelerator"] != "cpu" and torch.cuda.is_available()
    if not gpu:
        torch.set_num_threads(execution["threads"])
    begun = time.monotonic()
    model = load_model(usable_parent(store, {"parent": start.key}).model).to("cuda" if gpu else "cpu")  # type: ignore[arg-type]
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sketch = Sketch(None if parameters <= settings["exact_parameters"] else settings["sketch"], settings["seed"])

    def batches(corpus: str, count: int) -> list[torch.Tensor]:
        """Held-out sequences drawn once by the seed; fewer batches where the split is small."""
        sequences = heldout_sequences(store.root, corpus)
        order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(settings["seed"]))
        size = min(settings["sequences"], -(-len(sequences) // count))
        return list(torch.split(sequences[order[: count * size]], size))

    spanning = batches(settings["posttraining"], settings["posttraining_batches"])
    asked = batches(settings["finetuning"], settings["finetuning_batches"])
    found = share_in_span(model, spanning, asked, sketch, execution["micro_batch"] or settings["sequences"])
    return {
        "share": found.mean,
        "shares": list(found.shares),
        "rank": found.rank,
        "posttraining_batches": len(spanning),
        "finetuning_batches": len(asked),
        "parameters": parameters,
        "sketch": sketch.size,
        "seconds": time.monotonic() - begun,
    }
