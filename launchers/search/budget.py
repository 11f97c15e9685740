"""What a search may spend and has spent: tokens, or hours of devices."""

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from retain.launchers.planning.plan import stage_parallelism
from retain.results.analysis.throughput import measured_speeds
from retain.results.store.runs import Store
from retain.results.store.state import State
from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.units import format_size, parse_size
from retain.sweeps.schema.execution import Execution
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.section import STAGE_KINDS
from retain.sweeps.tree.cost import total_cost
from retain.sweeps.tree.tree import Tree

Unit = Literal["tokens", "gpuh"]


@dataclass(frozen=True)
class Budget:
    """The most that a search may spend over all its starts."""

    amount: float
    unit: Unit
    device: str
    """The GPU that a budget of hours is planned for."""

    def __str__(self) -> str:
        return self.text(self.amount)

    def text(self, amount: float) -> str:
        """An amount with its unit."""
        return f"{format_size(amount)} tokens" if self.unit == "tokens" else f"{amount:.4g} GPU-hours"

    def excess(self, spent: "Spent") -> str | None:
        """By how much the budget was exceeded, with the unit; None if it was kept."""
        over = spent.of(self.unit) - self.amount
        return self.text(over) if over > 0 else None


@dataclass(frozen=True)
class Spent:
    """What a search spent on its own stages, without those that the store had already."""

    tokens: int
    hours: float
    """Device-hours of all attempts."""
    stages: int
    without_sharing: int
    """Tokens that one run per trial would have trained."""

    def of(self, unit: Unit) -> float:
        return self.tokens if unit == "tokens" else self.hours


def parse_budget(text: str, device: str) -> Budget:
    """The budget written as `200gpuh` or `5Mtokens`. Raises StudyError."""
    match = re.fullmatch(r"\s*([0-9._]+[kKMBGT]?)\s*(tokens|gpuh)\s*", text)
    try:
        if match and match[2] == "tokens" and (size := parse_size(match[1])):
            return Budget(size, "tokens", device)
        if match and match[2] == "gpuh" and (hours := float(match[1])) > 0:
            return Budget(hours, "gpuh", device)
    except ValueError:
        pass
    raise StudyError(f"--budget {text}: invalid; write tokens or GPU-hours, such as 5Mtokens or 200gpuh")


def refuse_hours_on_cpus(
    budget: Budget | None, execution: Execution, gpus: bool, chain: Sequence[str] = STAGE_KINDS
) -> None:
    """Raise StudyError for a budget of hours if stages train on CPUs, for which `retain plan` has no speeds.

    gpus: whether stages with `accelerator: auto` get GPUs. chain: the names of the stages.
    """
    trained = {execution.of_stage(kind).accelerator for kind in chain}
    if budget is None or budget.unit == "tokens" or not ("cpu" in trained or ("auto" in trained and not gpus)):
        return
    raise StudyError(
        f"--budget {budget.amount:g}gpuh: stages train on CPUs here, for which no hours are planned; give tokens, such as "
        "5Mtokens, or set execution.accelerator=gpu where there are GPUs"
    )


def planned_cost(tree: Tree, settled: Collection[str], store: Store, budget: Budget, file: StudyFile) -> float:
    """The most that the stages of a tree cost, in the budget's unit, without the stages in `settled`.

    file: the study, which says on how many devices its stages train, as speeds are measured for numbers of devices.
    """
    missing = [stage for key, stage in tree.stages.items() if key not in settled]
    if budget.unit == "tokens" or not missing:
        return float(sum(stage.tokens for stage in missing))
    return total_cost(tree, settled, budget.device, measured_speeds(store), stage_parallelism([file])).gpu_hours


def spent_on(trees: Iterable[Tree], states: Mapping[str, State], found: Collection[str]) -> Spent:
    """What the stages of these trees took so far, and what one run per trial would have taken.

    states: of all stages of the trees. found: the stages that the store had already.
    """
    tokens = {
        key: max([state.progress.tokens, *(attempt.tokens for attempt in state.attempts)])
        for key, state in states.items()
    }
    own = {key: count for key, count in tokens.items() if key not in found and count}
    attempts = [attempt for key, state in states.items() if key not in found for attempt in state.attempts]
    seconds = sum(((one.end or one.start) - one.start) * one.world for one in attempts)
    without_sharing = sum(tokens[key] for tree in trees for trial in tree.trials for key in tree.runs_of(trial))
    return Spent(sum(own.values()), seconds / 3600, len(own), without_sharing)
