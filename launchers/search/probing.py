"""Giving up fine-tunings early: each is looked at once, after a share of its tokens.

What it has lost and learned by then is compared with the fine-tunings of the same data and seed, under whatever parent, that
have been there before it. One dominates another if it is no worse in any loss that the search minimises or constrains, and
better in one. Of n that have been there, the one looked at among them, it is given up if n // factor dominate it: with one
loss that is the rule of `retain.launchers.search.pruning`. So

- whoever trades one wanted loss for another stays, however far off it is in one of them. Of a frontier, what is given up is
  what lies behind others in both losses; what lies on the frontier of those at the probe never is;
- a constrained loss counts as a minimised one, so what dominates keeps the constraints wherever the dominated one does;
- L_im is no guess: it is what the post-training ended with. Of fine-tunings under one post-training it decides nothing;
- a negative weight of the objective turns a loss around; the weights are not used otherwise, since losses move at different
  speeds and the order of their sums at the probe says little about that at the end;
- of a point with several seeds each fine-tuning is compared with those of its own seed. The first that is given up takes the
  point along: a mean over seeds with one missing could not be compared. So more seeds prune more.
"""

from collections.abc import Collection, Mapping

from retain.launchers.search.curves import Curve, loss_at
from retain.results.store.loss_table import four_losses
from retain.sweeps.base.units import format_size
from retain.sweeps.schema.search_space import Loss, Probe
from retain.sweeps.tree.tree import Stage

Losses = Mapping[str, float]
"""Of one fine-tuning at its probe: the losses of a trial, by name, as far as they are known; nats per token."""


def place_of(stage: Stage, settings: Probe) -> int:
    """The tokens at which a fine-tuning is looked at, at least 1."""
    return max(1, int(settings.at * stage.tokens))


def losses_at_probe(
    place: int, before: Mapping[str, Mapping[str, float]], curves: Mapping[str, Curve], splits: Collection[str]
) -> Losses:
    """What a fine-tuning would give if it ended at the probe; empty until it has been there on all its splits.

    before: the final held-out losses of the stage above it, by split; curves: those of the fine-tuning; splits: what it is
    evaluated on, one after the other.
    """
    here = {split: {"loss": loss} for split in splits if (loss := loss_at(place, curves.get(split, ()))) is not None}
    if len(here) < len(splits):
        return {}
    return {name: loss for name, loss in four_losses([before, here]).items() if loss is not None}


def judge_probe(
    own: Losses, others: Collection[Losses], wanted: Collection[tuple[Loss, int]], settings: Probe, place: int
) -> str | None:
    """Why a fine-tuning is to be given up; None where it goes on.

    others: the comparable ones that have been at the probe, without it; those that lack a wanted loss do not count.
    wanted: the losses, each with its direction, of `SearchBlock.directions`.
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
        f"data and seed {'is' if dominating == 1 else 'are'} no worse in any and better in one"
    )


def _dominates(one: Losses, other: Losses, wanted: Collection[tuple[Loss, int]]) -> bool:
    gains = [sign * (other[name] - one[name]) for name, sign in wanted]
    return min(gains) >= 0 and max(gains) > 0
