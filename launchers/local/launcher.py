"""The local launcher: ready stages side by side on this machine, as many as its cores or GPUs allow."""

import contextlib
import multiprocessing
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, ForkServerProcess
from types import FrameType

from retain.launchers.local.worker import BUSY, NO_ROOM, STOP_GRACE_S, STOPPED, work
from retain.launchers.slurm.liveness import scheduler_witness
from retain.launchers.stage.failures import BUG, DISK, HERE, classify_death, prepare_retry, sentence
from retain.results.store.lease import take_lease
from retain.results.store.runs import Run, State, Store
from retain.sweeps.base.errors import MissingResourceError, RetainError
from retain.sweeps.schema.execution import Execution
from retain.sweeps.tree.tree import STAGES, Tree

POLL_S = 0.1
TRAINING_ENVIRONMENT = {
    "HF_HUB_DISABLE_PROGRESS_BARS": "1",
    "HF_HUB_OFFLINE": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "TRANSFORMERS_VERBOSITY": "error",
}
"""Read when the libraries are imported: training needs no network, and its log no progress bars."""
GRACE_S = 5.0
"""How long the other ranks of a group may outlive one that failed."""

Watch = Callable[[Mapping[str, State]], None]
"""Called several times a second with the state of every stage that is to be trained."""


@dataclass(frozen=True)
class Slot:
    """Room for one stage at a time: how many processes train it, by its kind, and the GPUs (none: on the CPU)."""

    processes: Mapping[str, int]
    gpus: tuple[str, ...] = ()


@dataclass
class Team:
    """The processes that train one run, the slot they occupy, and the pipe that tells them we live."""

    processes: list[ForkServerProcess]
    slot: int
    alive: Connection
    left: int = 0
    """How many siblings of the run they may yet train; with one process only."""
    failed_at: float | None = None
    """When the first of them was seen to have failed."""
    code: int = 0
    """Its exit code."""


Disturb = Callable[[Mapping[str, Team]], None]
"""Called with the teams at work, instead of a pause; see `retain.launchers.checks.drill`."""


def train(
    tree: Tree, store: Store, slots: Sequence[Slot], watch: Watch, disturb: Disturb | None = None
) -> dict[str, State]:
    """Train every stage of a tree that the store lacks; returns the last state of each.

    A stage that fails stops its own branch only. One that another launcher on this store trains is waited for. On
    KeyboardInterrupt all processes are stopped, their runs are left planned, and the exception goes on.
    With `disturb`, a run whose processes it has killed is taken up again.
    """
    crew = Crew(tree, store, slots, forgiving=disturb is not None)
    with _terminate_as_interrupt():
        try:
            while not crew.finished():
                crew.collect()
                watch(crew.states)
                crew.start_ready()
                if disturb is not None:
                    disturb(crew.teams)
                else:
                    time.sleep(POLL_S)
        except KeyboardInterrupt:
            crew.stop_all("interrupted")
            raise
        except BaseException:
            crew.stop_all("the launcher failed")
            raise
    watch(crew.states)
    return crew.states


def local_slots(execution: Execution) -> list[Slot]:
    """One slot for each stage that may run at a time.

    Raises MissingResourceError where the machine has not the devices that are asked for.
    """
    kinds = {kind: execution.of_stage(kind) for kind in STAGES}
    processes = {kind: stage.devices for kind, stage in kinds.items()}
    on_gpus = {kind: stage for kind, stage in kinds.items() if stage.accelerator != "cpu"}
    gpus = _count_gpus() if on_gpus else 0
    most = max((stage.devices for stage in on_gpus.values()), default=0)
    if (gpus or any(stage.accelerator == "gpu" for stage in on_gpus.values())) and gpus < most:
        raise MissingResourceError(
            f"execution.devices: {most} GPUs are asked for each stage, this machine has {gpus}; "
            "ask for fewer, or set execution.accelerator=cpu"
        )
    if gpus:
        visible = (
            os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if os.environ.get("CUDA_VISIBLE_DEVICES") else []
        )
        names = visible or [str(number) for number in range(gpus)]
        groups = [tuple(names[first : first + most]) for first in range(0, gpus, most)]
        whole = [group for group in groups if len(group) == most]
        return [Slot(processes, group) for group in whole[: execution.parallel]]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    busiest = max(stage.threads * stage.devices for stage in kinds.values())
    return [Slot(processes)] * (execution.parallel or max(1, cores // busiest))


def _count_gpus() -> int:
    import torch

    return torch.cuda.device_count()


class Crew:
    """Who trains what: the states of all stages, the teams at work, the free slots."""

    def __init__(self, tree: Tree, store: Store, slots: Sequence[Slot], forgiving: bool) -> None:
        self.tree, self.store, self.slots = tree, store, slots
        self.forgiving = forgiving
        self.witness = scheduler_witness()
        self.unwritten: dict[str, State] = {}
        """Of failed stages whose end could not be written."""
        self.context = _fork_server()
        self.states = store.states(tree.stages)
        self.waiting = sorted((key for key, state in self.states.items() if state.state != "done"), key=self._urgency())
        self.teams: dict[str, Team] = {}
        self.elsewhere: set[str] = set()
        """Runs that another launcher was seen to train."""
        self.stopped: set[str] = set()
        """Stages that failed, and those below them."""

    def finished(self) -> bool:
        return not self.waiting and not self.teams

    def collect(self) -> None:
        """Take in the progress of the teams, and the end of those that ended."""
        for key, team in list(self.teams.items()):
            codes = [process.exitcode for process in team.processes]
            if team.failed_at is None and (bad := [code for code in codes if code not in (None, 0, STOPPED)]):
                # What a signal did to one rank comes before the errors that this makes in the others.
                team.failed_at, team.code = time.monotonic(), min(bad)
            if None in codes:
                if team.failed_at is not None and time.monotonic() - team.failed_at > GRACE_S:
                    _kill(team)
                elif team.left and team.alive.poll():
                    self._go_on(key, team)
            else:
                self._dismiss(key, team, team.code or (STOPPED if STOPPED in codes else 0))
            self.states[key] = self.unwritten.get(key) or self.store.run(key).state()

    def start_ready(self) -> None:
        """Start waiting stages whose parent is done while slots are free, the longest path first."""
        free = [slot for slot in range(len(self.slots)) if slot not in {team.slot for team in self.teams.values()}]
        for key in list(self.waiting):
            parent = self.tree.stages[key].parent
            if parent in self.stopped:
                self.waiting.remove(key)
                self.stopped.add(key)
            elif (free or key in self.elsewhere) and self._is_ready(key):
                if self._settled_elsewhere(key):
                    self.waiting.remove(key)
                elif free and key not in self.elsewhere:
                    self.waiting.remove(key)
                    self.teams[key] = self._start(key, free.pop(0))

    def _is_ready(self, key: str) -> bool:
        parent = self.tree.stages[key].parent
        return parent is None or self.states[parent].state == "done"

    def _go_on(self, key: str, team: Team) -> None:
        """A team has trained a run, and asks for another of its pack: it gets one where that is the next to be trained."""
        following = next((other for other in self.waiting if self._is_ready(other)), "")
        if following and (not self._are_siblings(key, following) or self._settled_elsewhere(following)):
            following = ""
        if following in self.elsewhere:
            following = ""
        if following:
            self._free_lease(following)
        try:
            team.alive.recv_bytes()
            team.alive.send_bytes(following.encode())
        except (EOFError, OSError):  # it has just died
            following = ""
        team.left = team.left - 1 if following else 0
        if following:
            self.waiting.remove(following)
            self.teams[following] = self.teams.pop(key)

    def _are_siblings(self, key: str, other: str) -> bool:
        """Whether two stages are of one kind below one parent and run the same way."""
        one, another = self.tree.stages[key], self.tree.stages[other]
        executions = [self.store.run(it).spec()["execution"] for it in (key, other)]
        return (one.stage, one.parent) == (another.stage, another.parent) and executions[0] == executions[1]

    def stop_all(self, cause: str) -> None:
        """Stop every process once it has saved its state, or at once at a second interrupt; their runs are left planned."""
        everyone = [process for team in self.teams.values() for process in team.processes]
        with contextlib.suppress(KeyboardInterrupt):
            for process in everyone:
                process.terminate()
            deadline = time.monotonic() + STOP_GRACE_S
            for process in everyone:
                process.join(max(0.0, deadline - time.monotonic()))
        for key, team in self.teams.items():
            _kill(team)
            for process in team.processes:
                process.join()
            team.alive.close()
            _close(self.store.run(key), "planned", cause)
            self.states[key] = self.store.run(key).state()
        self.teams.clear()

    def _settled_elsewhere(self, key: str) -> bool:
        """Whether another launcher trained this run meanwhile; notes the runs that one is training."""
        run = self.store.run(key)
        if run.is_running(self.witness):
            self.elsewhere.add(key)
            self.states[key] = run.state()
            return False
        state = run.state()
        if state.state == "done" or (key in self.elsewhere and state.state == "failed"):
            self.states[key] = state
            if state.state == "failed":
                self.stopped.add(key)
            return True
        self.elsewhere.discard(key)
        return False

    def _start(self, key: str, slot: int) -> Team:
        self._free_lease(key)
        world = self.slots[slot].processes[self.tree.stages[key].stage]
        pack = self.store.run(key).spec()["execution"].get("pack", 1) if world == 1 else 1
        theirs, ours = self.context.Pipe(duplex=pack > 1)
        shared = {"CUDA_VISIBLE_DEVICES": ",".join(self.slots[slot].gpus[:world])}
        if world > 1:
            shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(_free_port()), "WORLD_SIZE": str(world)}
            shared |= {"GLOO_SOCKET_IFNAME": _loopback(), "LOCAL_WORLD_SIZE": str(world), "GROUP_RANK": "0"}
        processes = []
        for rank in range(world):
            environment = shared | ({"RANK": str(rank), "LOCAL_RANK": str(rank)} if world > 1 else {})
            arguments = (self.store.root, key, rank, world, environment, theirs, pack)
            process = self.context.Process(target=work, args=arguments, name=f"{key} rank {rank}")
            process.start()
            processes.append(process)
        theirs.close()
        return Team(processes, slot, ours, left=pack - 1)

    def _free_lease(self, key: str) -> None:
        """A worker has seen nothing yet, so it could not tell that a foreign owner is dead."""
        if dead := take_lease(self.store.run(key).lease, self.witness):
            dead.release()

    def _dismiss(self, key: str, team: Team, code: int) -> None:
        """Take in a team whose processes have all ended."""
        team.alive.close()
        del self.teams[key]
        run = self.store.run(key)
        if run.is_done():
            return
        if code in (BUSY, STOPPED) or (self.forgiving and code < 0) or run.is_running():
            self.waiting.insert(0, key)
            return
        try:
            if code >= 0 and run.state().state == "failed" and prepare_retry(run, HERE):
                self.waiting.insert(0, key)
                return
        except OSError:  # the disk is full
            pass
        self.stopped.add(key)
        if code < 0 or run.state().state != "failed":
            failure = DISK if code == NO_ROOM else classify_death(code) or BUG
            reason = sentence(failure, f"{_ending(code)}; see retain logs {key[:8]}")
            try:
                _close(run, "failed", reason, failure)
            except (OSError, RetainError):  # the disk is full: what cannot be written is told all the same
                self.unwritten[key] = replace(run.state(), state="failed", reason=reason)

    def _urgency(self) -> Callable[[str], tuple[int, str]]:
        """Sort key: the most tokens on a path below a stage first, so that no branch is left for the end."""
        below: dict[str, int] = {}
        for stage in reversed(self.tree.stages.values()):
            below[stage.key] = below.get(stage.key, 0) + stage.tokens
            if stage.parent:
                below[stage.parent] = max(below.get(stage.parent, 0), below[stage.key])
        return lambda key: (-below[key], key)


def _close(run: Run, state: str, cause: str, failure: str | None = None) -> None:
    """Enter the end of an attempt whose process is gone, unless another launcher has taken the run."""
    if lease := take_lease(run.lease):
        if not run.is_done():
            run.end_attempt(state, cause, cause if state == "failed" else None, failure)
        lease.release()


def _ending(code: int) -> str:
    if code == NO_ROOM:
        return "the disk is full: free space and run it again, the last saved state is kept"
    if code == -signal.SIGKILL:
        return "its process was killed (SIGKILL), perhaps for lack of memory"
    return (
        f"its process was ended by {signal.Signals(-code).name}" if code < 0 else f"its process exited with code {code}"
    )


def _kill(team: Team) -> None:
    for process in team.processes:
        process.kill()


def _fork_server() -> ForkServerContext:
    """Processes forked from one that has imported torch: the imports are paid once."""
    os.environ.update(TRAINING_ENVIRONMENT)
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["retain.launchers.stage.training.run"])
    return context


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _loopback() -> str:
    """The name of the interface that only this machine sees."""
    names = [name for _, name in socket.if_nameindex()]
    return next((name for name in names if name.startswith("lo")), names[0])


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """SIGTERM, as batch systems and service managers send it, stops the launcher the way Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)
