"""The evaluation runs of a study: those that it asks for, and those that its store lacks."""

from collections.abc import Collection
from dataclasses import dataclass, replace

from retain.launchers.planning.opened_study import OpenedStudy
from retain.results.store.loss_table import missing_evaluations
from retain.results.store.runs import Store
from retain.sweeps.schema.section import loss_name, without_value
from retain.sweeps.tree.cost import evaluation_flops
from retain.sweeps.tree.data_facts import Facts
from retain.sweeps.tree.evaluation_runs import asked_evaluations
from retain.sweeps.tree.tree import Stage, Tree


@dataclass(frozen=True)
class PlannedEvaluations:
    """The evaluation runs that `evaluate` of the planned studies asks for, and what those that are missing cost."""

    runs: int
    """The number of evaluation runs."""
    to_measure: int
    """The number of them that are not done."""
    tokens: int
    """The tokens to measure on; corpora that are not prepared count as 0."""
    flops: float
    """A third of what training on these tokens takes, as nothing is propagated back."""


def with_evaluations(opened: OpenedStudy) -> Tree:
    """The tree of a study with the evaluations that it asks for as stages: what status, cancel, retry and verify are about."""
    return replace(opened.tree, stages=opened.tree.stages | asked_evaluations(opened.tree, opened.facts.heldout_tokens))


def ready_evaluations(opened: OpenedStudy, blanks: bool) -> dict[str, Stage]:
    """The evaluations that can be measured now: not done themselves, below stages that are. blanks: also those that are blank.

    Raises DamageError.
    """
    missing = missing_evaluations(opened.tree, opened.store, opened.facts.heldout_tokens, blanks)
    return {key: one for key, one in missing.items() if all(opened.store.run(need).is_done() for need in one.needs)}


def evaluations_of_search(tree: Tree, store: Store, facts: Facts, names: Collection[str]) -> dict[str, Stage]:
    """The evaluations, by key, without which columns of these names stay blank. Raises DamageError.

    Those of tasks; and those of corpora after stages that are done, and that were not measured on them.
    """
    found = {key: one for key, one in asked_evaluations(tree).items() if "evaluate.tasks" in one.axes}
    found |= missing_evaluations(tree, store, facts.heldout_tokens, blanks=True)

    def column(one: Stage) -> str:
        return loss_name(one.axes["evaluate.at"], one.axes.get("evaluate.tasks") or one.axes["evaluate.corpora"])

    wanted = {*names, *map(without_value, names), *(name.rpartition("/")[0] for name in names)}
    return {key: one for key, one in found.items() if column(one) in wanted}


def planned_evaluations(opened: OpenedStudy) -> PlannedEvaluations:
    """The evaluations of a study and their cost. Raises DamageError."""
    asked = asked_evaluations(opened.tree, opened.facts.heldout_tokens)
    missing = [one for key, one in asked.items() if not opened.store.run(key).is_done()]
    tokens, flops = sum(one.tokens for one in missing), evaluation_flops(opened.tree, missing)
    return PlannedEvaluations(len(asked), len(missing), tokens, flops)
