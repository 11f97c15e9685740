"""The check before a stage that its files will fit on the disk."""

import shutil
from pathlib import Path

import numpy
import pytest
from safetensors.numpy import save_file

from retain.results.store.disk import SMALL_FILES, check_room, stage_bytes, used_bytes
from retain.sweeps.base.errors import MissingResourceError


def test_the_estimate_covers_three_checkpoints_and_the_final_weights_as_written(tmp_path: Path) -> None:
    parameters = 10_000
    tensor = numpy.zeros(parameters, dtype=numpy.float32)
    for step in range(3):
        checkpoint = dict.fromkeys(("weight", "first moment", "second moment", "best weight"), tensor)
        save_file(checkpoint, tmp_path / f"{step}.safetensors")
    save_file({"weight": tensor}, tmp_path / "model.safetensors")
    written = used_bytes(tmp_path)
    assert stage_bytes(parameters) - SMALL_FILES <= written <= stage_bytes(parameters)
    assert stage_bytes(0) == SMALL_FILES


def test_the_error_for_a_full_disk_states_needed_bytes_free_bytes_and_a_cure(tmp_path: Path) -> None:
    place = tmp_path / "runs" / "not there yet"
    free = shutil.disk_usage(tmp_path).free
    check_room(place, free // 2)
    with pytest.raises(MissingResourceError) as caught:
        check_room(place, 2 * 10**18)
    message = str(caught.value)
    assert message.startswith(f"{place}: 2e+06 TB are needed and ")
    assert "are free; " in message
    assert "free space" in message
    assert "--store" in message
    assert not place.exists()


def test_used_bytes_counts_each_file_once_and_follows_no_links(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"12345")
    (tmp_path / "a" / "b" / "two").write_bytes(b"123")
    assert used_bytes(tmp_path / "a") == 8
    assert used_bytes(tmp_path / "a" / "one") == 5
    assert used_bytes(tmp_path / "absent") == 0
    (tmp_path / "a" / "up").symlink_to(tmp_path, target_is_directory=True)
    assert used_bytes(tmp_path / "a") < 8 + 500


def test_the_free_space_is_that_of_the_disk_of_the_store(small_disk: Path, tmp_path: Path) -> None:
    check_room(tmp_path, 2 * 2**20)
    check_room(small_disk / "runs", 2**19)
    with pytest.raises(MissingResourceError, match=r"2.1 MB are needed and 1.05 MB are free"):
        check_room(small_disk / "runs", 2 * 2**20)
