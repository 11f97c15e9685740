"""Which of the stages at work a search gives up, by what they have written into the store so far: `prune` and `probe`."""

import json
from collections.abc import Collection, Mapping
from typing import Any

from retain.launchers.planning.register import as_here
from retain.launchers.search.curves import evaluations_for, heldout_curves, losses_at
from retain.launchers.search.history import History
from retain.launchers.search.probing import Losses, judge_probe, losses_at_probe, place_of
from retain.launchers.search.pruning import judge, rungs_of
from retain.results.store.runs import Store
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.search_space import SearchBlock
from retain.sweeps.tree.tree import Stage, Tree


class EarlyEnds:
    """Notes in the history what stages lost at rungs and probes, and which are given up for it."""

    def __init__(self, block: SearchBlock, store: Store, history: History) -> None:
        self.block, self.store, self.history = block, store, history
        self.read: dict[str, list[int]] = {}
        """The sizes of a run's event files when they were read last."""
        self.data: dict[str, Any] = {}
        """By fine-tuning, what another one must share to be compared with it."""

    def executions(self, file: StudyFile, tree: Tree) -> dict[str, dict[str, Any]] | None:
        """How stages run, where rungs or a probe ask for more evaluations than the study does."""
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
                made[key]["heldout_every"] = evaluations_for(share, steps, made[key]["heldout_every"])
        return made

    def judge(self, at_work: Collection[str], stages: Mapping[str, Stage]) -> bool:
        """Look which stages at work have reached a rung or their probe; whether there is anything new.

        stages: all that the search knows, by key.
        """
        anything = False
        for key in sorted(at_work):
            # What is done meanwhile costs nothing any more; what hangs below it may be at work already.
            if key in self.history.pruned or not self.note(stages[key]) or self.store.run(key).is_done():
                continue
            anything = True
            if sentence := self._sentence(stages[key], stages):
                self.history.pruned[key] = sentence
        return anything

    def note(self, stage: Stage) -> bool:
        """Keep what a stage lost at the rungs, or at the probe, that it has reached; whether there is anything new."""
        if stage.stage == "posttrain" and self.block.prune:
            places = [str(rung) for rung in rungs_of(stage, self.block.prune)]
            known = self.history.rungs.get(stage.key, {})
            if all(place in known for place in places) or not self._has_grown(stage.key):
                return False
            curve = heldout_curves(self.store.run(stage.key)).get("posttraining", ())
            # An attempt that goes on from an older state writes its curve anew: what is known stays known.
            found = losses_at(map(int, places), curve) | known
            if found == known:
                return False
            self.history.rungs[stage.key] = found
            return True
        if stage.stage == "finetune" and stage.parent and self.block.probe:
            place = place_of(stage, self.block.probe)
            if str(place) in self.history.probes.get(stage.key, {}) or not self._has_grown(stage.key):
                return False
            run, before = self.store.run(stage.key), self.store.run(stage.parent).losses()["splits"]
            losses = losses_at_probe(place, before, heldout_curves(run), run.spec()["evaluation"])
            if losses:
                self.history.probes.setdefault(stage.key, {})[str(place)] = dict(losses)
            return bool(losses)
        return False

    def _sentence(self, stage: Stage, stages: Mapping[str, Stage]) -> str | None:
        """Why a stage that has just reached a rung or its probe is given up."""
        if stage.stage == "posttrain" and self.block.prune:
            siblings = [key for key, other in stages.items() if _are_siblings(other, stage)]
            return judge(stage.key, siblings, self.history.rungs, self.block.prune)
        if stage.stage == "finetune" and self.block.probe:
            place = place_of(stage, self.block.probe)
            others = [
                self._at_probe(key, place)
                for key, other in stages.items()
                if key != stage.key and self._at_probe(key, place) and self._shared(other) == self._shared(stage)
            ]
            own = self._at_probe(stage.key, place)
            return judge_probe(own, others, self.block.directions(), self.block.probe, place)
        return None

    def _at_probe(self, key: str, place: int) -> Losses:
        return self.history.probes.get(key, {}).get(str(place), {})

    def _shared(self, stage: Stage) -> Any:
        """What fine-tunings have in common that can be compared: held-out data of all three corpora, tokens and seed."""
        if stage.key not in self.data:
            evaluation = self.store.run(stage.key).spec()["evaluation"]
            recipe: dict[str, Any] = json.loads(stage.recipe)
            seeds = (stage.axes.get("seed"), recipe.get("seed"))
            self.data[stage.key] = (evaluation, recipe["corpus"], stage.tokens, seeds)
        return self.data[stage.key]

    def _has_grown(self, key: str) -> bool:
        """Whether a run has written curves since they were read last."""
        sizes = [path.stat().st_size for path in sorted(self.store.run(key).folder.glob("events.*")) if path.exists()]
        if sizes == self.read.get(key, []):
            return False
        self.read[key] = sizes
        return True


def _are_siblings(one: Stage, other: Stage) -> bool:
    """Whether two post-trainings have the same parent and the same data, so that their losses can be compared."""
    if not one.stage == other.stage == "posttrain" or one.parent != other.parent:
        return False
    return bool(json.loads(one.recipe)["corpus"] == json.loads(other.recipe)["corpus"])
