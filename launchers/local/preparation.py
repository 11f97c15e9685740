"""Large corpora are prepared here: their parts in as many processes as there are cores."""

from collections.abc import Callable, Mapping
from pathlib import Path

from retain.datamodules.corpora.parts.budget import needed_parts
from retain.datamodules.corpora.parts.plan import Cuts
from retain.datamodules.corpora.parts.stored import open_part
from retain.datamodules.corpora.reading.report import Report
from retain.datamodules.corpora.sources import source_identity
from retain.launchers.local.devices import Slot
from retain.launchers.local.launcher import train
from retain.launchers.planning.preparation import Preparation, is_prepared, record_runs
from retain.launchers.stage.failures import RECIPE
from retain.results.store.runs import Store
from retain.results.store.state import PART, State
from retain.sweeps.base.errors import MissingResourceError, StageFailedError, StudyError
from retain.sweeps.base.processes.names import usable_cores
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.tree import Stage

PACK = 8
"""The most parts that one process prepares, as starting a process takes about as long as a small part."""


def prepare_here(file: StudyFile, store: Path, cuts: Cuts, report: Report) -> bool:
    """Prepare large corpora on all cores: an `InParts` of `datamodules.corpora.prepare`. A finished part is never made again.

    Returns True. Raises StudyError, StageFailedError, MissingResourceError; KeyboardInterrupt once all processes have ended.
    """
    known: list[str] = []
    for cut, lengths in cuts.values():
        _prepare(Preparation(file, cut, lengths), Store(store), report, known)
    return True


def _prepare(preparation: Preparation, store: Store, report: Report, known: list[str]) -> None:
    """Prepare one corpus. known: the keys of all runs so far, which are recorded."""
    cores = preparation.file.study.execution.parallel or usable_cores()
    watch = _watch(preparation, store, report)
    # 1. The parts, round after round, until the budget is reached.
    while missing := needed_parts(preparation.cut, preparation.made(store)):
        known += missing
        record_runs(store, preparation.file.study.study, known)
        _work(preparation, store, preparation.part_stages(missing), cores, watch)
    # 2. The assembly.
    done = {key for key in preparation.cut.keys if is_prepared(store, key)}
    parts = preparation.part_stages(done)
    assemblies = preparation.assemblies(list(parts))
    known += assemblies
    record_runs(store, preparation.file.study.study, known)
    _work(preparation, store, assemblies, cores, watch, parts)


def _work(
    preparation: Preparation,
    store: Store,
    stages: Mapping[str, Stage],
    cores: int,
    watch: Callable[[Mapping[str, State]], None],
    done: Mapping[str, Stage] | None = None,
) -> None:
    """Do runs in processes of their own. done: those that they need. Raises if one fails."""
    slots = min(cores, len(stages))
    pack = max(1, min(PACK, len(stages) // (2 * slots)))
    execution = preparation.file.study.execution.of_data().model_copy(update={"threads": cores // slots, "pack": pack})
    preparation.register(stages, store, execution.model_dump(mode="json"))
    tree = preparation.tree({**(done or {}), **stages})
    states = train(tree, store, [Slot({})] * slots, watch)
    for key in stages:
        if states[key].state != "done":
            raise _failure(preparation, states[key], store.run(key).log)


def _failure(preparation: Preparation, state: State, log: Path) -> Exception:
    """What to raise for a run that is not done."""
    reason = state.reason or "it ended"
    if state.state == "cancelled":
        return MissingResourceError(
            f"{preparation.file.path.name}: corpora.{preparation.cut.name}: its preparation was cancelled {reason}; prepare "
            "the study's data again"
        )
    last = state.attempts[-1].failure if state.attempts else None
    if last == RECIPE:
        changed = source_identity(preparation.cut.corpus, preparation.file.folder) != preparation.cut.cut.source
        return (MissingResourceError if changed else StudyError)(reason.removeprefix(f"{RECIPE}: "))
    where = f"{preparation.file.path.name}: corpora.{preparation.cut.name}: "
    return StageFailedError(
        f"{'' if where in reason else where}{reason}; prepare the study's data again, which continues; the log is {log}",
        last,
    )


def _watch(preparation: Preparation, store: Store, report: Report) -> Callable[[Mapping[str, State]], None]:
    """Report the documents and the tokens of all parts."""
    documents: dict[str, int] = {}
    tokens: dict[str, int] = {}
    report(preparation.cut.name, 0, 0)

    def watch(states: Mapping[str, State]) -> None:
        for key, state in states.items():
            if key not in preparation.cut.keys:
                continue
            tokens[key] = state.progress.tokens
            if state.state == "done" and key not in documents:
                documents[key] = open_part(store.run(key).folder / PART).manifest["documents"]
        report(preparation.cut.name, sum(documents.values()), sum(tokens.values()))

    return watch
