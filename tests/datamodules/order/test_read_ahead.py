import threading
from collections.abc import Iterator

import pytest

from retain.datamodules.order.read_ahead import read_ahead


def test_all_items_come_in_order() -> None:
    assert list(read_ahead(iter(range(100)), 3)) == list(range(100))
    assert list(read_ahead(iter(()), 3)) == []


def test_at_most_depth_items_are_computed_ahead() -> None:
    computed: list[int] = []

    def recorded() -> Iterator[int]:
        for number in range(100):
            computed.append(number)
            yield number

    items = read_ahead(recorded(), 3)
    assert next(items) == 0
    items.close()  # type: ignore[attr-defined]  # it is a generator
    assert len(computed) <= 4


def test_an_exception_is_raised_in_place_of_its_item() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise OSError("the disk is gone")

    items = read_ahead(broken(), 3)
    assert next(items) == 1
    with pytest.raises(OSError, match="the disk is gone"):
        next(items)


def test_no_thread_is_left_after_reading_ends_early() -> None:
    items = read_ahead(iter(range(100)), 3)
    next(items)
    items.close()  # type: ignore[attr-defined]  # it is a generator
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())
