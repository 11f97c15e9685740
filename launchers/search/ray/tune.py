"""The stages of a search as the trials of Ray Tune. The resources of a stage are a placement group.

The search decides which stage comes next. An actor trains it with the processes that `retain run` would start. Tune's own
records are not kept, because the store has everything that matters.

This module imports Ray, which reads its environment variables then: import it once they are set.
"""

import shutil
import signal
import sys
import time
import warnings
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import ray
from ray import tune
from ray.tune import PlacementGroupFactory, Stopper, Trainable, TuneError
from ray.tune.search import Searcher
from ray.tune.stopper import NoopStopper

from retain.launchers.local.devices import Slot
from retain.launchers.local.launcher import POLL_S, Scheduler
from retain.launchers.stage.signals import CANCEL_SIGNAL, AttemptStopped, StopRequest
from retain.results.store.runs import Store
from retain.sweeps.schema.execution import StageExecution
from retain.sweeps.tree.tree import Stage, Tree

if TYPE_CHECKING:
    from retain.launchers.search.engine import Search

STEP_S = 0.5
"""How often an actor polls for stop requests."""


def train_stages(search: "Search", stop: StopRequest, needs: Mapping[str, Mapping[str, float]]) -> None:
    """Train the stages of a search until it has finished; needs: the resources of each kind of stage.

    Raises AttemptStopped, once all processes have saved a checkpoint and ended, if a stop is requested.
    """
    scratch = search.searched.folder / "tune"
    stages = Stages(search, stop, needs)
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            tune.run(
                StageActor,
                name="stages",
                num_samples=-1,
                search_alg=stages,
                stop=stages,
                storage_path=str(scratch.absolute()),
                verbose=0,
                reuse_actors=True,
                raise_on_failed_trial=False,
            )
    except TuneError as error:
        raise stages.failed or error from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
    if not search.finished():
        raise AttemptStopped(stop.signal or CANCEL_SIGNAL.name)  # Tune has a handler of its own for this signal


class Stages(Searcher, Stopper):
    """The search as Tune sees it: it suggests the next stage as a trial, and stops what is no longer wanted."""

    def __init__(self, search: "Search", stop: StopRequest, needs: Mapping[str, Mapping[str, float]]) -> None:
        super().__init__()
        self.search, self.stop, self.needs = search, stop, needs
        self.keys: dict[str, str] = {}
        """The stage of each trial."""
        self.failed: Exception | None = None
        """The first error in the search itself; Tune raises its traceback as the text of another one."""

    def suggest(self, trial_id: str) -> Any:
        stage = self.search.next_stage()
        if stage is None:
            return Searcher.FINISHED if self.search.finished() else None
        self.keys[trial_id] = stage.key
        alone = asdict(stage) | {"parent": None, "also": (), "recipe": "", "axes": {}}
        return {
            "store": str(self.search.store.root.absolute()),
            "stage": alone,
            "needs": self.needs[self.search.trained_stage(stage)],
        }

    def on_trial_complete(self, trial_id: str, result: Any = None, error: bool = False) -> None:
        try:
            self.search.ended(self.keys.pop(trial_id))
        except Exception as error:
            self.failed = self.failed or error
            raise

    def __call__(self, trial_id: str, result: Any) -> bool:
        return self.search.given_up(self.keys[trial_id])

    def stop_all(self) -> bool:
        """Whether to stop the search; Tune asks several times a second."""
        self.search.watch()
        if self.stop.signal is None:
            return False
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a second Ctrl-C does not wait for checkpoints
        return True

    # Tune would keep a copy, but the store has everything that a restart needs.
    def save(self, checkpoint_path: str) -> None: ...
    def restore(self, checkpoint_path: str) -> None: ...
    def save_to_dir(self, checkpoint_dir: str, session_str: str = "default") -> None: ...
    def __reduce__(self) -> Any:
        return NoopStopper, ()


class StageActor(Trainable):
    """Runs the local launcher for one stage after another, in a process that Ray has started."""

    @classmethod
    def default_resource_request(cls, config: Any) -> Any:
        return PlacementGroupFactory([config["needs"]])

    def setup(self, config: Any) -> None:
        # SLURM signals every process of a job, and a closing terminal its own: the training processes react, and this one
        # waits for them.
        for number in (signal.SIGTERM, signal.SIGUSR2, signal.SIGHUP):
            signal.signal(number, signal.SIG_IGN)
        # Forked processes would otherwise run Ray's main file first, which imports all of Ray.
        vars(sys.modules["__main__"]).pop("__file__", None)
        store, stage = Store(Path(config["store"])), Stage(**config["stage"])
        execution = StageExecution.model_validate(store.run(stage.key).spec()["execution"])
        slot = Slot({stage.stage: execution.devices}, tuple(map(str, ray.get_gpu_ids())))
        self.scheduler = Scheduler(Tree("", {stage.key: stage}, [], False), store, [slot], forgiving=False)

    def step(self) -> dict[str, Any]:
        deadline = time.monotonic() + STEP_S
        while not self.scheduler.finished() and time.monotonic() < deadline:
            self.scheduler.collect()
            self.scheduler.start_ready()
            time.sleep(POLL_S)
        return {"done": self.scheduler.finished()}

    def reset_config(self, new_config: Any) -> bool:
        self.cleanup()
        self.setup(new_config)
        return True

    def cleanup(self) -> None:
        """Stop the training processes once they have saved a checkpoint."""
        self.scheduler.stop_all("interrupted")
