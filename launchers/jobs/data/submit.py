"""Large corpora are prepared by jobs: an array of their parts, and a job that puts the parts together."""

import contextlib
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.parts.budget import needed_parts
from retain.datamodules.corpora.parts.plan import Cuts
from retain.datamodules.corpora.reading.report import Report
from retain.launchers.jobs.resources import UNMEASURED_MINUTES, minutes_allowed
from retain.launchers.kinds import CONTINUE, described
from retain.launchers.planning.preparation import Preparation, record_runs
from retain.launchers.planning.register import installed_versions
from retain.launchers.stage.attempt import RunBusyError, make_attempt
from retain.launchers.stage.failures import RECIPE
from retain.launchers.stage.ranks import Ranks
from retain.launchers.stage.signals import AttemptStopped, StopRequest
from retain.results.store.runs import Store
from retain.results.store.state import STOPPED
from retain.sweeps.base.errors import StageFailedError, StudyError
from retain.sweeps.base.processes.names import usable_cores
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.sites import Site
from retain.sweeps.tree.keys import canonical, stage_key
from retain.sweeps.tree.tree import Stage

POLL_S = 1.0
CONTINUE_MINUTES = 60
"""The walltime of the job that submits a study once its data is prepared."""


@dataclass
class JobsForData:
    """Registers the runs that prepare large corpora, for jobs: as `InParts` of `datamodules.corpora.prepare`."""

    site: Site | None
    keys: list[str] = field(default_factory=list)
    """The keys of the registered runs, those that others need first."""
    assemblies: list[str] = field(default_factory=list)

    def __call__(self, file: StudyFile, root: Path, cuts: Cuts, report: Report) -> bool:
        """Register the parts to prepare next, and the assemblies of all. Returns False: they are prepared later.

        The first part of a budget is prepared here; parts of later rounds are registered by the jobs of the assemblies.
        """
        store = Store(root)
        needed: list[tuple[Preparation, dict[str, Stage], dict[str, Stage]]] = []
        for preparation in (Preparation(file, cut, lengths) for cut, lengths in cuts.values()):
            made = preparation.made(store)
            if preparation.cut.corpus.tokens is not None and not made:
                first = preparation.part_stages(needed_parts(preparation.cut, {}))
                self._make_here(preparation, store, first, report)
                made = preparation.made(store)
            missing = preparation.part_stages(needed_parts(preparation.cut, made))
            assemblies = preparation.assemblies(list(preparation.part_stages({*made, *missing})))
            needed.append((preparation, missing, assemblies))
            self.assemblies += assemblies
        execution = data_execution(file, self.site, sum(len(missing) for _, missing, _ in needed))
        for preparation, missing, assemblies in needed:
            preparation.register(assemblies, store, execution)
            preparation.register(missing, store, execution, next(iter(assemblies)))
            self.keys += [*in_turns(list(missing), execution["pack"]), *assemblies]
        record_runs(store, file.study.study, self.keys)
        return False

    def _make_here(self, preparation: Preparation, store: Store, first: Mapping[str, Stage], report: Report) -> None:
        """Prepare parts in this process, or wait for the process that does."""
        execution = preparation.file.study.execution.of_data()
        execution = execution.model_copy(update={"threads": usable_cores()})
        preparation.register(first, store, execution.model_dump(mode="json"))
        for key in first:
            report(preparation.cut.name, 0, 0)
            run = store.run(key)
            while not run.is_done():
                try:
                    with run.log.open("a", encoding="utf-8") as log, contextlib.redirect_stdout(log):
                        make_attempt(store, key, Ranks(), StopRequest())
                except StageFailedError as error:
                    if error.failure == RECIPE:
                        raise StudyError(str(error).removeprefix(f"{RECIPE}: ")) from error
                    raise
                except RunBusyError:
                    time.sleep(POLL_S)
                except AttemptStopped as stopped:
                    raise StageFailedError(f"{key}: its preparation was cancelled; submit again") from stopped


def in_turns(keys: Sequence[str], pack: int) -> list[str]:
    """Keys in the order in which packs of consecutive ones begin with the first keys, so that these are done first."""
    packs = math.ceil(len(keys) / pack)
    return [key for first in range(packs) for key in keys[first::packs]]


def data_execution(file: StudyFile, site: Site | None, parts: int) -> dict[str, Any]:
    """The field `execution` of runs that prepare data. parts: their number, which the jobs of an array share."""
    own = file.study.execution.of_data(site, site.data if site else None)
    minutes = minutes_allowed(own, site, UNMEASURED_MINUTES, file.path.name)
    slurm = own.slurm.model_copy(update={"minutes": minutes})
    pack = max(1, math.ceil(parts / slurm.at_a_time))
    return own.model_copy(update={"threads": slurm.cpus, "pack": pack, "slurm": slurm}).model_dump(mode="json")


def register_continuation(file: StudyFile, store: Store, site: Site | None, needs: Sequence[str]) -> str:
    """Register the run that submits a study once its data is prepared; returns its key."""
    fields = file.study.model_dump(exclude_unset=True, mode="json")
    recipe = {"study": file.study.study, "needs": list(needs), "fields": canonical(fields)}
    execution = data_execution(file, site, 1)
    slurm = execution["slurm"] | {"cpus": 1, "minutes": min(CONTINUE_MINUTES, execution["slurm"]["minutes"])}
    key = stage_key(CONTINUE.name, None, canonical(recipe))
    spec = {
        "key": key,
        "format": 1,
        "stage": CONTINUE.name,
        "parent": None,
        "recipe": recipe,
        **described(CONTINUE, 0, needs),
        "evaluation": {},
        "execution": execution | {"slurm": slurm, "threads": 1},
        "axes": {},
        "study": file.study.study,
        "versions": installed_versions(),
        "reads": {
            "path": str(file.path.absolute()),
            "fields": fields,
            "site": site and site.model_dump(exclude_unset=True, mode="json"),
        },
    }
    run = store.run(key)
    if run.is_done() or run.state().state in STOPPED:
        run.retry(reopen=True)
    store.register(key, spec)
    return key
