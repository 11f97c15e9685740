"""Where processes listen for connections."""

import contextlib
import os
from collections.abc import Iterable
from pathlib import Path


def addresses(processes: Iterable[int]) -> set[str]:
    """The addresses on which these processes listen."""
    sockets, found = set(), set[str]()
    for pid in processes:
        with contextlib.suppress(OSError):
            for name in os.listdir(f"/proc/{pid}/fd"):
                with contextlib.suppress(OSError):
                    sockets.add(os.readlink(f"/proc/{pid}/fd/{name}"))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                address = fields[1].split(":")[0]
                local = {"0100007F", "0000000000000000FFFF00000100007F", "00000000000000000000000001000000"}
                found.add("127.0.0.1" if address in local else address)
    return found
