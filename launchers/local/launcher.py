"""The local launcher: trains the stages of a tree on this machine, as many at a time as its cores or GPUs allow."""

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerProcess
from pathlib import Path
from types import FrameType

from retain.launchers.kinds import kind_of
from retain.launchers.local.devices import Slot
from retain.launchers.local.fork_server import fork_server, start
from retain.launchers.local.worker import work
from retain.launchers.slurm.liveness import slurm_liveness
from retain.launchers.stage.failures import BUG, DISK, LOCAL, classify_death, prepare_retry, sentence
from retain.launchers.stage.log import BUSY, NO_ROOM, STOP_GRACE_S, STOPPED
from retain.launchers.stage.ranks import LOOPBACK, Ranks, free_port
from retain.launchers.stage.signals import CANCEL_SIGNAL, is_nohup
from retain.results.store.lease import held_by, try_lease
from retain.results.store.readiness import is_ready
from retain.results.store.runs import Run, Store
from retain.results.store.state import State
from retain.sweeps.base.errors import MissingResourceError, RetainError
from retain.sweeps.tree.evaluation_runs import EVALUATE
from retain.sweeps.tree.tree import Tree

POLL_S = 0.1
WAITING = "waits:"
"""The beginning of the reason of a run that this launcher waits for."""
GRACE_S = 5.0
"""How long the other ranks of a run may outlive one that failed."""

Watch = Callable[[Mapping[str, State]], None]
"""Called several times a second with the states of all stages of the tree."""


@dataclass
class WorkerGroup:
    """The processes that train one run, their slot, and the pipe that shows them that the launcher is alive."""

    processes: list[ForkServerProcess]
    slot: int
    pipe: Connection
    left: int = 0
    """The number of siblings of the run that the group may still train; 0 with more than one process."""
    failed_at: float | None = None
    """When the launcher saw that a process had failed; None if none has. Monotonic seconds."""
    code: int = 0
    """The exit code of the process that failed first."""
    cancelled: bool = False
    """Whether the processes know that their run was cancelled."""

    def cancel(self) -> None:
        """Tell the processes, which save a checkpoint and end."""
        if not self.cancelled:
            self.cancelled = True
            for process in self.processes:
                send_signal(process, CANCEL_SIGNAL)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()


def send_signal(process: ForkServerProcess, number: int) -> bool:
    """Send a signal to a process that was started. Returns whether it still ran."""
    if process.pid is None or not process.is_alive():
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:  # it has ended since
        return False
    return True


Disturb = Callable[[Mapping[str, WorkerGroup]], None]
"""Called with the worker groups by run, instead of a pause between polls. Only the drill uses it, to kill processes."""

Failed = Callable[[Sequence[str]], None]
"""Called with the keys of runs that have just failed for good, unless nothing is left to train."""


def train(
    tree: Tree,
    store: Store,
    slots: Sequence[Slot],
    watch: Watch,
    disturb: Disturb | None = None,
    failed: Failed | None = None,
) -> dict[str, State]:
    """Train every stage of a tree that the store lacks; returns the last state of each.

    A stage that fails stops its own branch only. If another launcher on this store trains a stage, this one waits for it. On
    KeyboardInterrupt all processes are stopped, their runs are left as planned, and the exception is raised again. A run whose
    processes `disturb` has killed is resumed.
    """
    scheduler = Scheduler(tree, store, slots, forgiving=disturb is not None)
    with _terminate_as_interrupt():
        try:
            while not scheduler.finished():
                scheduler.collect()
                watch(scheduler.states)
                scheduler.start_ready()
                if failed is not None and scheduler.failed and not scheduler.finished():
                    failed(scheduler.failed)
                scheduler.failed = []
                if disturb is not None:
                    disturb(scheduler.groups)
                else:
                    time.sleep(POLL_S)
        except KeyboardInterrupt:
            scheduler.stop_all("interrupted")
            raise
        except BaseException:
            scheduler.stop_all("the launcher failed")
            raise
    watch(scheduler.states)
    return scheduler.states


def start_detached(study: str, overrides: Sequence[str], store: Path) -> Path:
    """Start `retain run` in the background, so that it survives the end of the terminal; returns the path of its log."""
    log = store / f"run.{socket.gethostname()}.{time.strftime('%Y%m%d-%H%M%S')}.log"
    command = [sys.executable, "-P", "-m", "retain.launchers.cli.app", "run", study, *overrides, "--store", str(store)]
    with log.open("ab") as stream:
        subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=stream, stderr=stream, start_new_session=True)
    return log


class Scheduler:
    """Decides which run is trained next: the states of all stages, the worker groups, the free slots.

    A stage waits until the runs that it needs are done and a slot is free; then it has a worker group; then it is done, or
    waits again for another attempt, or has ended.
    """

    def __init__(self, tree: Tree, store: Store, slots: Sequence[Slot], forgiving: bool) -> None:
        self.tree, self.store, self.slots = tree, store, slots
        self.forgiving = forgiving
        """Whether killed processes are resumed."""
        self.liveness = slurm_liveness()
        self.unwritten: dict[str, State] = {}
        """The states of failed runs that could not be written, because the disk is full."""
        self.states = store.states(tree.stages)
        missing = [key for key, state in self.states.items() if state.state not in ("done", "cancelled")]
        self.context = fork_server(sorted({kind_of(store.run(key).spec()).module for key in missing}))
        self.waiting = sorted(missing, key=self._urgency())
        self.groups: dict[str, WorkerGroup] = {}
        self.elsewhere: set[str] = set()
        """Runs that another launcher was seen to train."""
        self.ended = {key for key, state in self.states.items() if state.state == "cancelled"}
        """Runs that ended without being done, and those below them."""
        self.failed: list[str] = []
        """Runs that have failed for good since they were last told."""

    def finished(self) -> bool:
        return not self.waiting and not self.groups

    def collect(self) -> None:
        """Read the progress of the worker groups, and handle those that ended."""
        for key, group in list(self.groups.items()):
            # 1. Has a rank failed? A signal that ended one rank counts before the errors that this causes in the others.
            codes = [process.exitcode for process in group.processes]
            if group.failed_at is None and (bad := [code for code in codes if code not in (None, 0, STOPPED)]):
                group.failed_at, group.code = time.monotonic(), min(bad)
            # 2. While a rank runs: end it if another has failed, or give it the next run of its pack.
            if None in codes:
                if group.failed_at is not None and time.monotonic() - group.failed_at > GRACE_S:
                    group.kill()
                elif group.left and group.pipe.poll():
                    self._continue_pack(key, group)
            # 3. Once all ranks have ended: decide what becomes of the run.
            else:
                self._dismiss(key, group, group.code or (STOPPED if STOPPED in codes else 0))
            self.states[key] = self.unwritten.get(key) or self.store.run(key).state()
            if self.states[key].state == "cancelled" and key in self.groups:
                self.groups[key].cancel()

    def start_ready(self) -> None:
        """Start ready stages while slots are free, the longest path first; drop stages whose branch has ended."""
        used = {group.slot for group in self.groups.values()}
        free = [slot for slot in range(len(self.slots)) if slot not in used]
        for key in list(self.waiting):
            stage = self.tree.stages[key]
            # 1. The branch has ended above: so has this stage.
            if not self.ended.isdisjoint(stage.needs):
                self.waiting.remove(key)
                self.ended.add(key)
            # 2. Another launcher has ended the run, or trains it: it does not start here.
            # 3. Otherwise it starts in a free slot.
            elif (free or key in self.elsewhere) and is_ready(stage, self.states):
                if self._ended_elsewhere(key):
                    self.waiting.remove(key)
                elif free and key not in self.elsewhere:
                    self.waiting.remove(key)
                    self.groups[key] = self._start(key, free.pop(0))

    def stop_all(self, cause: str) -> None:
        """Stop all processes, and leave their runs as planned. A second interrupt ends the wait for their checkpoints."""
        # 1. Ask every process to save a checkpoint and end; wait for them all.
        if self.groups:
            names = ", ".join(f"{self.tree.stages[key].stage} {key[:8]}" for key in self.groups)
            with contextlib.suppress(OSError):  # the terminal is gone
                print(f"retain: waiting at most {STOP_GRACE_S:.0f} s for the checkpoints of {names}", file=sys.stderr)
        processes = [process for group in self.groups.values() for process in group.processes]
        with contextlib.suppress(KeyboardInterrupt):
            for process in processes:
                process.terminate()
            deadline = time.monotonic() + STOP_GRACE_S
            for process in processes:
                process.join(max(0.0, deadline - time.monotonic()))
        # 2. Kill those that are left.
        for group in self.groups.values():
            group.kill()
            for process in group.processes:
                process.join()
            group.pipe.close()
        # 3. Record that their attempts have ended.
        for key in self.groups:
            run = self.store.run(key)
            # On a full disk the next launcher sees that they have ended.
            with contextlib.suppress(OSError, MissingResourceError), try_lease(run.lease) as held:
                if held:
                    run.stop(cause)
            self.states[key] = run.state()
        self.groups.clear()

    def _continue_pack(self, key: str, group: WorkerGroup) -> None:
        """Give a group that has trained a run of a pack the next run, if that is a sibling; otherwise let it end."""
        # 1. Choose the most urgent run, unless another group or launcher must train it.
        ready = (other for other in self.waiting if is_ready(self.tree.stages[other], self.states))
        following = next(ready, "")
        if (
            following
            and self._are_siblings(key, following)
            and not self._ended_elsewhere(following)
            and following not in self.elsewhere
        ):
            self._free_lease(following)
        else:
            following = ""
        # 2. Answer the process, which waits for a key; an empty one ends it.
        try:
            group.pipe.recv_bytes()
            group.pipe.send_bytes(following.encode())
        except (EOFError, OSError):  # the process has just died
            following = ""
        # 3. The group belongs to the next run now.
        group.left, group.cancelled = group.left - 1 if following else 0, False
        if following:
            self.waiting.remove(following)
            self.groups[following] = self.groups.pop(key)

    def _are_siblings(self, key: str, other: str) -> bool:
        """Whether a process may run two stages in turn: siblings, or two evaluations, that are executed in the same way."""
        one, another = self.tree.stages[key], self.tree.stages[other]
        executions = [self.store.run(run).spec()["execution"] for run in (key, other)]
        near = one.stage == another.stage and (one.parent == another.parent or one.stage == EVALUATE)
        return near and executions[0] == executions[1]

    def _ended_elsewhere(self, key: str) -> bool:
        """Whether this run was cancelled or another launcher has ended it; notes in `elsewhere` that another one trains it."""
        run = self.store.run(key)
        if run.is_running(self.liveness):
            self.elsewhere.add(key)
            self.states[key] = replace(run.state(), reason=f"{WAITING} {held_by(run.lease)}")
            return False
        state = run.state()
        if state.state in ("done", "cancelled") or (key in self.elsewhere and state.state == "failed"):
            self.states[key] = state
            if state.state != "done":
                self.ended.add(key)
            return True
        self.elsewhere.discard(key)
        return False

    def _start(self, key: str, slot: int) -> WorkerGroup:
        """Start a process for each rank of a run."""
        self._free_lease(key)
        world = self.slots[slot].ranks.get(self.tree.stages[key].stage, 1)  # an evaluation has one
        pack = self.store.run(key).spec()["execution"].get("pack", 1) if world == 1 else 1
        theirs, ours = self.context.Pipe(duplex=pack > 1)
        shared = {"CUDA_VISIBLE_DEVICES": ",".join(self.slots[slot].gpus[:world])}
        port = free_port()
        processes = []
        for ranks in (Ranks(rank, world) for rank in range(world)):
            own = ranks.rendezvous(LOOPBACK, port, local_rank=ranks.rank) if world > 1 else {}
            arguments = (self.store.root, key, ranks, shared | own, theirs, pack, self._runs(key, pack))
            process = self.context.Process(target=work, args=arguments, name=f"{key} rank {ranks.rank}")
            start(process)
            processes.append(process)
        theirs.close()
        return WorkerGroup(processes, slot, ours, left=pack - 1)

    def _runs(self, key: str, pack: int) -> int:
        """How many runs a process does that begins with this one: its share of the siblings that wait, at most a pack."""
        own = self.tree.stages[key]
        near = [other for other in map(self.tree.stages.__getitem__, self.waiting) if other.parent == own.parent]
        siblings = 1 + sum(other.stage == own.stage for other in near)
        return min(pack, -(-siblings // len(self.slots)))

    def _free_lease(self, key: str) -> None:
        """Release the lease of a dead owner on another machine: a worker has not watched long enough to know that.

        A store that cannot be written is for the worker to report, as the failure of this run alone.
        """
        with contextlib.suppress(MissingResourceError), try_lease(self.store.run(key).lease, self.liveness):
            pass

    def _dismiss(self, key: str, group: WorkerGroup, code: int) -> None:
        """Decide what becomes of a run whose processes have all ended."""
        group.pipe.close()
        del self.groups[key]
        run = self.store.run(key)
        state = run.state()
        # 1. It has ended as it should.
        if state.state == "done":
            return
        if state.state == "cancelled":
            self.ended.add(key)
            return
        # 2. It waits for another attempt: it was stopped, another process has it, or its failure may be retried.
        if code in (BUSY, STOPPED) or (self.forgiving and code < 0) or run.is_running():
            self.waiting.insert(0, key)
            return
        try:
            if code >= 0 and state.state == "failed" and prepare_retry(run, LOCAL):
                self.waiting.insert(0, key)
                return
        except OSError:  # the disk is full
            pass
        # 3. It has failed, and with it the stages below.
        self.ended.add(key)
        self.failed.append(key)
        if code < 0 or run.state().state != "failed":
            self._fail(run, code)

    def _fail(self, run: Run, code: int) -> None:
        """Record the failure of a run whose processes died without reporting it."""
        failure = DISK if code == NO_ROOM else classify_death(code) or BUG
        reason = sentence(failure, f"{_death(code)}; its log is {run.log}")
        with contextlib.suppress(OSError), run.log.open("a", encoding="utf-8") as log:
            log.write(f"{reason}\n")
        try:
            with try_lease(run.lease) as held:
                if held:
                    run.fail(reason, failure, cause=reason)
        except (OSError, RetainError):  # the disk is full: the state is kept in memory for the final table
            self.unwritten[run.key] = replace(run.state(), state="failed", reason=reason)

    def _urgency(self) -> Callable[[str], tuple[int, str]]:
        """Sort key: the most tokens on a path below a stage first, so that no branch is left for the end."""
        below: dict[str, int] = {}
        for stage in reversed(self.tree.stages.values()):
            below[stage.key] = below.get(stage.key, 0) + stage.tokens
            for need in stage.needs:
                below[need] = max(below.get(need, 0), below[stage.key])
        return lambda key: (-below[key], key)


def _death(code: int) -> str:
    if code == NO_ROOM:
        return "the disk is full: free space and run it again, the last checkpoint is kept"
    if code == -signal.SIGKILL:
        return "its process was killed (SIGKILL), perhaps for lack of memory"
    if code < 0:
        return f"its process was ended by {signal.Signals(-code).name}"
    return f"its process exited with code {code}"


@contextlib.contextmanager
def _terminate_as_interrupt() -> Iterator[None]:
    """Let TERM of batch systems and service managers, and HUP of a closed terminal, stop the launcher as Ctrl-C does."""
    numbers = [number for number in (signal.SIGTERM, signal.SIGHUP) if not is_nohup(number)]

    def interrupt(number: int, frame: FrameType | None) -> None:
        # A shell and the kernel may both send HUP: only a second Ctrl-C ends the wait for checkpoints.
        for number in numbers:
            signal.signal(number, signal.SIG_IGN)
        raise KeyboardInterrupt

    before = {number: signal.signal(number, interrupt) for number in numbers}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
