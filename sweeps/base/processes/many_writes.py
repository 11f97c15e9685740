"""Change thousands of files, many at a time, because each change waits for the disk."""

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

Thing = TypeVar("Thing")
Result = TypeVar("Result")
WRITERS = 16
"""How many things are written at a time."""

Count = Callable[[int, int], None]
"""Called with how many things are done, and with the number of all."""


def uncounted(done: int, total: int) -> None:
    """Display nothing: a `Count` for callers without a display."""


def each_written(write: Callable[[Thing], Result], things: Iterable[Thing], count: Count = uncounted) -> list[Result]:
    """What `write` returns for each thing, in their order.

    Raises what it raises for the first thing for which it fails; those that it has not begun are then left.
    """
    found: list[Result] = []
    writers = ThreadPoolExecutor(WRITERS)
    try:
        begun = [writers.submit(write, thing) for thing in things]
        for one in begun:
            found.append(one.result())
            count(len(found), len(begun))
    finally:
        writers.shutdown(cancel_futures=True)
    return found
