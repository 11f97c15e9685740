"""Verdicts on a study whose seeds were added in blocks: each claim is decided by the first look that decides it."""

from collections.abc import Sequence
from dataclasses import replace

from retain.results.analysis.effects import level_text
from retain.results.claims.judging import Statement, Verdict, adjust, judged_at
from retain.results.claims.looks import Look
from retain.results.claims.verdicts import verdicts
from retain.results.store.loss_table import Row
from retain.results.store.study_files import SavedLooks
from retain.sweeps.schema.section import LOSSES


def verdicts_at_looks(rows: Sequence[Row], matched: bool = False, looks: SavedLooks | None = None) -> list[Verdict]:
    """A verdict for each claim that the rows can test.

    looks: the looks of the study; they count if the rows have any of their seeds. None for a fixed sample. A claim keeps the
    outcome and the effects of the first look that decided it. Results of a block that no look has judged yet do not count.
    Before the first look every claim is undecided.
    """
    if looks is None or not any(row["axes"].get("seed") in looks["seeds"] for row in rows):
        return verdicts(rows, matched)
    counts, made = tuple(looks["counts"]), len(looks["made"])
    if not made:
        none_yet = [_without_losses(row) for row in _of_seeds(rows, looks["seeds"][: counts[0]])]
        return verdicts(none_yet, matched)
    found: dict[Statement, Verdict] = {}
    for number in range(1, made + 1):
        look = Look(number, counts)
        for verdict in verdicts(_of_seeds(rows, looks["seeds"][: look.seeds]), matched):
            earlier = found.get(verdict.statement)
            if earlier is None or earlier.outcome == "undecided":
                found[verdict.statement] = judged_at(look, verdict)
    judged = [_with_note(verdict, Look(made, counts)) for verdict in found.values()]
    return adjust(judged)


def looks_in_words(looks: SavedLooks) -> list[str]:
    """The sentences of a report about the looks of its study."""
    counts, made = looks["counts"], looks["made"]
    planned = ", ".join(map(str, counts))
    sentences = [
        f"Seeds were added in blocks until every claim was decided. The looks, planned before training: at {planned} seeds."
    ]
    if not made:
        return [*sentences, "No look has been made yet, so every claim is undecided."]
    levels = ", ".join(level_text(look["level"]) for look in made)
    return [
        *sentences,
        f"Intervals are therefore wider, by look: {levels}. Over all looks each is one of 95%, and p counts all looks.",
        looks_sentence(looks),
    ]


def looks_sentence(looks: SavedLooks) -> str:
    """How far the looks of a study are: its last look, and how many verdicts are decided."""
    counts, made = looks["counts"], looks["made"]
    if not made:
        return f"No look yet of {len(counts)}; the first is at {counts[0]} seeds."
    last = made[-1]
    outcomes = [one["outcome"] for one in last["verdicts"]]
    decided = len(outcomes) - outcomes.count("undecided")
    at = f"look {len(made)} of {len(counts)}, at {last['seeds']} seeds"
    if decided == len(outcomes):
        return f"Every verdict is decided ({decided}): stopped after {at}."
    share = f"{decided} of {len(outcomes)} verdicts decided"
    if len(made) == len(counts):
        return f"{share}, the others undecided at the most seeds: stopped after {at}."
    return f"{share} after {at}; the next look is at {counts[len(made)]} seeds."


def _of_seeds(rows: Sequence[Row], seeds: Sequence[int]) -> list[Row]:
    return [row for row in rows if row["axes"].get("seed") in seeds]


def _without_losses(row: Row) -> Row:
    """A row as before training."""
    matrix = {stage: dict.fromkeys(losses) for stage, losses in row.get("losses", {}).items()}
    return row | dict.fromkeys(LOSSES) | ({"losses": matrix} if matrix else {})


def _with_note(verdict: Verdict, last: Look) -> Verdict:
    """The verdict, with a note if it was decided before the last look."""
    if verdict.look is None or verdict.look.number == last.number:
        return verdict
    note = f"Decided by {verdict.look}; the study went on to {last.seeds} seeds for other claims."
    return replace(verdict, note=" ".join(part for part in (verdict.note, note) if part))
