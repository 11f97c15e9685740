"""Giving up post-trainings early: asynchronous successive halving (ASHA, Li et al., MLSys 2020) among siblings.

A rung is an amount of tokens. A stage that reaches one goes on if its held-out loss there is among the best 1/factor of its
siblings, the post-trainings under the same parent, that have reached it too. Curves lie in the store, and so do the rungs, so
a search that is started again judges as before.
"""

import contextlib
import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from results.layout import heldout_tag
from results.store import Run
from sweeps.search import Rungs
from sweeps.tree import Stage
from sweeps.units import format_size

Curve = Sequence[tuple[int, float]]
"""Held-out losses (nats per token) by tokens, ascending."""


def rungs_of(stage: Stage, settings: Rungs) -> list[int]:
    """The tokens of a stage's rungs, all of them short of its end."""
    first = max(1, int(settings.first * stage.tokens))
    rungs = [first]
    while rungs[-1] * settings.factor < stage.tokens:
        rungs.append(rungs[-1] * settings.factor)
    return [rung for rung in rungs if rung < stage.tokens]


def heldout_every(stage: Stage, settings: Rungs, wanted: int | None) -> int:
    """Steps between the evaluations that the rungs need; what the study asks for, where that is as often."""
    recipe: dict[str, Any] = json.loads(stage.recipe)
    needed = max(1, int(settings.first * recipe["steps"]))
    return min(needed, wanted or needed)


def losses_at(rungs: Iterable[int], curve: Curve) -> dict[str, float]:
    """The loss at the first evaluation at or beyond each rung that was reached.

    An evaluation counts for a rung only if it comes no later than a tenth behind it.
    """
    found = {}
    for rung in rungs:
        at = next(((tokens, loss) for tokens, loss in curve if tokens >= 0.9 * rung), None)
        if at is not None and at[0] <= 1.1 * rung:
            found[str(rung)] = at[1]
    return found


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


def posttraining_curve(run: Run) -> Curve:
    """The held-out losses on post-training's data that a run has written so far; TensorBoard's file lags by minutes."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(run.folder.glob("events.*")):
        return []
    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 0})
    with contextlib.suppress(KeyError, OSError):
        events.Reload()
        return sorted((point.step, point.value) for point in events.Scalars(heldout_tag("posttraining")))
    return []
