"""The held-out pairs on which the weights of a stage are measured, and the reference of a stage that learns from pairs."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from safetensors.torch import load_file
from transformers import PreTrainedModel

from retain.datamodules.order.stage_data import heldout_pairs
from retain.launchers.stage.attempt import AttemptContext
from retain.launchers.stage.parent import usable_parent
from retain.lightning_modules.preferences.dpo import Preferences, heldout_preferences
from retain.results.store.runs import Store
from retain.results.store.state import REFERENCE_FILE
from retain.sweeps.schema.section import REFERENCE
from retain.sweeps.tree.heldout_splits import PREFERENCES, TUNE
from retain.sweeps.tree.recipes.preference import reference_key


@dataclass(frozen=True)
class HeldoutPairs:
    """Held-out pairs with their reference."""

    pairs: torch.Tensor
    """int64 [2 · pairs, length], each chosen response before the rejected one."""
    reference: torch.Tensor
    """fp64 [2 · pairs]."""
    beta: float
    key: str
    """The key of the run that computed the reference."""

    def preferences(
        self,
        model: PreTrainedModel,
        bf16: bool,
        rank: int = 0,
        world: int = 1,
        end_of_text: int | None = None,
        between: Callable[[int], None] = lambda done: None,
        done: int = 0,
        sums: torch.Tensor | None = None,
    ) -> Preferences:
        """What a model prefers on the pairs. Arguments as in `heldout_preferences`."""
        return heldout_preferences(
            model,
            self.pairs,
            self.reference,
            self.beta,
            model.device,
            bf16,
            rank,
            world,
            end_of_text=end_of_text,
            between=between,
            done=done,
            sums=sums,
        )

    def fields(self, found: Preferences) -> dict[str, Any]:
        """What losses.json says of the pairs."""
        return {
            "dpo_loss": found.loss,
            "accuracy": found.accuracy,
            "margin": found.margin,
            "pairs": found.pairs,
            "beta": self.beta,
            REFERENCE: self.key,
        }


def training_reference(context: AttemptContext) -> torch.Tensor | None:
    """The reference log-probabilities of all training pairs of a stage, fp64 [pairs, 2]; None for a stage without pairs.

    Raises StageFailedError, DamageError.
    """
    objective = context.spec["recipe"].get("objective")
    if objective is None:
        return None
    return _reference(context.store, reference_key(context.spec["parent"], objective[REFERENCE]))["train"]


def pairs_to_measure(context: AttemptContext) -> dict[str, HeldoutPairs]:
    """The held-out pairs on which a stage is reported, by the fingerprint of the corpus.

    Raises StageFailedError, DamageError.
    """
    halves = _halves(context.spec)
    return {
        corpus: held_out(context.store, corpus, one["dpo"], one[REFERENCE], halves.get(corpus))
        for corpus, one in context.spec.get(PREFERENCES, {}).items()
    }


def pairs_to_stop_on(context: AttemptContext) -> HeldoutPairs | None:
    """The held-out pairs on which early stopping selects the weights of a stage that learns from pairs; None for any other.

    Raises StageFailedError, DamageError.
    """
    recipe = context.spec["recipe"]
    if "objective" not in recipe:
        return None
    own = context.spec[PREFERENCES][recipe["corpus"]]
    settings = recipe.get("early_stopping") or {}
    half = TUNE if settings.get("split") == TUNE else None
    return held_out(context.store, recipe["corpus"], own["dpo"], own[REFERENCE], half)


def held_out(store: Store, corpus: str, beta: float, key: str, half: str | None = None) -> HeldoutPairs:
    """The held-out pairs of a corpus, or a half of them, with a reference. Raises StageFailedError, DamageError."""
    pairs, numbers = heldout_pairs(store.root, corpus, half)
    return HeldoutPairs(pairs, _reference(store, key)["heldout"][numbers].flatten(), beta, key)


def _reference(store: Store, key: str) -> dict[str, torch.Tensor]:
    return load_file(usable_parent(store, key, "the reference log-probabilities").model / REFERENCE_FILE)


def _halves(spec: Mapping[str, Any]) -> dict[str, str]:
    """The half on which a corpus is reported, by its fingerprint, of those that are not reported whole."""
    halves = spec.get("halves", {})
    return {corpus: halves[role] for role, corpus in spec["evaluation"].items() if halves.get(role, TUNE) != TUNE}
