"""Saved sums of an interrupted attempt: which of them the next attempt takes over."""

from pathlib import Path

import pytest
import torch

from retain.launchers.stage.saving.tensors import save_tensors, saved_tensors

ARITHMETIC = "fp32 on CPUs with 1 thread"
SUMS = {"loss": torch.tensor(2.5, dtype=torch.float64), "by_value": torch.zeros(0), "squares": torch.ones(2, 2)}


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    path = tmp_path / "checkpoint" / "sums.safetensors"
    save_tensors(path, SUMS, 16, ARITHMETIC)
    return path


def is_whole(path: Path) -> bool:
    """Whether saved sums are taken over; then they must be those of `saved`."""
    found = saved_tensors(path, ARITHMETIC)
    if found is None:
        return False
    done, tensors = found
    assert done == 16
    assert tensors.keys() == SUMS.keys()
    assert all(one.dtype == SUMS[name].dtype and torch.equal(one, SUMS[name]) for name, one in tensors.items())
    return True


def test_saved_sums_are_taken_over_exactly_where_they_are_computed_alike(saved: Path) -> None:
    assert is_whole(saved)
    assert saved_tensors(saved, "bf16 on GPUs") is None


def test_sums_with_a_missing_end_or_any_damaged_byte_are_not_taken_over_changed(saved: Path) -> None:
    content = saved.read_bytes()
    for place, value in enumerate(content):
        saved.write_bytes(content[:place])
        assert not is_whole(saved)
        saved.write_bytes(content[:place] + bytes([value ^ 1]) + content[place + 1 :])
        is_whole(saved)
