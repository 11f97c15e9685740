"""The figure of a study of replay schedules: the target loss over r for each a, and what replay is worth in rare data."""

from collections.abc import Sequence

from retain.results.analysis.sisters.replay_schedules import Schedule, amounts_in_words, schedules
from retain.results.figures.sisters.lines import Line, LineFigure, LinePanel
from retain.results.store.loss_table import Row

LOSS = "loss on the target (nats per token)"


def replay_figure(rows: Sequence[Row]) -> LineFigure | None:
    """A panel for each schedule, one of the runs with more rare data, and one of data efficiency; None for other studies."""
    found = schedules(rows)
    if not found:
        return None
    panels = [_over_replay(schedule) for schedule in found]
    panels.append(
        LinePanel("without replay, a = 1", "rare data, relative", LOSS, tuple(map(_larger, found)), log_x=True)
    )
    worths = tuple(map(_worth, found))
    panels.append(
        LinePanel("data efficiency, a = 1", "replay r: general text in phase 2", "factor of rare data", worths)
    )
    missing = sum(row["tokens"] is None for row in rows)
    beyond = [
        amounts_in_words(f"{schedule.name.capitalize()}, r={replay:g}", list(schedule.worth(replay).values()))
        for schedule in found
        for replay in schedule.replays
    ]
    caption = (
        "Means over seeds; bars from the lowest to the highest. a is the share of rare data in phase 2. Data efficiency is the "
        "factor by which the rare data of a run without replay would have to grow to reach the loss with replay, interpolated "
        f"in its logarithm; seeds beyond the range stand at its end. {' '.join(filter(None, beyond))}"
    )
    title = "Does replay of general text help to learn rare data?"
    return LineFigure("replay-schedules", title, caption.strip(), tuple(panels), len(rows), missing)


def _over_replay(schedule: Schedule) -> LinePanel:
    lines = tuple(
        Line(
            f"a = {late:g}",
            tuple(
                (seed, replay, loss)
                for (own, replay), losses in schedule.grid.items()
                if own == late
                for seed, loss in losses.items()
            ),
        )
        for late in schedule.lates
    )
    return LinePanel(f"schedule {schedule.name}", "replay r: general text in phase 2", LOSS, lines)


def _larger(schedule: Schedule) -> Line:
    points = tuple((seed, amount, loss) for amount, losses in schedule.larger.items() for seed, loss in losses.items())
    return Line(schedule.name, points)


def _worth(schedule: Schedule) -> Line:
    points = tuple(
        (seed, replay, amount.value) for replay in schedule.replays for seed, amount in schedule.worth(replay).items()
    )
    return Line(schedule.name, points)
