import threading
from collections.abc import Iterator

import pytest

from retain.datamodules.order.read_ahead import read_ahead


def test_items_come_whole_and_in_order() -> None:
    assert list(read_ahead(iter(range(100)), 3)) == list(range(100))
    assert list(read_ahead(iter(()), 3)) == []


def test_no_more_is_made_than_the_depth_ahead_of_what_is_asked_for() -> None:
    made: list[int] = []

    def counted() -> Iterator[int]:
        for number in range(100):
            made.append(number)
            yield number

    items = read_ahead(counted(), 3)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(made) <= 4


def test_what_goes_wrong_is_raised_in_its_turn() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    items = read_ahead(broken(), 3)
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


def test_no_thread_is_left_when_reading_ends_early() -> None:
    items = read_ahead(iter(range(100)), 3)
    next(items)
    items.close()  # type: ignore[attr-defined]  # it is a generator
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
