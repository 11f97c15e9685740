"""`retain plan` says where stages train on this machine, and how many at a time, if the study leaves it open."""

from pathlib import Path

import pytest

from retain.launchers.planning.defaults import planned_defaults
from retain.launchers.planning.opened_study import open_study
from retain.sweeps.base.processes.names import usable_cores
from retain.sweeps.base.units import counted
from tests.studies import tiny_study

CORES = usable_cores()
ON_CPUS = f"on CPUs, {{}} at a time, because it has {counted(CORES, 'core')} and a stage uses {{}}"
FITTING = "in the largest micro-batches that fit"
FIXED = ("execution.precision=fp32", "execution.compile=false")


def said(folder: Path, *overrides: str) -> list[str]:
    """What plan says of the defaults of a study that states its precision and whether it is compiled."""
    opened = open_study(str(tiny_study(folder)), [*FIXED, *overrides], folder / "runs")
    return [line.removeprefix("on this machine stages train ") for line in planned_defaults(opened)]


@pytest.mark.parametrize(
    ("overrides", "sentences"),
    [
        ([], [f"{ON_CPUS.format(CORES, '1 thread')}; on GPUs, if it has any, {FITTING}"]),
        (["execution.accelerator=cpu"], [ON_CPUS.format(CORES, "1 thread")]),
        (["execution.accelerator=gpu"], [f"on GPUs, {FITTING}"]),
        (["execution.accelerator=cpu", "execution.parallel=3"], []),
        (["execution.accelerator=gpu", "execution.micro_batch=1"], []),
        (
            ["execution.accelerator=cpu", f"execution.stages.finetune.threads={2 * CORES}"],
            [ON_CPUS.format(1, f"{2 * CORES} threads")],
        ),
    ],
)
def test_plan_names_the_devices_and_stages_at_a_time_that_the_study_leaves_open(
    tmp_path: Path, overrides: list[str], sentences: list[str]
) -> None:
    assert said(tmp_path, *overrides) == sentences
