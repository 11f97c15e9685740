"""Items made ahead of their use, in a thread."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """The same items in the same order, up to `depth` of them made before they are asked for.

    One thread makes them all, so `items` need not be safe for several; what it raises is raised here, in its turn.
    """
    end = object()
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        made = deque(thread.submit(next, items, end) for _ in range(depth))
        try:
            while (item := made.popleft().result()) is not end:
                made.append(thread.submit(next, items, end))
                yield item  # type: ignore[misc]  # it is not the end
        finally:
            thread.shutdown(cancel_futures=True)
