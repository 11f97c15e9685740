"""How a run computes its steps: choices that change floating-point results slightly, but not what is computed.

The first attempt records them, and later attempts keep them so that the run ends in the same bits.
"""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from retain.results.store.runs import Run
from retain.sweeps.base.documents import read_document, write_document

FILE = "steps.json"


@dataclass(frozen=True)
class Numerics:
    """The choices of a run that attempts record and keep."""

    compiled: bool
    micro_batch: int | None
    """Sequences that one rank computes at a time; None: its whole share of a batch."""
    bf16: bool | None = None
    """None, like the fields below, in runs that began before this field was recorded."""
    threads: int | None = None
    """Threads of one rank; None on a GPU."""
    sharded: bool | None = None
    """Whether the weights are sharded over the ranks."""
    flex_attention: bool | None = None
    """Whether tokens attend within documents by FlexAttention, not by masks; None where they attend across documents."""
    deterministic: bool | None = None
    """Whether every kernel is deterministic."""


_WORDS: dict[str, Callable[[Any], str]] = {
    "compiled": lambda compiled: "compiled steps" if compiled else "uncompiled steps",
    "micro_batch": lambda size: f"a micro-batch of {size} sequences" if size else "no micro-batches",
    "bf16": lambda bf16: "bf16" if bf16 else "fp32",
    "threads": lambda threads: f"{threads} threads",
    "sharded": lambda sharded: "sharded weights" if sharded else "all weights on every rank",
    "flex_attention": lambda flex: "FlexAttention" if flex else "attention masks",
    "deterministic": lambda deterministic: f"{'' if deterministic else 'non-'}deterministic kernels",
}


def differences(before: Numerics, now: Numerics) -> list[str]:
    """One note for each choice in which an attempt differs from earlier ones, for readers of the results."""
    kept, taken = asdict(before), asdict(now)
    return [
        f"resumes with {words(taken[name])}; the run began with {words(kept[name])}: same batches, not bit-identical"
        for name, words in _WORDS.items()
        if taken[name] != kept[name] and (name == "micro_batch" or None not in (taken[name], kept[name]))
    ]


def steps_words(numerics: Numerics) -> str:
    """How steps are computed, for the attempt: `bf16, compiled`."""
    return f"{_WORDS['bf16'](numerics.bf16)}, {'compiled' if numerics.compiled else 'uncompiled'}"


def recorded_numerics(run: Run) -> Numerics | None:
    """The choices of earlier attempts; None if no attempt has trained. Raises DamageError."""
    cure = "delete this file; the next attempt chooses again, and may then not be bit-identical"
    try:
        return read_document(run.folder / FILE, Numerics, cure)
    except FileNotFoundError:
        return None


def record_numerics(run: Run, numerics: Numerics) -> None:
    """Keep the choices for later attempts."""
    write_document(run.folder / FILE, asdict(numerics))
