from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.disks import small_disk_at


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of one megabyte."""
    with small_disk_at(tmp_path / "small", 1) as disk:
        yield disk
