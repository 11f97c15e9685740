"""The tree of a study's stages with their states, and its cost."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

from retain.results.analysis.axes import grouped
from retain.results.report.cells import Cell, Rows, Table, table, value_text
from retain.results.report.provenance import device_seconds
from retain.results.store.state import State, attempt_costs, total_joules
from retain.sweeps.base.units import format_bytes, format_joules, format_seconds, format_size
from retain.sweeps.tree.cost import total_cost
from retain.sweeps.tree.tree import Stage, Tree

DEVICE = "H100"
"""The GPU whose hours are estimated."""
MOST_NODES = 2000
"""A larger tree is shown by its totals only."""


@dataclass(frozen=True)
class Node:
    """One stage and the stages that start from it."""

    stage: str
    key: str
    label: str
    """The values of the axes that the stage does not share with its parent."""
    state: str
    tokens: str
    cost: str
    """The device time of all its attempts; empty before the first."""
    attempts: int
    children: tuple["Node", ...]


def tree_of(tree: Tree, states: Mapping[str, State]) -> tuple[Node, ...]:
    """The roots with all stages below them; empty for a tree of more than `MOST_NODES` stages."""
    if len(tree.stages) > MOST_NODES:
        return ()
    children = grouped(tree.stages.values(), lambda stage: stage.parent)

    def node(stage: Stage) -> Node:
        above = tree.stages[stage.parent].axes if stage.parent else {}
        own = {name: value for name, value in stage.axes.items() if name not in above}
        label = ", ".join(f"{name} {value_text(value)}" for name, value in own.items())
        below = tuple(node(child) for child in children.get(stage.key, []))
        state = states[stage.key]
        cost = format_device_time(device_seconds(state)) if state.attempts else ""
        tokens = format_size(stage.tokens)
        return Node(stage.stage, stage.key, label, state.state, tokens, cost, len(state.attempts), below)

    return tuple(node(stage) for stage in children.get(None, []))


def stage_table(tree: Tree, states: Mapping[str, State]) -> Table:
    """A row for each stage of the chain: its number, states, tokens, and how many trials share one."""
    rows: Rows = []
    has_energy = False
    by_kind = grouped(tree.stages.values(), lambda stage: stage.stage)
    for kind in (kind for kind in tree.chain if kind in by_kind):
        stages = by_kind[kind]
        trials = sum(any(tree.stages[key].stage == kind for key in tree.runs_of(trial)) for trial in tree.trials)
        counts = Counter(states[stage.key].state for stage in stages)
        text = ", ".join(f"{number:,} {state}" for state, number in counts.items())
        tokens = sum(stage.tokens for stage in stages)
        costs = [cost for stage in stages for cost in attempt_costs(states[stage.key])]
        took, lost = sum(cost.device_hours for cost in costs), sum(cost.lost_hours for cost in costs)
        shared = f"{trials / len(stages):.3g}"
        time = [Cell(_hours(hours) if hours else "-", hours) for hours in (took, lost)]
        joules = total_joules(costs)
        energy = Cell("-" if joules is None else format_joules(joules), joules or 0.0)
        has_energy |= joules is not None
        rows.append([kind, len(stages), text, Cell(format_size(tokens), tokens), shared, *time, energy])
    columns = [
        "stage",
        "stages",
        "states",
        "tokens (at most)",
        "trials per stage",
        "device time",
        "of it lost",
        "energy",
    ]
    if not has_energy:  # no device here counts its energy
        columns, rows = columns[:-1], [row[:-1] for row in rows]
    return table("stages", "Stages of the tree", columns, rows)


def cost_sentences(tree: Tree) -> list[str]:
    """The cost of the whole study, and what sharing stages saves, as sentences."""
    cost = total_cost(tree, set(), DEVICE)
    saved = 1 - cost.tokens / cost.tokens_without_sharing
    return [
        f"{cost.trials:,} trials in {cost.stages:,} stages train at most {format_size(cost.tokens)} tokens; one run per "
        f"trial would train {format_size(cost.tokens_without_sharing)}, so sharing saves {saved:.0%}.",
        f"From scratch that is {cost.flops:.3g} FLOPs, {_hours(cost.gpu_hours)} on one {DEVICE} (estimate), and "
        f"{format_bytes(cost.disk_bytes)} of weights.",
    ]


def format_device_time(seconds: float) -> str:
    """`12 s`, `4m 10s` or `3.2 h` of one device."""
    return format_seconds(seconds) if seconds < 3600 else f"{seconds / 3600:,.3g} h"


def _hours(hours: float) -> str:
    if hours * 3600 < 1:
        return "less than a second"
    return format_seconds(hours * 3600) if hours < 1 else f"{hours:,.3g} hours"
