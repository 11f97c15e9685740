"""Why attempts fail, and what each launcher does about it.

The class of a failure is derived from the exception, the exit code, SLURM's accounting and the log. A table gives its policy.
"""

import errno
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from retain.launchers.stage.training.numerics import recorded_numerics
from retain.results.store.runs import Run
from retain.results.store.state import State
from retain.sweeps.base.errors import FAULTS, NO_ROOM, DamageError, NoRoomError, RetainError, StageFailedError

GPU_MEMORY = "out of memory on the GPU"
HOST_MEMORY = "out of memory on the host"
NODE = "node or network"
DISK = "disk full"
DIVERGED = "diverged"
DAMAGE = "damaged store"
RECIPE = "bad recipe"
BUG = "bug"
CLASSES = (GPU_MEMORY, HOST_MEMORY, NODE, DISK, DIVERGED, DAMAGE, RECIPE, BUG)


@dataclass(frozen=True)
class Policy:
    """What a launcher does after a failure."""

    retries: int
    """The most retries from the same checkpoint; after them the run has failed."""
    wait_s: int = 0
    """Seconds before the next attempt."""
    elsewhere: bool = False
    """Whether to avoid the node where the attempt failed."""
    halve: bool = False
    """Whether to halve the micro-batch; if it is one sequence already, the run has failed."""


ON_SLURM: Mapping[str, Policy] = {
    GPU_MEMORY: Policy(16, halve=True),
    HOST_MEMORY: Policy(1, elsewhere=True),
    NODE: Policy(3, elsewhere=True),
    DISK: Policy(6, wait_s=600),
}
LOCAL: Mapping[str, Policy] = {GPU_MEMORY: Policy(16, halve=True), NODE: Policy(1)}
"""The policies on this machine. A class that a table lacks stops the branch at once."""

_TEXTS = (
    (GPU_MEMORY, r"(CUDA|HIP|XPU) out of memory|CUDA error: out of memory|Cuda failure \d* ?'out of memory'"),
    (GPU_MEMORY, r"CUBLAS_STATUS_ALLOC_FAILED|CUDNN_STATUS_ALLOC_FAILED"),
    (HOST_MEMORY, r"can't allocate memory|not enough memory: you tried to allocate|Cannot allocate memory"),
    (HOST_MEMORY, r"oom.kill event|Out Of Memory|Exceeded (job|step) memory limit|Exceeded job memory"),
    (HOST_MEMORY, r"out of memory|std::bad_alloc|DataLoader worker .* is killed by signal: Killed"),
    (DISK, r"No space left on device|Disk quota exceeded"),
    (BUG, r"ncclInvalidUsage|ncclInvalidArgument|invalid usage, NCCL|invalid argument, NCCL"),
    (NODE, r"NCCL error|nccl(System|Remote|Internal|UnhandledCuda)Error|NCCL communicator was aborted"),
    (NODE, r"Watchdog caught collective operation timeout|Timed out (after )?waiting|Timeout waiting for key"),
    (NODE, r"Connection (reset|closed|refused|timed out|was likely closed)|Broken pipe|No route to host"),
    (NODE, r"(client socket has )?timed out after .* while trying to connect|failed to connect|Network is unreachable"),
    (NODE, r"Socket Timeout|Stale file handle|Input/output error|Remote I/O error|DUE TO NODE FAILURE"),
    (BUG, r"srun: error: \S+: tasks? \S+: (Segmentation fault|Aborted|Bus error|Illegal instruction|Floating)"),
)
_HARDWARE = (
    r"uncorrectable (ECC|NVLink) error|unspecified launch (failure|error)|hardware stack error|GPU is lost"
    r"|fallen off the bus|no CUDA-capable device|device\(s\) is/are busy or unavailable|system not yet initialized"
    r"|CUDA driver initialization failed|launch timed out|CUDA error: unknown error|Unable to determine the device handle"
)
_SLURM_STATES = {"OUT_OF_MEMORY": HOST_MEMORY, "NODE_FAIL": NODE, "BOOT_FAIL": NODE, "DEADLINE": RECIPE}
INTERRUPTED = ("PREEMPTED", "TIMEOUT", "CANCELLED", "REQUEUED")
"""How SLURM's states of jobs begin that were interrupted and did not fail."""
_NODE_ERRORS = (
    *FAULTS,
    errno.EADDRINUSE,  # another process took the port of the ranks' rendezvous
)


def classify(error: BaseException) -> str:
    """The failure class of an exception: that of the deepest cause in its chain which has one."""
    chain = _chain(error)
    for cause in reversed(chain):
        if failure := _class_of(cause):
            return failure
    return RECIPE if any(isinstance(cause, RetainError | FileNotFoundError) for cause in chain) else BUG


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (deeper := chain[-1].__cause__) is not None and deeper not in chain:
        chain.append(deeper)
    return chain


def _class_of(error: BaseException) -> str | None:
    if isinstance(error, StageFailedError) and error.failure:
        return error.failure
    if isinstance(error, NoRoomError):
        return DISK
    if isinstance(error, DamageError):
        return DAMAGE
    if isinstance(error, RetainError):
        return None
    if isinstance(error, OSError) and error.errno in NO_ROOM:
        return DISK
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return HOST_MEMORY
    if isinstance(error, ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in _NODE_ERRORS
    ):
        return NODE
    if type(error).__name__ == "OutOfMemoryError":  # torch's; a launcher need not import torch
        return GPU_MEMORY
    failure = classify_text(str(error))
    return NODE if failure is None and type(error).__name__ in ("DistNetworkError", "DistStoreError") else failure


def classify_text(text: str) -> str | None:
    """The failure class of an error message; None if the message is not known."""
    if is_hardware(text):
        return NODE
    return next((failure for failure, pattern in _TEXTS if re.search(pattern, text)), None)


def is_hardware(text: str) -> bool:
    """Whether a message blames the GPU or the node where it was written."""
    return re.search(_HARDWARE, text) is not None


def classify_death(code: int | None = None, slurm_state: str = "", log: str = "") -> str | None:
    """The failure class of an attempt that died without reporting; None if there is no sign of a failure.

    code: the exit code of its process, negative for a signal. slurm_state: the state that sacct prints. log: the job's log
    since the attempt began.
    """
    if failure := _SLURM_STATES.get(slurm_state.split(" ")[0]):
        return failure
    if slurm_state.startswith(INTERRUPTED):
        return None
    if causes := causes_of_end(log):
        return NODE if "NODE" in causes[-1] else None
    if failure := classify_text(log):
        return failure
    if code == -signal.SIGKILL:
        return HOST_MEMORY
    return BUG if code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL) else None


def causes_of_end(log: str) -> list[str]:
    """The causes in the notices with which SLURM ended a job, such as PREEMPTION; empty strings for scancel."""
    return re.findall(r"\*\*\* (?:JOB|STEP) \S+ ON \S+ CANCELLED AT \S+(?: DUE TO ([A-Z ]+))?", log)


def sentence(failure: str, cause: str) -> str:
    """One line with class and cause."""
    cause = " ".join(cause.split())
    return cause if cause.startswith(f"{failure}: ") else f"{failure}: {cause}"


def next_attempt(state: State, policies: Mapping[str, Policy]) -> Policy | None:
    """The policy for another attempt at a run whose last attempt failed; None if the run has failed for good."""
    counted = state.counted_attempts
    last = counted[-1] if counted else None
    if last is None or last.failure is None or last.failure not in policies:
        return None
    alike = [one for one in counted if one.failure == last.failure and one.tokens_at_start == last.tokens_at_start]
    policy = policies[last.failure]
    return policy if len(alike) <= policy.retries else None


def prepare_retry(run: Run, policies: Mapping[str, Policy]) -> Policy | None:
    """`next_attempt` of a run; halves its micro-batch if the policy says so."""
    state = run.state()
    policy = next_attempt(state, policies)
    if policy is None or not policy.halve:
        return policy
    smaller = smaller_batch(run)
    if smaller is None:
        return None
    run.adapt(smaller)
    return policy


def smaller_batch(run: Run) -> int | None:
    """Half of the micro-batch of a run's last attempt, in sequences; None if that was one sequence, or one pair."""
    numerics, recipe = recorded_numerics(run), run.spec()["recipe"]
    last = run.execution()["micro_batch"] or (numerics.micro_batch if numerics else None)
    smaller = halved(recipe["batch"], run.state().attempts[-1].world, last)
    return None if smaller == 1 and "objective" in recipe else smaller


def halved(batch: int, world: int, micro_batch: int | None) -> int | None:
    """Half of a rank's micro-batch in sequences; None if the micro-batch is one sequence."""
    present = min(micro_batch or batch, -(-batch // world))
    return present // 2 or None
