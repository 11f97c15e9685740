"""SLURM's commands: squeue for any number of jobs, limits, requeue, cancel. Works without accounting.

Every command is called in `cluster_environment`, so that a user's own defaults for SLURM's commands change no answer.
"""

import contextlib
import os
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import TypeVar

from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.base.notices import Waiting
from retain.sweeps.base.processes.names import slurm_job

Answer = TypeVar("Answer")
PATIENCE_S = 60.0
"""How long to wait for the answer of a command."""
AWAY_S, ASK_AGAIN_S = 600.0, 10.0
"""How long, and how often, a job asks a controller that does not answer before it gives up runs that it still has to do."""
NO_ANSWER = (
    r"[Tt]imed out|Unable to contact|temporarily|[Cc]onnection refused|Slurm backup controller|Unexpected message"
)
"""How the errors of SLURM's commands read while the controller restarts or has too much to do."""
OPTION = re.compile(r"(SLURM|SLURMD|SBATCH|SRUN|SALLOC|SQUEUE|SACCT|SACCTMGR|SCANCEL|SCONTROL|SINFO)_")
"""Environment variables that stand for options of SLURM's commands, or describe the job that this process belongs to."""
CLUSTER = ("SLURM_CONF", "SLURM_CONF_SERVER", "SLURM_CLUSTERS", "SLURM_JWT")
"""The only ones of them that are kept: they name the cluster and the user."""
NO_CLUSTER = re.compile(r"resolve_ctls|Could not establish a configuration|Unable to process configuration file")
CURES = (
    (NO_ANSWER, "submit again once the controller answers, which adds only what is missing"),
    (r"time limit|WallDuration", "lower execution.slurm.minutes; a longer stage continues in its next attempt"),
    (
        r"[Nn]ode co(nfiguration|unt)|Memory spec|CPU count|Per(Job|Node|User|Account)|Grp",
        "ask for less on a node, or for another partition",
    ),
    (r"account", "set execution.slurm.account to an account of yours; the site knows which you have"),
    (r"partition", "set execution.slurm.partition to a partition that sinfo lists"),
    (r"qos|QOS", "set execution.slurm.qos to a quality of service that your account may use"),
    (r"feature", "set execution.slurm.constraint to a feature that nodes of the partition have"),
    (r"generic resource|gres", "set execution.slurm.gres as the site writes it, or execution.accelerator=cpu"),
)
"""How sbatch's reasons for a refusal read, and the cure of each."""
POLICY = re.compile(r"(; )?Job violates accounting/QOS policy.*")
"""What sbatch prints after the name of any limit of accounting; without the name in old versions of SLURM."""
FULL = "sleeping and retrying"
"""What sbatch prints when the cluster has as many jobs as slurmctld takes (MaxJobCount); it then tries for two minutes."""
AT_ONCE = f"""
exec "$@" 2> >(
    while IFS= read -r line; do
        printf '%s\\n' "$line" >&2
        case $line in *"{FULL}"*) kill -KILL $$ ;; esac
    done
)
"""
"""A script of bash that becomes the sbatch of its arguments, and ends it where it would try again."""
AGAIN = "then cancel and retry its study, as a queued job keeps what it was submitted with"
SUSPENDED = "SUSPENDED"
STUCK = (
    (
        r"PartitionTimeLimit|WallDurationPerJobLimit",
        f"its walltime is over a limit: lower execution.slurm.minutes, {AGAIN}",
    ),
    (r"InvalidAccount|AccountNotAllowed", f"set execution.slurm.account to an account that may run there, {AGAIN}"),
    (r"InvalidQOS|QOSNotAllowed", f"set execution.slurm.qos to a quality of service that you may use, {AGAIN}"),
    (r"PerJobLimit|PerJob$|PartitionNodeLimit|BadConstraints", f"ask for less or for another partition, {AGAIN}"),
    (r"JobHeldUser|JobHoldMaxRequeue|held.state", "it is held: scontrol release {job} lets it start"),
    (r"JobHeldAdmin", "an administrator holds it: ask them to release job {job}"),
    (SUSPENDED, "it continues once SLURM or an administrator resumes it"),
)
"""SLURM's reasons for a job to wait that somebody has to remove, and how."""
NOT_STARTED = ("PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "SPECIAL_EXIT", SUSPENDED)


class NoAnswerError(MissingResourceError):
    """SLURM's controller does not answer at the moment."""


class QueueFullError(MissingResourceError):
    """The user has as many jobs as SLURM allows."""


@dataclass(frozen=True)
class Job:
    """A job, or one task of an array, that has not ended."""

    job_id: str
    """123, or 123_4 for a task of an array."""
    name: str
    state: str
    reason: str
    """SLURM's reason for waiting, or SUSPENDED; empty if the job runs."""

    @property
    def waits(self) -> bool:
        return self.state in NOT_STARTED

    @property
    def failed_to_start(self) -> bool:
        """Whether a node could not start the job, so that SLURM holds it until it is released."""
        return self.reason.replace("_", " ") == "launch failed requeued held"

    @property
    def cure(self) -> str:
        """What has to be done so that the job starts; empty if it only has to wait."""
        found = next((cure for pattern, cure in STUCK if re.search(pattern, self.reason)), "")
        return found.format(job=self.job_id) if self.waits else ""

    @property
    def counts(self) -> bool:
        """Whether the job counts against the user's limit of jobs."""
        return self.state != "COMPLETING"


def has_slurm() -> bool:
    """Whether this machine has SLURM's commands."""
    return shutil.which("sbatch") is not None and shutil.which("squeue") is not None


def require_slurm() -> None:
    """Raise MissingResourceError if there is no SLURM."""
    if not has_slurm():
        raise MissingResourceError(
            "SLURM: sbatch and squeue are not on PATH; submit from a login node, or train on this machine: "
            "retain run, or submit --launcher local"
        )


def live_jobs(job_ids: Iterable[str] | None = None, name: str | None = None, everyone: bool = False) -> dict[str, Job]:
    """The jobs that have not ended, by id: one call of squeue. Raises MissingResourceError if SLURM does not answer.

    job_ids: only these jobs and the tasks of these arrays; None for all jobs of this user, or of everyone. name: only jobs with
    this name.
    """
    command = ["squeue", "--noheader", "--array", "--format=%i|%j|%T|%r", "--states=all"]
    command += ["--name", name] if name else []
    command += ["--user", str(os.getuid())] if job_ids is None and name is None and not everyone else []
    wanted = None if job_ids is None else {job_id.split("_")[0] for job_id in job_ids}
    if wanted is not None and not wanted:
        return {}
    if wanted is not None and len(wanted) == 1:
        command += ["--jobs", *wanted]  # of several, squeue fetches the jobs of everyone all the same
    try:
        listed = ask(command)
    except MissingResourceError as error:
        if wanted is None or "Invalid job id" not in str(error):
            raise
        return {}  # SLURM has forgotten the job
    found = {}
    for line in listed.splitlines():
        job_id, job_name, state, reason = (*line.strip().split("|", 3), "", "", "")[:4]
        if _is_live(state) and (wanted is None or job_id.split("_")[0] in wanted):
            reason = SUSPENDED if state == SUSPENDED else "" if reason == "None" else reason
            found[job_id] = Job(job_id, job_name, state, reason)
    return found


def _is_live(state: str) -> bool:
    return state in (*NOT_STARTED, "RUNNING", "COMPLETING", "STOPPED", "SIGNALING", "STAGE_OUT", "RESIZING")


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """Cancel jobs or tasks of arrays; jobs that have ended are ignored. Raises MissingResourceError."""
    for first in range(0, len(job_ids), 500):
        ask(["scancel", "--quiet", *job_ids[first : first + 500]])


def release_jobs(job_ids: Sequence[str]) -> list[str]:
    """Release held jobs or tasks of arrays; returns those that SLURM released, as some sites allow only operators to do it."""
    released = []
    for job_id in job_ids:
        with contextlib.suppress(MissingResourceError):
            ask(["scontrol", "release", job_id])
            released.append(job_id)
    return released


def signal_job(job_id: str, name: str) -> bool:
    """Send a signal to all processes of a running job. Returns whether SLURM accepted it."""
    try:
        ask(["scancel", "--quiet", f"--signal={name}", job_id])
    except MissingResourceError:
        return False
    return True


def requeue_job(job_id: str, hold_s: int = 0) -> None:
    """Requeue the job of this process, to start again after `hold_s` seconds at the earliest. Raises MissingResourceError."""
    asked_patiently(lambda: ask(["scontrol", "requeue", job_id], shielded=True))
    if hold_s:
        with contextlib.suppress(MissingResourceError):
            ask(["scontrol", "update", f"jobid={job_id}", f"starttime=now+{hold_s}"], shielded=True)


def own_job_is_cancelled() -> bool:
    """Whether somebody has ended this process's job with scancel; False if SLURM does not answer.

    A job that ends for another cause is COMPLETING too, but differs: a time limit has a reason, a preemption has a time, and a
    requeued job has one restart more than this process was started with.
    """
    try:
        answer = ask(["scontrol", "--oneliner", "show", "job", str(slurm_job())])
    except MissingResourceError:
        return False
    found = dict(re.findall(r"\b(JobState|Reason|PreemptTime|Restarts)=(\S+)", answer))
    restarts = os.environ.get("SLURM_RESTART_COUNT", "0")
    return found == {"JobState": "COMPLETING", "Reason": "None", "PreemptTime": "None", "Restarts": restarts}


def own_job_is_requeued() -> bool:
    """Whether somebody has requeued this process's job, as an operator does, or SLURM when a node is set down.

    It then has one restart more than this process was started with, while it still completes. False if SLURM does not answer.
    """
    try:
        answer = ask(["scontrol", "--oneliner", "show", "job", str(slurm_job())], shielded=True)
    except MissingResourceError:
        return False
    return max(map(int, re.findall(r"\bRestarts=(\d+)", answer)), default=0) > int(
        os.environ.get("SLURM_RESTART_COUNT", "0")
    )


def is_stopped_early() -> bool:
    """Whether less than half of this job's walltime has passed, so something else stops it. False if SLURM does not say."""
    with contextlib.suppress(MissingResourceError):
        answer = ask(["scontrol", "--oneliner", "show", "job", str(slurm_job())], shielded=True)
        found = dict(re.findall(r"\b(RunTime|TimeLimit)=(\S+)", answer))
        passed, limit = (seconds(found.get(name, "")) for name in ("RunTime", "TimeLimit"))
        return passed is not None and (limit is None or 2 * passed < limit)
    return False


def seconds(text: str) -> int | None:
    """The seconds of SLURM's [days-]hours:minutes:seconds; None for UNLIMITED, INFINITE or NONE."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+):(\d+):(\d+)", text)
    if not found:
        return None
    days, hours, minutes, rest = (int(part or 0) for part in found.groups())
    return ((days * 24 + hours) * 60 + minutes) * 60 + rest


def exclude_nodes(job_id: str, nodes: Iterable[str]) -> None:
    """Add nodes to those that a waiting job avoids. If SLURM refuses, nothing changes.

    If too few nodes were left, it avoids only these; none, if that leaves too few as well: it would wait for ever.
    """
    with contextlib.suppress(MissingResourceError):
        shown = ask(["scontrol", "--oneliner", "show", "job", job_id])
        job = dict(re.findall(r"\b(ExcNodeList|Partition|NumNodes)=(\S+)", shown))
        before = _hosts(job.get("ExcNodeList", "(null)"))
        names = ask(
            [
                "sinfo",
                "--noheader",
                "--Node",
                f"--partition={job['Partition']}",
                "--states=idle,mix,alloc,comp",
                "--format=%N",
            ]
        )
        usable, needed = set(names.split()), int(job.get("NumNodes", "1").partition("-")[0])
        avoided = next((one for one in ({*before, *nodes}, set(nodes)) if len(usable - one) >= needed), set[str]())
        if avoided != before:
            ask(["scontrol", "update", f"jobid={job_id}", f"excnodelist={','.join(sorted(avoided))}"])


def _hosts(listed: str) -> set[str]:
    """The names of a list of nodes such as n[1-3]."""
    return set() if listed == "(null)" else set(ask(["scontrol", "show", "hostnames", listed]).split())


def start_after(job_id: str, job_ids: Iterable[str]) -> None:
    """Let a waiting job start once other jobs have ended. If SLURM refuses, nothing changes."""
    with contextlib.suppress(MissingResourceError):
        ask(["scontrol", "update", f"jobid={job_id}", f"dependency=afterany:{':'.join(job_ids)}"], shielded=True)


def accounted_states(job_ids: Iterable[str]) -> dict[str, str]:
    """The final states of jobs that have ended, as sacct prints them, by id: one call of sacct; empty without accounting."""
    wanted = set(job_ids)
    if not wanted or shutil.which("sacct") is None:
        return {}
    command = ["sacct", "--noheader", "--parsable2", "--allocations", "--duplicates", "--format=JobID,State"]
    try:
        lines = ask([*command, f"--jobs={','.join(sorted(wanted))}"], 20).splitlines()
    except MissingResourceError:
        return {}
    rows = [line.split("|") for line in lines]
    return {job_id: state for job_id, state, *_ in rows if job_id in wanted and not _is_live(state)}


def cluster_environment() -> dict[str, str]:
    """This process's environment without the options of SLURM's commands; sbatch's own cluster is that of all commands."""
    kept = {name: value for name, value in os.environ.items() if name in CLUSTER or not OPTION.match(name)}
    return kept | ({"SLURM_CLUSTERS": os.environ["SBATCH_CLUSTERS"]} if os.environ.get("SBATCH_CLUSTERS") else {})


def ask(command: Sequence[str], patience_s: float = PATIENCE_S, shielded: bool = False) -> str:
    """The output of a SLURM command. Raises NoAnswerError if the controller does not answer, else MissingResourceError.

    shielded: whether the command ignores TERM, which SLURM sends to all processes of a job while it answers a requeue.
    """
    try:
        done = subprocess.run(
            command,
            env=cluster_environment(),
            capture_output=True,
            text=True,
            timeout=patience_s,
            check=False,
            start_new_session=shielded,
            preexec_fn=_ignore_term if shielded else None,
        )
    except subprocess.TimeoutExpired:
        raise NoAnswerError(f"SLURM: {command[0]} has not answered in {patience_s:g} s; try again later") from None
    except FileNotFoundError:
        raise MissingResourceError(f"SLURM: {command[0]} is not on PATH; load your site's SLURM module") from None
    if done.returncode:
        if NO_CLUSTER.search(done.stderr):
            raise MissingResourceError(
                f"SLURM: {command[0]} is installed here and finds no cluster (no slurm.conf); log in to a machine of the "
                "cluster, or set SLURM_CONF, or train on this machine: retain run, or submit --launcher local"
            )
        reason = one_line(done.stderr) or f"code {done.returncode}"
        failed = f"SLURM: {' '.join(command[:3])} failed: {reason}"
        if is_away(reason):
            raise NoAnswerError(f"{failed}; try again once the controller answers")
        raise MissingResourceError(failed)
    return done.stdout


def asked_patiently(question: Callable[[], Answer]) -> Answer:
    """What a question to SLURM returns, once the controller answers. Raises NoAnswerError if it does not within AWAY_S."""
    deadline = time.monotonic() + AWAY_S
    waiting = Waiting(f"this job asks again for up to {AWAY_S / 60:.0f} minutes")
    while True:
        try:
            return question()
        except NoAnswerError as error:
            if time.monotonic() > deadline:
                raise
            waiting.say(str(error))
            time.sleep(ASK_AGAIN_S)


def refused(what: str, printed: str) -> MissingResourceError:
    """The error for a job that sbatch refused. what: the first run of the job."""
    kind = NoAnswerError if is_away(printed) else MissingResourceError
    return (QueueFullError if is_full(printed) else kind)(f"SLURM: sbatch refused {what}: {refusal(printed)}")


def refusal(printed: str) -> str:
    """sbatch's reason for refusing a job, and the cure."""
    reason = one_line(printed)
    named = POLICY.sub("", reason) or reason
    cures = [cure for pattern, cure in CURES if re.search(pattern, named)]
    return "; ".join([named, *cures[:1]])


def is_away(printed: str) -> bool:
    """Whether a command failed only because SLURM's controller did not answer."""
    return re.search(NO_ANSWER, printed) is not None


def is_full(printed: str) -> bool:
    """Whether sbatch refused a job only because there are as many jobs as the user, a group of users or all may have."""
    named = POLICY.sub("", printed)
    return (
        FULL in printed or "SubmitJob" in named or (named != printed and not re.search(r"\b(Assoc|QOS|Max)\w+", named))
    )


def at_once(command: Sequence[str]) -> list[str]:
    """A call of sbatch that fails at once where the cluster is full. BASH_ENV, which may print anything, is not read."""
    return ["bash", "-p", "-c", AT_ONCE, "bash", *command]


def one_line(printed: str) -> str:
    """What a SLURM command has printed as an error, without its name before every line."""
    lines = [re.sub(r"^\w+: (error|fatal): ", "", line.strip()) for line in printed.splitlines()]
    return "; ".join(line.removeprefix("Batch job submission failed: ") for line in lines if line)[:300]


def _ignore_term() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
