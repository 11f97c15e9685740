"""What `precision: auto` and `compile: auto` are for a stage on CPUs: measured once for a kind of step and processor, and kept.

The answer of the store decides, not the moment: whoever measures first holds a lock, and all others take what it has found.
"""

import contextlib
import fcntl
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel

from retain.launchers.speed.choice import Choice, choose_bf16, compiling, precision_name, too_few, worth_trying
from retain.launchers.speed.folder import made_private_folder
from retain.launchers.speed.measured import Speeds, read_speeds, write_speeds
from retain.launchers.speed.shape import path_of, place_of, step_shape, steps_so_far
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.measuring.timing import Poll, Timed, time_compiled, time_precisions
from retain.launchers.stage.signals import AttemptStopped
from retain.lightning_modules.compiled import first_line, why_not_compiled

POLL_S = 0.1
AUTO = "auto"


def cpu_defaults(
    context: AttemptContext, execution: Mapping[str, Any], model: PreTrainedModel, end_of_text: int | None
) -> tuple[Choice, Choice]:
    """Whether steps are in bf16, and whether they are compiled, where the study leaves it open: fp32 and no, unless measured.

    Raises AttemptStopped after a stop signal.
    """
    path = path_of(context.store, context.spec)
    if why := too_few(steps_so_far(path)):
        return Choice(False, why), Choice(False, why)
    folder = made_private_folder(context.store.root)
    if folder is None:
        why = "the store has no private folder in which measured speeds could be kept (docs/speed.md)"
        return Choice(False, why), Choice(False, why)
    shape = step_shape(path, execution)
    recipe = context.spec["recipe"]
    timed = Timed(model, recipe, shape["sequences"], end_of_text, shape["checkpointing"])
    try:
        return _measured(context, execution, timed, place_of(folder, shape), shape)
    except AttemptStopped:
        raise
    except Exception as error:  # a kernel or a compiler may raise anything
        if context.stop.signal:
            raise AttemptStopped(context.stop.signal) from error
        why = f"measuring failed ({first_line(error)})"
        return Choice(False, why), Choice(False, why)


def _measured(
    context: AttemptContext, execution: Mapping[str, Any], timed: Timed, place: Path, shape: Mapping[str, Any]
) -> tuple[Choice, Choice]:
    def poll() -> None:
        if context.stop.signal:
            raise AttemptStopped(context.stop.signal)

    place.parent.mkdir(exist_ok=True)
    with _alone(place, poll):
        speeds = read_speeds(place)
        # 1. Time uncompiled steps in both precisions, unless the store knows them.
        if speeds is None:
            print("measures steps in fp32 and in bf16", flush=True)
            fp32, bf16 = time_precisions(timed, poll)
            speeds = Speeds(fp32=fp32, bf16=bf16, of=dict(shape))
            write_speeds(place, speeds)
        own = execution["precision"]
        precise = choose_bf16(speeds) if own == AUTO else Choice(own == "bf16", "as the study says")
        # 2. Compile in order to measure it, if the steps of this process are many.
        kind, steps = precision_name(precise.taken), timed.recipe["steps"] * context.runs
        if execution.get("compile", AUTO) != AUTO:
            return precise, Choice(False, "as the study says")
        known = speeds.get("compiled", {})
        if kind not in known and worth_trying(speeds[kind], steps).taken:
            if why := why_not_compiled(torch.device("cpu")):
                return precise, Choice(False, f"this machine cannot compile ({why})")
            print(f"compiles steps in {kind} to measure them", flush=True)
            speeds["compiled"] = {**known, kind: time_compiled(timed, precise.taken, poll)}
            write_speeds(place, speeds)
        return precise, compiling(speeds, kind, steps)


@contextlib.contextmanager
def _alone(place: Path, poll: Poll) -> Iterator[None]:
    """Hold the lock of a file of speeds during the block. The lock of a process that has died is free."""
    with place.with_suffix(".lock").open("a+") as stream:
        while True:
            try:
                fcntl.flock(stream, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                poll()
                time.sleep(POLL_S)
        yield
