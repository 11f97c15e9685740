"""How a run computes its steps, as its first attempt settled it: what changes their last bits, and not what they mean."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from retain.results.store.runs import Run
from retain.sweeps.base.files import read_json, write_json

FILE = "steps.json"


@dataclass(frozen=True)
class StepForm:
    compiled: bool
    micro_batch: int | None
    """Sequences that one process takes at a time; None: its whole share of a batch."""
    bf16: bool | None = None
    """This and what follows: None in runs that began before it was recorded."""
    threads: int | None = None
    """Of one process; None on a GPU."""
    sharded: bool | None = None
    """Whether ranks hold the weights in parts."""


_WORDS: dict[str, Callable[[Any], str]] = {
    "compiled": lambda compiled: "compiled steps" if compiled else "steps that are not compiled",
    "micro_batch": lambda size: f"{size} sequences at a time" if size else "its whole share of a batch at a time",
    "bf16": lambda bf16: "bf16" if bf16 else "fp32",
    "threads": lambda threads: f"{threads} threads",
    "sharded": lambda sharded: "weights in parts" if sharded else "all weights in every process",
}


def differences(before: StepForm, now: StepForm) -> list[str]:
    """A note on each part of a run's form that an attempt changes, for who reads its results."""
    kept, taken = asdict(before), asdict(now)
    return [
        f"goes on with {words(taken[name])}, and began with {words(kept[name])}: the same batches, other last bits"
        for name, words in _WORDS.items()
        if taken[name] != kept[name] and (name == "micro_batch" or None not in (taken[name], kept[name]))
    ]


def recorded_form(run: Run) -> StepForm | None:
    """That of the attempts so far; None where none has trained."""
    try:
        return StepForm(**read_json(run.folder / FILE))
    except FileNotFoundError:
        return None


def record_form(run: Run, form: StepForm) -> None:
    write_json(run.folder / FILE, asdict(form))
