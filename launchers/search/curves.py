"""The held-out losses that a run has written so far, whether it is still at work or done."""

import contextlib
from collections.abc import Iterable, Sequence

from retain.results.store.runs import Run
from retain.results.tensorboard.events import SPLITS, heldout_tag

Curve = Sequence[tuple[int, float]]
"""Held-out losses (nats per token) by tokens, ascending."""
NEAR = 0.1
"""An evaluation counts for a place if it is no further from it than a tenth of the way there."""


def heldout_curves(run: Run) -> dict[str, Curve]:
    """The curves of a run by the role of their split; empty where there are none yet."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    if not any(run.folder.glob("events.*")):
        return {}
    events = EventAccumulator(str(run.folder), size_guidance={"scalars": 0})
    try:
        events.Reload()
    except OSError:  # a new attempt has just begun a file of its own
        return {}
    found: dict[str, Curve] = {}
    for split in SPLITS:
        with contextlib.suppress(KeyError):
            found[split] = sorted((point.step, point.value) for point in events.Scalars(heldout_tag(split)))
    return found


def loss_at(tokens: int, curve: Curve) -> float | None:
    """The loss at the first evaluation at these tokens or near them; None where there is none."""
    at = next(((place, loss) for place, loss in curve if place >= (1 - NEAR) * tokens), None)
    return at[1] if at is not None and at[0] <= (1 + NEAR) * tokens else None


def losses_at(places: Iterable[int], curve: Curve) -> dict[str, float]:
    """The losses at the places (tokens) that were reached, by the place; see `loss_at`."""
    found = {str(place): loss_at(place, curve) for place in places}
    return {place: loss for place, loss in found.items() if loss is not None}


def evaluations_for(share: float, steps: int, wanted: int | None) -> int:
    """Steps between evaluations so that one comes at a share of a stage's steps, or a sixteenth of the way there before it.

    wanted: the study's own steps between evaluations; they come no more rarely.
    """
    needed = max(1, int(share * steps))
    most = min(wanted or needed, needed)
    return next(every for every in range(most, 0, -1) if needed % every * 16 <= needed)
