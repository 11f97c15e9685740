"""Why stages fail, and what each launcher does about it.

A failure's class is told by the exception, the exit code, SLURM's word and the log; its policy by a table.
"""

import errno
import re
import signal
from collections.abc import Mapping
from dataclasses import dataclass

from retain.launchers.stage.training.numerics import recorded_form
from retain.results.store.runs import Run, State
from retain.sweeps.base.errors import NoRoomError, RetainError, StageFailedError

GPU_MEMORY = "out of memory on the GPU"
HOST_MEMORY = "out of memory on the host"
NODE = "node or network"
DISK = "disk full"
DIVERGED = "diverged"
RECIPE = "bad recipe"
BUG = "bug"
CLASSES = (GPU_MEMORY, HOST_MEMORY, NODE, DISK, DIVERGED, RECIPE, BUG)


@dataclass(frozen=True)
class Policy:
    """What a launcher does after a failure of one class."""

    retries: int
    """In a row, without progress between them; then the run has failed."""
    wait_s: int = 0
    """Seconds before the next attempt."""
    elsewhere: bool = False
    """Not on the node that it failed on."""
    halve: bool = False
    """With half the micro-batch; the run has failed where that is one sequence already."""


ON_SLURM: Mapping[str, Policy] = {
    GPU_MEMORY: Policy(16, halve=True),
    HOST_MEMORY: Policy(1, elsewhere=True),
    NODE: Policy(3, elsewhere=True),
    DISK: Policy(6, wait_s=600),
}
HERE: Mapping[str, Policy] = {GPU_MEMORY: Policy(16, halve=True), NODE: Policy(1)}
"""On this machine; classes that are in neither table stop the branch at once."""

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
_NODE_ERRORS = (
    *(errno.ESTALE, errno.EIO, errno.EREMOTEIO, errno.ETIMEDOUT, errno.ENETUNREACH, errno.EHOSTUNREACH),
    errno.EADDRINUSE,  # somebody was faster to take the port where the ranks were to meet
)


def classify(error: BaseException) -> str:
    """The class of what ended a stage's training; what is deepest in the chain of causes counts."""
    chain = _chain(error)
    for cause in reversed(chain):
        if kind := _of_one(cause):
            return kind
    return RECIPE if any(isinstance(cause, RetainError | FileNotFoundError) for cause in chain) else BUG


def _chain(error: BaseException) -> list[BaseException]:
    chain = [error]
    while (deeper := chain[-1].__cause__) is not None and deeper not in chain:
        chain.append(deeper)
    return chain


def _of_one(error: BaseException) -> str | None:
    if isinstance(error, StageFailedError) and error.failure:
        return error.failure
    if isinstance(error, NoRoomError):
        return DISK
    if isinstance(error, RetainError):
        return None
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return DISK
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return HOST_MEMORY
    if isinstance(error, ConnectionError | TimeoutError) or (
        isinstance(error, OSError) and error.errno in _NODE_ERRORS
    ):
        return NODE
    if type(error).__name__ == "OutOfMemoryError":  # of torch, which a launcher need not import
        return GPU_MEMORY
    kind = classify_text(str(error))
    return NODE if kind is None and type(error).__name__ in ("DistNetworkError", "DistStoreError") else kind


def classify_text(text: str) -> str | None:
    """The class that a message tells; None where it tells none."""
    if is_hardware(text):
        return NODE
    return next((kind for kind, pattern in _TEXTS if re.search(pattern, text)), None)


def is_hardware(text: str) -> bool:
    """Whether a message blames the GPU, or the node, that it was written on."""
    return re.search(_HARDWARE, text) is not None


def classify_death(code: int | None = None, slurm_state: str = "", log: str = "") -> str | None:
    """The class of an attempt that ended without a word; None where nothing speaks of a failure.

    code: the exit code of its process, negative for a signal. slurm_state: as sacct writes it. log: what the job's log
    says since the attempt began.
    """
    if kind := _SLURM_STATES.get(slurm_state.split(" ")[0]):
        return kind
    if slurm_state.startswith(("PREEMPTED", "TIMEOUT", "CANCELLED", "REQUEUED")):
        return None
    if ended := re.findall(r"CANCELLED AT \S+(?: DUE TO ([A-Z ]+))?", log):
        return NODE if "NODE" in ended[-1] else None
    if kind := classify_text(log):
        return kind
    if code == -signal.SIGKILL:
        return HOST_MEMORY
    return BUG if code in (-signal.SIGSEGV, -signal.SIGABRT, -signal.SIGBUS, -signal.SIGFPE, -signal.SIGILL) else None


def sentence(failure: str, cause: str) -> str:
    """One line: class and cause."""
    cause = " ".join(cause.split())
    return cause if cause.startswith(f"{failure}: ") else f"{failure}: {cause}"


def next_attempt(state: State, policies: Mapping[str, Policy]) -> Policy | None:
    """What to do about a run whose last attempt failed; None: its branch stops."""
    counted = state.counted_attempts
    last = counted[-1] if counted else None
    if last is None or last.failure is None or last.failure not in policies:
        return None
    alike = [it for it in counted if it.failure == last.failure and it.tokens_at_start == last.tokens_at_start]
    policy = policies[last.failure]
    return policy if len(alike) <= policy.retries else None


def prepare_retry(run: Run, policies: Mapping[str, Policy]) -> Policy | None:
    """`next_attempt` of a run that has just failed, with its micro-batch halved where that is the cure."""
    state = run.state()
    policy = next_attempt(state, policies)
    if policy is None or not policy.halve:
        return policy
    spec, world = run.spec(), state.attempts[-1].world
    found = recorded_form(run)
    taken = run.execution()["micro_batch"] or (found.micro_batch if found else None)
    smaller = halved(spec["recipe"]["batch"], world, taken)
    if smaller is None:
        return None
    run.adapt(smaller)
    return policy


def halved(batch: int, world: int, micro_batch: int | None) -> int | None:
    """Half of what one process takes at a time, in sequences; None where that is one already."""
    now = min(micro_batch or batch, -(-batch // world))
    return now // 2 or None
