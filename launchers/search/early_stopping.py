"""Which running stages a search gives up, by the curves that they have written so far: `prune` and `probe`.

`prune` gives up post-trainings by asynchronous successive halving (ASHA, Li et al., MLSys 2020) among siblings. A rung is an
amount of tokens. A stage that reaches a rung continues if its held-out loss there is among the best 1/factor of its siblings
(the post-trainings below the same parent) that have reached the rung. Curves and rungs are in the store, so a search that is
started again judges as before.

`probe` judges each fine-tuning once, after a share of its tokens. It is compared with the fine-tunings on the same data and
seed, below any parent, that have reached this point before it. One dominates another if it is no worse in every loss that the
search minimises or constrains, and better in one. Of n that have reached the point, itself included, a fine-tuning is given up
if n // factor dominate it; with one loss that is the rule of `prune`. So

- a fine-tuning that trades one wanted loss for another is kept, however bad it is in one of them: what lies on the frontier at
  the probe is never given up;
- a constrained loss counts as a minimised one, so a dominating fine-tuning keeps the constraints wherever the dominated does;
- L_im is the final loss of the post-training, so among fine-tunings below one post-training it decides nothing;
- a negative weight of the objective reverses a loss; weights are not used otherwise, because losses change at different speeds
  and the order of their sums at the probe says little about the order at the end;
- each fine-tuning of a point with several seeds is compared with those of its own seed. The first one given up ends the point,
  as a mean over seeds with one missing could not be compared. So more seeds prune more.
"""

import json
from collections.abc import Collection, Iterable, Mapping
from typing import Any

from retain.launchers.planning.register import as_here
from retain.launchers.search.history import History
from retain.results.store.curves import FILE, Curve, heldout_curve, read_curves
from retain.results.store.loss_table import four_losses
from retain.results.store.runs import Run, Store
from retain.sweeps.base.units import format_size
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.search_space import Loss, Probe, Rungs, SearchBlock
from retain.sweeps.tree.tree import Stage, Tree

Losses = Mapping[str, float]
"""The losses of a trial (nats per token) that a fine-tuning has at its probe, by name, as far as they are known."""
NEAR = 0.1
"""An evaluation counts for a place if its distance is at most this share of the place's tokens."""


class EarlyStopping:
    """Records in the history the losses of stages at rungs and probes, and which stages are given up for them."""

    def __init__(self, block: SearchBlock, store: Store, history: History) -> None:
        self.block, self.store, self.history = block, store, history
        self.sizes: dict[str, int] = {}
        """The size of each run's curves when they were read last."""
        self.comparability: dict[str, Any] = {}
        """The comparability key of each fine-tuning."""

    def executions(self, file: StudyFile, tree: Tree) -> dict[str, dict[str, Any]] | None:
        """How stages are executed, if rungs or a probe need more evaluations than the study asks for."""
        shares = {
            "posttrain": self.block.prune and self.block.prune.first,
            "finetune": self.block.probe and self.block.probe.at,
        }
        if not any(shares.values()):
            return None
        made = {}
        for key, stage in tree.stages.items():
            made[key] = as_here(file.study.execution.of_stage(stage.stage).model_dump(mode="json"), self.store, key)
            if share := shares.get(stage.stage):
                steps = json.loads(stage.recipe)["steps"]
                made[key]["heldout_every"] = evaluate_every(share, steps, made[key]["heldout_every"])
        return made

    def judge(self, at_work: Collection[str], stages: Mapping[str, Stage]) -> bool:
        """Check which running stages have reached a rung or their probe. Returns whether there is anything new.

        stages: all stages that the search knows, by key.
        """
        anything = False
        for key in sorted(at_work):
            # A stage that is done by now costs nothing more, and the stages below it may be running already.
            if key in self.history.pruned or not self.record(stages[key]) or self.store.run(key).is_done():
                continue
            anything = True
            if why := self._why_given_up(stages[key], stages):
                self.history.pruned[key] = why
        return anything

    def record(self, stage: Stage) -> bool:
        """Record the losses of a stage at the rungs, or at the probe, that it has reached. Returns whether any is new."""
        if stage.stage == "posttrain" and self.block.prune:
            return self._record_rungs(stage, self.block.prune)
        if stage.stage == "finetune" and stage.parent and self.block.probe:
            return self._record_probe(stage, stage.parent, self.block.probe)
        return False

    def _record_rungs(self, stage: Stage, settings: Rungs) -> bool:
        places = [str(rung) for rung in rungs_of(stage, settings)]
        known = self.history.rungs.get(stage.key, {})
        if all(place in known for place in places) or not self._has_grown(stage.key):
            return False
        curve = heldout_curves(self.store.run(stage.key)).get("posttraining", ())
        # An attempt that resumes from an older checkpoint rewrites its curve; what is known stays known.
        found = losses_at(map(int, places), curve) | known
        if found == known:
            return False
        self.history.rungs[stage.key] = found
        return True

    def _record_probe(self, stage: Stage, parent: str, settings: Probe) -> bool:
        place = probe_tokens(stage, settings)
        if str(place) in self.history.probes.get(stage.key, {}) or not self._has_grown(stage.key):
            return False
        run, before = self.store.run(stage.key), self.store.run(parent).losses()["splits"]
        losses = losses_at_probe(place, before, heldout_curves(run), run.spec()["evaluation"])
        if losses:
            self.history.probes.setdefault(stage.key, {})[str(place)] = dict(losses)
        return bool(losses)

    def _why_given_up(self, stage: Stage, stages: Mapping[str, Stage]) -> str | None:
        """Why a stage that has just reached a rung or its probe is given up; None if it continues."""
        if stage.stage == "posttrain" and self.block.prune:
            siblings = [key for key, other in stages.items() if _are_siblings(other, stage)]
            return judge_rung(stage.key, siblings, self.history.rungs, self.block.prune)
        if stage.stage == "finetune" and self.block.probe:
            place = probe_tokens(stage, self.block.probe)
            others = [
                self._at_probe(key, place)
                for key, other in stages.items()
                if key != stage.key
                and self._at_probe(key, place)
                and self._comparability(other) == self._comparability(stage)
            ]
            own = self._at_probe(stage.key, place)
            return judge_probe(own, others, self.block.directions(), self.block.probe, place)
        return None

    def _at_probe(self, key: str, place: int) -> Losses:
        return self.history.probes.get(key, {}).get(str(place), {})

    def _comparability(self, stage: Stage) -> Any:
        """Fine-tunings can be compared if this is equal: the held-out data of all three corpora, tokens and seed."""
        if stage.key not in self.comparability:
            evaluation = self.store.run(stage.key).spec()["evaluation"]
            recipe: dict[str, Any] = json.loads(stage.recipe)
            seeds = (stage.axes.get("seed"), recipe.get("seed"))
            self.comparability[stage.key] = (evaluation, recipe["corpus"], stage.tokens, seeds)
        return self.comparability[stage.key]

    def _has_grown(self, key: str) -> bool:
        """Whether a run has written to its curves since they were read last."""
        try:
            size = (self.store.run(key).folder / FILE).stat().st_size
        except FileNotFoundError:
            return False
        grown = size != self.sizes.get(key)
        self.sizes[key] = size
        return grown


def rungs_of(stage: Stage, settings: Rungs) -> list[int]:
    """The rungs of a stage in tokens, all of them before its end."""
    first = max(1, int(settings.first * stage.tokens))
    rungs = [first]
    while rungs[-1] * settings.factor < stage.tokens:
        rungs.append(rungs[-1] * settings.factor)
    return [rung for rung in rungs if rung < stage.tokens]


def judge_rung(
    key: str, siblings: Iterable[str], reached: Mapping[str, Mapping[str, float]], settings: Rungs
) -> str | None:
    """Why a stage is given up at the last rung that it has reached; None if it continues.

    Nothing is given up before `factor` siblings, the stage included, have reached the rung.
    """
    own = reached.get(key, {})
    if not own:
        return None
    rung = max(own, key=int)
    others = sorted(reached[other][rung] for other in set(siblings) | {key} if rung in reached.get(other, {}))
    kept = len(others) // settings.factor
    if kept == 0 or own[rung] <= others[kept - 1]:
        return None
    return (
        f"held-out loss {own[rung]:.4f} after {format_size(int(rung))} tokens; the best {kept} of {len(others)} below "
        f"the same parent have at most {others[kept - 1]:.4f}"
    )


def probe_tokens(stage: Stage, settings: Probe) -> int:
    """The tokens after which a fine-tuning is judged, at least 1."""
    return max(1, int(settings.at * stage.tokens))


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


def judge_probe(
    own: Losses, others: Collection[Losses], wanted: Collection[tuple[Loss, int]], settings: Probe, place: int
) -> str | None:
    """Why a fine-tuning is given up; None if it continues.

    others: the comparable fine-tunings that have reached the probe; those that lack a wanted loss do not count. wanted: the
    losses with their directions, from `SearchBlock.directions`.
    """
    names = {name for name, _ in wanted}
    if not names <= own.keys():
        return None
    known = [other for other in others if names <= other.keys()]
    enough = (len(known) + 1) // settings.factor
    dominating = sum(_dominates(other, own, wanted) for other in known)
    if enough == 0 or dominating < enough:
        return None
    losses = ", ".join(f"{name} {own[name]:.4f}" for name in sorted(names))
    return (
        f"{losses} after {format_size(place)} tokens of fine-tuning; {dominating} of the {len(known)} before it with the same "
        f"data and seed {'is' if dominating == 1 else 'are'} no worse in any loss and better in one"
    )


def heldout_curves(run: Run) -> dict[str, Curve]:
    """The held-out curves of a run by split."""
    prefix = heldout_curve("")
    return {name.removeprefix(prefix): curve for name, curve in read_curves(run.folder).items() if prefix in name}


def loss_at(tokens: int, curve: Curve) -> float | None:
    """The loss at the first evaluation near these tokens; None if there is none."""
    at = next(((place, loss) for place, loss in curve if place >= (1 - NEAR) * tokens), None)
    return at[1] if at is not None and at[0] <= (1 + NEAR) * tokens else None


def losses_at(places: Iterable[int], curve: Curve) -> dict[str, float]:
    """The losses at those places (in tokens) that a curve has reached, by place; see `loss_at`."""
    found = {str(place): loss_at(place, curve) for place in places}
    return {place: loss for place, loss in found.items() if loss is not None}


def evaluate_every(share: float, steps: int, wanted: int | None) -> int:
    """Steps between evaluations, so that one comes at a share of a stage's steps, or at most a sixteenth of the way before it.

    wanted: the study's own steps between evaluations, which are not exceeded.
    """
    needed = max(1, int(share * steps))
    most = min(wanted or needed, needed)
    return next(every for every in range(most, 0, -1) if needed % every * 16 <= needed)


def _dominates(one: Losses, other: Losses, wanted: Collection[tuple[Loss, int]]) -> bool:
    gains = [sign * (other[name] - one[name]) for name, sign in wanted]
    return min(gains) >= 0 and max(gains) > 0


def _are_siblings(one: Stage, other: Stage) -> bool:
    """Whether two post-trainings have the same parent and the same data, so that their losses can be compared."""
    if not one.stage == other.stage == "posttrain" or one.parent != other.parent:
        return False
    return bool(json.loads(one.recipe)["corpus"] == json.loads(other.recipe)["corpus"])
