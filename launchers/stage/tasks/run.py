"""The kind `task`: the metrics of a done stage's weights on a task, as the lm-evaluation-harness computes them.

The harness gets the model and the tokeniser of the store, and nothing from a network. Its random generators start from its own
seeds, so that a repetition on the same hardware gives the same bits. An interrupted evaluation starts again.
"""

import os

from retain.launchers.stage.environment import OFFLINE

# Before torch: cuBLAS is deterministic with a fixed workspace only. Before the harness: nothing is fetched, and it computes
# standard errors in this process.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
os.environ.update(OFFLINE | {"DISABLE_MULTIPROC": "1"})

import logging
import math
import random
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lm_eval.evaluator import evaluate
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from lm_eval.tasks._yaml_loader import _import_func_in_yml
from tqdm import tqdm  # type: ignore[import-untyped]
from transformers import PreTrainedModel, PreTrainedTokenizerFast

from retain.datamodules.corpora.tasks.definition import harness_tasks, harness_version
from retain.datamodules.corpora.tasks.prepare import TASKS, harness_config, stored_task, task_id
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.evaluate import measured_model
from retain.launchers.stage.log import log_line
from retain.launchers.stage.parent import usable_parent
from retain.launchers.stage.signals import AttemptStopped
from retain.launchers.stage.training.choose_numerics import Machine, begin_on_one_process
from retain.lightning_modules.compiled import deterministic_kernels
from retain.lightning_modules.models import on_device
from retain.results.store.disk import SMALL_FILES, check_room
from retain.results.store.runs import MEASURES
from retain.results.store.state import Progress
from retain.sweeps.base.errors import RetainError, StageFailedError

SEEDS = (0, 1234, 1234)
"""The harness's own seeds of Python's, NumPy's and torch's generators."""
TOKENS_OF_A_BATCH = 16_384
"""The tokens of a batch. It is fixed, as the size of a batch changes the last digits."""
RESAMPLES = 1000
"""The bootstrap samples for the standard error of a metric that is no mean."""


def attempt(context: AttemptContext) -> None:
    """Measure and finish a run, on one process. Raises StageFailedError, AttemptStopped, DamageError."""
    recipe, machine = context.spec["recipe"], begin_on_one_process(context)
    check_room(context.run.folder, SMALL_FILES)
    stage = usable_parent(context.store, context.spec["parent"])
    if recipe["harness"] != harness_version():
        raise StageFailedError(
            f"the run is one of lm_eval {recipe['harness']}, and {harness_version()} is installed; install the former, or "
            "evaluate the study again"
        )
    tokenizer = PreTrainedTokenizerFast.from_pretrained(
        context.store.root / "tokenizers" / context.spec["tokenizer"], local_files_only=True
    )
    model = on_device(measured_model(context, stage, recipe.get("average", 1.0)), machine.device)

    seen = 0

    def between(tokens: int) -> None:
        nonlocal seen
        if context.stop.signal:
            raise AttemptStopped(context.stop.signal)
        seen += tokens

    try:
        with deterministic_kernels():
            found = measure(recipe, context.store.root, model, tokenizer, machine, between)
    except (RetainError, AttemptStopped):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise StageFailedError(f"the harness cannot measure the task ({type(error).__name__}: {reason})") from error
    for name, metric in found["metrics"].items():
        log_line(f"{name} {metric['value']} (standard error {metric['stderr']})")
    log_line(f"{found['documents']:,} documents")
    context.report(Progress(seen, seen))
    context.finish(None, {MEASURES: found})


def measure(
    recipe: dict[str, Any],
    store: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    machine: Machine,
    between: Callable[[int], None] = lambda tokens: None,
) -> dict[str, Any]:
    """Return the content of measures.json: the metrics of a model on the task of a recipe.

    The harness's task is read from the installed package, any other from the store. between: called before each
    batch with the number of its tokens.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what Retain does on purpose
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which would outlive this process
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    torch.manual_seed(SEEDS[2])
    task = _task(recipe, store)
    task.set_config(key="num_fewshot", value=recipe["shots"])
    task.set_fewshot_seed(seed=recipe["seed"])
    context = int(getattr(model.config, "max_position_embeddings", 0) or 2048)
    harness = _Watched(
        pretrained=model.train(False),
        tokenizer=tokenizer,
        batch_size=max(1, TOKENS_OF_A_BATCH // context),
        mixed_precision_dtype="bfloat16" if machine.bf16 else None,
    )
    harness.between = between
    found: Any = evaluate(
        harness,
        {"tasks": {task.task_name: task}},
        limit=recipe.get("limit"),
        bootstrap_iters=RESAMPLES,
        log_samples=False,
    )
    results, higher = found["results"][task.task_name], found["higher_is_better"][task.task_name]
    metrics = {}
    for name in results:
        metric, comma, chosen = name.partition(",")
        if comma and not metric.endswith("_stderr"):
            metrics[metric if chosen == "none" else f"{metric}@{chosen}"] = {
                "value": _number(results[name]),
                "stderr": _number(results.get(f"{metric}_stderr,{chosen}")),
                "higher_is_better": bool(higher.get(metric, True)),
            }
    documents = found["n-samples"][task.task_name]["effective"]
    return {"metrics": metrics, "documents": documents, "shots": recipe["shots"], "harness": recipe["harness"]}


class _Watched(HFLM):  # type: ignore[misc]
    """The harness's own wrapper of a model, which can be interrupted between batches."""

    between: Callable[[int], None]

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().generate_until(requests, disable_tqdm=True)

    def _model_call(self, inps: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        self.between(inps.numel())
        return super()._model_call(inps, *arguments, **options)

    def _model_generate(self, context: torch.Tensor, *arguments: Any, **options: Any) -> Any:
        self.between(context.numel())
        return super()._model_generate(context, *arguments, **options)


def _task(recipe: dict[str, Any], store: Path) -> Any:
    """The harness's object of a task. Raises DamageError."""
    folder = store / TASKS / task_id(recipe["task"], recipe["harness"])
    own = stored_task(folder)["own"]
    spec: Any = str(harness_tasks() / own) if own else {"task": "task"} | harness_config(folder, _import_func_in_yml)
    (task,) = TaskManager(include_defaults=False).load([spec])["tasks"].values()
    return task


def _number(value: Any) -> float | None:
    """A value of the harness; None for one that is missing or not finite."""
    return float(value) if isinstance(value, int | float) and math.isfinite(value) else None
