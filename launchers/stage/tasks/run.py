"""The kind `task`: the metrics of a done stage's weights on a task, as the lm-evaluation-harness computes them.

The harness gets the model and the tokeniser of the store, and nothing from a network. Its random generators start from its own
seeds, so that a repetition on the same hardware gives the same bits. An attempt saves the answers of the model on the way, and
the next one continues with them to the same bits.
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
from collections.abc import Callable, Sequence
from functools import partial
from itertools import chain, groupby
from pathlib import Path
from typing import Any

import numpy as np
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
from retain.launchers.stage.tasks.answers import Answers
from retain.launchers.stage.training.choose_numerics import Machine, begin_on_one_process
from retain.lightning_modules.compiled import deterministic_kernels
from retain.results.store.disk import SMALL_FILES, check_room
from retain.results.store.runs import MEASURES
from retain.results.store.state import Progress
from retain.sweeps.base.errors import RetainError, StageFailedError

SEEDS = (0, 1234)
"""The harness's own seeds of Python's and NumPy's generators."""
TOKENS_OF_A_BATCH = 16_384
"""The tokens of a batch. It is fixed, as the size of a batch changes the last digits."""
RESAMPLES = 1000
"""The bootstrap samples for the standard error of a metric that is no mean."""


def attempt(context: AttemptContext) -> None:
    """Measure and finish a run, on one process. Raises StageFailedError, AttemptStopped, DamageError."""
    recipe, answers = context.spec["recipe"], Answers(context)
    machine = begin_on_one_process(context, answers.saved_tokens)
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
    model = machine.receive(measured_model(context, stage, recipe.get("average", 1.0)))
    if answers.saved:
        log_line(f"resumes after {len(answers.saved)} batches of requests")
    try:
        with deterministic_kernels():
            found = measure(recipe, context.store.root, model, tokenizer, machine, answers)
    except (RetainError, AttemptStopped):
        raise
    except Exception as error:
        reason = " ".join(str(error).split())[:300]
        raise StageFailedError(f"the harness cannot measure the task ({type(error).__name__}: {reason})") from error
    for name, metric in found["metrics"].items():
        log_line(f"{name} {metric['value']} (standard error {metric['stderr']})")
    log_line(f"{found['documents']:,} documents")
    context.report(Progress(answers.tokens, answers.tokens))
    context.finish(None, {MEASURES: found})


def measure(
    recipe: dict[str, Any],
    store: Path,
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerFast,
    machine: Machine,
    answers: Answers,
) -> dict[str, Any]:
    """Return the content of measures.json: the metrics of a model on the task of a recipe.

    The harness's task is read from the installed package, any other from the store. answers: takes those of the model.
    """
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of what Retain does on purpose
    tqdm.set_lock(threading.RLock())  # its own is a semaphore, which would outlive this process
    random.seed(SEEDS[0])
    np.random.seed(SEEDS[1])
    task = _task(recipe, store)
    task.set_config(key="num_fewshot", value=recipe["shots"])
    task.set_fewshot_seed(seed=recipe["seed"])
    context = int(getattr(model.config, "max_position_embeddings", 0) or 2048)
    harness = _Resumable(
        pretrained=model.train(False),
        tokenizer=tokenizer,
        batch_size=max(1, TOKENS_OF_A_BATCH // context),
        mixed_precision_dtype="bfloat16" if machine.bf16 else None,
        softmax_dtype="float32",  # as held-out losses have it
    )
    harness.answers = answers
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


class _Resumable(HFLM):  # type: ignore[misc]
    """The harness's own wrapper of a model, which is asked one of the harness's batches at a time."""

    answers: Answers

    def loglikelihood(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood(requests, disable_tqdm=True)

    def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = True) -> Any:
        return super().loglikelihood_rolling(requests, disable_tqdm=True)

    def generate_until(self, requests: Any, disable_tqdm: bool = True) -> Any:
        """The longest prompts first."""
        asked = [one.args for one in requests]
        lengths = [len(self.tok_encode(prompt)) for prompt, _ in asked]
        order = sorted(range(len(asked)), key=lambda place: (-lengths[place], asked[place][0]))
        ask = partial(super().generate_until, disable_tqdm=True)
        return self._in_batches([[place] for place in order], requests, asked, lengths, ask)

    def _loglikelihood_tokens(self, requests: Any, disable_tqdm: bool = True, override_bs: int | None = None) -> Any:
        """The longest texts first. Those that differ in their last token alone are one text to the model, and so one batch."""
        texts = [(*context, *continuation) for _, context, continuation in requests]
        order = sorted(range(len(texts)), key=lambda place: (-len(texts[place]), texts[place]))
        groups = [list(same) for _, same in groupby(order, key=lambda place: texts[place][:-1])]
        ask = partial(super()._loglikelihood_tokens, disable_tqdm=True)
        return self._in_batches(groups, requests, requests, [len(text) for text in texts], ask)

    def _in_batches(
        self,
        groups: Sequence[Sequence[int]],
        requests: Sequence[Any],
        asked: Sequence[Any],
        lengths: Sequence[int],
        ask: Callable[[list[Any]], Any],
    ) -> list[Any]:
        """The answers to requests, as many groups of them at a time as the model takes texts.

        groups: of places of requests, in order. asked: the requests as plain values. lengths: in tokens.
        """
        found: dict[int, Any] = {}
        for first in range(0, len(groups), self.batch_size):
            batch = groups[first : first + self.batch_size]
            places, tokens = list(chain.from_iterable(batch)), sum(lengths[group[0]] for group in batch)
            ask_these = partial(ask, [requests[place] for place in places])
            answers = self.answers.of([asked[place] for place in places], tokens, ask_these)
            found |= zip(places, answers, strict=True)
        return [found[place] for place in range(len(requests))]


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
