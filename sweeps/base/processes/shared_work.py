"""Share out work on thousands of things among processes of this machine, because one Python process uses one core."""

import multiprocessing
import os
import signal
import sys
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection
from typing import TypeVar

from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.processes.names import usable_cores

Thing = TypeVar("Thing")
Result = TypeVar("Result")
MOST_PROCESSES = 8
"""A login node is for others too."""


def shared_out(work: Callable[[Sequence[Thing]], Result], things: Sequence[Thing], at_least: int) -> list[Result]:
    """Call `work` on consecutive parts of `things`, each in a process of its own, and return the results in their order.

    at_least: how many things are worth a process. This process does all work itself if there are fewer than two such parts, if
    it has threads or the system is not Linux (a fork is not safe there), or if it is a daemon of multiprocessing, which may not
    start processes. Raises what `work` raises, and MissingResourceError if the system ends one of the processes.
    """
    count = min(usable_cores(), MOST_PROCESSES, len(things) // at_least)
    may_fork = (
        sys.platform == "linux" and threading.active_count() == 1 and not multiprocessing.current_process().daemon
    )
    if count < 2 or not may_fork:
        return [work(things)]
    context = multiprocessing.get_context("fork")
    parts = [things[len(things) * one // count : len(things) * (one + 1) // count] for one in range(count)]
    children = []
    try:
        for part in parts:
            receiver, sender = context.Pipe(duplex=False)
            child = context.Process(target=_answer, args=(sender, work, part), daemon=True)
            child.start()
            sender.close()  # so that the child's end is the only one, and its death is seen
            children.append((child, receiver))
        return [_answer_from(receiver, work) for _, receiver in children]
    finally:
        for child, receiver in children:
            child.terminate()
            child.join()
            receiver.close()


def _answer(sender: Connection, work: Callable[[Sequence[Thing]], Result], part: Sequence[Thing]) -> None:
    """Send the result for a part, or the error."""
    # The parent's handlers are for the parent: it tells the user, and ends its children.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_DFL)
    threading.Thread(target=_end_with_parent, daemon=True).start()
    answer: tuple[Result | None, Exception | None]
    try:
        answer = work(part), None
    except Exception as error:
        answer = None, error
    sender.send(answer)


def _answer_from(receiver: Connection, work: Callable[[Sequence[Thing]], Result]) -> Result:
    """What `work` returned or raised in a child."""
    answer: tuple[Result, Exception | None]
    try:
        answer = receiver.recv()
    except EOFError:
        raise MissingResourceError(
            "the system ended a process of this command, perhaps for lack of memory; run it again where there is more"
        ) from None
    result, error = answer
    if error is not None:
        raise error
    return result


def _end_with_parent() -> None:
    """End this process once its parent is gone: a parent that is killed cannot end its children."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    parent.join()
    os._exit(1)
