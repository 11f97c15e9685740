"""What one job, or one array of jobs, requests from SLURM: its runs, resources, environment and code."""

import contextlib
import json
import os
import re
import shlex
import sys
import time
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from retain.launchers.jobs.resources import UNMEASURED_MINUTES
from retain.launchers.jobs.submissions import Submission, job_label, submission_folder
from retain.launchers.planning.register import EVALUATIONS_OF_A_JOB
from retain.launchers.slurm.client import at_once, cluster_environment
from retain.launchers.stage.environment import OFFLINE
from retain.results.store.runs import Store
from retain.sweeps.base.files import write_bytes
from retain.sweeps.base.surroundings import BEFORE, safe_python_path, values_before
from retain.sweeps.schema.execution import Slurm
from retain.sweeps.tree.evaluation_runs import EVALUATE
from retain.sweeps.tree.key_diff import stage_name
from retain.sweeps.tree.tree import Tree

if TYPE_CHECKING:
    import submitit

OF_A_JOB = re.compile(
    r"(SUBMITIT|PMI|PMIX)_|CUDA_VISIBLE_DEVICES$|ROCR_VISIBLE_DEVICES$"
    r"|GPU_DEVICE_ORDINAL$|(MASTER_(ADDR|PORT)|WORLD_SIZE|RANK|LOCAL_RANK|LOCAL_WORLD_SIZE|GROUP_RANK)$"
)
"""Environment variables of a job besides SLURM's own. A job that this job submits must not inherit them."""

NAMED_ALIKE = {"nodes", "partition", "account", "qos", "constraint", "exclude"}
"""Options that a study and sbatch call the same."""


OF_A_SUBMISSION = ("array", "comment", "dependency", "export", "job-name", "output", "wckey")
"""Options of sbatch that are no resources."""


@dataclass(frozen=True)
class Family:
    """Runs of one stage that need the same runs and resources, one array of jobs; or evaluations of several, one job."""

    stage: str
    needs: tuple[str, ...]
    keys: tuple[str, ...]
    execution: Mapping[str, Any]
    study: str
    """The study that registered the runs."""
    at: str = ""
    """The stage that evaluations measure; empty for other runs."""

    @property
    def pack(self) -> int:
        """Number of runs that one job does, one after the other."""
        return int(self.execution.get("pack", 1))  # absent in runs registered before packs


def families(store: Store, keys: Sequence[str]) -> list[Family]:
    """Registered runs grouped by stage, needs and resources, in the order of the first of each group."""

    def alone(key: str) -> Family:
        run = store.run(key)
        spec = run.spec()
        at = str(spec["axes"]["evaluate.at"]) if stage_name(spec) == EVALUATE else ""
        return Family(stage_name(spec), tuple(run.needs()), (key,), spec["execution"], spec.get("study", ""), at)

    return _grouped(map(alone, keys))


def planned_families(tree: Tree, keys: Collection[str], executions: Mapping[str, Mapping[str, Any]]) -> list[Family]:
    """`families` of stages that need not be registered. executions: how each stage is executed, by key."""
    wanted = frozenset(keys)
    stages = [stage for stage in tree.stages.values() if stage.key in wanted]
    return _grouped(
        Family(
            stage.stage,
            stage.needs,
            (stage.key,),
            executions[stage.key],
            tree.study,
            stage.axes["evaluate.at"] if stage.stage == EVALUATE else "",
        )
        for stage in stages
    )


def _grouped(single: Iterable[Family]) -> list[Family]:
    found: dict[str, list[Family]] = {}
    evaluations: dict[str, int] = {}
    for one in single:
        apart: Any = one.needs
        if one.stage == EVALUATE:
            alike = json.dumps([one.at, one.execution], sort_keys=True)
            evaluations[alike] = evaluations.get(alike, -1) + 1
            apart = [one.at, evaluations[alike] // EVALUATIONS_OF_A_JOB]
        found.setdefault(json.dumps([one.stage, apart, one.execution], sort_keys=True), []).append(one)
    return [
        replace(
            members[-1],
            keys=tuple(key for one in members for key in one.keys),
            needs=tuple(dict.fromkeys(need for one in members for need in one.needs)),
        )
        for members in found.values()
    ]


def family_executor(
    store: Store, submission: Submission, family: Family, dependency: str | None, code: Path
) -> "submitit.SlurmExecutor":
    """submitit's executor for one submission. code: the snapshot that the job runs."""
    import submitit

    class SlurmExecutor(submitit.SlurmExecutor):
        """Works without srun: any machine can print scripts, and `require_slurm` checks for SLURM before a submission."""

        @classmethod
        def affinity(cls) -> int:
            return 1

    execution = family.execution
    slurm = Slurm.model_validate(execution["slurm"])
    tasks = execution["devices"] // slurm.nodes
    # A search states the GPUs of its nodes; each process of a stage has one.
    gpus = execution.get("gpus_per_node", tasks if execution["accelerator"] != "cpu" else 0)
    # A `gres` with {gpus} is only for jobs that use GPUs.
    gres = slurm.gres if gpus or "{gpus}" not in (slurm.gres or "") else None
    root = str(store.root.absolute())
    epilogue = shlex.join([sys.executable, "-m", "retain.launchers.jobs.epilogue", root, submission.token])
    parameters: dict[str, Any] = slurm.model_dump(include=NAMED_ALIKE) | {
        "job_name": submission.name,
        "comment": f"retain {family.study}: {family.stage} in {store.root}",
        "time": slurm.minutes or UNMEASURED_MINUTES,
        "ntasks_per_node": tasks,
        "cpus_per_task": slurm.cpus,
        "mem": f"{int(slurm.memory_gb * 1024)}M" if slurm.memory_gb else None,
        "gres": gres and gres.replace("{gpus}", str(gpus)),
        "gpus_per_node": gpus if gpus and "gpu" not in (gres or "") else None,
        "dependency": dependency,
        "signal_delay_s": slurm.warning_seconds,
        "array_parallelism": slurm.at_a_time,
        "stderr_to_stdout": True,
        "setup": _setup(slurm, code, epilogue),
        "teardown": [epilogue],
        "additional_parameters": {"requeue": True, "export": "ALL"}
        | {name: value for name, value in slurm.extra.items() if value is not False},
        # Whatever the job was submitted with: the process needs what the lines of its script export.
        "srun_args": ["--export=ALL"],
    }
    folder = submission_folder(store, submission.token)
    executor = SlurmExecutor(folder=folder.absolute(), python=shlex.quote(sys.executable))
    executor.update_parameters(**{name: value for name, value in parameters.items() if value is not None})
    executor.parameters["wckey"] = None  # submitit's default is its own name, which sites with such keys refuse
    return executor


def label_of(family: Family) -> str:
    """What the name of a family's job says of it."""
    return job_label(family.study, family.stage, family.keys[0])


def sbatch_script(store: Store, family: Family, dependency: str | None, code: Path) -> str:
    """The sbatch script with which a family would be submitted."""
    submission = Submission("dry-run", family.keys, time.time(), pack=family.pack, label=label_of(family))
    executor = family_executor(store, submission, family, dependency, code)
    if len(submission.tasks) > 1:
        executor.parameters["map_count"] = len(submission.tasks)
    return str(executor._make_submission_file_text(executor._submitit_command_str, "dry-run"))


def asks_otherwise(store: Store, family: Family, token: str, estimated: bool) -> bool:
    """Whether the job of a submission has other options than its runs would be submitted with now.

    estimated: whether the walltime is an estimate, which later runs may change.
    """
    scripts = [path.read_text() for path in sorted(submission_folder(store, token).glob("*.sh")) if path.exists()]
    now, ignored = sbatch_script(store, family, None, store.root), {*OF_A_SUBMISSION, *(["time"] if estimated else [])}
    return bool(scripts) and _options(scripts[0], ignored) != _options(now, ignored)


def _options(script: str, ignored: Collection[str]) -> dict[str, str]:
    found = dict(re.findall(r"^#SBATCH --([\w-]+)(.*)$", script, re.MULTILINE))
    return {name: value for name, value in found.items() if name not in ignored}


def hand_over(folder: Path, names: Sequence[str]) -> None:
    """Put a pickle of submitit where each of these adopted jobs or tasks reads it; all pickles of a folder are the same."""
    pickles = list(folder.glob("*.pkl"))
    for name in names:
        place = folder / f"{name}_submitted.pkl"
        if not place.exists() and pickles:
            write_bytes(place, next(path for path in pickles if path.exists()).read_bytes())


@contextlib.contextmanager
def outside_job() -> Iterator[None]:
    """Hide the variables of the job that this process belongs to, and those that are options of sbatch."""
    before = dict(os.environ)
    inherited = {name: value for name, value in cluster_environment().items() if not OF_A_JOB.match(name)}
    for name in before.keys() - inherited.keys():
        del os.environ[name]
    os.environ.update(inherited)
    try:
        yield
    finally:
        for name in inherited.keys() - before.keys():
            del os.environ[name]
        os.environ.update(before)


@contextlib.contextmanager
def failing_at_once() -> Iterator[None]:
    """Let submitit call sbatch as `at_once` does. It calls it for an array through an executor of its own class."""
    import submitit

    plain = submitit.SlurmExecutor._make_submission_command
    setattr(submitit.SlurmExecutor, plain.__name__, lambda executor, file: at_once(plain(executor, file)))
    try:
        yield
    finally:
        setattr(submitit.SlurmExecutor, plain.__name__, plain)


def _setup(slurm: Slurm, code: Path, epilogue: str) -> list[str]:
    # Since SLURM 22.05, srun does not take --cpus-per-task from the job.
    variables = OFFLINE | {"SRUN_CPUS_PER_TASK": str(slurm.cpus)} | slurm.environment
    ours = sorted({"PYTHONPATH", "PYTHONSAFEPATH", *OFFLINE} - slurm.environment.keys())
    # Python -m in the folder of a checkout would import the code of the checkout without PYTHONSAFEPATH.
    path, safe = f"PYTHONPATH={shlex.quote(str(code.absolute()))}${{PYTHONPATH:+:$PYTHONPATH}}", "PYTHONSAFEPATH=1"
    early = f'code=$?; [ -n "$RETAIN_IS_SET_UP" ] || {path} {safe} {epilogue} $code'
    return [
        # Without the user's own sources, which would replace modules of Python or of libraries.
        f"export PYTHONPATH={shlex.quote(safe_python_path())}",
        f"export {BEFORE}={shlex.quote(values_before(ours))}",
        *(f"export {name}={shlex.quote(str(value))}" for name, value in variables.items()),
        # The epilogue also runs if these lines end the script, as with `set -e`.
        *([f"trap {shlex.quote(early)} EXIT", *slurm.setup, "RETAIN_IS_SET_UP=1", "set +e"] if slurm.setup else []),
        # Set after the setup commands, as modules may set it too.
        f"export {path}",
        f"export {safe}",
    ]
