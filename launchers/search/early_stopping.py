"""Which running stages a search gives up, by the curves that they have written so far: `prune` and `probe`.

`prune` judges post-trainings at rungs, which are amounts of tokens (asynchronous successive halving: ASHA, Li et al., MLSys
2020), by their held-out loss. A post-training is compared with its siblings, those below the same parent on the same data.

`probe` judges each fine-tuning once, after a share of its tokens, by the losses that the search minimises or constrains. A
fine-tuning is compared with those on the same data and seed, below any parent.

Both follow one rule. One stage dominates another if it is no worse in every loss that counts, and better in one. Of n stages
that have reached the rung or the probe, the judged one included, that one is given up if n // factor dominate it. With one
loss, so the best 1/factor continue. With several,

- a fine-tuning that trades one wanted loss for another is kept, however bad it is in one of them: what lies on the frontier at
  the probe is never given up;
- a constrained loss counts as a minimised one, so a dominating fine-tuning keeps the constraints wherever the dominated does;
- L_im is the final loss of the post-training, so among fine-tunings below one post-training it decides nothing;
- a negative weight of the objective reverses a loss; weights are not used otherwise, because losses change at different speeds
  and the order of their sums at the probe says little about the order at the end;
- each fine-tuning of a point with several seeds is compared with those of its own seed. The first one given up ends the point,
  as a mean over seeds with one missing could not be compared. So more seeds prune more.

Curves, rungs and probes are in the store, so a search that is started again judges as before.
"""

import json
from collections.abc import Collection, Mapping
from typing import Any

from retain.launchers.planning.register import as_here
from retain.launchers.search.history import HELDOUT, History, Losses
from retain.results.store.curves import CURVES, Curve, heldout_curve, read_curves
from retain.results.store.loss_table import four_losses
from retain.results.store.runs import Run, Store
from retain.sweeps.base.units import format_size
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.search_space import Probe, Rungs, SearchBlock
from retain.sweeps.tree.tree import Stage, Tree

NEAR = 0.1
"""An evaluation counts for a place if its distance is at most this share of the place's tokens."""
Wanted = Collection[tuple[str, int]]
"""The losses that count, each with 1 if lower is better and -1 if higher is better."""


class EarlyStopping:
    """Records in the history the losses of stages at rungs and probes, and which stages are given up for them."""

    def __init__(self, block: SearchBlock, store: Store, history: History) -> None:
        self.block, self.store, self.history = block, store, history
        self.settings: dict[str, Rungs | Probe | None] = {"posttrain": block.prune, "finetune": block.probe}
        self.sizes: dict[str, int] = {}
        """The size of each run's curves when they were read last."""
        self.groups: dict[str, Any] = {}
        """For each stage, a key that is equal for the stages that it is compared with."""

    def executions(self, file: StudyFile, tree: Tree) -> dict[str, dict[str, Any]] | None:
        """How stages are executed, if rungs or a probe need more evaluations than the study asks for."""
        if not any(self.settings.values()):
            return None
        made = {}
        for key, stage in tree.stages.items():
            made[key] = as_here(file.study.execution.of_stage(stage.stage).model_dump(mode="json"), self.store, key)
            if settings := self.settings.get(stage.stage):
                steps = json.loads(stage.recipe)["steps"]
                made[key]["heldout_every"] = evaluate_every(_share(settings), steps, made[key]["heldout_every"])
        return made

    def judge(self, training: Collection[str], stages: Mapping[str, Stage]) -> bool:
        """Check which running stages have reached a rung or their probe. Returns whether there is anything new.

        stages: all stages that the search knows, by key.
        """
        anything = False
        for key in sorted(training):
            # A stage that is done by now costs nothing more, and the stages below it may be running already.
            if key in self.history.pruned or not self.record(stages[key]) or self.store.run(key).is_done():
                continue
            anything = True
            if why := self._why_given_up(stages[key], stages):
                self.history.pruned[key] = why
        return anything

    def record(self, stage: Stage) -> bool:
        """Record the losses of a stage at the rungs, or at the probe, that it has reached. Returns whether any is new."""
        settings = self.settings.get(stage.stage)
        if settings is None or stage.parent is None:
            return False
        places, known = places_of(stage, settings), self._reached(stage).get(stage.key, {})
        if all(str(place) in known for place in places) or not self._has_grown(stage.key):
            return False
        # An attempt that resumes from an older checkpoint rewrites its curve; what is known stays known.
        found = {
            str(place): losses for place in places if (losses := self._losses_at(place, stage, stage.parent))
        } | known
        if found == known:
            return False
        self._reached(stage)[stage.key] = found
        return True

    def _reached(self, stage: Stage) -> dict[str, dict[str, Losses]]:
        return self.history.rungs if stage.stage == "posttrain" else self.history.probes

    def _losses_at(self, place: int, stage: Stage, parent: str) -> Losses:
        """The losses that count of a stage at a rung or a probe; empty if it was not evaluated there yet."""
        run = self.store.run(stage.key)
        curves = heldout_curves(run)
        if stage.stage == "posttrain":
            loss = loss_at(place, curves.get("posttraining", ()))
            return {} if loss is None else {HELDOUT: loss}
        return losses_at_probe(place, self.store.run(parent).losses()["splits"], curves, run.spec()["evaluation"])

    def _why_given_up(self, stage: Stage, stages: Mapping[str, Stage]) -> str | None:
        """Why a stage that has just reached a rung or its probe is given up; None if it continues."""
        settings, reached = self.settings[stage.stage], self._reached(stage)
        assert settings is not None
        place = max(reached[stage.key], key=int)
        others = [
            reached[key][place]
            for key, other in stages.items()
            if key != stage.key and place in reached.get(key, {}) and self._group(other) == self._group(stage)
        ]
        wanted: Wanted = {(HELDOUT, 1)} if stage.stage == "posttrain" else self.block.directions()
        return judge_losses(reached[stage.key][place], others, wanted, settings.factor, int(place))

    def _group(self, stage: Stage) -> Any:
        if stage.key not in self.groups:
            recipe: dict[str, Any] = json.loads(stage.recipe)
            if stage.stage == "posttrain":
                self.groups[stage.key] = (stage.parent, recipe["corpus"])
            else:  # the held-out data of all three corpora, tokens and seed
                evaluation = self.store.run(stage.key).spec()["evaluation"]
                seeds = (stage.axes.get("seed"), recipe.get("seed"))
                self.groups[stage.key] = (evaluation, recipe["corpus"], stage.tokens, seeds)
        return self.groups[stage.key]

    def _has_grown(self, key: str) -> bool:
        """Whether a run has written to its curves since they were read last."""
        try:
            size = (self.store.run(key).folder / CURVES).stat().st_size
        except FileNotFoundError:
            return False
        grown = size != self.sizes.get(key)
        self.sizes[key] = size
        return grown


def places_of(stage: Stage, settings: Rungs | Probe) -> list[int]:
    """The rungs of a stage, or its probe, in tokens, all of them before its end."""
    places = [max(1, int(_share(settings) * stage.tokens))]
    while isinstance(settings, Rungs) and places[-1] * settings.factor < stage.tokens:
        places.append(places[-1] * settings.factor)
    return [place for place in places if place < stage.tokens]


def judge_losses(own: Losses, others: Collection[Losses], wanted: Wanted, factor: int, place: int) -> str | None:
    """Why a stage is given up at a rung or a probe (in tokens); None if it continues.

    others: the comparable stages that have reached it; those that lack a wanted loss do not count. Nothing is given up before
    `factor` stages, this one included, have reached it.
    """
    names = {name for name, _ in wanted}
    if not names <= own.keys():
        return None
    known = [other for other in others if names <= other.keys()]
    enough = (len(known) + 1) // factor
    better = sum(_dominates(other, own, wanted) for other in known)
    if enough == 0 or better < enough:
        return None
    losses = ", ".join(f"{name} {own[name]:.4f}" for name in sorted(names))
    return (
        f"{losses} after {format_size(place)} tokens; {better} of the {len(known)} comparable stages before it "
        f"{'is' if better == 1 else 'are'} no worse in any of these losses and better in one"
    )


def losses_at_probe(
    place: int, before: Mapping[str, Mapping[str, float]], curves: Mapping[str, Curve], splits: Collection[str]
) -> Losses:
    """The losses that a fine-tuning would have if it ended at the probe; empty until it was evaluated there on all splits.

    before: the final held-out losses of the stage above it, by split. curves: the held-out curves of the fine-tuning by split.
    splits: the splits that it is evaluated on.
    """
    here = {split: {"loss": loss} for split in splits if (loss := loss_at(place, curves.get(split, ()))) is not None}
    if len(here) < len(splits):
        return {}
    return {name: loss for name, loss in four_losses([before, here]).items() if loss is not None}


def heldout_curves(run: Run) -> dict[str, Curve]:
    """The held-out curves of a run by split."""
    prefix, curves = heldout_curve(""), read_curves(run.folder)
    return {name.removeprefix(prefix): curve for name, curve in curves.items() if name.startswith(prefix)}


def loss_at(tokens: int, curve: Curve) -> float | None:
    """The loss at the first evaluation near these tokens; None if there is none."""
    at = next(((place, loss) for place, loss in curve if place >= (1 - NEAR) * tokens), None)
    return at[1] if at is not None and at[0] <= (1 + NEAR) * tokens else None


def evaluate_every(share: float, steps: int, wanted: int | None) -> int:
    """Steps between evaluations, so that one comes at a share of a stage's steps, or at most a sixteenth of the way before it.

    wanted: the study's own steps between evaluations, which are not exceeded.
    """
    needed = max(1, int(share * steps))
    most = min(wanted or needed, needed)
    return next(every for every in range(most, 0, -1) if needed % every * 16 <= needed)


def _share(settings: Rungs | Probe) -> float:
    """The share of a stage's tokens after which it is judged first."""
    return settings.first if isinstance(settings, Rungs) else settings.at


def _dominates(one: Losses, other: Losses, wanted: Wanted) -> bool:
    gains = [sign * (other[name] - one[name]) for name, sign in wanted]
    return min(gains) >= 0 and max(gains) > 0
