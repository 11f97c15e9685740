"""The kind `search`: an attempt continues the search of a study to its end, wherever stages are trained."""

import functools
import sys
import time
from collections.abc import Callable

from retain.launchers.jobs.branches import WITH_STUDY
from retain.launchers.search.budget import Budget
from retain.launchers.search.console import print_summary, searching
from retain.launchers.search.derived_studies import SearchedStudy
from retain.launchers.search.engine import Search
from retain.launchers.search.history import open_history
from retain.launchers.search.ray.allocation import run_in_allocation
from retain.launchers.search.ray.cluster import train_on_ray
from retain.launchers.search.request import SearchRequest, read_request, requested_study
from retain.launchers.search.stage_jobs import GIVEN_UP, train_with_jobs
from retain.launchers.search.summary import summary_document
from retain.launchers.slurm.liveness import slurm_liveness
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.failures import DIVERGED, NODE
from retain.launchers.stage.signals import AttemptStopped, StopRequest
from retain.results.store.lease import held_by
from retain.results.store.state import Progress
from retain.results.store.study_files import HISTORY, SUMMARY
from retain.sweeps.base.documents import write_document
from retain.sweeps.base.errors import MissingResourceError, NoRoomError, StageFailedError
from retain.sweeps.base.notices import Waiting

POLL_S = 1.0


def attempt(context: AttemptContext) -> None:
    """Continue the search to its end. Raises AttemptStopped once everything is saved, if a stop was requested."""
    request = read_request(context.run)
    try:
        if request.launcher == "slurm-ray":
            run_in_allocation(context.run.folder, context.stop, functools.partial(_drive, context, request))
        else:
            _drive(context, request, request.address)
    except KeyboardInterrupt:  # a second Ctrl-C
        raise AttemptStopped("SIGINT") from None
    except NoRoomError:
        raise
    except MissingResourceError as error:
        # SLURM or Ray did not answer: another attempt may succeed.
        raise StageFailedError(str(error), NODE) from error


def _drive(context: AttemptContext, request: SearchRequest, address: str | None, nodes: int = 0) -> None:
    """Continue the search; for rank 0. address, nodes: of a Ray cluster to train on."""
    run, stop = context.run, context.stop
    searched = requested_study(run, context.store)
    context.begin(run.state().progress.tokens)

    def train(search: Search) -> None:
        with searching(search) as show:

            def report() -> None:
                context.report(_progress(search))
                if run.state().state == "cancelled":
                    stop.cancel()  # no signal reaches a search outside of SLURM
                show()

            search.report = report
            if request.launcher == "slurm":
                train_with_jobs(search, request.profile(), stop)
            else:
                train_on_ray(search, stop, address, nodes, request.dashboard)

    # Outside of jobs, every attempt is a start by the user; a job requeues itself.
    retry = request.launcher == "ray" or len(run.state().counted_attempts) == 1
    search = run_search(searched, request.limit(), train, stop, retry)
    context.report(_progress(search))
    document = summary_document(search)
    write_document(searched.folder / SUMMARY, document)
    if request.launcher != "ray":
        print_summary(document)
    context.finish(None, {SUMMARY: document})


def _progress(search: Search) -> Progress:
    """The number of points that have ended, of those to try."""
    return Progress(len(search.history.ends), search.block.trials, phase="searching")


def run_search(
    searched: SearchedStudy,
    budget: Budget | None,
    train: Callable[[Search], None],
    stop: StopRequest,
    retry: bool = True,
) -> Search:
    """Continue a search until its trials or its budget are used up; `train` is called only if a stage is to be trained.

    retry: whether to try stages once more that failed or were cancelled with the study. Raises StudyError if the budget does
    not suffice for one point; AttemptStopped if a stop is requested.
    """
    searched.folder.mkdir(parents=True, exist_ok=True)
    history, note = open_history(searched.folder / HISTORY, searched.identity())
    search = Search(searched, history, budget)
    search.check_budget()
    if note:
        print(f"retain: {note}", file=sys.stderr)
    if note and history.ends:
        search.draw_curves()  # the present curves belong to another history
    _plan_again(search, retry, stop)
    if not search.finished():
        train(search)
    search.save()
    return search


def _plan_again(search: Search, retry: bool, stop: StopRequest) -> None:
    """Plan stages again that were skipped or given up; with `retry`, also those that failed or were cancelled with the study.

    All of them at once: the next attempt of a search that is stopped before their turn does not retry. Stages that diverged
    would diverge again.
    """
    leaving = []
    for key, state in search.states.items():
        run, last = search.store.run(key), state.attempts[-1].failure if state.attempts else None
        if state.state == "skipped" or (retry and state.state == "failed" and last != DIVERGED):
            run.retry()
        elif state.state == "cancelled" and state.reason in ((GIVEN_UP, WITH_STUDY) if retry else (GIVEN_UP,)):
            leaving.append(run)
    liveness = slurm_liveness()
    for run in leaving:
        waiting = Waiting(f"waiting for a stage that was cancelled, {run.key[:8]}, to save its checkpoint")
        while run.is_running(liveness):
            waiting.say(held_by(run.lease))
            if stop.signal:
                raise AttemptStopped(stop.signal)
            time.sleep(POLL_S)
        run.retry()
