"""Giving up post-trainings early: asynchronous successive halving (ASHA, Li et al., MLSys 2020) among siblings.

A rung is an amount of tokens. A stage that reaches one goes on if its held-out loss there is among the best 1/factor of its
siblings, the post-trainings under the same parent, that have reached it too. Curves lie in the store, and so do the rungs, so
a search that is started again judges as before.
"""

from collections.abc import Iterable, Mapping

from retain.sweeps.base.units import format_size
from retain.sweeps.schema.search_space import Rungs
from retain.sweeps.tree.tree import Stage


def rungs_of(stage: Stage, settings: Rungs) -> list[int]:
    """The tokens of a stage's rungs, all of them short of its end."""
    first = max(1, int(settings.first * stage.tokens))
    rungs = [first]
    while rungs[-1] * settings.factor < stage.tokens:
        rungs.append(rungs[-1] * settings.factor)
    return [rung for rung in rungs if rung < stage.tokens]


def judge(key: str, siblings: Iterable[str], reached: Mapping[str, Mapping[str, float]], settings: Rungs) -> str | None:
    """Why a stage is to be given up at the furthest rung that it has reached; None where it goes on.

    Nothing is given up before `factor` siblings, the stage among them, have reached the rung.
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
        f"held-out loss {own[rung]:.4f} after {format_size(int(rung))} tokens; the best {kept} of {len(others)} under "
        f"the same parent have at most {others[kept - 1]:.4f}"
    )
