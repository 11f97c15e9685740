"""The server that worker processes are forked from."""

import subprocess
import sys

SCRIPT = """
from retain.launchers.local.fork_server import fork_server, start
told = "import os, sys; print('colorsys' in sys.modules, 'wave' in sys.modules, os.getppid(), flush=True)"
for modules in (["colorsys"], ["wave"], ["colorsys"]):
    process = fork_server(modules).Process(target=exec, args=(told,))
    start(process)
    process.join()
"""


def test_a_running_server_that_lacks_a_module_is_replaced_by_one_that_has_all() -> None:
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True, timeout=120, check=True)
    first, second, third = (line.split() for line in done.stdout.splitlines())
    assert first[:2] == ["True", "False"]
    assert second[:2] == ["True", "True"]
    # The same server, as it lacks nothing.
    assert third == second
    assert second[2] != first[2]
