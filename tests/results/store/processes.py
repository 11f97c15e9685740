"""Owners of leases: Python processes that a test starts, talks to line by line, and kills, and claims that it writes itself."""

import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

from retain.results.store.lease import Lease, Owner
from retain.sweeps.base.files import write_json

HOLDER = """
import sys
from pathlib import Path
from retain.results.store.lease import take_lease
print(take_lease(Path(sys.argv[1])) is not None, flush=True)
sys.stdin.readline()
"""
"""Takes the lease at a path, prints whether it got it, and keeps it until it reads a line."""


def start_python(code: str, *arguments: object) -> subprocess.Popen[str]:
    """Start a Python program with pipes to its standard input and output."""
    pipe = subprocess.PIPE
    return subprocess.Popen([sys.executable, "-c", code, *map(str, arguments)], stdin=pipe, stdout=pipe, text=True)


def next_line(process: subprocess.Popen[str]) -> str:
    """The next line that a process prints."""
    assert process.stdout
    return process.stdout.readline().strip()


def written_lease(path: Path, owner: Owner, number: int = 1) -> Lease:
    """A lease whose claim is written without a race."""
    lease = Lease(path, number, owner)
    write_json(lease.file, asdict(owner))
    return lease
