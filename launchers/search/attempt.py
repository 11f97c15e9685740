"""The kind `search`: an attempt continues the search of a study, from its history to its end, wherever stages are trained."""

import contextlib
import os
import signal
import sys
import time
from collections.abc import Callable, Collection, Iterator
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from retain.launchers.jobs.branches import WITH_STUDY, retry_runs
from retain.launchers.search.budget import Budget, parse_budget
from retain.launchers.search.console import print_summary, searching
from retain.launchers.search.derived_studies import SearchedStudy
from retain.launchers.search.engine import Search
from retain.launchers.search.history import open_history
from retain.launchers.search.request import STAGES_AT_ONCE, SearchRequest, read_request, requested_study
from retain.launchers.search.summary import conclude
from retain.launchers.slurm.liveness import slurm_liveness
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.failures import NODE
from retain.launchers.stage.signals import CANCEL_SIGNAL, AttemptStopped, StopRequest
from retain.results.store.state import Progress
from retain.results.store.study_files import HISTORY
from retain.sweeps.base.errors import MissingResourceError, NoRoomError, StageFailedError

if TYPE_CHECKING:
    from retain.launchers.search.ray.tune import Cluster

SUMMARY_FILE = "summary.json"
POLL_S = 1.0
GIVEN_UP = "given up by its search"
"""Why a run was cancelled that its search no longer wants, until the run has stopped."""

Show = Callable[[Search], AbstractContextManager[Callable[[], Any]]]
"""Makes a function that shows the search to people; it is called often."""


@contextlib.contextmanager
def show_nothing(search: Search) -> Iterator[Callable[[], None]]:
    """Show nothing."""
    yield lambda: None


def attempt(context: AttemptContext) -> None:
    """Continue the search to its end. Raises AttemptStopped once everything is saved, if a stop was requested."""
    request = read_request(context.run)
    try:
        if request.launcher == "slurm-ray":
            from retain.launchers.search.ray.allocation import run_in_allocation

            run_in_allocation(context.run.folder, context.stop, lambda cluster: _drive(context, request, cluster))
        else:
            _drive(context, request, None)
    except KeyboardInterrupt:
        cancelled = context.run.state().state == "cancelled"
        raise AttemptStopped(context.stop.signal or (CANCEL_SIGNAL.name if cancelled else "SIGINT")) from None
    except NoRoomError:
        raise
    except MissingResourceError as error:
        # SLURM or Ray did not answer: another attempt may succeed.
        raise StageFailedError(str(error), NODE) from error


def _drive(context: AttemptContext, request: SearchRequest, cluster: "Cluster | None") -> None:
    """Continue the search; for rank 0."""
    searched = requested_study(request, context.store.root)
    context.begin(context.run.state().progress.tokens)
    execution = searched.file.study.execution
    budget = parse_budget(request.budget, request.device) if request.budget is not None else None
    train, parallel = _trainer(context, request, searched, cluster)
    first = len(context.run.state().counted_attempts) == 1
    local = request.launcher == "ray"
    search = run_search(searched, budget, execution.parallel or parallel, train, context.stop, first, searching)
    context.report(_progress(search))
    document = conclude(search, searched)
    if not local:
        print_summary(document)
    context.finish(None, {SUMMARY_FILE: document})


def _trainer(
    context: AttemptContext, request: SearchRequest, searched: SearchedStudy, cluster: "Cluster | None"
) -> tuple[Callable[[Search], None], int]:
    """What trains the stages of the search, and how many at a time if the study does not say."""

    interrupted = False

    def poll(search: Search) -> None:
        """Report progress, and notice `retain cancel` where no signal comes with it."""
        nonlocal interrupted
        context.report(_progress(search))
        if not interrupted and context.run.state().state == "cancelled":
            interrupted = True
            os.kill(os.getpid(), signal.SIGINT)

    execution = searched.file.study.execution
    if request.launcher == "slurm":
        from retain.launchers.search.stage_jobs import train_with_jobs

        def train_as_jobs(search: Search) -> None:
            search.on_poll = poll
            train_with_jobs(search, request.profile(), context.stop)

        return train_as_jobs, STAGES_AT_ONCE
    from retain.launchers.search.ray.tune import Cluster, train_with_tune

    own = replace(cluster, execution=execution) if cluster else Cluster(request.address, execution)

    def train_on_ray(search: Search) -> None:
        search.on_poll = poll
        train_with_tune(search, context.store, own, searched.folder / "tune")

    # What an allocation holds is known once its cluster has started.
    return train_on_ray, 1 if cluster else own.parallel()


def _progress(search: Search) -> Progress:
    """The points that have ended, of those to try."""
    return Progress(len(search.history.ends), search.block.trials, phase="searching")


def run_search(
    searched: SearchedStudy,
    budget: Budget | None,
    parallel: int,
    train: Callable[[Search], None],
    stop: StopRequest,
    retry: bool = True,
    show: Show = show_nothing,
) -> Search:
    """Continue a search until its trials or its budget are used up; `train` is called only if a stage is to be trained.

    retry: whether stages that failed, or were cancelled with the study, are tried once more, as in a start by hand. Raises
    StudyError if the budget does not suffice for one point; KeyboardInterrupt once all processes have saved and ended.
    """
    searched.folder.mkdir(parents=True, exist_ok=True)
    history, note = open_history(searched.folder / HISTORY, searched.identity())
    if note:
        print(f"retain: {note}", file=sys.stderr)
    search = Search(searched, history, budget, parallel)
    search.check_budget()
    if note and history.ends:
        search.draw_curves()  # the curves of another history are there
    if retry:
        # All of them now: a job that is stopped before their turn tries them in its next life.
        retry_runs(search.store, sorted(search.again))
    else:
        search.again.clear()
    _retry_cancelled(search, (GIVEN_UP, WITH_STUDY) if retry else (GIVEN_UP,), stop)
    first = search.next_stage()
    if first is not None:
        search.at_work.discard(first.key)
    if not search.finished():
        with show(search) as refresh:
            search.refresh = refresh
            train(search)
    search.save()
    return search


def _retry_cancelled(search: Search, reasons: Collection[str], stop: StopRequest) -> None:
    """Plan skipped stages again, and those cancelled for one of these reasons once they train no more.

    Stages skipped by `retain submit` wait for their parents as any other stage does.
    """
    runs = [
        search.store.run(key)
        for key, state in search.states().items()
        if state.state == "skipped" or (state.state == "cancelled" and state.reason in reasons)
    ]
    liveness = slurm_liveness()
    while any(run.is_running(liveness) for run in runs):
        if stop.signal:
            raise KeyboardInterrupt
        time.sleep(POLL_S)
    retry_runs(search.store, [run.key for run in runs])
