"""Claims 8: what replay does to the loss on rare data, and how it depends on when these come (Kotha & Liang)."""

from collections.abc import Iterable, Iterator

from retain.results.analysis.effects import Effect, effect_of, paired_difference
from retain.results.analysis.sisters.interpolation import logs_within
from retain.results.analysis.sisters.measured import mean_of, slope_of
from retain.results.analysis.sisters.replay_schedules import Schedule, amounts_in_words, schedules
from retain.results.claims.judging import Statement, Verdict, judge, subjects
from retain.results.store.loss_table import Row


def replay_verdicts(rows: Iterable[Row]) -> Iterator[Verdict]:
    """The verdicts of a study of replay schedules; none for other studies."""
    for subject, group in subjects(rows).items():
        found = schedules(group)
        for schedule in found:
            about = ", ".join(filter(None, (subject, f"schedule {schedule.name}")))
            yield from _replay_helps(about, schedule)
            yield from _helps_where_late(about, schedule)
        if len(found) == 2:
            yield _continued(subject, *found)


def _gain(schedule: Schedule, replay: float, late: float | None = None) -> Effect:
    """The target loss with replay minus that without, averaged over every a for which both have results."""
    lates = [one for one in (schedule.lates if late is None else [late]) if _has(schedule, one, 0, replay)]
    plain, with_replay = (mean_of([schedule.grid[one, share] for one in lates]) for share in (0.0, replay))
    return paired_difference(plain, with_replay)


def _has(schedule: Schedule, late: float, *replays: float) -> bool:
    return all(schedule.grid.get((late, replay)) for replay in replays)


def _replay_helps(subject: str, schedule: Schedule) -> Iterator[Verdict]:
    """8a: at some r the loss is lower than without replay. No r is chosen; Holm's correction counts all of them."""
    if not schedule.replays or not any(replay == 0 for _, replay in schedule.grid):
        return
    deciding = [
        (f"target loss at r={replay:g} minus without replay, nats", _gain(schedule, replay))
        for replay in schedule.replays
    ]
    others, notes = [], []
    for replay in schedule.replays:
        amounts = schedule.worth(replay)
        if amounts:
            name = f"data efficiency at r={replay:g} and a=1"
            others.append((f"{name}, doublings of the rare data", effect_of(logs_within(amounts))))
            notes.append(amounts_in_words(name[0].upper() + name[1:], list(amounts.values())))
    statement = Statement("8a", "replay lowers the loss on the target", subject)
    yield judge(statement, -1, deciding, others, notes, alternatives=len(deciding))


def _helps_where_late(subject: str, schedule: Schedule) -> Iterator[Verdict]:
    """8b: the change that replay makes, averaged over r, falls with a: with the share of rare data that did not come early."""
    if len(schedule.lates) < 2 or not schedule.replays:
        return
    whole = [late for late in schedule.lates if _has(schedule, late, 0, *schedule.replays)]
    changes = [mean_of([_gain(schedule, replay, late).per_seed for replay in schedule.replays]) for late in whole]
    others = [
        (f"target loss with replay minus without at a={late:g}, nats", effect_of(change))
        for late, change in zip(whole, changes, strict=True)
    ]
    statement = Statement("8b", "replay helps more where less of the target data came early", subject)
    deciding = [("slope over a of what replay changes, nats", effect_of(slope_of(whole, changes)))]
    yield judge(statement, -1, deciding, others)


def _continued(subject: str, continued: Schedule, restarted: Schedule) -> Verdict:
    """8c, ours: over all runs of both grids, the loss with one schedule is below that with two."""
    shared = [cell for cell, losses in continued.grid.items() if losses and cell[1] > 0 and restarted.grid.get(cell)]
    one, two = (mean_of([schedule.grid[cell] for cell in shared]) for schedule in (continued, restarted))
    name = "with replay, a continued schedule has a lower target loss than a restarted one"
    deciding = [("target loss, continued minus restarted, nats", paired_difference(two, one))]
    return judge(Statement("8c", name, subject), -1, deciding)
