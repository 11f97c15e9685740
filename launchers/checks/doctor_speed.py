"""The defaults of `execution` that depend on the machine, for the doctor: what they are here, and why."""

import importlib.metadata
from collections.abc import Iterator
from pathlib import Path

from retain.launchers.checks.finding import NOTE, OK, Finding
from retain.launchers.speed.choice import FEWEST_STEPS, LEAST_GAIN, choose_bf16, choose_compiled
from retain.launchers.speed.folder import is_private, private_folder, processor_name
from retain.launchers.speed.measured import Speeds, all_speeds
from retain.launchers.speed.shape import shape_words
from retain.sweeps.base.processes.names import usable_cores
from retain.sweeps.base.units import counted

MOST = 6
"""The most kinds of steps that are listed."""


def default_findings(store: Path, gpus: bool) -> list[Finding]:
    """What accelerator, precision, compile, micro_batch and parallel mean here if a study leaves them out."""
    if gpus:
        what = "accelerator gpu; precision bf16; compiled; the largest micro-batch that fits; one stage at a time on each GPU"
        return [Finding("defaults", OK, f"{what}; to change one, set execution.FIELD in a study")]
    cores = usable_cores()
    at_a_time = f"{counted(cores, 'stage')} at a time of 1 thread each, as there are {counted(cores, 'core')}"
    what = f"accelerator cpu, as there are no GPUs; {at_a_time}"
    rule = (
        f"precision fp32 and not compiled, unless measurements favour bf16 (a step {LEAST_GAIN} times as fast) or compiling "
        f"(saves more time than it takes); paths of under {FEWEST_STEPS} steps are not measured"
    )
    return [Finding("defaults", OK, what), Finding("defaults", OK, rule), *_measured(store)]


def _measured(store: Path) -> Iterator[Finding]:
    """A finding for each kind of step that the store has measured on this kind of processor."""
    name = processor_name()
    try:
        folder = private_folder(store)
        private = is_private(folder.parent)
    except (OSError, importlib.metadata.PackageNotFoundError):
        yield Finding("speeds", OK, f"nothing is measured on {name} in this store yet")
        return
    if not private:
        cure = "so nothing is measured; make it yours with mode 0700, or delete it"
        yield Finding("speeds", NOTE, f"{folder.parent} is not yours alone, {cure}")
        return
    found = list(all_speeds(folder))
    for speeds in found[:MOST]:
        yield Finding("speeds", OK, f"{name}, {shape_words(speeds['of'])}: {_words(speeds)}")
    if len(found) > MOST:
        yield Finding("speeds", OK, f"{len(found) - MOST} more kinds of steps are measured ({folder / 'steps'})")
    if not found:
        yield Finding("speeds", OK, f"nothing is measured on {name} in this store yet")


def _words(speeds: Speeds) -> str:
    choice = choose_bf16(speeds)
    compiled = [
        f"compiled in {precision}, {choose_compiled(one, FEWEST_STEPS).reason}"
        for precision, one in sorted(speeds.get("compiled", {}).items())
    ]
    return "; ".join([f"{'bf16' if choice.taken else 'fp32'}, as {choice.reason}", *compiled])
