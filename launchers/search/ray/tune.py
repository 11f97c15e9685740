"""Trains the stages of a search with Ray Tune: on this machine, on a running Ray cluster, or on the cluster of an allocation.

What Tune calls a trial is one stage here: its resources are a placement group, and its actor trains it with the processes that
`retain run` would start. The search decides which stage comes next. Tune's own records are not kept, because the store has
everything that matters.
"""

import contextlib
import logging
import os
import secrets
import shutil
import signal
import socket
import sys
import time
import warnings
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from retain.launchers.local.devices import Slot, local_slots
from retain.launchers.local.launcher import POLL_S, Scheduler
from retain.launchers.search.engine import Work
from retain.launchers.search.ray.cleanup import ray_folder
from retain.launchers.search.ray.node import OBJECT_STORE_BYTES
from retain.results.store.runs import Store
from retain.sweeps.base.errors import MissingResourceError, StudyError
from retain.sweeps.schema.execution import Execution, StageExecution
from retain.sweeps.tree.tree import STAGES, Stage, Tree

_ENVIRONMENT = {
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0",
    "RAY_AIR_NEW_OUTPUT": "0",
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    "TUNE_GLOBAL_CHECKPOINT_S": "3600",
    "TUNE_WARN_EXCESSIVE_EXPERIMENT_CHECKPOINT_SYNC_THRESHOLD_S": "0",
}
_ON_LOCALHOST = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0"}
"""Ray binds its ports to localhost only if it is told that this machine is in no cluster; an address is not enough."""

CONNECT_S = 10.0
STEP_S = 0.5
"""How often an actor polls for stop requests."""
LOST_WORKERS = 8
"""How often a stage may lose its Ray worker before the search drops it until the next start."""
JOIN_S = 300.0
"""How long to wait for the nodes of an allocation; then the search begins on those that have joined."""


@dataclass(frozen=True)
class Cluster:
    """Where stages are trained: on a local Ray, or on the running cluster at `address`."""

    address: str | None
    execution: Execution
    nodes: int = 0
    """Number of nodes of an allocation with a Ray cluster of its own."""

    def parallel(self) -> int:
        """Stages that run at a time on this machine; for a cluster, that is known once it is joined.

        Raises MissingResourceError, and StudyError for a stage that spans several nodes.
        """
        for kind in STAGES:
            _bundle(self.execution.of_stage(kind), gpus=False)
        return len(local_slots(self.execution)) if self.address is None else 1

    def has_gpus(self) -> bool:
        """Whether this machine has GPUs for stages; False for a cluster, for which that is known once it is joined."""
        return self.address is None and any(slot.gpus for slot in local_slots(self.execution))


def train_with_tune(work: Work, store: Store, cluster: Cluster, scratch: Path) -> None:
    """Train the stages of `work` until it has finished. Raises KeyboardInterrupt once all processes have saved and ended.

    scratch: a folder for Tune's own records, removed at the end.
    """
    # Standard output is for the document of --json, but Ray prints messages about lost workers there.
    with contextlib.redirect_stdout(sys.stderr), _as_interrupt(), _ray(cluster) as nodes:
        from ray import tune

        gpus = any(resources.get("GPU", 0.0) > 0 for resources in nodes)
        needs = {kind: _bundle(cluster.execution.of_stage(kind), gpus) for kind in STAGES}
        if cluster.address is not None:
            room = room_for(nodes, list(needs.values()), _name(cluster))
            work.allow(min(room, cluster.execution.parallel or room))
        source = _source(work, store, needs)
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            with _quiet():
                tune.run(
                    _trainable(),
                    name="stages",
                    num_samples=-1,
                    search_alg=source,
                    scheduler=_scheduler(work, source),
                    callbacks=[_watcher(work)],
                    storage_path=str(scratch.absolute()),
                    verbose=0,
                    reuse_actors=True,
                    max_failures=LOST_WORKERS,
                    raise_on_failed_trial=False,
                )
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        if not work.finished():
            raise KeyboardInterrupt


@contextlib.contextmanager
def _ray(cluster: Cluster) -> Iterator[list[dict[str, float]]]:
    """Start Ray or join a cluster; yields the resources of each node. Everything that was started is stopped afterwards."""
    os.environ.update(_ENVIRONMENT)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR, "configure_logging": False}
    if cluster.address is None:
        # Its ports accept only requests with this token, which no other user of the machine knows.
        os.environ.update(_ON_LOCALHOST | {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)})
        slots = local_slots(cluster.execution)
        gpus = len({gpu for slot in slots for gpu in slot.gpus})
        busiest = max(_cpus(cluster.execution.of_stage(kind), gpus > 0) for kind in STAGES)
        options |= {"num_cpus": len(slots) * busiest, "num_gpus": gpus, "include_dashboard": False}
        options |= {"_node_ip_address": "127.0.0.1", "object_store_memory": OBJECT_STORE_BYTES}
    else:
        options |= {"address": cluster.address}
        _check_address(cluster.address)
        if (Path.home() / ".ray" / "auth_token").exists() or "RAY_AUTH_TOKEN" in os.environ:
            # Ray does not send its token by default; a cluster without tokens ignores it.
            os.environ.setdefault("RAY_AUTH_MODE", "token")
    own = ray_folder() if cluster.address is None else contextlib.nullcontext()
    with own as folder:
        import ray

        options |= {"_temp_dir": str(folder)} if folder else {}
        logging.getLogger("ray").setLevel(logging.ERROR)
        on_term = signal.getsignal(signal.SIGTERM)
        try:
            ray.init(**options)
        except (ConnectionError, ValueError, RuntimeError, TimeoutError) as error:
            where = f"{_name(cluster)}: no Ray answers there" if cluster.address else "Ray cannot be started here"
            raise MissingResourceError(f"{where} ({' '.join(str(error).split())[:200]})") from None
        try:
            signal.signal(signal.SIGTERM, on_term)  # Ray may have installed its own
            yield _joined(cluster.nodes)
        finally:
            ray.shutdown()


def _joined(expected: int) -> list[dict[str, float]]:
    """The resources of each living node, once as many as expected have joined or the time is up."""
    import ray

    deadline = time.monotonic() + JOIN_S
    while True:
        known: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
        nodes: list[dict[str, float]] = [node["Resources"] for node in known if node["Alive"]]
        if len(nodes) >= expected:
            return nodes
        if time.monotonic() > deadline:
            print(f"retain: {len(nodes)} of {expected} nodes have joined; the search begins on these", file=sys.stderr)
            return nodes
        time.sleep(POLL_S)


def _name(cluster: Cluster) -> str:
    """The name of a cluster in messages."""
    return "the allocation" if cluster.nodes else f"--address {cluster.address}"


def room_for(nodes: list[dict[str, float]], needs: list[dict[str, float]], name: str) -> int:
    """The number of stages that fit on a cluster at a time. Raises MissingResourceError if some stage does not fit."""
    room = [
        sum(int(min(node.get(what, 0.0) / count for what, count in need.items())) for node in nodes) for need in needs
    ]
    if 0 in room:
        need = needs[room.index(0)]
        asked = " and ".join(f"{count:g} {what}s" for what, count in need.items())
        has = " and ".join(f"{max((node.get(what, 0.0) for node in nodes), default=0.0):g} {what}s" for what in need)
        raise MissingResourceError(
            f"{name}: a stage needs {asked}, and the largest node has {has}; ask for fewer in execution, or for larger nodes"
        )
    return max(room)


def _check_address(address: str) -> None:
    """Raise MissingResourceError if nothing listens there: Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdecimal():  # "auto": the cluster of this machine
        return
    try:
        socket.create_connection((host, int(port)), timeout=CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise MissingResourceError(
            f"--address {address}: no Ray answers there ({error}); start one with ray start --head, or omit --address"
        ) from None
    if host in ("localhost", "127.0.0.1"):
        # Ray would look for this machine at its external address, where a cluster that listens on 127.0.0.1 only is not found.
        try:
            socket.create_connection(("127.0.0.2", int(port)), timeout=CONNECT_S).close()
        except OSError:
            os.environ.update(_ON_LOCALHOST)


def _bundle(execution: StageExecution, gpus: bool) -> dict[str, float]:
    """The resources of one stage on one machine. Raises StudyError if it spans several."""
    if execution.slurm.nodes > 1:
        raise StudyError("execution.slurm.nodes: a search on Ray trains a stage on one node; leave it 1")
    on_gpus = execution.accelerator == "gpu" or (execution.accelerator == "auto" and gpus)
    return {"CPU": float(_cpus(execution, on_gpus))} | ({"GPU": float(execution.devices)} if on_gpus else {})


def _cpus(execution: StageExecution, gpus: bool) -> int:
    return execution.devices if gpus else execution.devices * execution.threads


def _source(work: Work, store: Store, needs: dict[str, dict[str, float]]) -> Any:
    """The search as a Tune searcher: what it suggests is the next stage."""
    from ray.tune.search import Searcher

    class Stages(Searcher):
        def __init__(self) -> None:
            super().__init__()
            self.keys: dict[str, str] = {}

        def suggest(self, trial_id: str) -> Any:
            stage = work.next_stage()
            if stage is None:
                return Searcher.FINISHED if work.finished() else None
            self.keys[trial_id] = stage.key
            lone = asdict(stage) | {"parent": None, "recipe": "", "axes": {}}
            return {"store": str(store.root.absolute()), "stage": lone, "needs": needs[stage.stage]}

        def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
            work.ended(self.keys.pop(trial_id))

        # The store has everything that a restart needs.
        def save(self, checkpoint_path: str) -> None: ...
        def restore(self, checkpoint_path: str) -> None: ...
        def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None: ...

    return Stages()


def _scheduler(work: Work, source: Any) -> Any:
    """A Tune scheduler that stops stages which the search has given up."""
    from ray.tune.schedulers import FIFOScheduler, TrialScheduler

    class GivenUp(FIFOScheduler):
        def on_trial_result(self, tune_controller: Any, trial: Any, result: Any) -> str:
            key = source.keys.get(trial.trial_id)
            return str(TrialScheduler.STOP if key and work.given_up(key) else TrialScheduler.CONTINUE)

    return GivenUp()  # type: ignore[no-untyped-call]


def _watcher(work: Work) -> Any:
    from ray.tune import Callback

    class Watch(Callback):
        def on_step_end(self, iteration: int, trials: Any, **info: Any) -> None:
            work.watch()

    return Watch()


def _trainable() -> Any:
    from ray.tune import PlacementGroupFactory, Trainable

    class StageActor(Trainable):
        """Trains one stage after another, each with its own processes, and stops them when it is stopped."""

        @classmethod
        def default_resource_request(cls, config: Any) -> Any:
            return PlacementGroupFactory([config["needs"]])

        def setup(self, config: Any) -> None:
            self.trainer = StageTrainer(Path(config["store"]), Stage(**config["stage"]), _gpu_ids())

        def step(self) -> dict[str, Any]:
            return {"done": self.trainer.train_for(STEP_S)}

        def reset_config(self, new_config: Any) -> bool:
            self.trainer.stop()
            self.setup(new_config)
            return True

        def cleanup(self) -> None:
            self.trainer.stop()

    return StageActor


class StageTrainer:
    """The local launcher for one stage whose parent is done, in a process that Ray has started."""

    def __init__(self, root: Path, stage: Stage, gpus: tuple[str, ...]) -> None:
        # SLURM signals every process of a job: the training processes react, and this one waits for them.
        for number in (signal.SIGTERM, signal.SIGUSR2):
            signal.signal(number, signal.SIG_IGN)
        # Forked processes would otherwise run Ray's main file first, which imports all of Ray.
        vars(sys.modules["__main__"]).pop("__file__", None)
        store = Store(root)
        execution = StageExecution.model_validate(store.run(stage.key).spec()["execution"])
        slot = Slot({stage.stage: execution.devices}, gpus)
        self.scheduler = Scheduler(Tree("", {stage.key: stage}, [], False), store, [slot], forgiving=False)

    def train_for(self, seconds: float) -> bool:
        """Train for a while. Returns whether the stage has ended."""
        deadline = time.monotonic() + seconds
        while not self.scheduler.finished() and time.monotonic() < deadline:
            self.scheduler.collect()
            self.scheduler.start_ready()
            time.sleep(POLL_S)
        return self.scheduler.finished()

    def stop(self) -> None:
        """Stop the processes once they have saved a checkpoint."""
        self.scheduler.stop_all("interrupted")


def _gpu_ids() -> tuple[str, ...]:
    import ray

    return tuple(str(number) for number in ray.get_gpu_ids())


@contextlib.contextmanager
def _as_interrupt() -> Iterator[None]:
    """SIGTERM ends a search as Ctrl-C does, which Tune handles; a job has its own handlers."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    before = signal.getsignal(signal.SIGTERM)
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGTERM, interrupt)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence Tune's messages about trials and restoring, which mean nothing here."""
    loggers = [logging.getLogger(name) for name in ("ray.tune", "ray.train", "ray.air")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
