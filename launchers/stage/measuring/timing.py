"""Time steps as a stage computes them: forward, backward, clipping and optimiser, on a few layers of the stage's own model.

All times are seconds of the processor for one thread, so that other processes on the machine hardly change them.
"""

import contextlib
import copy
import math
import resource
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

import torch
from torch import nn
from transformers import PreTrainedModel

from retain.launchers.speed.measured import Compiled
from retain.lightning_modules.compiled import attend_in_fp32, compile_layers, deterministic_kernels
from retain.lightning_modules.families import family_of, layers, part
from retain.lightning_modules.models import add_dropout
from retain.lightning_modules.objective import compiled_loss_and_gradient, loss_and_gradient, summed_loss
from retain.lightning_modules.optimisation import optimizers_of

SHALLOW, DEEP = 1, 3
"""The layers of the two models that are timed. The time of a step is linear in the layers."""
ROUNDS = 5
HOPELESS = 4.0
"""If all steps in bf16 take more than this many times as long as in fp32, one round is enough. Without bf16 instructions they
take ten times as long; a busy machine may double the time of a single step."""
Step = Callable[[], None]
Poll = Callable[[], None]
"""Called between steps; it raises to stop measuring."""


@dataclass(frozen=True)
class Timed:
    """What is timed: a stage's model, its recipe and the sequences that one process computes at a time."""

    model: PreTrainedModel
    recipe: Mapping[str, Any]
    sequences: int
    end_of_text: int | None
    checkpointing: bool

    @property
    def depth(self) -> int:
        return len(layers(self.model))

    def steps(self, bf16: bool, compiled: bool) -> list[Step]:
        """A step of a shallow model, and of a deep one if the model has more layers than one."""
        return [self._step(depth, bf16, compiled) for depth in sorted({SHALLOW, min(DEEP, self.depth)})]

    def whole(self, times: Sequence[float]) -> float:
        """The time of a step of the whole model, by the times of `steps`."""
        if len(times) == 1:
            return times[0]
        shallow, deep = times
        return shallow + max(0.0, deep - shallow) / (min(DEEP, self.depth) - SHALLOW) * (self.depth - SHALLOW)

    def _step(self, depth: int, bf16: bool, compiled: bool) -> Step:
        model = _shortened(self.model, depth)
        length, vocabulary = self.recipe["sequence_length"], model.config.vocab_size
        add_dropout(model, self.recipe["dropout"])
        if self.checkpointing:
            model.activation_checkpointing_enable({"use_reentrant": False})
        if bf16:
            attend_in_fp32(model)
        if compiled:
            compile_layers(model)
        loss_fn = compiled_loss_and_gradient() if compiled else loss_and_gradient
        optimizers = optimizers_of(model, self.recipe)
        tokens = torch.arange(self.sequences * length).view(self.sequences, length) * 7919 % vocabulary
        if self.end_of_text is not None:
            tokens[:, length // 2] = self.end_of_text

        def step() -> None:
            with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
                loss = summed_loss(model, tokens, loss_fn, self.end_of_text) / tokens.numel()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), self.recipe["clip"])
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)

        return step


def time_precisions(timed: Timed, poll: Poll) -> tuple[float, float]:
    """Seconds of an uncompiled step in fp32 and in bf16, which take turns."""
    with _as_in_training():
        fp32, bf16 = taking_turns([timed.steps(bf16, compiled=False) for bf16 in (False, True)], poll, HOPELESS)
        return timed.whole(fp32), timed.whole(bf16)


def time_compiled(timed: Timed, bf16: bool, poll: Poll) -> Compiled:
    """What compiling costs and gains. Afterwards this process and its cache have the compiled code.

    Raises whatever a compiler raises.
    """
    with _as_in_training():
        cold = _first_steps(timed, bf16, poll)
        torch.compiler.reset()
        warm = _first_steps(timed, bf16, poll)
        sides = taking_turns([timed.steps(bf16, compiled) for compiled in (False, True)], poll)
        uncompiled, step = map(timed.whole, sides)
        return Compiled(uncompiled=uncompiled, step=step, cold=cold, warm=warm)


def _first_steps(timed: Timed, bf16: bool, poll: Poll) -> float:
    """What the first compiled step takes beyond the second one."""
    step = timed.steps(bf16, compiled=True)[0]
    first, second = [_seconds(step) for _ in range(2)]
    poll()
    return max(0.0, first - second)


def taking_turns(sides: Sequence[Sequence[Step]], poll: Poll, hopeless: float = math.inf) -> list[list[float]]:
    """The median seconds of each step of each side, after a round that warms up.

    It ends after a round in which all steps of the last side took more than `hopeless` times as long as those of the first.
    """
    found: list[list[list[float]]] = [[[] for _ in side] for side in sides]
    for number in range(ROUNDS + 1):
        for side, times in zip(sides, found, strict=True):
            for step, own in zip(side, times, strict=True):
                seconds = _seconds(step)
                poll()
                if number:
                    own.append(seconds)
        if number and all(last[-1] > hopeless * first[-1] for first, last in zip(found[0], found[-1], strict=True)):
            break
    return [[median(own) for own in times] for times in found]


def _seconds(step: Step) -> float:
    before = _used()
    step()
    return (_used() - before) / torch.get_num_threads()


def _used() -> float:
    """Seconds of the processor that this process has used, and compilers that it has waited for."""
    children = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.process_time() + children.ru_utime + children.ru_stime


def _shortened(model: PreTrainedModel, depth: int) -> PreTrainedModel:
    """A copy of a model with its first layers only."""
    # deepcopy takes the short list for a copy of the whole one. Both copies share what layers and model share.
    copies: dict[int, Any] = {}
    copies[id(part(model, family_of(model).layers))] = nn.ModuleList(copy.deepcopy(layers(model)[:depth], copies))
    return copy.deepcopy(model, copies)


@contextlib.contextmanager
def _as_in_training() -> Iterator[None]:
    """Deterministic kernels, and random numbers that are drawn leave no trace."""
    filled = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    try:
        with deterministic_kernels(), torch.random.fork_rng(devices=[]):
            yield
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = filled  # type: ignore[attr-defined]
