"""Sizes, bytes and durations as people write and read them."""

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retain.sweeps.base.units import counted, format_bytes, format_seconds, format_size, parse_size


@pytest.mark.parametrize(
    ("written", "size"),
    [
        (0, 0),
        (1000, 1000),
        (1e6, 1_000_000),
        ("200k", 200_000),
        ("200K", 200_000),
        ("300M", 300_000_000),
        ("8.7B", 8_700_000_000),
        ("8.7G", 8_700_000_000),
        ("1.5T", 1_500_000_000_000),
        ("1_000", 1000),
        (" 12 ", 12),
        ("1e9", 10**9),
        ("0.001k", 1),
    ],
)
def test_a_size_is_parsed_exactly(written: Any, size: int) -> None:
    assert parse_size(written) == size


NOT_NUMBERS = [
    "",
    "M",
    "many",
    "5MB",
    "5 %",
    True,
    None,
    [1],
    {},
    float("nan"),
    float("inf"),
    "nan",
    "Infinity",
    "NaN5",
    "-sNaN1",
]
NOT_WHOLE = ["1.5", 1.5, "0.0001k", -1, "-5M", "1e19", "1e999999", "1e9999999T"]


@pytest.mark.parametrize("written", [*NOT_NUMBERS, *NOT_WHOLE])
def test_an_invalid_size_is_an_error_that_shows_how_to_write_one(written: Any) -> None:
    with pytest.raises(ValueError, match=r"is not a size; write a whole number such as 1000, 200k, 300M or 8\.7B"):
        parse_size(written)


@given(st.integers(1, 9999), st.integers(0, 12))
def test_a_size_of_four_digits_is_unchanged_by_formatting_and_parsing(digits: int, zeros: int) -> None:
    size = digits * 10**zeros
    assert parse_size(format_size(size)) == size


@given(st.integers(0, 10**16))
def test_a_formatted_size_is_exact_to_four_digits(size: int) -> None:
    assert float(parse_size(format_size(size)) if size >= 10_000 else size) == pytest.approx(size, rel=5.1e-4)


@pytest.mark.parametrize(
    ("size", "text"), [(0, "0"), (12, "12"), (1000, "1k"), (300e6, "300M"), (8.7e9, "8.7B"), (1_054_321, "1.054M")]
)
def test_sizes_are_formatted_as_people_write_them(size: float, text: str) -> None:
    assert format_size(size) == text


def test_bytes_and_durations_are_formatted_for_readers() -> None:
    assert [format_bytes(count) for count in (0, 999, 4_200_000, 5.38e8, 2e12)] == [
        "0 B",
        "999 B",
        "4.2 MB",
        "538 MB",
        "2 TB",
    ]
    assert [format_seconds(span) for span in (0, 41.6, 185, 3599.6, 7800)] == [
        "0s",
        "42s",
        "3m 05s",
        "1h 00m",
        "2h 10m",
    ]


def test_one_is_not_counted_as_many() -> None:
    assert [counted(number, "run") for number in (0, 1, 1200)] == ["0 runs", "1 run", "1,200 runs"]
    assert counted(1, "run is done", "runs are done") == "1 run is done"
    assert counted(2, "run is done", "runs are done") == "2 runs are done"
