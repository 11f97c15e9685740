"""The cause of a failure with several ranks: one rank fails for a reason, the others because that rank is gone."""

import contextlib
import os
import socket
import time
from pathlib import Path
from typing import TypedDict

from retain.launchers.stage.failures import DISK, NODE, classify, is_hardware, sentence
from retain.launchers.stage.ranks import Ranks
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError, RetainError
from retain.sweeps.base.redaction import redacted

OTHERS_WAIT_S = 3.0
"""How long rank 0, which lost the connection to another rank, waits for the cause from that rank."""


def described_failure(error: BaseException) -> tuple[str, str]:
    """The failure class of an error, and one line with class and cause."""
    failure = classify(error)
    cause = " ".join(redacted(str(error)).split())[:400] or type(error).__name__
    if not isinstance(error, RetainError):
        cause = f"{type(error).__name__}: {cause}"
        if failure == DISK:
            cause += "; free space and run it again, the last checkpoint is kept"
    return failure, sentence(failure, cause)


def agree_on_failure(folder: Path, ranks: Ranks, failure: str, reason: str) -> tuple[str, str]:
    """The class and the cause of a run's failure.

    A rank other than 0 writes its own cause into the run's folder. If rank 0 has only lost another rank, it adopts a cause that
    the others wrote.
    """
    if ranks.world == 1:
        return failure, reason
    # 1. Ranks other than 0 write their own cause.
    if not ranks.is_first:
        with contextlib.suppress(OSError):
            cause: RankCause = {"failure": failure, "reason": reason, "node": _node()}
            write_document(folder / f"cause.{ranks.rank}.json", cause)
        return failure, reason
    # 2. Rank 0 waits for a better cause than a lost connection.
    deadline = time.monotonic() + OTHERS_WAIT_S
    while failure == NODE and not is_hardware(reason):
        causes = rank_causes(folder)
        for other in causes:
            if other["failure"] != NODE or is_hardware(other["reason"]):
                return other["failure"], other["reason"]
        if time.monotonic() > deadline or len(causes) == ranks.world - 1:
            break
        time.sleep(0.1)
    return failure, reason


class RankCause(TypedDict):
    """The cause that a rank wrote."""

    failure: str
    reason: str
    node: str


def rank_causes(folder: Path) -> list[RankCause]:
    """The causes that ranks other than 0 wrote in the last attempt; what cannot be read names no cause."""
    causes = []
    for path in sorted(folder.glob("cause.*.json")):
        with contextlib.suppress(DamageError, FileNotFoundError):
            causes.append(read_document(path, RankCause, ""))
    return causes


def clear_rank_causes(folder: Path) -> None:
    """Remove the causes of an earlier attempt. For rank 0, when an attempt begins."""
    for path in folder.glob("cause.*.json"):
        path.unlink(missing_ok=True)


def blamed_nodes(folder: Path, reason: str, nodes: int) -> set[str]:
    """The nodes to avoid after a failure: with one node, that node; with several, those whose hardware a rank blames."""
    if nodes == 1:
        return {_node()}
    blamed = {cause["node"] for cause in rank_causes(folder) if is_hardware(cause["reason"])}
    return blamed or ({_node()} if is_hardware(reason) else set())


def _node() -> str:
    return os.environ.get("SLURMD_NODENAME", socket.gethostname())
