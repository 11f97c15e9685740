from dataclasses import replace
from pathlib import Path

import pytest

from retain.results.store.lease import Lease, this_process
from tests.results.store.processes import written_lease


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "lease.json"


@pytest.fixture
def remote(path: Path) -> Lease:
    """A lease that a process on another machine holds."""
    return written_lease(path, replace(this_process(), machine="another boot", job_id="17"))
