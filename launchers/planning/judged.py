"""A study judged as `retain report` judges it: its verdicts, the start of its looks, and one look."""

import time
from collections.abc import Sequence
from pathlib import Path

from retain.launchers.planning.looks import Schedule, add_look, fix_looks, fixed_looks, schedule, seeds_override
from retain.launchers.planning.opened_study import OpenedStudy, open_study
from retain.results.analysis.methods import fixed_methods, has_claims, with_fixed, with_pipelines
from retain.results.claims.judging import Verdict
from retain.results.claims.looks import Look
from retain.results.claims.sequential import looks_sentence, verdicts_at_looks
from retain.results.store.loss_table import trial_rows
from retain.results.store.study_files import SavedLook, SavedLooks, SavedVerdict
from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.notices import notice
from retain.sweeps.schema.read import read_study


def judged(opened: OpenedStudy, looks: SavedLooks | None = None) -> list[Verdict]:
    """The verdicts on the finished trials of a study; none if it has no claims. looks: those of the study, if they count."""
    study = opened.file.study
    if not has_claims(study):
        return []
    labelled = with_pipelines(with_fixed(trial_rows(opened.tree, opened.store), fixed_methods(study)))
    return verdicts_at_looks(labelled, study.allocation == "matched", looks)


def planned_looks(
    name: str, overrides: Sequence[str], store: Path, most: int | None, block: int | None
) -> SavedLooks | Schedule:
    """The looks of a study as the store has them, or else as they will be; reads no corpus and writes nothing.

    Raises StudyError for other numbers than the recorded ones, a changed study, or a study with nothing to decide.
    """
    file = read_study(name, overrides)
    if (looks := fixed_looks(file, store, most, block)) is not None:
        return looks
    if most is None:
        raise StudyError(f"{file.study.study}: --until decided needs the most seeds that may be trained; add --most 20")
    planned = schedule(file, most, block)
    first = seeds_override(planned.seeds[: planned.counts[0]])
    if not judged(open_study(name, [*overrides, first], store, remember=False)):
        raise StudyError(
            f"{file.study.study}: the study tests no claim of the paper, so there is nothing to decide; leave out --until, and "
            "give the seeds as seed=[0,1,2]"
        )
    return planned


def begin_looks(name: str, overrides: Sequence[str], store: Path, planned: Schedule) -> SavedLooks:
    """Write the looks of a study whose data is prepared into its store; they are fixed from here on.

    Raises StudyError if a stage after pretraining is trained already: its results may have been seen.
    """
    file = read_study(name, overrides)
    if (looks := fixed_looks(file, store, planned.counts[-1], planned.block)) is not None:
        return looks  # another process was faster
    opened = open_study(name, [*overrides, seeds_override(planned.seeds)], store, remember=False)
    states = opened.store.states(opened.tree.stages)
    trained = [stage for key, stage in opened.tree.stages.items() if states[key].state == "done"]
    seen = sorted({stage.axes["seed"] for stage in trained if stage.stage != "pretrain"})
    if seen:
        raise StudyError(
            f"{opened.tree.study}: stages of this study are trained already (seeds {', '.join(map(str, seen))}), so results "
            "may have been seen before the looks were fixed; begin with a fresh seed, as in "
            f"{seeds_override([max(planned.seeds) + 1])}"
        )
    return fix_looks(file, store, planned)


def make_look(opened: OpenedStudy, looks: SavedLooks) -> SavedLooks:
    """Judge a study whose trials are finished at the seeds of its next look, and record the look; returns all looks.

    Prints one line on standard error.
    """
    number, counts = len(looks["made"]) + 1, tuple(looks["counts"])
    look = Look(number, counts)
    made = SavedLook(seeds=look.seeds, level=look.level, time=time.time(), verdicts=[])
    found = judged(opened, {**looks, "made": [*looks["made"], made]})
    made["verdicts"] = [
        SavedVerdict(
            claim=one.claim, words=one.words, outcome=one.outcome, look=one.look.number if one.look else number
        )
        for one in found
    ]
    after = add_look(opened.store.root, opened.tree.study, made)
    notice(f"{opened.tree.study}: {looks_sentence(after)}")
    return after
