"""`retain probe`: predict retention at θ_post, before any Stage 3 of full length.

There are three kinds of predictor: L_im; L_ret after a fine-tuning with a small share of the budget, which is a stage as any
other; and the share of the D_ft gradient in the span of D_post gradients. The gradients are kept in the folder of the run
whose weights they belong to, as probe-<digest>.json.
"""

import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from retain.launchers.planning.opened_study import OpenedStudy
from retain.results.analysis.methods import pipeline_of, with_pipelines
from retain.results.analysis.predictors import Prediction
from retain.results.store.garbage import freed_sentence
from retain.results.store.loss_table import trial_rows
from retain.results.store.readiness import is_ready
from retain.results.store.runs import Run, Store
from retain.results.store.state import read_probe
from retain.sweeps.base.documents import write_document
from retain.sweeps.base.errors import DamageError, StudyError
from retain.sweeps.schema.linear.study import LinearStudy
from retain.sweeps.tree.key_diff import stage_name
from retain.sweeps.tree.keys import canonical, stage_key
from retain.sweeps.tree.recipes.mixture import shortened
from retain.sweeps.tree.recipes.preference import PAIR, objective_of
from retain.sweeps.tree.tree import Stage, Tree, Trial

POSTTRAINING_BATCHES, FINETUNING_BATCHES, SEQUENCES = 32, 8, 8
"""For the gradients: the number of batches of D_post and of D_ft, and of held-out sequences in each batch."""
EXACT_PARAMETERS = 2_000_000
"""Gradients of larger models are sketched; exact ones of this size take 256 MB, and three times that for a moment."""
SKETCH = 65_536
"""The size of a sketch: a share has an error of about 0.6% of its value, and of at most 0.05 percentage points by chance."""
SEED = 0
FORMAT = 1
NOT_TRAINED = "θ_post is not trained yet; --train trains up to it"


@dataclass(frozen=True)
class Probes:
    """The short fine-tunings of a study."""

    tree: Tree
    """The short fine-tunings with all stages above them."""
    trials: list[Trial]
    """For each trial of `tree`, the trial of the study."""
    left_out: Mapping[str, int]
    """The number of trials that are left out, by the reason as a sentence."""

    @property
    def lacks_weights(self) -> bool:
        """Whether trials are left out because the weights that they start from were freed."""
        return any(why != NOT_TRAINED for why in self.left_out)


def short_probes(opened: OpenedStudy, share: float, train_missing: bool) -> Probes:
    """The short fine-tunings of the trials whose θ_post is done, or of all trials with `train_missing`. Raises StudyError."""
    if not 0 < share < 1:
        raise StudyError(f"--share {share:g}: this is a share of the fine-tuning budget; choose it between 0 and 1")
    if isinstance(opened.file.study, LinearStudy):
        raise StudyError(f"{opened.tree.study}: probe is for language models, and this is a linear study")
    tree, store = opened.tree, opened.store
    if opened.file.study.stages[-2:] != ("posttrain", "finetune"):
        raise StudyError(
            f"{opened.tree.study}: stages: probe predicts what a fine-tuning retains of post-training; the chain must end with "
            "posttrain and finetune"
        )
    if any(objective_of(stage.recipe) for stage in tree.stages.values()):
        raise StudyError(
            f"{tree.study}: objective: probe compares gradients of next-token losses, and a stage of the study learns from "
            "pairs; remove its objective"
        )
    states = store.states(tree.stages)
    stages: dict[str, Stage] = {}
    trials: list[Trial] = []
    probed: list[Trial] = []
    left_out: Counter[str] = Counter()
    for trial in (trial for trial in tree.trials if trial.average == 1):
        short = short_finetuning(tree.stages[trial.leaf], share)
        start = states[trial.path[-2]]
        if not is_ready(short, states) and not train_missing:
            left_out[NOT_TRAINED] += 1
        elif start.weights_freed and not store.run(short.key).is_done():
            left_out[freed_sentence([store.run(trial.path[-2])])] += 1
        else:
            stages |= {key: tree.stages[key] for key in tree.runs_of(trial)[:-1]} | {short.key: short}
            trials.append(trial)
            probed.append(replace(trial, keys=(*trial.keys[:-1], short.key)))
    return Probes(replace(tree, stages=stages, trials=probed), trials, left_out)


def short_finetuning(stage: Stage, share: float) -> Stage:
    """A fine-tuning with a share of its budget, mixture, warm-up and decay: the same stage as in a study with these numbers."""
    recipe = json.loads(stage.recipe)
    length = recipe["sequence_length"]
    unit = PAIR if "objective" in recipe else 1
    sequences = unit * max(1, int(recipe["sequences"] * share / unit))
    mix = shortened(recipe.pop("mix", ()), recipe["sequences"], sequences)
    distinct = min(recipe["distinct"], sequences - sum(part["sequences"] for part in mix))
    whole, steps = recipe["steps"], -(-sequences // recipe["batch"])
    warmup = min(int(recipe["warmup"] * share), steps - 1)
    recipe |= {"distinct": distinct, "sequences": sequences, "steps": steps, "warmup": warmup}
    recipe |= {"mix": mix} if mix else {}
    if isinstance(schedule := recipe.get("schedule"), dict):
        decay = max(1, int(schedule["wsd"] / whole * steps + 0.5))
        recipe["schedule"] = {"wsd": min(decay, steps - warmup)}
    text, tokens = canonical(recipe), sequences * length
    axes = stage.axes | {"finetune.tokens": tokens}
    return replace(stage, key=stage_key(stage.stage, stage.parent, text), recipe=text, tokens=tokens, axes=axes)


def predictions(opened: OpenedStudy, probes: Probes, report: Callable[[str], None]) -> list[Prediction]:
    """The value of every predictor for each probed trial whose θ_post is done, and its true L_ret if Stage 3 was trained.

    Measures the gradients that the store lacks; `report` gets a line about each. Raises MissingResourceError.
    """
    store, found = opened.store, []
    rows = with_pipelines(trial_rows(replace(opened.tree, trials=probes.trials), store))
    for trial, row, short in zip(probes.trials, rows, trial_rows(probes.tree, store), strict=True):
        start = store.run(trial.path[-2])
        if not start.is_done():
            continue
        recipe = json.loads(opened.tree.stages[trial.leaf].recipe)
        gradients = gradient_probe(store, start, recipe["corpus"], report)
        immediate, retained = row["immediate_posttraining_loss"], short["retained_posttraining_loss"]
        predictors = {
            "immediate_posttraining_loss": immediate,
            "short_retained_loss": retained,
            "short_forgetting": None if retained is None or immediate is None else retained - immediate,
            "gradient_share": gradients["share"] if gradients else None,
        }
        true = row["retained_posttraining_loss"]
        found.append(Prediction(trial.axes, start.key, pipeline_of(row), recipe["lr"], true, predictors))
    return found


def gradient_probe(store: Store, start: Run, finetuning: str, report: Callable[[str], None]) -> dict[str, Any] | None:
    """The share of D_ft's gradient in the span of D_post's gradients at θ_post, measured once and kept in its run's folder.

    start: the run with the weights θ_post. finetuning: D_ft's fingerprint. Both corpora are their held-out splits. None if
    the weights were freed before it was measured, or if the run is not evaluated on D_post. Raises MissingResourceError.
    """
    posttraining = start.spec()["evaluation"].get("posttraining")
    if posttraining is None:
        return None
    settings = probe_settings(posttraining, finetuning)
    place = probe_file(start, settings)
    try:
        return dict(read_probe(place))
    except FileNotFoundError:
        pass
    except DamageError as error:
        report(f"{str(error).partition(';')[0]}; it is measured again")
    if start.state().weights_freed:
        report(f"the gradients are unknown: {freed_sentence([start])}")
        return None
    report(f"{time.strftime('%H:%M:%S')} gradients at {stage_name(start.spec())} {start.key[:8]}")
    measured = {"settings": settings, **_measure(store, start, settings)}
    write_document(place, measured)
    return measured


def probe_settings(posttraining: str, finetuning: str) -> dict[str, Any]:
    """Everything that a gradient probe depends on, except the weights; the corpora by their fingerprints."""
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
    """The file of a probe of θ_post. It is no part of the run's result: neither the key nor the checksums cover it."""
    return start.folder / f"probe-{hashlib.sha256(canonical(settings).encode()).hexdigest()[:12]}.json"


def _measure(store: Store, start: Run, settings: Mapping[str, Any]) -> dict[str, Any]:
    import torch

    from retain.datamodules.corpora.prepared import stored_tokenizer
    from retain.datamodules.order.stage_data import heldout_sequences
    from retain.launchers.stage.parent import usable_parent
    from retain.lightning_modules.gradient_span import Sketch, share_in_span
    from retain.lightning_modules.models import load_model, on_device

    execution = start.execution()
    gpu = execution["accelerator"] != "cpu" and torch.cuda.is_available()
    if not gpu:
        torch.set_num_threads(execution["threads"])
    began = time.monotonic()
    model = on_device(load_model(usable_parent(store, start.key).model), "cuda" if gpu else "cpu")
    parameters = sum(parameter.numel() for parameter in model.parameters())
    sketch = Sketch(None if parameters <= settings["exact_parameters"] else settings["sketch"], settings["seed"])

    def batches(corpus: str, count: int) -> list[torch.Tensor]:
        """Held-out sequences in the order of the seed; fewer batches if the split is small."""
        sequences = heldout_sequences(store.root, corpus)
        order = torch.randperm(len(sequences), generator=torch.Generator().manual_seed(settings["seed"]))
        size = min(settings["sequences"], -(-len(sequences) // count))
        return list(torch.split(sequences[order[: count * size]], size))

    spanning = batches(settings["posttraining"], settings["posttraining_batches"])
    asked = batches(settings["finetuning"], settings["finetuning_batches"])
    spec, micro_batch = start.spec(), execution["micro_batch"] or settings["sequences"]
    end_of_text = stored_tokenizer(store.root, spec["tokenizer"]).end_id if "documents" in spec["recipe"] else None
    found = share_in_span(model, spanning, asked, sketch, micro_batch, end_of_text)
    return {
        "share": found.mean,
        "shares": list(found.shares),
        "rank": found.rank,
        "posttraining_batches": len(spanning),
        "finetuning_batches": len(asked),
        "parameters": parameters,
        "sketch": sketch.size,
        "seconds": time.monotonic() - began,
    }
