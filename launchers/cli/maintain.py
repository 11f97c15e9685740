"""Verbs that look after the store and the machine: export, checks, garbage. Each imports what it needs when it is called."""

from pathlib import Path
from typing import Annotated

import typer

from retain.launchers.cli.options import RUNS, SOME_RUN_FAILED, AsJson, Overrides, RunKey, SiteName, StorePath
from retain.sweeps.base.errors import MissingResourceError


def export(
    run_key: RunKey,
    store: StorePath = RUNS,
    to: Annotated[
        Path | None, typer.Option(help="The folder to make; RUN's key in this folder where it is not given.")
    ] = None,
) -> None:
    """A Hugging Face folder that AutoModelForCausalLM.from_pretrained loads, with its tokeniser and a model card."""
    from retain.results.store.export import export_run
    from retain.results.store.runs import existing_store

    opened = existing_store(store)
    chosen = opened.find(run_key)
    print(export_run(opened, chosen, to or Path(chosen.key)))


def verify(
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study; without it, the whole store.")
    ] = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    as_json: AsJson = False,
) -> int:
    """Check every checksum and invariant of the store; of a study with matched allocation, that D_post is seen once."""
    from retain.launchers.checks.verify import verify_store
    from retain.launchers.cli.views import print_json, print_problems
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
    study: Annotated[
        str | None, typer.Argument(metavar="[STUDY]", help="A study; without it, the whole store.")
    ] = None,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only say what would be freed.")] = False,
    weights: Annotated[
        bool, typer.Option("--weights", help="Also weights that no run of the store starts from any more.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Free what nothing needs: resumable states of done runs, and what dead processes left."""
    from retain.launchers.cli.views import print_json, print_waste, waste_document
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
    off: Annotated[bool, typer.Option("--off", help="Let gc --weights have them again.")] = False,
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
        bool, typer.Option("--probe", help="Also submit a tiny job to each SLURM partition, and tell what it finds.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """What this machine offers: SLURM, partitions, GPUs, torch, disk; what is missing, and the cure."""
    import json

    from retain.launchers.checks.doctor import examine, print_document

    document = examine(store, site, probe)
    if as_json:
        print(json.dumps(document, indent=1))
    else:
        print_document(document)
    return 0 if document["ok"] else MissingResourceError.exit_code
