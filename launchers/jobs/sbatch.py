"""How a job is handed to SLURM, whatever it does: what it asks for, its environment, and the code that it runs."""

import contextlib
import os
import re
import shlex
import sys
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.launchers.stage.environment import OFFLINE
from retain.sweeps.schema.execution import Slurm

if TYPE_CHECKING:
    import submitit

OF_A_JOB = re.compile(
    r"(SLURM|SLURMD|SRUN|SBATCH|SUBMITIT|PMI|PMIX)_(?!CONF$|JWT$)|CUDA_VISIBLE_DEVICES$|ROCR_VISIBLE_DEVICES$"
    r"|GPU_DEVICE_ORDINAL$|(MASTER_(ADDR|PORT)|WORLD_SIZE|RANK|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK)$"
)
"""Environment variables of a job, which a job that it submits must not inherit."""


@dataclass(frozen=True)
class Request:
    """What a job asks for, in addition to the options of the study and the site."""

    name: str
    comment: str
    minutes: int
    nodes: int
    tasks: int
    """Processes on each node."""
    gpus: int
    """GPUs of each node."""
    dependency: str | None = None


def executor(
    folder: Path, request: Request, slurm: Slurm, last_line: Sequence[str], code: Path
) -> "submitit.SlurmExecutor":
    """submitit's executor with its files in `folder`. last_line: of the job's script; code: the snapshot that the job runs."""
    import submitit

    class SlurmExecutor(submitit.SlurmExecutor):
        """Works without srun: scripts may be printed on any machine, and submitting checks for SLURM itself."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    # A site's own words for GPUs are only for jobs that take GPUs.
    gres = slurm.gres if request.gpus or "{gpus}" not in (slurm.gres or "") else None
    parameters: dict[str, Any] = {
        "job_name": request.name,
        "comment": request.comment,
        "time": request.minutes,
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks,
        "cpus_per_task": slurm.cpus,
        "mem": f"{int(slurm.memory_gb * 1024)}M" if slurm.memory_gb else None,
        "partition": slurm.partition,
        "account": slurm.account,
        "qos": slurm.qos,
        "constraint": slurm.constraint,
        "exclude": slurm.exclude,
        "gres": gres and gres.replace("{gpus}", str(request.gpus)),
        "gpus_per_node": request.gpus if request.gpus and "gpu" not in (gres or "") else None,
        "dependency": request.dependency,
        "signal_delay_s": slurm.warning_seconds,
        "array_parallelism": slurm.at_a_time,
        "stderr_to_stdout": True,
        "setup": _setup(slurm, code),
        "teardown": [shlex.join(last_line)],
        "additional_parameters": {"requeue": True} | slurm.extra,
    }
    made = SlurmExecutor(folder=folder.absolute(), python=shlex.quote(sys.executable))
    made.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
    return made


def hand_over(folder: Path, names: Sequence[str]) -> None:
    """Put submitit's pickles where adopted jobs or tasks of these ids look for them; all pickles of a folder are the same."""
    waiting = list(folder.glob("*.pkl"))
    for name in names:
        place = folder / f"{name}_submitted.pkl"
        if not place.exists() and waiting:
            beside = folder / f".{uuid.uuid4().hex}"
            beside.write_bytes(next(path for path in waiting if path.exists()).read_bytes())
            beside.replace(place)


@contextlib.contextmanager
def outside_job() -> Iterator[None]:
    """Hide the variables of the job that this process belongs to: a job submitted meanwhile would inherit them."""
    hidden = {name: value for name, value in os.environ.items() if OF_A_JOB.match(name)}
    for name in hidden:
        del os.environ[name]
    try:
        yield
    finally:
        os.environ.update(hidden)


def _setup(slurm: Slurm, code: Path) -> list[str]:
    # Since SLURM 22.05, srun does not inherit the job's --cpus-per-task.
    variables = OFFLINE | {"SRUN_CPUS_PER_TASK": str(slurm.cpus)} | slurm.environment
    return [
        *(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()),
        *slurm.setup,
        # After the setup, as modules may set it too.
        f"export PYTHONPATH={shlex.quote(str(code.absolute()))}${{PYTHONPATH:+:$PYTHONPATH}}",
        # Otherwise python -m, called from a checkout, would prefer the code there.
        "export PYTHONSAFEPATH=1",
    ]
