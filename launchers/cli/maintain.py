"""Verbs that maintain the store and check the machine. Each imports what it needs when it is called."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from retain.launchers.cli.options import (
    RUNS,
    SOME_RUN_FAILED,
    AsJson,
    MaybeStudy,
    Overrides,
    RunKey,
    SiteName,
    StorePath,
    ToPath,
    show,
)
from retain.sweeps.base.errors import DamageError, MissingResourceError

if TYPE_CHECKING:
    from retain.launchers.planning.opened_study import OpenedStudy


def export(
    run_key: RunKey,
    store: StorePath = RUNS,
    to: ToPath = None,
) -> None:
    """Export a run as a Hugging Face folder.

    The folder has the weights, the tokeniser and a model card.
    """
    from retain.results.store.export import export_run
    from retain.results.store.runs import existing_store

    opened = existing_store(store)
    chosen = opened.find(run_key)
    print(export_run(opened, chosen, to or Path(chosen.key)))


def verify(
    study: MaybeStudy = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    as_json: AsJson = False,
) -> int:
    """Check the checksums and invariants of the store.

    For a study with matched allocation, also checks that each sequence of its post-training corpus is seen once.
    """
    from retain.launchers.checks.verify import verify_store
    from retain.launchers.checks.verify_matched import matched_problems
    from retain.launchers.cli.views.checks import print_problems
    from retain.launchers.planning.evaluations import with_evaluations
    from retain.results.store.runs import existing_store

    found = existing_store(store)
    try:
        opened = _opened(study, overrides, store)
    except DamageError:  # of its data, so the keys of its runs are not known: check the whole store
        opened = None
    checked, problems = verify_store(found, with_evaluations(opened).stages if opened else None)
    problems += matched_problems(opened, {problem.where for problem in problems}) if opened else []
    named = opened.tree.study if opened else study
    document = {"study": named, "runs": checked, "problems": [vars(problem) for problem in problems]}
    show(document, as_json, print_problems)
    return SOME_RUN_FAILED if problems else 0


def gc(
    study: MaybeStudy = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be freed.")] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also free weights that no run in the store needs to start from any more.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Free disk space: delete what nothing needs any more.

    That is the checkpoints of done runs, the parts of prepared corpora, and leftovers of dead processes.
    """
    from retain.launchers.cli.views.checks import print_waste, waste_document
    from retain.launchers.planning.evaluations import with_evaluations
    from retain.results.store.garbage import find_waste, free
    from retain.results.store.runs import existing_store

    found, opened = existing_store(store), _opened(study, overrides, store)
    stages = with_evaluations(opened).stages if opened else None
    waste = find_waste(found, stages, weights, stages)
    document = waste_document(study, [(one, None if dry_run else free(found, one)) for one in waste], dry_run)
    show(document, as_json, print_waste)
    return MissingResourceError.exit_code if document["kept"] else 0


def pin(
    run_key: RunKey,
    store: StorePath = RUNS,
    off: Annotated[bool, typer.Option("--off", help="Unpin.")] = False,
) -> None:
    """Protect a run's weights from gc --weights."""
    from retain.results.store.garbage import set_pin
    from retain.results.store.runs import existing_store

    chosen = existing_store(store).find(run_key)
    set_pin(chosen, not off)
    print(f"{chosen.key} is {'no longer pinned' if off else 'pinned'}")


def doctor(
    store: StorePath = RUNS,
    site: SiteName = None,
    probe: Annotated[
        bool, typer.Option("--probe", help="Also submit a tiny job to each SLURM partition, and report what it finds.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Check what this machine offers and what it lacks.

    Looks at Python, the packages, GPUs, the store's disk and SLURM, and says how to fix what is missing.
    """
    from retain.launchers.checks.doctor import examine
    from retain.launchers.cli.views.checks import print_findings

    document = examine(store, site, probe)
    show(document, as_json, print_findings)
    return 0 if document["ok"] else MissingResourceError.exit_code


def _opened(study: str | None, overrides: Sequence[str] | None, store: Path) -> "OpenedStudy | None":
    """The study that a verb is limited to; None for the whole store."""
    from retain.launchers.planning.opened_study import open_study

    if study is None:
        return None
    return open_study(study, overrides or (), store)
