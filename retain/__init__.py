"""What a model still knows after its next fine-tuning: plan, train and compare trees of training stages.

Each function does what the command of its name does, and returns what the command prints with `--json`.

    import retain

    plan = retain.plan("laptop")                  # a study of Retain, or the path of a study file
    results = retain.run("laptop", ["seed=[0,1]"])
    frame = retain.load("laptop", overrides=["seed=[0,1]"])
"""

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pandas

    from retain.datamodules.corpora.reading.report import Report
    from retain.launchers.jobs.submit import Submitted
    from retain.launchers.local.run import Reporting, StudyRun, Watching
    from retain.launchers.planning.looks import Until
    from retain.launchers.planning.overlaps import Overlaps
    from retain.launchers.planning.plan import Plan
    from retain.launchers.study_status import Status
    from retain.results.report.collect import Results

__all__ = ["evaluate", "load", "overlap", "plan", "run", "status", "submit"]


def plan(
    studies: str | Path | Sequence[str],
    overrides: str | Sequence[str] = (),
    store: str | Path | None = None,
    device: str = "H100",
    *,
    until: "Until | None" = None,
    most: int | None = None,
    block: int | None = None,
) -> "Plan":
    """Plan one study, or several together, without training: stages, tokens, FLOPs, GPU-hours, bytes on disk.

    studies: names of studies of Retain, or paths of study files. overrides: such as `pretrain.exposure=0.5`, one or several,
    for all of them.
    store: the folder of runs; by default $RETAIN_STORE, or `runs`. device: the GPU of `totals.gpu_hours`.
    until, most, block: as in `run`; the plan is that of the most seeds.

    Raises StudyError if a study is invalid, MissingResourceError if something is missing, such as a file of a corpus.
    """
    from retain.launchers.planning.looks import check_options
    from retain.launchers.planning.plan import plan_studies
    from retain.sweeps.base.errors import StudyError

    check_options(until, most, block)
    names = [str(studies)] if isinstance(studies, str | Path) else list(studies)
    if not names:
        raise StudyError("plan: name at least one study")
    return plan_studies(names, _listed(overrides), _store(store), device, most, block)


def run(
    study: str,
    overrides: str | Sequence[str] = (),
    store: str | Path | None = None,
    *,
    until: "Until | None" = None,
    most: int | None = None,
    block: int | None = None,
    reporting: "Reporting | None" = None,
    watching: "Watching | None" = None,
) -> "Results":
    """Prepare the data of a study, train on this machine what its store lacks, and collect the results.

    If a stage fails, only the stages below it are stopped; `failures` of the returned results names the stage and the cause.
    until: "decided" adds seeds to the study's own until every verdict is decided, `block` (2) at a time and `most` in all; a
    later call continues with the numbers of the first. reporting, watching: display the preparation of data, and the training.

    Raises StudyError if the study is invalid, MissingResourceError if the machine lacks something, and KeyboardInterrupt
    once all processes have saved a checkpoint and ended; the next call resumes them.
    """
    from retain.launchers.local.run import run_study, run_until_decided
    from retain.launchers.planning.looks import check_options

    check_options(until, most, block)
    if until is None:
        ran = run_study(study, _listed(overrides), _store(store), reporting, watching)
    else:
        ran = run_until_decided(study, _listed(overrides), _store(store), most, block, reporting, watching)
    return _results_of(ran)


def evaluate(
    study: str,
    overrides: str | Sequence[str] = (),
    store: str | Path | None = None,
    *,
    reporting: "Reporting | None" = None,
    watching: "Watching | None" = None,
) -> "Results":
    """Measure what done stages of a study lack, on this machine and without training, and collect the results.

    These are what the study's `evaluate` asks for, and losses that are blank because another study trained the stage.
    Raises as `run` does.
    """
    from retain.launchers.local.run import evaluate_study

    return _results_of(evaluate_study(study, _listed(overrides), _store(store), reporting, watching))


def overlap(
    study: str,
    overrides: str | Sequence[str] = (),
    store: str | Path | None = None,
    *,
    report: "Report | None" = None,
) -> "Overlaps":
    """Prepare the data of a study, and measure how similar every two of its corpora are: n-grams, cross-entropies, documents.

    Trains nothing; the store keeps what was measured. report: displays the preparation of data.

    Raises StudyError if the study is invalid or has fewer than two corpora, MissingResourceError if the machine lacks
    something.
    """
    from retain.datamodules.corpora.reading.report import ignore_progress
    from retain.launchers.local.preparation import prepare_here
    from retain.launchers.planning.opened_study import prepare_study
    from retain.launchers.planning.overlaps import measure_overlaps

    opened = prepare_study(study, _listed(overrides), _store(store), report or ignore_progress, prepare_here)
    return measure_overlaps(opened, lambda line: None)


def submit(
    study: str,
    overrides: str | Sequence[str] = (),
    store: str | Path | None = None,
    site: str | None = None,
    *,
    report: "Report | None" = None,
) -> "Submitted":
    """Prepare the data of a study, and submit to SLURM what its store lacks; runs with a job are not submitted again.

    site: a profile of sites.yaml; by default the one that matches this machine, if any. report: displays the preparation
    of data.

    Raises StudyError if the study is invalid, MissingResourceError if SLURM is missing or does not answer.
    """
    from retain.datamodules.corpora.reading.report import ignore_progress
    from retain.launchers.jobs.submit import submit_study

    return submit_study(study, _listed(overrides), _store(store), site, report or ignore_progress)


def status(study: str | None = None, overrides: str | Sequence[str] = (), store: str | Path | None = None) -> "Status":
    """Read the state of each run of a study, or of a whole store, with its job.

    Raises StudyError if the study is invalid, MissingResourceError if no study is named and the store does not exist.
    """
    from retain.launchers.study_status import status_reader

    return status_reader(study, _listed(overrides), _store(store))()


def load(study: str, store: str | Path | None = None, overrides: str | Sequence[str] = ()) -> "pandas.DataFrame":
    """One row per trial of a study: its axes, the four losses (nats per token), tokens and stage keys; NaN if not trained yet.

    study: the name of a study of Retain, or the path of a study file: what the store has of it now. The name of any other study
    that `run` has trained in the store: its rows when `run` ended.

    Raises StudyError if the study is invalid, FileNotFoundError if the store does not exist or has no results of that name,
    MissingResourceError if a run is damaged.
    """
    from retain.launchers.planning.opened_study import open_study
    from retain.results.store.loss_table import frame_of, read_rows, trial_rows
    from retain.sweeps.schema.read import is_study

    place = _store(store)
    if not place.is_dir():
        raise FileNotFoundError(f"store {place} not found; name another with store= or RETAIN_STORE")
    if overrides or is_study(study):
        opened = open_study(study, _listed(overrides), place)
        if opened.tree.provisional:
            warnings.warn(
                f"the data of {study} is not prepared in {place}, so no stage counts as trained", stacklevel=2
            )
        return frame_of(trial_rows(opened.tree, opened.store))
    return frame_of(read_rows(place, study))


def _results_of(ran: "StudyRun") -> "Results":
    """The results of a study after a local run, with the evaluations that failed."""
    from dataclasses import replace

    from retain.results.report.collect import collect_results, failures

    found = collect_results(ran.opened.file, ran.opened.tree, ran.opened.store, ran.states)
    if ran.measured is None:
        return found
    known = {failure.key for failure in found.failures}
    failed = [failure for failure in failures(ran.measured, ran.evaluations) if failure.key not in known]
    return replace(found, failures=[*found.failures, *failed])


def _listed(overrides: str | Sequence[str]) -> Sequence[str]:
    """Overrides as a list: one may be given by itself."""
    return [overrides] if isinstance(overrides, str) else overrides


def _store(store: str | Path | None) -> Path:
    import os

    from retain.sweeps.base.errors import StudyError
    from retain.sweeps.base.files import user_path

    if store is not None and not isinstance(store, str | Path):
        raise StudyError(f"store: expected a folder (got {store!r}); give overrides as overrides=")

    return user_path(os.environ.get("RETAIN_STORE") or "runs" if store is None else store, "--store")
