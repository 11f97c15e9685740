"""What `retain doctor` prints of a cluster."""

from dataclasses import asdict

import pytest

from retain.launchers.cli.views.checks import print_findings
from retain.launchers.slurm.partitions import NodeGroup, Partition


def test_the_table_of_partitions_has_their_numbers_and_no_lists(capsys: pytest.CaptureFixture[str]) -> None:
    groups = (NodeGroup(nodes=3, gpus=4, cpus=8, memory_mb=64_000),)
    partition = Partition("gpu", True, "UP", 3, 12, 720, "REQUEUE", 60, groups)
    print_findings({"findings": [], "slurm": {"partitions": [asdict(partition)]}, "probes": []})
    printed = capsys.readouterr().out
    assert [one in printed for one in ("gpu", "12", "720", "REQUEUE")] == [True] * 4
    assert "groups" not in printed
    assert "nodes': 3" not in printed
