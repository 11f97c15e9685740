"""`retain drill`: kill the runs of a small copy of a study at random moments, and compare them with an undisturbed twin."""

import math
import os
import random
import shutil
import signal
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial

from retain.datamodules.corpora.values.labels import VALUES
from retain.launchers.checks.verify import verify_store
from retain.launchers.local.devices import local_slots
from retain.launchers.local.launcher import Watch, WorkerGroup, send_signal, train
from retain.launchers.planning.opened_study import OpenedStudy
from retain.launchers.planning.register import register
from retain.results.store.curves import Curve, is_measured_speed, read_curves
from retain.results.store.runs import Run, Store
from retain.results.store.state import State
from retain.sweeps.base.errors import StageFailedError
from retain.sweeps.tree.tree import Tree

POLL_S = 0.002
TURN_S = 0.05
"""How long the drill waits for moments to strike, each time that the local launcher would pause."""
TWICE_WITHIN_S = 0.05
"""The longest time between the two signals of `twice`."""
SIGNALS = {"USR2": signal.SIGUSR2, "TERM": signal.SIGTERM, "INT": signal.SIGINT, "KILL": signal.SIGKILL}
MOMENTS = ("any", "save", "evaluation", "final write", "twice")
"""When a process is killed: at a random time; while a checkpoint is written; while a held-out loss is computed; while the
results are written; a second time right after the first."""
MOST_A_STAGE = 8
"""The most kills of one stage in one round."""


@dataclass(frozen=True)
class Kill:
    """One process that was sent a signal."""

    stage: str
    moment: str
    signal: str


@dataclass(frozen=True)
class Difference:
    """Something that differs in the disturbed twin."""

    key: str
    stage: str
    what: str


@dataclass(frozen=True)
class DrillResult:
    """What `retain drill --json` prints."""

    study: str
    kills: int
    by_moment: dict[str, dict[str, int]]
    """For each kind of moment, the number of kills by each signal."""
    by_stage: dict[str, int]
    """The number of kills of the runs of each stage."""
    runs_compared: int
    attempts: int
    """The number of attempts of the disturbed runs."""
    differences: list[Difference]


TrainTree = Callable[[Tree, Store, "Killer | None"], Mapping[str, State]]
"""Trains a tree in a store, disturbed by the killer if there is one; returns the last state of each stage."""


def run_drill(opened: OpenedStudy, train_tree: TrainTree, kills: int, seed: int) -> DrillResult:
    """Train a study undisturbed once, then disturbed until `kills` kills were made, and compare after each round.

    Works below `<store>/drill`, on the data of the store. Raises StageFailedError if the undisturbed study fails.
    """
    tree, store = opened.tree, opened.store
    calm = _twin(store, "calm")
    states = train_tree(tree, calm, None)
    if broken := next((state for state in states.values() if state.state != "done"), None):
        raise StageFailedError(f"the uninterrupted twin failed, so there is nothing to compare with: {broken.reason}")
    durations = {key: _duration(calm.run(key)) for key in tree.stages}
    made: list[Kill] = []
    differences: list[Difference] = []
    runs = attempts = 0
    while (left := kills - len(made)) > 0:
        disturbed = _twin(store, "disturbed")
        share = math.ceil(left / len(tree.stages))
        killer = Killer(tree, disturbed, durations, random.Random(seed + runs), min(share, MOST_A_STAGE), left)
        train_tree(tree, disturbed, killer)
        made += killer.kills
        differences += compare(tree, calm, disturbed)
        runs += len(tree.stages)
        attempts += sum(len(disturbed.run(key).state().attempts) for key in tree.stages)
        if differences or not killer.kills:
            break
    return DrillResult(
        study=tree.study,
        kills=len(made),
        by_moment={
            moment: {name: sum((kill.moment, kill.signal) == (moment, name) for kill in made) for name in SIGNALS}
            for moment in MOMENTS
        },
        by_stage={name: sum(kill.stage == name for kill in made) for name in _stage_names(tree)},
        runs_compared=runs,
        attempts=attempts,
        differences=differences,
    )


def _stage_names(tree: Tree) -> list[str]:
    """The stages of the chain, then those that some of them need besides their parents, such as `fisher`."""
    return list(dict.fromkeys([*tree.chain, *(stage.stage for stage in tree.stages.values())]))


def on_this_machine(opened: OpenedStudy, watch: Watch) -> TrainTree:
    """Train on this machine; a signal goes to every process of a run, or to one of them."""
    slots = local_slots(opened.file.study.execution, opened.file.study.stages)

    def train_here(tree: Tree, store: Store, killer: Killer | None) -> Mapping[str, State]:
        register(tree, opened.file, opened.facts, store)
        return train(tree, store, slots, watch, disturb=partial(_strike_groups, killer) if killer else None)

    return train_here


def _strike_groups(killer: "Killer", groups: Mapping[str, WorkerGroup]) -> None:
    """Send signals to the worker groups for TURN_S; the launcher calls this instead of its pause."""

    def strike(key: str, name: str) -> bool:
        processes = groups[key].processes
        # Every process of the run, as if its node failed, or one of them.
        victims = processes if killer.draw.random() < 0.5 else [killer.draw.choice(processes)]
        sent = [send_signal(process, SIGNALS[name]) for process in victims]
        return any(sent)

    end = time.monotonic() + TURN_S
    while time.monotonic() < end:
        for key in groups:
            killer.poll(key, strike)
        time.sleep(POLL_S)


@dataclass
class _Plan:
    """How the current attempt of a run will be killed."""

    attempt: int
    moment: str
    signal: str
    due: float
    """For a random moment: when, on the monotonic clock."""
    pause: float
    """Seconds between the two signals of `twice`."""
    struck: float | None = None


class Killer:
    """Decides when to send which signal to which run, a limited number for each stage."""

    def __init__(
        self, tree: Tree, store: Store, durations: Mapping[str, float], draw: random.Random, a_stage: int, most: int
    ) -> None:
        self.tree, self.store, self.durations, self.draw = tree, store, durations, draw
        self.left = dict.fromkeys(tree.stages, a_stage)
        self.most = most
        self.plans: dict[str, _Plan] = {}
        self.kills: list[Kill] = []

    def poll(self, key: str, strike: Callable[[str, str], bool]) -> None:
        """Send a signal to a running run if it is time. `strike(key, signal)` sends it, and returns whether it could."""
        if self.left[key] <= 0 or len(self.kills) >= self.most:
            return
        state = self.store.run(key).state()
        if state.state != "running":
            return
        plan = self.plans.get(key)
        if plan is None or plan.attempt != len(state.attempts):
            plan = self.plans[key] = self._new_plan(key, len(state.attempts))
        if plan.struck is None:
            if self._is_time(key, plan, state):
                self._strike(key, plan, strike)
        elif plan.moment == "twice" and plan.signal != "KILL" and time.monotonic() > plan.struck + plan.pause:
            plan.signal = "KILL"
            self._strike(key, plan, strike)

    def _new_plan(self, key: str, attempt: int) -> _Plan:
        moment = self.draw.choice(MOMENTS)
        name = "TERM" if moment == "twice" else self.draw.choice(list(SIGNALS))
        due = time.monotonic() + self.draw.random() * self.durations[key]
        return _Plan(attempt, moment, name, due, self.draw.random() * TWICE_WITHIN_S)

    def _is_time(self, key: str, plan: _Plan, state: State) -> bool:
        run = self.store.run(key)
        match plan.moment:
            case "save":
                return any(run.checkpoint.glob(".step-*"))
            case "evaluation":
                return state.progress.phase == "evaluating"
            case "final write":
                return (run.folder / "model.partial").exists()
            case _:
                return time.monotonic() > plan.due

    def _strike(self, key: str, plan: _Plan, strike: Callable[[str, str], bool]) -> None:
        plan.struck = time.monotonic()
        if strike(key, plan.signal):
            self.left[key] -= 1
            self.kills.append(Kill(self.tree.stages[key].stage, plan.moment, plan.signal))


def compare(tree: Tree, calm: Store, disturbed: Store) -> list[Difference]:
    """Every way in which a disturbed tree differs from its undisturbed twin: weights, losses, curves, data digests."""
    found = []
    for stage in tree.stages.values():
        one, other = calm.run(stage.key), disturbed.run(stage.key)
        if other.is_done():
            checksums = other.state().checksums
            names = [name for name, value in one.state().checksums.items() if checksums.get(name) != value]
            names += ["curves"] if curve_points(one) != curve_points(other) else []
        else:
            names = [f"it is {other.state().state}: {other.state().reason}"]
        found += [Difference(stage.key, stage.stage, name) for name in names]
    problems = verify_store(disturbed, tree.stages)[1]
    return found + [Difference(problem.where, "", problem.what) for problem in problems]


def curve_points(run: Run) -> dict[str, Curve]:
    """The curves of a run, without measured speeds."""
    return {name: curve for name, curve in read_curves(run.folder).items() if not is_measured_speed(name)}


def _twin(store: Store, name: str) -> Store:
    """An empty store below the real one, which shares its data."""
    root = store.root / "drill" / name
    shutil.rmtree(root, ignore_errors=True)
    root.mkdir(parents=True)
    for shared in ("corpora", "tokenizers", "checkpoints", VALUES):
        if (store.root / shared).exists():
            (root / shared).symlink_to(os.path.relpath(store.root / shared, root), target_is_directory=True)
    return Store(root)


def _duration(run: Run) -> float:
    attempt = run.state().attempts[-1]
    return (attempt.end or time.time()) - attempt.start
