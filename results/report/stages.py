"""The tree of a study's stages with their states, and what it costs."""

from collections.abc import Mapping
from dataclasses import dataclass

from retain.results.report.cells import Cell, Rows, Table, count, table, value_text
from retain.results.store.state import State
from retain.sweeps.base.units import format_bytes, format_seconds, format_size
from retain.sweeps.tree.cost import total_cost
from retain.sweeps.tree.tree import STAGES, Stage, Tree

DEVICE = "H100"
"""The GPU whose hours are named."""
MOST_NODES = 2000
"""A larger tree is told by its totals alone."""


@dataclass(frozen=True)
class Node:
    """One stage with those that start from it."""

    stage: str
    key: str
    label: str
    """The values of the axes that its parent does not have."""
    state: str
    tokens: str
    children: tuple["Node", ...]


def tree_of(tree: Tree, states: Mapping[str, State]) -> tuple[Node, ...]:
    """The roots with all below them; nothing for a tree too large to be read."""
    if len(tree.stages) > MOST_NODES:
        return ()
    children: dict[str | None, list[Stage]] = {}
    for stage in tree.stages.values():
        children.setdefault(stage.parent, []).append(stage)

    def node(stage: Stage) -> Node:
        above = tree.stages[stage.parent].axes if stage.parent else {}
        own = {name: value for name, value in stage.axes.items() if name not in above}
        label = ", ".join(f"{name} {value_text(value)}" for name, value in own.items())
        below = tuple(node(child) for child in children.get(stage.key, []))
        return Node(stage.stage, stage.key, label, states[stage.key].state, format_size(stage.tokens), below)

    return tuple(node(stage) for stage in children.get(None, []))


def stage_table(tree: Tree, states: Mapping[str, State]) -> Table:
    """A row for each kind of stage: how many, in which state, tokens, and how many trials share one."""
    rows: Rows = []
    for kind in STAGES:
        stages = [stage for stage in tree.stages.values() if stage.stage == kind]
        if not stages:
            continue
        trials = sum(getattr(trial, kind) is not None for trial in tree.trials)
        counts: dict[str, int] = {}
        for stage in stages:
            counts[states[stage.key].state] = counts.get(states[stage.key].state, 0) + 1
        told = ", ".join(f"{number:,} {state}" for state, number in counts.items())
        tokens = sum(stage.tokens for stage in stages)
        rows.append([kind, count(len(stages)), told, Cell(format_size(tokens), tokens), f"{trials / len(stages):.3g}"])
    columns = ("stage", "stages", "states", "tokens at most", "trials that share one")
    return table("stages", "Stages of the tree", columns, rows)


def cost_sentences(tree: Tree) -> list[str]:
    """What the whole study costs, and what sharing stages saves."""
    cost = total_cost(tree, set(), DEVICE)
    saved = 1 - cost.tokens / cost.tokens_without_sharing
    return [
        f"{cost.trials:,} trials are {cost.stages:,} stages of {format_size(cost.tokens)} tokens at most; one run per "
        f"trial would train {format_size(cost.tokens_without_sharing)}, so sharing saves {saved:.0%}.",
        f"From nothing that is {cost.flops:.3g} FLOPs, {_hours(cost.gpu_hours)} on one {DEVICE} as estimated, and "
        f"{format_bytes(cost.disk_bytes)} of weights.",
    ]


def _hours(hours: float) -> str:
    if hours * 3600 < 1:
        return "less than a second"
    return format_seconds(hours * 3600) if hours < 1 else f"{hours:,.3g} hours"
