"""What one study, or several together, would train and cost."""

from collections.abc import Sequence
from dataclasses import dataclass, fields
from pathlib import Path

from retain.launchers.planning.opened_study import OpenedStudy, open_study
from retain.results.store.runs import Store, open_store
from retain.results.store.throughput import measured_speeds
from retain.sweeps.tree.cost import Parallelism, Totals, total_cost
from retain.sweeps.tree.data_facts import UNPREPARED
from retain.sweeps.tree.tree import STAGES, Axes, Tree, merged


@dataclass(frozen=True)
class PlannedStage:
    """One stage of a plan."""

    key: str
    stage: str
    parent: str | None
    axes: Axes
    tokens: int
    state: str


@dataclass(frozen=True)
class PlanTotals(Totals):
    """The totals of the tree, and the data that it reads; `disk_peak_bytes` includes the data."""

    data_bytes: int = 0
    """Bytes of the packed corpora."""


@dataclass(frozen=True)
class Plan:
    """What `retain plan --json` prints."""

    study: str
    provisional: bool
    """True while data is not prepared: the keys will change."""
    device: str
    """The GPU of `totals.gpu_hours`."""
    stages: list[PlannedStage]
    totals: PlanTotals


@dataclass(frozen=True)
class OpenedPlan:
    """The studies of a plan, and their trees as one, in which shared stages occur once."""

    opened: tuple[OpenedStudy, ...]
    store: Store
    tree: Tree


def open_plan(studies: Sequence[str], overrides: Sequence[str], store: Path) -> OpenedPlan:
    """Open studies, each with all the overrides; reads no corpus and writes nothing. Raises StudyError."""
    opened = tuple(open_study(study, overrides, store) for study in studies)
    return OpenedPlan(opened, open_store(store), merged([one.tree for one in opened]))


def make_plan(plan: OpenedPlan, device: str) -> Plan:
    """The stages with their states, and the totals. Raises StudyError for an unknown device."""
    states = plan.store.states(plan.tree.stages)
    done = {key for key, state in states.items() if state.state == "done"}
    totals = total_cost(plan.tree, done, device, measured_speeds(plan.store), _parallelism(plan.opened))
    data = _data_bytes(plan.opened)
    stages = [
        PlannedStage(stage.key, stage.stage, stage.parent, stage.axes, stage.tokens, states[stage.key].state)
        for stage in plan.tree.stages.values()
    ]
    numbers = {field.name: getattr(totals, field.name) for field in fields(totals)}
    numbers |= {"data_bytes": data, "disk_peak_bytes": totals.disk_peak_bytes + data}
    return Plan(plan.tree.study, plan.tree.provisional, device, stages, PlanTotals(**numbers))


def _parallelism(opened: Sequence[OpenedStudy]) -> dict[str, Parallelism]:
    """How each stage is executed; with several studies, the most that one of them takes."""
    made = {}
    for stage in STAGES:
        executions = [one.file.study.execution.of_stage(stage) for one in opened]
        made[stage] = Parallelism(
            max(execution.devices for execution in executions),
            max(one.slurm.at_a_time for one in executions),
            min(one.pack for one in executions),
        )
    return made


def _data_bytes(opened: Sequence[OpenedStudy]) -> int:
    """Bytes of the packed corpora, each once; an unprepared corpus counts its budget of tokens, or nothing without one."""
    sizes = {}
    for one in opened:
        for (name, length), facts in one.facts.corpora.items():
            width = 2 if one.facts.vocabulary <= 2**16 else 4
            unread = facts.fingerprint.startswith(UNPREPARED)
            tokens = one.file.study.corpora[name].tokens if unread else (facts.train or 0) * length
            sizes[facts.fingerprint] = (tokens or 0) * width
    return sum(sizes.values())
