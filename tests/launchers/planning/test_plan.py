"""What a plan says, against what the launchers would do."""

from pathlib import Path
from typing import Any

import pytest

import retain
from retain.launchers.jobs.resources import as_executions, slurm_resources
from retain.launchers.jobs.sbatch import planned_families
from retain.launchers.planning.opened_study import open_study
from tests.studies import tiny_study

EWC = {"finetune.anchor": {"ewc": 1, "sequences": 4}, "grid": {"finetune.anchor.sequences": [4, 8, 16]}}


@pytest.mark.parametrize(
    "fields",
    [{}, {"execution.pack": 2}, {**EWC, "execution.pack": 2}, {**EWC, "execution.stages": {"finetune": {"pack": 2}}}],
    ids=lambda fields: str(fields),
)
def test_a_plan_counts_the_jobs_that_submit_makes(fields: dict[str, Any], tmp_path: Path) -> None:
    study, store = str(tiny_study(tmp_path, **fields)), tmp_path / "runs"
    opened = open_study(study, [], store)
    executions = as_executions(slurm_resources(opened.tree, opened.file, opened.store, None, []))
    families = planned_families(opened.tree, opened.tree.stages, executions)
    assert retain.plan(study, store=store).totals.jobs == sum(-(-len(one.keys) // one.pack) for one in families)
