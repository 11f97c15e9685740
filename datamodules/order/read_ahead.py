"""Compute the items of an iterator ahead of their use, in a thread."""

from collections import deque
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

T = TypeVar("T")


def read_ahead(items: Iterator[T], depth: int) -> Iterator[T]:
    """Yield the same items in the same order, with up to `depth` of them computed in advance.

    One thread computes them all, so `items` need not be thread-safe. An exception is raised where its item would come.
    """
    end = object()
    with ThreadPoolExecutor(1, "read-ahead") as thread:
        pending = deque(thread.submit(next, items, end) for _ in range(depth))
        try:
            while (item := pending.popleft().result()) is not end:
                pending.append(thread.submit(next, items, end))
                yield item  # type: ignore[misc]  # it is not `end`
        finally:
            thread.shutdown(cancel_futures=True)
