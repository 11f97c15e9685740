"""How a job is handed to SLURM, whatever it does: what it asks for, its environment, and the code that it runs."""

import shlex
import sys
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.launchers.local.launcher import TRAINING_ENVIRONMENT
from retain.sweeps.schema.execution import Slurm

if TYPE_CHECKING:
    import submitit


@dataclass(frozen=True)
class Request:
    """What a job asks for beside what a study and a site say to SLURM."""

    name: str
    comment: str
    minutes: int
    nodes: int
    tasks: int
    """Processes on each node."""
    cpus: int
    """Of each process."""
    memory_gb: float | None
    """Of one node."""
    gpus: int
    """Of one node."""
    dependency: str | None = None


def executor(
    folder: Path, request: Request, slurm: Slurm, last_line: Sequence[str], code: Path
) -> "submitit.SlurmExecutor":
    """submitit's, with its files in `folder`; `last_line`: of the job's script; `code`: the snapshot that it runs."""
    import submitit

    class SlurmExecutor(submitit.SlurmExecutor):
        """Also where there is no srun: a script may be looked at anywhere, and whoever submits asks for SLURM itself."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    # A site's words for GPUs are not for a job that takes none.
    gres = slurm.gres if request.gpus or "{gpus}" not in (slurm.gres or "") else None
    parameters: dict[str, Any] = {
        "job_name": request.name,
        "comment": request.comment,
        "time": request.minutes,
        "nodes": request.nodes,
        "ntasks_per_node": request.tasks,
        "cpus_per_task": request.cpus,
        "mem": f"{int(request.memory_gb * 1024)}M" if request.memory_gb else None,
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
        "setup": _setup(slurm, request.cpus, code),
        "teardown": [shlex.join(last_line)],
        "additional_parameters": {"requeue": True} | slurm.extra,
    }
    made = SlurmExecutor(folder=folder.absolute(), python=shlex.quote(sys.executable))
    made.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
    return made


def hand_over(folder: Path, names: Sequence[str]) -> None:
    """Put submitit's pickles where adopted jobs or tasks of these ids look for them; all in a folder are the same."""
    waiting = list(folder.glob("*.pkl"))
    for name in names:
        place = folder / f"{name}_submitted.pkl"
        if not place.exists() and waiting:
            beside = folder / f".{uuid.uuid4().hex}"
            beside.write_bytes(next(path for path in waiting if path.exists()).read_bytes())
            beside.replace(place)


def _setup(slurm: Slurm, cpus: int, code: Path) -> list[str]:
    # Since SLURM 22.05 srun does not take the job's --cpus-per-task over by itself.
    variables = TRAINING_ENVIRONMENT | {"SRUN_CPUS_PER_TASK": str(cpus)} | slurm.environment
    return [
        *(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()),
        *slurm.setup,
        # After the setup: modules may set it too.
        f"export PYTHONPATH={shlex.quote(str(code.absolute()))}${{PYTHONPATH:+:$PYTHONPATH}}",
        # Where a command is called from a checkout, python -m would take its code first.
        "export PYTHONSAFEPATH=1",
    ]
