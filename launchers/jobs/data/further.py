"""The next parts that a budget needs, once those before are prepared: the job that puts them together queues them."""

import math

from retain.launchers.kinds import ASSEMBLE, kind_of
from retain.launchers.stage.log import log_line
from retain.results.store.runs import Run, Store
from retain.sweeps.base.errors import RetainError
from retain.sweeps.base.units import counted


def submit_further_parts(store: Store, run: Run) -> tuple[str, ...] | None:
    """Submit the next round of parts that the budget of an assembly needs, from its job; returns the ids of their jobs.

    None if there is nothing to wait for: the run is of another kind, no part is missing, or nothing can be submitted from here.
    Then the assembly prepares the rest itself.
    """
    spec = run.spec()
    if kind_of(spec) is not ASSEMBLE:
        return None
    # These imports take seconds, and most jobs need none of them.
    from retain.datamodules.corpora.parts.budget import needed_parts
    from retain.datamodules.corpora.parts.plan import cut_corpus
    from retain.datamodules.corpora.parts.request import requested
    from retain.launchers.jobs.data.submit import in_turns
    from retain.launchers.jobs.submit import submit_runs
    from retain.launchers.planning.preparation import Preparation

    try:
        source = spec["recipe"]["source"]
        file, name, corpus = requested(spec["reads"])
        preparation = Preparation(
            file, cut_corpus(file, name, source["tokenizer"], corpus), (source["sequence_length"],)
        )
        made = preparation.made(store)
        missing = preparation.part_stages(needed_parts(preparation.cut, made))
        if not missing:
            return None
    except RetainError:  # the attempt meets the same error, and records it
        return None
    execution = spec["execution"]
    pack = max(1, math.ceil(len(missing) / execution["slurm"]["at_a_time"]))
    preparation.register(missing, store, execution | {"pack": pack}, run.key)
    preparation.register(preparation.assemblies(list(preparation.part_stages({*made, *missing}))), store, execution)
    try:
        submitted = submit_runs(store, in_turns(list(missing), pack), spec["study"])
    except RetainError as error:
        log_line(f"{counted(len(missing), 'part')} more cannot be submitted from here: {error}")
        preparation.register(preparation.assemblies(list(made)), store, execution)
        return None
    log_line(
        f"{len(made):,} parts are prepared; the budget needs {len(missing):,} more, as estimated from them: submitted"
    )
    return tuple(job.job_id for job in submitted.jobs)
