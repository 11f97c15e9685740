"""Choose how an attempt computes its steps: as earlier attempts did, so that the run ends in the same bits."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import PreTrainedModel

from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.measuring.defaults import AUTO, cpu_defaults
from retain.launchers.stage.signals import AttemptStopped
from retain.launchers.stage.training.checkpoints import checkpoint_folders
from retain.launchers.stage.training.distributed import broadcast
from retain.launchers.stage.training.numerics import Numerics, differences, recorded_numerics
from retain.lightning_modules.compiled import attend_in_fp32, why_not_compiled, why_not_flex_attention
from retain.lightning_modules.models import on_device
from retain.sweeps.base.units import counted


@dataclass(frozen=True)
class Machine:
    """How this machine computes, before the choices of earlier attempts are considered."""

    gpu: bool
    bf16: bool
    """Whether losses are measured in bf16. So are training steps, unless a CPU is measured to train faster in bf16."""
    sharded: bool

    @property
    def device(self) -> torch.device:
        return torch.device("cuda" if self.gpu else "cpu")

    def receive(self, model: PreTrainedModel) -> PreTrainedModel:
        """Move a model to the device, ready to be measured in this precision; returns the same model."""
        if self.bf16 and not self.gpu:
            attend_in_fp32(model)
        return on_device(model, self.device)


def machine_of(execution: Mapping[str, Any], world: int = 1) -> Machine:
    """How this machine computes a run on `world` ranks that is executed in this way."""
    gpu = execution["accelerator"] == "gpu" or (execution["accelerator"] == "auto" and torch.cuda.is_available())
    bf16 = execution["precision"] == "bf16" or (execution["precision"] == "auto" and gpu)
    return Machine(gpu, bf16, world > 1 and execution["strategy"] == "fsdp")


def arithmetic_of(context: AttemptContext) -> str:
    """How this machine computes a run of one process and from which weights, in words; only equal ones may be put together.

    A stage that was deleted and trained again on other hardware has other weights. Raises DamageError.
    """
    execution = context.spec["execution"]
    machine = machine_of(execution)
    words = f"{'bf16' if machine.bf16 else 'fp32'} on {'GPUs' if machine.gpu else 'CPUs'}"
    if not machine.gpu:
        words += f" with {counted(execution['threads'], 'thread')}"
    needs = [sorted(context.store.run(key).state().checksums.items()) for key in context.run.needs()]
    return f"{words} from the weights {hashlib.sha256(repr(needs).encode()).hexdigest()[:8]}" if needs else words


def begin_on_one_process(context: AttemptContext, tokens: int = 0) -> Machine:
    """Record that an attempt of one process begins, which resumes at `tokens`; returns how this machine computes it.

    Raises AttemptStopped if the run was cancelled.
    """
    execution = context.spec["execution"]
    machine = machine_of(execution)
    if not machine.gpu:
        torch.set_num_threads(execution["threads"])
    context.begin(tokens, torch.cuda.get_device_name() if machine.gpu else None)
    return machine


def choose_numerics(
    context: AttemptContext,
    execution: Mapping[str, Any],
    machine: Machine,
    model: PreTrainedModel,
    end_of_text: int | None = None,
) -> tuple[Numerics, list[str]]:
    """The choices of this attempt, the same on every rank; and on rank 0, notes on what a reader of the results should know.

    A run keeps its first choices where the study leaves them open: precision and compilation always, so that a run that is
    killed early ends in the same bits, and the micro-batch once it has checkpoints. Raises AttemptStopped if a stop signal
    comes meanwhile.
    """
    world = context.ranks.world
    if not context.ranks.is_first:
        numerics, stopped = broadcast(None, world)
        if stopped:
            raise AttemptStopped(stopped)
        return numerics, []
    try:
        numerics, notes = _chosen(context, execution, machine, model, end_of_text)
    except AttemptStopped as asked:
        broadcast((None, str(asked)), world)
        raise
    broadcast((numerics, None), world)
    return numerics, notes


def _chosen(
    context: AttemptContext,
    execution: Mapping[str, Any],
    machine: Machine,
    model: PreTrainedModel,
    end_of_text: int | None,
) -> tuple[Numerics, list[str]]:
    """`choose_numerics` on rank 0."""
    # 1. The study decides; what it leaves open is as before, or the default of the device.
    run, device, notes = context.run, machine.device, []
    recorded = recorded_numerics(run)
    before = (recorded or Numerics(False, None)) if checkpoint_folders(run.checkpoint) else None
    on_cpu = recorded is not None and recorded.threads is not None and not machine.gpu
    bf16, compiled = _speed(context, execution, machine, model, end_of_text, before or (recorded if on_cpu else None))
    # 2. Steps are compiled only if a compiler works here.
    lack = why_not_compiled(device) if compiled else None
    if compiled and context.stop.signal:
        # It reaches the compilers too, and may end torch's trials of the processor: its code would be right, with other bits.
        raise AttemptStopped(context.stop.signal)
    if lack:
        compiled = False
        notes.append(f"steps are not compiled, because this machine cannot ({lack}); only training is slower")
    # 3. Absent, like `compile`, in runs that earlier versions registered.
    deterministic = execution.get("deterministic", True)
    if not deterministic:
        notes.append(
            "kernels need not be deterministic (execution.deterministic: false): a repeated run may not be bit-identical"
        )
    # 4. FlexAttention has no dropout, and is compiled.
    recipe = context.spec["recipe"]
    flex = machine.gpu and compiled and not recipe["dropout"] if "documents" in recipe else None
    if before:
        flex = flex and before.flex_attention
    if flex and (lack := why_not_flex_attention(model, device, bf16, deterministic)):
        flex = False
        notes.append(f"tokens attend within documents by masks, because FlexAttention does not work here ({lack})")
    micro_batch = execution["micro_batch"] or (before.micro_batch if before else None)
    threads = execution["threads"] if device.type == "cpu" else None
    numerics = Numerics(compiled, micro_batch, bf16, threads, machine.sharded, flex, deterministic)
    return numerics, [*notes, *(differences(before, numerics) if before else [])]


def _speed(
    context: AttemptContext,
    execution: Mapping[str, Any],
    machine: Machine,
    model: PreTrainedModel,
    end_of_text: int | None,
    before: Numerics | None,
) -> tuple[bool, bool]:
    """Whether steps are in bf16, and whether they are compiled. The log says why, where neither study nor device decide.

    before: the choices of earlier attempts. Raises AttemptStopped.
    """
    wish = execution.get("compile", AUTO)  # absent in runs registered before this field existed
    bf16, compiled = machine.bf16, wish if wish != AUTO else machine.gpu
    if before is not None:
        # A run that began on GPUs continues on CPUs in fp32: only those on CPUs have recorded threads.
        if execution["precision"] == AUTO and not machine.gpu and before.threads is not None:
            bf16 = bool(before.bf16)
        return bf16, before.compiled if wish == AUTO else compiled
    opens = execution["precision"] == AUTO, wish == AUTO
    if machine.gpu or not any(opens):
        return bf16, compiled
    precise, compiles = cpu_defaults(context, execution, model, end_of_text)
    if opens[0]:
        bf16 = precise.taken
        print(f"steps are in {'bf16' if bf16 else 'fp32'}: {precise.reason}", flush=True)
    if opens[1]:
        compiled = compiles.taken
        print(f"steps are {'' if compiled else 'not '}compiled: {compiles.reason}", flush=True)
    return bf16, compiled
