from hypothesis import given, settings
from hypothesis import strategies as st

from retain.datamodules.corpora.dedup import HashSet

ENDS = st.sampled_from([0, 1, 2**64 - 1])
BATCHES = st.lists(st.lists(st.integers(0, 40) | ENDS, max_size=30), max_size=20)


@settings(max_examples=100)
@given(BATCHES)
def test_only_the_first_of_equal_hashes_is_new(batches: list[list[int]]) -> None:
    known, seen = HashSet(), set[int]()
    for batch in batches:
        expected = []
        for index, number in enumerate(batch):
            if number not in seen:
                seen.add(number)
                expected.append(index)
        assert known.add(batch) == expected


def test_a_hash_takes_eight_bytes_and_the_arrays_stay_few() -> None:
    known = HashSet()
    for begin in range(0, 2**16, 2**6):
        known.add([number * 0x9E3779B97F4A7C15 % 2**64 for number in range(begin, begin + 2**6)])
    assert sum(array.nbytes for array in known.arrays) == 8 * 2**16
    assert len(known.arrays) <= 16
