"""Verbs that maintain the store and check the machine. Each imports what it needs when it is called."""

from pathlib import Path
from typing import Annotated

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
)
from retain.sweeps.base.errors import MissingResourceError


def export(
    run_key: RunKey,
    store: StorePath = RUNS,
    to: Annotated[
        Path | None, typer.Option(help="The folder to create; by default the run's key in the working directory.")
    ] = None,
) -> None:
    """Export a run as a Hugging Face folder: weights, tokeniser and a model card."""
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
    """Check every checksum and invariant of the store; with matched allocation, also that D_post is seen once."""
    from retain.launchers.checks.verify import verify_store
    from retain.launchers.cli.views.checks import print_problems
    from retain.launchers.console import print_json
    from retain.results.store.runs import existing_store

    found = existing_store(store)
    keys, allocated = None, []
    if study is not None:
        from retain.launchers.checks.verify_matched import matched_problems
        from retain.launchers.planning.opened_study import open_study

        opened = open_study(study, overrides or (), store)
        keys, allocated = set(opened.tree.stages), matched_problems(opened)
    checked, problems = verify_store(found, keys)
    problems += allocated
    if as_json:
        print_json({"study": study, "runs": checked, "problems": [vars(problem) for problem in problems]})
    else:
        print_problems(checked, problems)
    return SOME_RUN_FAILED if problems else 0


def gc(
    study: MaybeStudy = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be freed.")] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also free weights that no run of the store starts from any more.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Free what nothing needs: checkpoints of done runs, and what dead processes left."""
    from retain.launchers.cli.views.checks import print_waste, waste_document
    from retain.launchers.console import print_json
    from retain.results.store.garbage import find_waste, free
    from retain.results.store.runs import existing_store

    keys, opened = None, existing_store(store)
    if study is not None:
        from retain.launchers.planning.opened_study import open_study

        keys = set(open_study(study, overrides or (), store).tree.stages)
    found = find_waste(opened, keys, weights)
    document = waste_document(study, found, [None if dry_run else free(opened, waste) for waste in found], dry_run)
    if as_json:
        print_json(document)
    else:
        print_waste(document)
    return MissingResourceError.exit_code if document["kept"] else 0


def pin(
    run_key: RunKey,
    store: StorePath = RUNS,
    off: Annotated[bool, typer.Option("--off", help="Unpin.")] = False,
) -> None:
    """Keep a run's weights from gc --weights."""
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
    """Check what this machine offers (SLURM, partitions, GPUs, torch, disk), what is missing, and the cure."""
    from retain.launchers.checks.doctor import examine
    from retain.launchers.cli.views.checks import print_findings
    from retain.launchers.console import print_json

    document = examine(store, site, probe)
    if as_json:
        print_json(document)
    else:
        print_findings(document)
    return 0 if document["ok"] else MissingResourceError.exit_code
