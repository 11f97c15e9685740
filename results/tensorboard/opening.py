"""What `retain board` opens with: a part of a large study that TensorBoard shows at once, and a free port."""

import errno
import socket

from retain.results.analysis.axes import axis_names, axis_values
from retain.results.tensorboard.views import chosen_trials
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.yaml_text import written
from retain.sweeps.tree.tree import Tree

MOST_RUNS = 40
"""With more runs than these TensorBoard selects none at first, and its charts are empty."""
PORT, PORTS = 6006, 20
"""TensorBoard's own port, and how many from there on are tried."""


def readable_filters(tree: Tree) -> list[str]:
    """Filters `axis=value` that leave at most as many runs as TensorBoard selects; none for a study that has no more.

    As few axes as possible are held at their first values, from the last one on: the first axis of a study varies longest.
    """
    filters: list[str] = []
    rows = [{"axes": trial.axes} for trial in tree.trials]
    varied = [axis for axis in axis_names(rows) if len(axis_values(rows, axis)) > 1]
    for axis in reversed(varied[1:]):
        chosen, _ = chosen_trials(tree, filters)
        if len({key for trial in chosen for key in trial.path}) <= MOST_RUNS:
            break
        values = axis_values([{"axes": trial.axes} for trial in chosen], axis)
        filters.append(f"{axis}={written(values[0])}")
    return filters


def free_port(wanted: int | None) -> int:
    """The wanted port, or, if none is wanted, the first free one from TensorBoard's own on.

    Raises MissingResourceError if another process has it, or all of them.
    """
    for port in range(PORT, PORT + PORTS) if wanted is None else [wanted]:
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind(("127.0.0.1", port))
            except OSError as error:
                if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                    raise
                continue
            return port
    if wanted is None:
        raise MissingResourceError(f"--port: the ports {PORT} to {PORT + PORTS - 1} are taken; give a free one")
    raise MissingResourceError(
        f"--port {wanted}: another process has it, or you may not use it; give another, or omit --port for the next free one"
    )
