"""The kind `continue`: submit the stages of a study once its data is prepared."""

from pathlib import Path

from retain.datamodules.corpora.known import known_facts
from retain.launchers.jobs.submit import submit_opened
from retain.launchers.planning.opened_study import prepare_file
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.failures import NODE
from retain.launchers.stage.log import log_line
from retain.results.store.state import SUBMITTED
from retain.sweeps.base.errors import MissingResourceError, NoRoomError, StageFailedError, StudyError
from retain.sweeps.base.units import counted
from retain.sweeps.schema.read import check_study
from retain.sweeps.schema.sites import Site


def attempt(context: AttemptContext) -> None:
    """Submit the study. Raises StudyError, StageFailedError if the data is not prepared or SLURM does not answer."""
    context.begin()
    reads, root = context.spec["reads"], context.store.root
    file, site = check_study(reads["fields"], Path(reads["path"])), reads["site"]
    if not known_facts(file, root).prepared:
        raise StudyError(
            f"{file.path.name}: the data is not prepared, as its source has changed since; submit the study again"
        )
    opened = prepare_file(reads["path"], file, root)
    try:
        submitted = submit_opened(opened, None if site is None else Site.model_validate(site))
    except NoRoomError:
        raise
    except MissingResourceError as error:  # SLURM did not answer: another attempt may succeed
        raise StageFailedError(str(error), NODE) from error
    keys = [key for job in submitted.jobs for key in job.keys]
    log_line(f"submitted {counted(len(keys), 'run')} of {file.study.study} in {counted(len(submitted.jobs), 'job')}")
    context.finish(None, {SUBMITTED: {"keys": keys}})
