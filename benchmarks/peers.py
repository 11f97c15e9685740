"""A peer in a process of its own, which cannot keep a benchmark waiting."""

import contextlib
import os
import signal
import subprocess
from collections.abc import Mapping, Sequence

LIMIT_S = 300.0


class PeerFailedError(Exception):
    """Why a peer was not measured, in a line."""


def last_line_of(command: Sequence[str], environment: Mapping[str, str]) -> str:
    """The last line that a command prints. Raises PeerFailedError; none of its processes outlives the call."""
    child = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment, start_new_session=True
    )
    try:
        printed, told = child.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise PeerFailedError(f"it had not ended after {LIMIT_S:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
    if child.returncode or not printed.strip():
        raise PeerFailedError((told.strip().splitlines() or ["no word"])[-1][:200])
    return printed.splitlines()[-1]
