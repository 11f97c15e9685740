"""What SLURM is asked about the owner of a lease."""

from dataclasses import replace
from pathlib import Path

import pytest

from retain.launchers.slurm.liveness import slurm_liveness
from retain.results.store.lease import this_process


def test_an_owner_in_an_earlier_attempt_of_this_job_is_judged_by_its_silence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # An squeue that still has the job, as it has it while this job runs again on another node.
    for name in ("sbatch", "squeue"):
        (tmp_path / name).write_text("#!/bin/sh\necho '123|retain|RUNNING|None'\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setenv("SLURM_JOB_ID", "123")
    checker = slurm_liveness()
    assert checker.job_has_ended is not None
    before = replace(this_process(), host="elsewhere", job_id="123")
    assert checker.job_has_ended(before) is None
    assert checker.job_has_ended(replace(before, job_id="124")) is True
    monkeypatch.setenv("SLURM_JOB_ID", "999")
    assert slurm_liveness().job_has_ended(before) is False  # type: ignore[misc]
