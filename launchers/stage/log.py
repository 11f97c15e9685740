"""How a process that attempts a run reports: lines in the run's log, and an exit code. Quick to import."""

import contextlib
import os
import sys
import time
from pathlib import Path

from retain.sweeps.base.errors import os_reason
from retain.sweeps.base.notices import notice

FAILED, BUSY, STOPPED, NO_ROOM = 1, 74, 75, 76
"""Exit codes of an attempt: the run failed; another process has the run; a signal stopped the attempt, and the run can be
resumed; the disk is full, so the failure itself may be unwritten."""
STOP_GRACE_S = 30.0
"""How long an attempt may take to save its checkpoint after a stop signal."""


def log_line(line: str) -> None:
    """Print a line with the time; a full disk is ignored."""
    with contextlib.suppress(OSError):
        print(f"{time.strftime('%Y-%m-%d %H:%M:%S')} {line}", flush=True)


def log_into(path: Path) -> None:
    """Append standard output and error, also those of C libraries, to a file; they stay as they are if it cannot be opened."""
    sys.stdout.flush()
    sys.stderr.flush()
    try:
        # O_NONBLOCK: a named pipe in its place would block.
        descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_NONBLOCK, 0o666)
    except OSError as error:
        notice(f"{path} cannot be written ({os_reason(error)}), so what the run prints is not kept; delete it")
        return
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.close(descriptor)
