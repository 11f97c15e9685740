"""Two ranks of one stage, each a process that runs a script, started as the local launcher starts ranks."""

import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from retain.launchers.kinds import TRAINING
from retain.launchers.local.fork_server import fork_server, start
from retain.launchers.stage.ranks import LOOPBACK, Ranks, free_port


def printed_by_two_ranks(script: str) -> list[str]:
    """The last line that each of two ranks prints."""
    port, context = free_port(), fork_server([TRAINING.module])
    with tempfile.TemporaryDirectory() as folder:
        outputs = [Path(folder) / str(rank) for rank in range(2)]
        ranks = [
            context.Process(
                target=run_script,
                args=(script, output, Ranks(rank, 2).rendezvous(LOOPBACK, port, local_rank=rank)),
            )
            for rank, output in enumerate(outputs)
        ]
        try:
            for process in ranks:
                start(process)
            for process in ranks:
                process.join(120)
        finally:
            for process in ranks:
                process.kill()
        assert [process.exitcode for process in ranks] == [0, 0]
        return [output.read_text().splitlines()[-1] for output in outputs]


def run_script(script: str, output: Path, variables: Mapping[str, str]) -> None:
    """Run a script in this process with these environment variables; what it prints is written to a file."""
    os.environ.update(variables)
    with output.open("w") as stream:
        os.dup2(stream.fileno(), 1)
        exec(script, {"__name__": "__main__"})
        sys.stdout.flush()
