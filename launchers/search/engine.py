"""Decides which stage is trained next and which point is tried next, until the trials or the budget are used up.

It knows nothing of Ray or SLURM: whatever trains stages asks it (as `Work`) for the next one, and reports which have ended.
Results are read from the store, so a search that is started again continues from what is there.
"""

import time
from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Any, Literal, Protocol

from retain.launchers.planning.register import register
from retain.launchers.search.budget import Budget, Spent, planned_cost, spent_on
from retain.launchers.search.derived_studies import SearchedStudy, write_points
from retain.launchers.search.early_stopping import EarlyStopping
from retain.launchers.search.history import History, Point
from retain.launchers.search.samplers import Outcome, propose
from retain.launchers.stage.failures import DIVERGED
from retain.results.analysis.search_summary import Result, result_of, violations
from retain.results.store.loss_table import trial_rows
from retain.results.store.readiness import is_ready
from retain.results.store.state import ENDED, STOPPED, State
from retain.results.store.study_files import search_run
from retain.results.tensorboard.search_curves import End, write_curves
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.search_space import Values
from retain.sweeps.tree.tree import STAGES, Stage, Tree

JUDGE_EVERY_S = 1.0
MOST_RETURNS = 3
"""How often a stage that came back without an end is handed out again; the next start of the search tries it afresh."""
PointState = Literal["planned", "running", "done", "pruned", "failed"]


class Work(Protocol):
    """What trains stages, wherever that is, gets its work from one of these."""

    def next_stage(self) -> Stage | None:
        """A stage to train now, its parent done; None if there is none at the moment, or none any more."""

    def ended(self, key: str) -> None:
        """A stage that was handed out has stopped; how it ended is in the store."""

    def finished(self) -> bool:
        """Whether nothing is running and nothing is left."""

    def given_up(self, key: str) -> bool:
        """Whether a running stage is to be stopped, because it was pruned."""

    def watch(self) -> None:
        """To be called several times a second."""

    def allow(self, parallel: int) -> None:
        """Set the number of stages that may run at a time, if that is known only now."""


@dataclass
class Candidate:
    """A point with its tree. problem: why the point is invalid, if it is."""

    point: Point
    tree: Tree | None
    problem: str | None = None
    result: Result | None = None
    """Once all its stages are done."""


class Search:
    """A search in progress; it is a `Work`."""

    def __init__(self, searched: SearchedStudy, history: History, budget: Budget | None, parallel: int) -> None:
        self.searched, self.history, self.budget, self.parallel = searched, history, budget, parallel
        self.block, self.store = searched.search.block, searched.store
        self.at_work: set[str] = set()
        self.early_stopping = EarlyStopping(self.block, self.store, history)
        self.judged_at = 0.0
        self.returned: dict[str, int] = {}
        """How often a stage came back without an end, because its Ray workers died."""
        self.known_done: dict[str, State] = {}
        self.latest: dict[str, State] = {}
        self.candidates = [self._candidate(point) for point in history.points]
        self.again = {key for key in self._all_keys() if self._worth_another_try(key)}
        """Failed stages, and those stopped with a pruned point, that this start of the search may try again."""
        self.refresh: Callable[[], Any] = lambda: None
        """Shows the search to people."""
        self.on_poll: Callable[[Search], None] = lambda search: None
        """Called about once a second while stages are trained."""
        self.exhausted: str | None = None
        """Why no more points are proposed."""

    def check_budget(self) -> None:
        """Raise StudyError if the budget does not suffice for a first point."""
        if self.budget is None or self.candidates:
            return
        values = propose(self.searched.search, [], {})
        made = self._valid_point(values) if values else None
        if made is not None and (total := self._total_with(made[1], {}, self.budget)) > self.budget.amount:
            raise StudyError(f"--budget {self.budget}: one point takes up to {self.budget.text(total)}; raise it")

    def next_stage(self) -> Stage | None:
        if len(self.at_work) >= self.parallel:
            return None
        while True:
            states = self.states()
            ready = [stage for one in self.open(states) for stage in self._ready(one, states)]
            if ready:
                # The stage furthest down its path is cheap and completes a point.
                stage = min(ready, key=lambda stage: -STAGES.index(stage.stage))
                self.at_work.add(stage.key)
                return stage
            if len(self.open(states)) >= 2 * self.parallel or not self._add_point(states):
                return None

    def ended(self, key: str) -> None:
        self.at_work.discard(key)
        self.again.discard(key)
        if self.given_up(key):
            self.again.add(key)  # a later point may share it with the one given up
        elif self.store.run(key).state().state not in ENDED:
            self.returned[key] = self.returned.get(key, 0) + 1
        self.early_stopping.record(self._stages()[key])
        self.exhausted = None  # it may have cost less than planned
        self.save()

    def finished(self) -> bool:
        if self.at_work:
            return False
        states = self.states()
        return not self.open(states) and (self.exhausted is not None or not self._may_add(states))

    def given_up(self, key: str) -> bool:
        """Whether a stage was pruned, or is used only by points that were."""
        if not self.history.pruned or key in self.history.pruned:
            return key in self.history.pruned
        users = [one for one in self.candidates if one.tree and key in one.tree.stages]
        return all(any(other in self.history.pruned for other in one.tree.stages) for one in users if one.tree)

    def allow(self, parallel: int) -> None:
        self.parallel = parallel

    def watch(self) -> None:
        if time.monotonic() - self.judged_at >= JUDGE_EVERY_S:
            self.judged_at = time.monotonic()
            if self.early_stopping.judge(self.at_work, self._stages()):
                self.save()
            self.on_poll(self)
        self.refresh()

    def states(self) -> dict[str, State]:
        """The states of all stages of all points."""
        for key in self._all_keys():
            if key not in self.known_done:
                state = self.store.run(key).state()
                if state.state == "done":
                    self.known_done[key] = state
                else:
                    self.latest[key] = state
        return self.latest | self.known_done

    def state_of(self, one: Candidate, states: dict[str, State]) -> PointState:
        if one.tree is None:
            return "failed"
        keys = one.tree.stages
        # Also if a stage was given up and was finished all the same.
        if all(states[key].state == "done" for key in keys):
            return "done" if self._result(one) else "failed"
        if any(key in self.history.pruned for key in keys):
            return "pruned"
        if any(self._has_failed(key, states) for key in keys):
            return "failed"
        return "running" if any(key in self.at_work for key in keys) else "planned"

    def reason_of(self, one: Candidate, states: dict[str, State]) -> str | None:
        """Why a point was pruned or has failed, or that it is done although it was given up."""
        if one.tree is None:
            return one.problem
        reasons = [self.history.pruned[key] for key in one.tree.stages if key in self.history.pruned]
        if self.state_of(one, states) == "done" and reasons:
            return f"{reasons[0]}, but its stages were finished all the same"
        if self.state_of(one, states) not in ("pruned", "failed"):
            return None
        failed = [key for key in one.tree.stages if self._has_failed(key, states)]
        reasons += [
            f"{one.tree.stages[key].stage} {key[:8]}: {states[key].reason or states[key].state}" for key in failed
        ]
        return reasons[0] if reasons else None

    def open(self, states: dict[str, State]) -> list[Candidate]:
        """Points with something left to train."""
        return [one for one in self.candidates if self.state_of(one, states) in ("planned", "running")]

    def results(self) -> list[Result]:
        """The results of the finished points, in the order of their numbers."""
        states = self.states()
        done = [one for one in self.candidates if self.state_of(one, states) == "done"]
        return [one.result for one in done if one.result]

    def spent(self) -> Spent:
        trees = [one.tree for one in self.candidates if one.tree]
        return spent_on(trees, self.states(), self.history.found)

    def save(self) -> None:
        """Update search.json, search.yaml and the curves of the search."""
        states = self.states()
        self.history.states = {one.point.label: self.state_of(one, states) for one in self.candidates}
        new = self._note_ends()
        self.history.save()
        if new:
            self.draw_curves()
        if valid := {one.point.label: one.point.values for one in self.candidates if one.tree}:
            write_points(self.searched, valid)

    def draw_curves(self) -> None:
        """Rewrite the curves of the search."""
        folder = search_run(self.store, self.searched.name).folder
        write_curves(folder, self.searched.search, self.history.ends, self.results())

    def _note_ends(self) -> bool:
        """Enter the points that have ended. Returns whether there are new ones."""
        known = {end.point: end.state for end in self.history.ends}
        ended = {
            label: state
            for label, state in self.history.states.items()
            if state in ("done", "pruned", "failed") and known.get(label) != state
        }
        spent = self.spent() if ended else None
        if spent:
            self.history.ends += [End(label, state, spent.tokens, spent.hours) for label, state in ended.items()]
        return bool(ended)

    def _stages(self) -> dict[str, Stage]:
        return {key: stage for one in self.candidates if one.tree for key, stage in one.tree.stages.items()}

    def _candidate(self, point: Point) -> Candidate:
        try:
            file, tree = self.searched.tree({point.label: point.values})
        except StudyError as error:
            return Candidate(point, None, str(error))
        # Also for points of an earlier start: seeds or execution may have changed, or a run's folder may be gone.
        register(tree, file, self.searched.facts, self.store, self.early_stopping.executions(file, tree))
        return Candidate(point, tree)

    def _all_keys(self) -> list[str]:
        return list(self._stages())

    def _worth_another_try(self, key: str) -> bool:
        """Whether a stage has failed, and would not simply diverge again."""
        state = self.store.run(key).state()
        last = state.attempts[-1].failure if state.attempts else None
        return state.state == "failed" and last != DIVERGED

    def _has_failed(self, key: str, states: dict[str, State]) -> bool:
        over = states[key].state in STOPPED and key not in self.again
        return over or self.returned.get(key, 0) >= MOST_RETURNS

    def _result(self, one: Candidate) -> Result | None:
        if one.result is None and one.tree:
            rows = trial_rows(one.tree, self.store)
            one.result = result_of(one.point.label, one.point.values, rows, self.searched.search)
        return one.result

    def _ready(self, one: Candidate, states: dict[str, State]) -> list[Stage]:
        """The stages of a point that can be trained now."""
        assert one.tree is not None
        return [
            stage
            for key, stage in one.tree.stages.items()
            if states[key].state != "done" and key not in self.at_work and is_ready(stage, states)
        ]

    def _may_add(self, states: dict[str, State]) -> bool:
        return self.exhausted is None and len(self.candidates) < self.block.trials

    def _add_point(self, states: dict[str, State]) -> bool:
        """Propose a point that the budget allows, and register its stages. Returns whether there is one."""
        if not self._may_add(states):
            return False
        outcomes = self._outcomes(states)
        self.exhausted = "every point of the space has been tried"
        for fixed in self._prefixes(states):
            values = propose(self.searched.search, outcomes, fixed)
            if values is None:
                continue
            made = self._valid_point(values)
            if made is None or not self.budget or self._total_with(made[1], states, self.budget) <= self.budget.amount:
                self._enter(values, made)
                self.exhausted = None
                return True
            self.exhausted = f"the budget of {self.budget} allows no further point"
        return False

    def _valid_point(self, values: Values) -> tuple[StudyFile, Tree] | None:
        try:
            return self.searched.tree({f"p{len(self.candidates)}": values})
        except StudyError:
            return None

    def _enter(self, values: Values, made: tuple[StudyFile, Tree] | None) -> None:
        known = set(self._all_keys())
        found: Collection[str] = ()
        if made is not None:
            file, tree = made
            found = {key for key in tree.stages if key not in known and self.store.run(key).is_done()}
            register(tree, file, self.searched.facts, self.store, self.early_stopping.executions(file, tree))
            for key in sorted(found):
                self.early_stopping.record(tree.stages[key])
        self.candidates.append(self._candidate(self.history.add(values, self.block.searcher, found)))
        self.save()

    def _prefixes(self, states: dict[str, State]) -> list[Values]:
        """The values to keep fixed for the next point, preferred ones first: what is trained already has cheap children.

        First a done post-training with room below it, then a done pretraining with room, then a new one. Last, for a budget
        that allows no new pretraining, all done ones without regard to room.
        """
        below_pre, below_post = self._axes_below("pretrain"), self._axes_below("posttrain")
        room: dict[str, int] = {
            "posttrain": self.block.per_posttraining if below_post else 1,
            "pretrain": self.block.per_pretraining if below_pre else 1,
        }
        preferred: list[Values] = []
        others: list[Values] = []
        for kind, stages in (("posttrain", ("pretrain", "posttrain")), ("pretrain", ("pretrain",))):
            names = self.searched.search.names_of(stages)
            if not names or not self._axes_below(kind):
                continue
            groups: dict[str, list[Candidate]] = {}
            for one in self.candidates:
                groups.setdefault(repr([one.point.values.get(name) for name in names]), []).append(one)
            for group in groups.values():
                if not self._holds(group[0].point.values, names):
                    continue
                fixed = {name: group[0].point.values[name] for name in names}
                if self._trained(group[0], kind, states):
                    full = len(group) >= room[kind] or (
                        kind == "posttrain" and self._pretraining_is_full(group[0], room)
                    )
                    (others if full else preferred).append(fixed)
        return [*preferred, {}, *(others if self.budget else [])]

    def _holds(self, values: Values, names: Collection[str]) -> bool:
        """Whether the space still contains these values; an earlier start may have had a wider space."""
        axes = [axis for axis in self.searched.search.axes if axis.path in names]
        return all(axis.holds(values[axis.path]) for axis in axes)

    def _pretraining_is_full(self, one: Candidate, room: dict[str, int]) -> bool:
        names = self.searched.search.names_of(("pretrain",))
        if not names:
            return False
        own = [one.point.values[name] for name in names]
        sharing = sum([other.point.values.get(name) for name in names] == own for other in self.candidates)
        return sharing >= room["pretrain"]

    def _axes_below(self, kind: str) -> list[str]:
        return self.searched.search.names_of(STAGES[STAGES.index(kind) + 1 :])

    def _trained(self, one: Candidate, kind: str, states: dict[str, State]) -> bool:
        """Whether all stages of a point are done down to this one, with their weights still there."""
        if one.tree is None:
            return False
        upper = STAGES[: STAGES.index(kind) + 1]
        above = [states[key] for key, stage in one.tree.stages.items() if stage.stage in upper]
        return all(state.state == "done" and not state.weights_freed for state in above)

    def _outcomes(self, states: dict[str, State]) -> list[Outcome]:
        results = {result.label: result for result in self.results()}
        broken = dict(zip(results, violations(self.searched.search, list(results.values())), strict=True))
        made = []
        for one in self.candidates:
            state, label = self.state_of(one, states), one.point.label
            outcome: Literal["open", "pruned", "failed"] = "open"
            if state == "done":
                made.append(Outcome(one.point.values, "done", results[label].scores, broken[label]))
            else:
                if state == "pruned" or state == "failed":
                    outcome = state
                unmet = (1.0,) * len(self.block.constraints)
                made.append(Outcome(one.point.values, outcome, violations=unmet))
        return made

    def _total_with(self, tree: Tree, states: dict[str, State], budget: Budget) -> float:
        """The most that will be spent with this tree, with what is spent and what the open points still need."""
        settled = {key for key, state in states.items() if state.state == "done"}
        promised = 0.0
        for one in self.open(states):
            assert one.tree is not None
            promised += planned_cost(one.tree, settled, self.store, budget)
            settled |= set(one.tree.stages)
        settled |= {key for key in tree.stages if key not in states and self.store.run(key).is_done()}
        return self.spent().of(budget.unit) + promised + planned_cost(tree, settled, self.store, budget)
