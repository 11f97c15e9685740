"""Decides which stage is trained next and which point is tried next, until the trials or the budget are used up.

A search knows nothing of Ray or SLURM. Stages are trained by Ray Tune (`ray.tune`) or as jobs (`stage_jobs`), which call

    next_stage()   for a stage to train, until finished()
    watch()        several times a second
    given_up(key)  to learn whether a stage must be stopped
    ended(key)     once a stage has stopped, for whatever reason

Results are read from the store, so a search that is started again continues from what is there.
"""

import shlex
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from retain.launchers.planning.evaluations import evaluations_of_search
from retain.launchers.planning.register import register, register_evaluations
from retain.launchers.search.budget import Budget, Spent, planned_cost, spent_on
from retain.launchers.search.derived_studies import SearchedStudy, write_points
from retain.launchers.search.early_stopping import EarlyStopping
from retain.launchers.search.history import History, Point
from retain.launchers.search.samplers import Outcome, propose
from retain.results.analysis.axes import grouped
from retain.results.analysis.search_summary import Result, result_of, violations
from retain.results.store.loss_table import loss_at, trial_rows
from retain.results.store.readiness import is_ready
from retain.results.store.state import ENDED, STOPPED, State
from retain.results.store.study_files import POINTS_STUDY, PointState
from retain.results.tensorboard.search_curves import End, write_curves
from retain.sweeps.base.errors import StudyError
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.search_space import Values
from retain.sweeps.tree.evaluation_runs import EVALUATE
from retain.sweeps.tree.merged import merged
from retain.sweeps.tree.tree import Stage, Tree

WATCH_EVERY_S = 1.0
MOST_RETURNS = 8
"""How often a stage may stop without an end, as its Ray worker or its job died; then it has failed."""


@dataclass
class Candidate:
    """A point with its stages."""

    point: Point
    file: StudyFile | None
    tree: Tree
    """Empty for an invalid point."""
    problem: str | None = None
    """Why the point is invalid."""
    result: Result | None = None
    """Known once all its stages are done."""
    evaluations: dict[str, Stage] = field(default_factory=dict)
    """The evaluations below its stages that the search needs, by key."""

    @property
    def stages(self) -> dict[str, Stage]:
        """Its stages and its evaluations, by key."""
        return self.tree.stages | self.evaluations


class Search:
    """A search in progress."""

    def __init__(self, searched: SearchedStudy, history: History, budget: Budget | None, parallel: int = 1) -> None:
        self.searched, self.history, self.budget = searched, history, budget
        self.chain = searched.file.study.stages
        self.parallel = parallel
        """How many stages may be trained at a time; set by what trains them."""
        self.space, self.block, self.store = searched.space, searched.space.block, searched.store
        self.early_stopping = EarlyStopping(self.block, self.store, history)
        self.stages: dict[str, Stage] = {}
        """All stages of all points."""
        self.states: dict[str, State] = {}
        """The states of these stages when they were read last."""
        self.training: set[str] = set()
        """Stages that were handed out and have not ended."""
        self.returned: Counter[str] = Counter()
        """How often each stage stopped without an end."""
        self.exhausted: str | None = None
        """Why no more points are proposed."""
        self.report: Callable[[], Any] = lambda: None
        """Called about once a second while stages are trained."""
        self.watched_at = 0.0
        self.candidates: list[Candidate] = []
        for point in history.points:
            self._enter(self._expanded(point))

    # 1. For what trains the stages.

    def next_stage(self) -> Stage | None:
        """A stage to train now, its parent done; None if there is none at the moment, or none any more."""
        while len(self.training) < self.parallel:
            self.read_states()
            points = self.open_points()
            ready = [stage for one in points for stage in one.stages.values() if self._is_to_train(stage)]
            if ready:
                # The stage furthest down its path is cheap and completes a point; so is an estimate for an anchor.
                stage = max(ready, key=self._depth)
                self.training.add(stage.key)
                return stage
            if len(points) >= 2 * self.parallel or not self._add_point():
                return None
        return None

    def trained_stage(self, stage: Stage) -> str:
        """The name of a stage, or of the stage that an evaluation measures: it takes the same devices."""
        return str(stage.axes["evaluate.at"]) if stage.stage == EVALUATE else stage.stage

    def ended(self, key: str) -> None:
        """Note that a stage that was handed out has stopped; how it ended is in the store."""
        self.training.discard(key)
        run = self.store.run(key)
        if self.given_up(key):
            run.retry()  # a later point may share it
        elif (state := run.state()).state not in ENDED:
            self.returned[key] += 1
            if self.returned[key] >= MOST_RETURNS:
                where = self.store.root / "submissions" / state.submission if state.submission else run.log
                run.fail(f"its Ray worker or its job died {MOST_RETURNS} times before the stage ended; see {where}")
        self.early_stopping.record(self.stages[key])
        self.exhausted = None  # it may have cost less than planned
        self.save()

    def finished(self) -> bool:
        """Whether nothing is being trained and nothing is left to train; proposes the next point to find out."""
        self.read_states()
        return not self.training and not self.open_points() and not self._add_point()

    def given_up(self, key: str) -> bool:
        """Whether a stage was pruned, or only pruned points use it."""
        pruned = self.history.pruned
        if not pruned or key in pruned:
            return key in pruned
        users = [one.stages for one in self.candidates if key in one.stages]
        return all(pruned.keys() & stages.keys() for stages in users)

    def watch(self) -> None:
        """Judge the stages in training and report, at most once a second."""
        if time.monotonic() - self.watched_at < WATCH_EVERY_S:
            return
        self.watched_at = time.monotonic()
        if self.early_stopping.judge(self.training, self.stages):
            self.save()
        self.read_states()
        self.report()

    # 2. What is known of the points.

    def check_budget(self) -> None:
        """Raise StudyError if the budget does not suffice for a first point."""
        if self.budget is None or self.candidates or (values := propose(self.space, [], {})) is None:
            return
        total = self._total_with(self._expanded(Point(0, values, "")).tree, self.budget)
        if total > self.budget.amount:
            raise StudyError(f"--budget {self.budget}: one point takes up to {self.budget.text(total)}; raise it")

    def read_states(self) -> None:
        """Read the states of all stages that are not known to be done."""
        for key in self.stages:
            if key not in self.states or self.states[key].state != "done":
                self.states[key] = self.store.run(key).state()

    def state_of(self, one: Candidate) -> PointState:
        """The state of a point, by the states that were read last."""
        keys = one.stages.keys()
        if one.problem is not None:
            return "failed"
        # A point is also done if a stage was given up and was finished all the same.
        if all(self.states[key].state == "done" for key in keys):
            return "done" if self._result(one) else "failed"
        if keys & self.history.pruned.keys():
            return "pruned"
        if any(self.states[key].state in STOPPED for key in keys):
            return "failed"
        return "running" if keys & self.training else "planned"

    def reason_of(self, one: Candidate) -> str | None:
        """Why a point was pruned or has failed, or that it is done although it was given up."""
        if one.problem is not None:
            return one.problem
        state = self.state_of(one)
        pruned = [self.history.pruned[key] for key in one.stages if key in self.history.pruned]
        if state == "done" and pruned:
            return f"{pruned[0]}, but its stages were finished all the same"
        stopped = [
            f"{stage.stage} {key[:8]}: {self.states[key].reason or self.states[key].state}"
            for key, stage in one.stages.items()
            if self.states[key].state in STOPPED
        ]
        return next(iter([*pruned, *stopped, *self._missing(one)]), None) if state in ("pruned", "failed") else None

    def open_points(self) -> list[Candidate]:
        """Points with something left to train."""
        return [one for one in self.candidates if self.state_of(one) in ("planned", "running")]

    def results(self) -> list[Result]:
        """The results of the finished points, in the order of their numbers."""
        return [one.result for one in self.candidates if self.state_of(one) == "done" and one.result]

    def spent(self) -> Spent:
        return spent_on((one.tree for one in self.candidates), self.states, self.history.found)

    def save(self) -> None:
        """Update search.json, search.yaml and the curves of the search."""
        self.read_states()
        history = self.history
        history.states = {one.point.label: self.state_of(one) for one in self.candidates}
        known, spent = {end.point: end.state for end in history.ends}, self.spent()
        ends = [
            End(label, state, spent.tokens, spent.hours)
            for label, state in history.states.items()
            if state in ("done", "pruned", "failed") and known.get(label) != state
        ]
        history.ends += ends
        history.save()
        if ends:
            self.draw_curves()
        if valid := {one.point.label: one.point.values for one in self.candidates if one.problem is None}:
            write_points(self.searched, valid)

    def draw_curves(self) -> None:
        """Rewrite the curves of the search."""
        write_curves(self.searched.run.folder, self.space, self.history.ends, self.results())

    def _result(self, one: Candidate) -> Result | None:
        if one.result is None:
            one.result = result_of(one.point.label, one.point.values, trial_rows(one.tree, self.store), self.space)
        return one.result

    def _missing(self, one: Candidate) -> list[str]:
        """What a point lacks whose stages are all done: a loss that the search needs, and how to measure it."""
        if not all(self.states[key].state == "done" for key in one.stages):
            return []
        rows = trial_rows(one.tree, self.store)
        lacking = [name for name in self.block.losses() if any(loss_at(row, name) is None for row in rows)]
        if not lacking:
            return ["a loss that the search needs is not finite"]
        command = shlex.join(
            ["retain", "evaluate", str(self.searched.folder / POINTS_STUDY), "--store", str(self.store.root)]
        )
        return [f"{lacking[0]} was not measured when its stage was trained; measure it with {command}"]

    def _depth(self, stage: Stage) -> int:
        """How far down its path a stage is; an evaluation, or an estimate for an anchor, is at the end."""
        return self.chain.index(stage.stage) if stage.stage in self.chain else len(self.chain)

    def _is_to_train(self, stage: Stage) -> bool:
        """Whether a stage of an open point can be trained now."""
        key = stage.key
        return self.states[key].state != "done" and key not in self.training and is_ready(stage, self.states)

    # 3. How points are added.

    def _add_point(self) -> bool:
        """Propose a point that the budget allows, and enter it. Returns whether there is one; if not, `exhausted` says why."""
        if self.exhausted is not None or len(self.candidates) >= self.block.trials:
            return False
        outcomes = self._outcomes()
        self.exhausted = "every point of the space has been tried"
        for fixed in self._prefixes():
            values = propose(self.space, outcomes, fixed)
            if values is None:
                continue
            one = self._expanded(Point(len(self.candidates), values, self.block.searcher))
            if self.budget and self._total_with(one.tree, self.budget) > self.budget.amount:
                self.exhausted = f"the budget of {self.budget} allows no further point"
                continue
            new = [stage for key, stage in one.tree.stages.items() if key not in self.stages]
            found = [stage for stage in new if self.store.run(stage.key).is_done()]
            self._enter(one)
            self.history.points.append(one.point)
            self.history.found |= {stage.key for stage in found}
            for stage in found:
                self.early_stopping.record(stage)
            self.exhausted = None
            self.save()
            return True
        return False

    def _expanded(self, point: Point) -> Candidate:
        try:
            return Candidate(point, *self.searched.tree({point.label: point.values}))
        except StudyError as error:
            return Candidate(point, None, Tree("", {}, [], False), str(error))

    def _enter(self, one: Candidate) -> None:
        """Add a point, and register its stages: seeds or execution may have changed since an earlier start."""
        if one.file is not None:
            executions = self.early_stopping.executions(one.file, one.tree)
            # A stage of a search is measured at its end also on what `evaluate` names, as the objective may need it.
            facts = self.searched.facts
            register(one.tree, one.file, facts, self.store, executions, measured=True)
            one.evaluations = evaluations_of_search(one.tree, self.store, facts, self.block.losses())
            register_evaluations(one.evaluations, one.tree, one.file, facts, self.store)
        self.candidates.append(one)
        self.stages |= one.stages
        self.read_states()

    def _prefixes(self) -> list[Values]:
        """The values to keep fixed for the next point, preferred ones first: what is trained already has cheap children.

        First a done post-training with room below it, then a done pretraining with room, then a new one. Last, if there is a
        budget, which may not allow a new pretraining, all done ones without regard to room.
        """
        preferred: list[Values] = []
        others: list[Values] = []
        full: list[Values] = []  # pretrainings without room
        rooms = {1: self.block.per_pretraining}
        if "posttrain" in self.chain[1:]:
            rooms[self.chain.index("posttrain") + 1] = self.block.per_posttraining
        for depth, room in rooms.items():
            names, below = self.space.names_of(self.chain[:depth]), self.space.names_of(self.chain[depth:])
            found: dict[bool, list[Values]] = {True: [], False: []}
            for group in self._groups(names) if names and below else ():
                fixed = {name: group[0].point.values.get(name) for name in names}
                is_full = len(group) >= room or any(above.items() <= fixed.items() for above in full)
                if depth == 1 and is_full:
                    full.append(fixed)
                if self._holds(fixed) and self._is_trained(group[0], self.chain[:depth]):
                    found[is_full].append(fixed)
            preferred, others = [*found[False], *preferred], [*found[True], *others]
        return [*preferred, {}, *(others if self.budget else [])]

    def _groups(self, names: Sequence[str]) -> Iterable[list[Candidate]]:
        """The points in groups that have the same values on these axes."""
        return grouped(self.candidates, lambda one: repr([one.point.values.get(name) for name in names])).values()

    def _holds(self, values: Values) -> bool:
        """Whether the space still contains these values; an earlier start may have had a wider space."""
        return all(axis.holds(values[axis.path]) for axis in self.space.axes if axis.path in values)

    def _is_trained(self, one: Candidate, kinds: Collection[str]) -> bool:
        """Whether all stages of a point of these kinds are done, with their weights still there."""
        states = [self.states[key] for key, stage in one.tree.stages.items() if stage.stage in kinds]
        return bool(states) and all(state.state == "done" and not state.weights_freed for state in states)

    def _outcomes(self) -> list[Outcome]:
        results = self.results()
        broken = dict(zip([one.label for one in results], violations(self.space, results), strict=True))
        return [
            Outcome(
                one.point.values,
                self.state_of(one),
                one.result.scores if one.result else (),
                broken.get(one.point.label, ()),
            )
            for one in self.candidates
        ]

    def _total_with(self, tree: Tree, budget: Budget) -> float:
        """The most that will be spent with this tree, with what is spent and what the open points still need."""
        settled = {key for key, state in self.states.items() if state.state == "done"}
        settled |= {key for key in tree.stages if key not in self.stages and self.store.run(key).is_done()}
        needed = merged([*(one.tree for one in self.open_points()), tree])
        return self.spent().of(budget.unit) + planned_cost(needed, settled, self.store, budget, self.searched.file)
