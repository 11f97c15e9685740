"""The cause among several ranks: one fails for a reason, the others because it is gone."""

import contextlib
import json
import os
import socket
import time
from pathlib import Path

from retain.launchers.stage.failures import DISK, NODE, classify, is_hardware, sentence
from retain.launchers.stage.ranks import Group
from retain.sweeps.base.errors import RetainError
from retain.sweeps.base.files import write_json

OTHERS_WAIT_S = 3.0
"""How long the chief waits for a rank that says why it was lost."""


def explained(error: BaseException) -> tuple[str, str]:
    """The class of an error, and class and cause in one line."""
    failure = classify(error)
    cause = " ".join(str(error).split())[:400] or type(error).__name__
    if not isinstance(error, RetainError):
        cause = f"{type(error).__name__}: {cause}"
        if failure == DISK:
            cause += "; free space and run it again, the last saved state is kept"
    return failure, sentence(failure, cause)


def agree_on_cause(folder: Path, group: Group, failure: str, reason: str) -> tuple[str, str]:
    """What a run failed of. Every other rank leaves its own cause in the run's folder; the chief, where it has only lost
    somebody, takes over what one of them says."""
    if group.world == 1:
        return failure, reason
    node = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    if not group.chief:
        with contextlib.suppress(OSError):
            write_json(folder / f"cause.{group.rank}.json", {"failure": failure, "reason": reason, "node": node})
        return failure, reason
    deadline = time.monotonic() + OTHERS_WAIT_S
    while failure == NODE and not is_hardware(reason):
        for told in read_causes(folder):
            if told["failure"] != NODE or is_hardware(told["reason"]):
                return told["failure"], told["reason"]
        if time.monotonic() > deadline or len(read_causes(folder)) == group.world - 1:
            break
        time.sleep(0.1)
    return failure, reason


def read_causes(folder: Path) -> list[dict[str, str]]:
    """What ranks other than the chief failed of in the last attempt."""
    return [json.loads(path.read_text()) for path in sorted(folder.glob("cause.*.json"))]


def forget_causes(folder: Path) -> None:
    """For the chief, when an attempt begins."""
    for path in folder.glob("cause.*.json"):
        path.unlink(missing_ok=True)


def blamed_nodes(folder: Path, reason: str, nodes: int) -> set[str]:
    """The nodes to avoid after a failure that calls for another: the chief's own where there is one only, or those whose
    hardware a rank blames."""
    own = os.environ.get("SLURMD_NODENAME", socket.gethostname())
    if nodes == 1:
        return {own}
    blamed = {told["node"] for told in read_causes(folder) if is_hardware(told["reason"])}
    return blamed or ({own} if is_hardware(reason) else set())
