"""The loggers of `execution.log`: each mirrors the points of curves.jsonl, and none may stop the training.

    runs/<key>/events.*                  tensorboard
    runs/<key>/csv/metrics.csv           csv
    runs/<key>/wandb/offline-run-*-<key> wandb, until `wandb sync` uploads it
    trackio/                             trackio, for all runs of the store

An attempt that resumes begins with the points up to its checkpoint, and replaces what earlier attempts logged on this machine.
So a logger's history is that of curves.jsonl, whatever killed the attempts before.
"""

import contextlib
import io
import os
import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from retain.launchers.stage.log import log_line
from retain.results.store.curves import CURVES, Point, drop_events
from retain.results.store.runs import Run, Store
from retain.sweeps.tree.key_diff import stage_name

TENSORBOARD = "tensorboard"
FINISH_S = 60.0
"""How long the end of a run waits for an upload to W&B."""


class Logger(Protocol):
    """What mirrors the points of one run."""

    def add(self, point: Point) -> None: ...

    def add_results(self, hyperparameters: Mapping[str, Any], losses: Mapping[str, float]) -> None:
        """Add the hyperparameters and the final losses (nats per token) of a run that is done."""

    def flush(self) -> None: ...

    def close(self) -> None: ...


class Loggers:
    """All loggers of a run. A logger that raises is left out from then on, and the run's log says so once.

    points: those up to the checkpoint that the attempt resumes from. step_of: the step after which a stage has seen tokens.
    """

    def __init__(self, run: Run, points: Iterable[Point], step_of: Callable[[int], int]) -> None:
        self.run = run
        self.loggers: dict[str, Logger] = {}
        points = list(points)

        def start(name: str) -> None:
            if name == TENSORBOARD:
                from retain.results.tensorboard.run_events import RunEvents

                self.loggers[name] = RunEvents(run.folder, points)
            else:
                self.loggers[name] = Rows(TRACKERS[name](run), step_of, points)

        for name in run.execution().get("log", [TENSORBOARD]):
            self._try(name, partial(start, name))

    def add(self, point: Point) -> None:
        self._each(lambda logger: logger.add(point))

    def flush(self) -> None:
        self._each(lambda logger: logger.flush())

    def add_results(self, hyperparameters: Mapping[str, Any], losses: Mapping[str, float]) -> None:
        """Add the hyperparameters and the final losses (nats per token) of a run that is done."""
        self._each(lambda logger: logger.add_results(hyperparameters, losses))

    def close(self) -> None:
        self._each(lambda logger: logger.close())
        self.loggers.clear()

    def _each(self, call: Callable[[Logger], None]) -> None:
        for name, logger in list(self.loggers.items()):
            self._try(name, partial(call, logger))

    def _try(self, name: str, call: Callable[[], None]) -> None:
        try:
            call()
        except (Exception, SystemExit) as error:  # libraries may wish to end the process
            failed = self.loggers.pop(name, None)
            log_line(
                f"logger {name} failed and is off for this attempt ({type(error).__name__}: {error}); "
                f"training continues, and {CURVES} has every point"
            )
            if failed is not None:
                with contextlib.suppress(Exception, SystemExit):
                    failed.close()
            if name == TENSORBOARD:
                with contextlib.suppress(OSError):
                    drop_events(self.run.folder)  # `retain board` derives all of them, and no part of them


def log_whole(store: Store, run: Run, points: Sequence[Point], losses: Mapping[str, Mapping[str, Any]]) -> None:
    """Give the loggers all points and the final losses, by split, of a run whose stage counts steps instead of tokens.

    TensorBoard alone needs nothing: `retain board` derives its file.
    """
    if run.execution().get("log", [TENSORBOARD]) not in ([], [TENSORBOARD]):
        from retain.results.tensorboard.run_events import run_results  # pydantic, which a short job should not import

        loggers = Loggers(run, points, int)
        loggers.add_results(*run_results(store, run.spec(), losses))
        loggers.close()


class Tracker(Protocol):
    """Where rows of metrics go."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def results(self, hyperparameters: Mapping[str, Any], losses: Mapping[str, float], step: int) -> None: ...

    def close(self, done: bool) -> None: ...


class Rows:
    """A logger of rows: points that were measured at the same number of tokens are one row, which names the tokens too.

    A row is complete, and is logged, when the next one begins.
    """

    def __init__(self, tracker: Tracker, step_of: Callable[[int], int], points: Iterable[Point]) -> None:
        self.tracker, self.step_of, self.done = tracker, step_of, False
        self.row: dict[str, float] = {}
        self.step = 0
        for point in points:
            self.add(point)

    def add(self, point: Point) -> None:
        if self.row.get("tokens", point.tokens) != point.tokens:
            self._end_row()
        self.row |= {"tokens": point.tokens, point.curve: point.value}

    def flush(self) -> None:
        """Nothing: the row may not be complete."""

    def add_results(self, hyperparameters: Mapping[str, Any], losses: Mapping[str, float]) -> None:
        self._end_row()
        self.tracker.results(hyperparameters, {f"losses/{name}": loss for name, loss in losses.items()}, self.step)
        self.done = True

    def close(self) -> None:
        # A signal that stops all processes of a job also ends those of a tracker: then the rows so far are what it has.
        with contextlib.nullcontext() if self.done else contextlib.suppress(ConnectionError):
            try:
                self._end_row()
            finally:
                self.tracker.close(self.done)

    def _end_row(self) -> None:
        row, self.row = self.row, {}
        if row:
            self.step = self.step_of(int(row["tokens"]))
            self.tracker.log(row, self.step)


class CsvTracker:
    """Lightning's CSVLogger."""

    def __init__(self, run: Run) -> None:
        from lightning.pytorch.loggers import CSVLogger

        shutil.rmtree(run.folder / "csv", ignore_errors=True)
        self.logger = CSVLogger(run.folder, name="", version="csv", flush_logs_every_n_steps=1)

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.logger.log_metrics(dict(metrics), step)

    def results(self, hyperparameters: Mapping[str, Any], losses: Mapping[str, float], step: int) -> None:
        self.logger.log_hyperparams(dict(hyperparameters))
        self.logger.log_metrics(dict(losses), step)

    def close(self, done: bool) -> None:
        self.logger.save()


class WandbTracker:
    """Lightning's WandbLogger: one run of Weights & Biases for each run, whose id is the stage key.

    Nothing leaves the machine, unless the variable WANDB_MODE says `online`. A run that W&B then has already is continued.
    """

    def __init__(self, run: Run) -> None:
        import wandb
        from lightning.pytorch.loggers import WandbLogger

        spec = run.spec()
        for folder in run.folder.glob(f"wandb/offline-run-*-{run.key}"):
            shutil.rmtree(folder, ignore_errors=True)
        self.logger = WandbLogger(
            project=os.environ.get("WANDB_PROJECT") or spec["study"],
            name=f"{stage_name(spec)}-{run.key[:8]}",
            id=run.key,
            save_dir=run.folder,
            mode=os.environ.get("WANDB_MODE") or "offline",
            job_type=stage_name(spec),
            # The run's log has what is printed; the code that runs is recorded in stage.json as versions.
            settings=wandb.Settings(
                console="off", silent=True, disable_git=True, disable_code=True, finish_timeout=FINISH_S
            ),
        )
        self.logger.log_hyperparams(dict(spec["axes"]))
        experiment = self.logger.experiment
        self.known = int(experiment.summary.get("trainer/global_step", -1)) if experiment.resumed else -1
        """The last step that the server has of an earlier attempt."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if step > self.known:
            self.logger.log_metrics(metrics, step)

    def results(self, hyperparameters: Mapping[str, Any], losses: Mapping[str, float], step: int) -> None:
        self.logger.log_hyperparams(dict(hyperparameters))
        self.logger.experiment.summary.update(dict(losses))

    def close(self, done: bool) -> None:
        import wandb

        try:
            self.logger.experiment.finish(exit_code=0 if done else 1)
        finally:
            wandb.teardown()  # its own process writes the last rows after `finish`


class TrackioTracker:
    """Trackio's own API: a project for each study, a run for each run, whose name ends in the stage key."""

    def __init__(self, run: Run) -> None:
        spec = run.spec()
        # Trackio reads both when it is imported. Its other journal mode needs memory that nodes do not share.
        os.environ.setdefault("TRACKIO_DIR", str(run.folder.parent.absolute() / "trackio"))
        os.environ.setdefault("TRACKIO_SQLITE_JOURNAL_MODE", "delete")
        Path(os.environ["TRACKIO_DIR"]).mkdir(parents=True, exist_ok=True)
        with quiet():
            import trackio

            name = f"{stage_name(spec)}-{run.key}"
            with contextlib.suppress(ValueError):  # the project does not exist yet
                for old in trackio.Api().runs(spec["study"]):
                    if old.name == name:
                        old.delete()
            self.run = trackio.init(
                project=spec["study"],
                name=name,
                group=stage_name(spec),
                config=dict(spec["axes"]),
                resume="allow",
                embed=False,
            )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.run.log(dict(metrics), step=step)

    def results(self, hyperparameters: Mapping[str, Any], losses: Mapping[str, float], step: int) -> None:
        self.run.log(dict(losses), step=step)

    def close(self, done: bool) -> None:
        with quiet():
            self.run.finish()  # type: ignore[no-untyped-call,unused-ignore]


TRACKERS: Mapping[str, Callable[[Run], Tracker]] = {
    "csv": CsvTracker,
    "wandb": WandbTracker,
    "trackio": TrackioTracker,
}


def quiet() -> contextlib.AbstractContextManager[Any]:
    """Drop what a library prints about itself."""
    return contextlib.redirect_stdout(io.StringIO())
