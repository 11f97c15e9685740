"""How the verbs grow: time and memory of planning many trials, and of every verb on a store of many runs.

    python -m benchmarks.scale [--most 100000] [--folder FOLDER] [--write]

Each number is that of whole processes. Plans are of `figure2` with larger grids, on data that is not prepared. The other verbs
run as `retain VERB STUDY --json` on stores that were made without training (benchmarks/made_up.py): 70% of their runs are done,
with models, losses and checksums; the others failed, are queued, running or planned. The first command makes the index of ended
runs that the later ones read. SLURM is not on the PATH; what it adds is
in benchmarks/submission.py.
"""

import argparse
import contextlib
import io
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING

import yaml

from benchmarks.harness import (
    RETAIN,
    Child,
    Option,
    Page,
    bullets,
    log,
    markdown_table,
    run_benchmark,
    run_child,
    run_function,
)
from retain.sweeps.base.units import format_bytes
from retain.sweeps.schema.read import STUDIES, read_study

if TYPE_CHECKING:
    from benchmarks.made_up import MadeStore

# Measured processes import this file too, so what would add to their memory is imported where it is used.

SIZES = (100, 1_000, 10_000, 100_000, 300_000)
"""Runs of the stores."""
GRIDS = ((10, 10, 10), (10, 10, 100), (10, 100, 100))
"""Values of pretrain.exposure, posttrain.lr and finetune.lr."""
REPEATS = 3
HELPS = 7
"""How often the help is printed."""
ONCE = 50_000
"""In a store of so many runs, each command is measured once."""
TERMINAL = 50
"""Lines of the terminal that --watch refreshes."""
TARGETS = {
    10_000: {"status": 0.7, "status --watch, a refresh": 0.2}
    | dict.fromkeys(("results, for the first time", "results, again", "results, with board's folder"), 5.0)
}
"""By the number of runs: the seconds that a command should stay below."""
Cells = Mapping[str, tuple[float, str]]
"""Quantities by name: the value, and how it is shown."""


def measure(options: argparse.Namespace) -> Page:
    """Plans, then the verbs on each store."""
    from retain.launchers.checks.doctor import file_system

    plans = {math.prod(grid): plan(grid, options.folder) for grid in GRIDS[: options.grids]}
    helps = [retain("--help").seconds for _ in range(HELPS + 1)][1:]
    verbs = {runs: verbs_on_store(runs, options.folder) for runs in SIZES if runs <= options.most}
    return Page(
        [
            f"stores on {file_system(options.folder)}, just written, so in the system's memory",
            f"medians of {REPEATS} processes; one process for a command that writes, and for all in the largest store",
        ],
        [
            "Planning:",
            growth_table("trials", plans),
            f"`retain --help`: median {median(helps):.3f} s, max {max(helps):.3f} s of {HELPS}.",
            "Seconds until a command on a store returns (seconds of the processor):",
            growth_table("runs", {runs: seconds_of(children) for runs, children in verbs.items()}),
            "Peak memory:",
            growth_table("runs", {runs: memory_of(children) for runs, children in verbs.items()}),
            bullets(
                f"{name} of {runs:,} runs under {most:g} s: {'met' if children[name].seconds < most else 'missed'}"
                for runs, children in verbs.items()
                for name, most in TARGETS.get(runs, {}).items()
            ),
        ],
    )


def plan(grid: Sequence[int], folder: Path) -> Cells:
    """Read, expand and cost a study with a grid of this shape, and `retain plan` of it."""
    exposures, posttrains, finetunes = grid
    axes = {
        "pretrain.exposure": [number / (exposures - 1) for number in range(exposures)],
        "posttrain.lr": [1e-5 * number for number in range(1, posttrains + 1)],
        "finetune.lr": [1e-6 * number for number in range(1, finetunes + 1)],
    }
    study = folder / "planning.yaml"
    figure2 = yaml.safe_load((STUDIES / "figure2.yaml").read_text())
    study.write_text(yaml.safe_dump(figure2 | {"study": "planning", "cases": {}, "grid": axes}))
    parts = [run_function(plan_parts, study) for _ in range(REPEATS)]
    plans = [retain("plan", study, "--json", "--store", folder / "none") for _ in range(REPEATS)]
    document, own = json.loads(plans[0].printed), parts[0].result
    assert document["totals"]["trials"] == math.prod(grid)
    assert len(document["stages"]) == own["stages"]
    read, expand, cost = (median(child.result[part] for child in parts) for part in ("read", "expand", "cost"))
    whole, peak, own_peak = middle(plans), middle(plans).peak_bytes, middle(parts).peak_bytes
    return {
        "stages": (own["stages"], f"{own['stages']:,}"),
        "read, s": (read, f"{read:.2f}"),
        "expand, s": (expand, f"{expand:.3f}"),
        "cost, s": (cost, f"{cost:.4f}"),
        "expand + cost, s": (expand + cost, f"{expand + cost:.3f}"),
        "peak memory": (own_peak, format_bytes(own_peak)),
        "`retain plan --json`, s": (whole.seconds, f"{whole.seconds:.2f}"),
        "its peak memory": (peak, format_bytes(peak)),
        "its document": (len(whole.printed), format_bytes(len(whole.printed))),
    }


def plan_parts(study: str) -> dict[str, float]:
    """Read, expand and cost a study on made-up facts of its data: seconds of each, and the stages."""
    from retain.sweeps.tree.cost import total_cost
    from retain.sweeps.tree.tree import expand
    from tests.studies import made_up_facts

    begin = time.perf_counter()
    file = read_study(study)
    facts = made_up_facts(file)
    expanding = time.perf_counter()
    tree = expand(file, facts)
    costing = time.perf_counter()
    totals = total_cost(tree, (), "H100")
    end = time.perf_counter()
    return {"read": expanding - begin, "expand": costing - expanding, "cost": end - costing, "stages": totals.stages}


def verbs_on_store(runs: int, folder: Path) -> dict[str, Child]:
    """Every command on a store of so many runs."""
    from benchmarks.made_up import MadeStore, made_store

    made = made_store(runs, folder / str(runs))
    log(f"made {runs:,} runs")
    repeats = 1 if runs > ONCE else REPEATS
    found = {
        "plan": verb(made, "plan", "--json", repeats=repeats),
        "status": verb(made, "status", "--json", repeats=repeats),
        "status, as a table": verb(made, "status", repeats=repeats),
        "status --watch, a refresh": refresh(made),
        "results, for the first time": verb(made, "results", "--json"),
        "results, again": verb(made, "results", "--json", repeats=repeats),
        "board, until TensorBoard starts": run_function(link_board, made.study, made.root),
        "results, with board's folder": verb(made, "results", "--json", repeats=repeats),
        "verify": verb(made, "verify", "--json"),
        "gc --dry-run": verb(made, "gc", "--dry-run", "--json", repeats=repeats),
        "submit --dry-run, registered": verb(made, "submit", "--dry-run"),
    }
    assert len(json.loads(found["status"].printed)["runs"]) == runs
    assert json.loads(found["verify"].printed) == {"study": str(made.study), "runs": runs, "problems": []}
    new = MadeStore(made.study, made.root.with_name("new"))
    for name in ("tokenizers", "corpora", "prepared"):
        shutil.copytree(made.root / name, new.root / name)
    return found | {"submit --dry-run, a new store": verb(new, "submit", "--dry-run")}


def verb(made: "MadeStore", name: str, *options: str, repeats: int = 1) -> Child:
    """One verb on the study; the middle one of some processes."""
    return middle([retain(name, made.study, "--store", made.root, *options) for _ in range(repeats)])


def retain(*arguments: object) -> Child:
    """Run the command line, without SLURM, and with compiled modules as where it is installed."""
    left_out = ("RETAIN_STORE", "PYTHONDONTWRITEBYTECODE")
    environment = {name: value for name, value in os.environ.items() if name not in left_out}
    return run_child([*RETAIN, *arguments], environment | {"PATH": str(Path(sys.executable).parent)})


def middle(children: Sequence[Child]) -> Child:
    """The one of median wall time."""
    return sorted(children, key=lambda child: child.seconds)[len(children) // 2]


def link_board(study: str, store: str) -> None:
    """What `retain board` does before it becomes TensorBoard."""
    from retain.launchers.planning.opened_study import open_study
    from retain.results.tensorboard.views import link_runs

    opened = open_study(study, (), Path(store))
    link_runs(opened.tree, opened.store)


def refresh(made: "MadeStore") -> Child:
    """What `status --watch` does each second, once it has started."""
    child = run_function(time_refresh, made.study, made.root)
    seconds, cpu = child.result
    return replace(child, seconds=seconds, cpu_seconds=cpu)


def time_refresh(study: str, store: str) -> list[float]:
    """Wall and processor seconds of reading the status and laying out what a terminal shows."""
    from rich.console import Console

    from retain.launchers.cli.views.status_table import most_important, status_table
    from retain.launchers.planning.opened_study import open_study
    from retain.results.store.status import StatusReader

    opened = open_study(study, (), Path(store))
    reader, times = StatusReader(opened.store), []
    reader.of_study(opened.tree)
    for _ in range(REPEATS):
        begin, used = time.perf_counter(), time.process_time()
        rows = reader.of_study(opened.tree)
        with contextlib.redirect_stdout(io.StringIO()):
            Console(width=240).print(status_table(rows, most_important(rows, TERMINAL)))
        times.append((time.perf_counter() - begin, time.process_time() - used))
    return [median(part) for part in zip(*times, strict=True)]


def seconds_of(children: Mapping[str, Child]) -> Cells:
    """Wall seconds, with processor seconds in brackets."""
    return {name: (child.seconds, f"{child.seconds:.2f} ({child.cpu_seconds:.2f})") for name, child in children.items()}


def memory_of(children: Mapping[str, Child]) -> Cells:
    """Peak memory."""
    return {name: (child.peak_bytes, format_bytes(child.peak_bytes)) for name, child in children.items()}


def growth_table(things: str, measured: Mapping[int, Cells]) -> str:
    """A row for each quantity: its value at each size, then by how much it grew from the size before."""
    sizes = list(measured)
    rows = []
    for name in measured[sizes[0]]:
        values, texts = zip(*(cells[name] for cells in measured.values()), strict=True)
        rows.append([name, *texts, *(f"{after / before:.1f}" for before, after in pairwise(values))])
    return markdown_table(
        ["", *(f"{size:,} {things}" for size in sizes), *(f"x, to {size:,}" for size in sizes[1:])], rows
    )


if __name__ == "__main__":
    run_benchmark(
        measure,
        "The verbs at scale",
        ("retain-lm", "pydantic", "PyYAML", "typer", "numpy", "pandas", "matplotlib", "tensorboard"),
        Option("grids", len(GRIDS), 1, "how many of the grids to plan", int, range(1, len(GRIDS) + 1)),
        Option("most", 10_000, 100, "runs in the largest store", int, SIZES),
    )
