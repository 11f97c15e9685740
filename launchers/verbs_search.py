"""The verb `search`: Ray Tune over a study's search space. It imports what it needs when it is called."""

import sys
from typing import Annotated

import typer

from launchers.options import INTERRUPTED, RUNS, SOME_RUN_FAILED, AsJson, Overrides, StorePath, StudyName


def search(
    study: StudyName,
    overrides: Overrides = None,
    store: StorePath = RUNS,
    trials: Annotated[int | None, typer.Option(min=1, help="Points to try at most, in all starts together.")] = None,
    budget: Annotated[
        str | None, typer.Option(help="What all starts together may spend: tokens or GPU-hours, 5Mtokens or 200gpuh.")
    ] = None,
    searcher: Annotated[str | None, typer.Option(help="random, grid, tpe or nsga2.")] = None,
    address: Annotated[
        str | None, typer.Option(help="A running Ray cluster; without it, a Ray of this machine's own.")
    ] = None,
    device: Annotated[str, typer.Option(help="The GPU that a budget of hours is planned for.")] = "H100",
    as_json: AsJson = False,
) -> int:
    """Search the study's `search:` space instead of its grid, and recommend a recipe; started again, it goes on."""
    from launchers.progress import reporting
    from launchers.search.budget import parse_budget
    from launchers.search.course import run_search
    from launchers.search.executor import Cluster
    from launchers.search.show import print_summary, summary_document
    from launchers.search.studies import open_search
    from launchers.views import print_json
    from results.search_summary import SUMMARY
    from sweeps.atomic import write_json
    from sweeps.speed import check_device

    chosen = [
        f"search.{name}={value}" for name, value in (("trials", trials), ("searcher", searcher)) if value is not None
    ]
    words = [*(overrides or ()), *chosen]
    check_device(device)
    limit = parse_budget(budget, device) if budget else None
    cluster = Cluster(address, open_search(study, words, store, None).file.study.execution)
    parallel = cluster.parallel()  # refused before any data is prepared
    with reporting() as report:
        searched = open_search(study, words, store, report)
    try:
        finished = run_search(searched, limit, parallel, cluster)
    except KeyboardInterrupt:
        print(f"interrupted: what is done is kept; retain search {study} goes on from there", file=sys.stderr)
        return INTERRUPTED
    document = summary_document(finished, searched)
    write_json(searched.folder / SUMMARY, document)
    if as_json:
        print_json(document)
    else:
        print_summary(document)
    return SOME_RUN_FAILED if any(point["state"] == "failed" for point in document["points"]) else 0
