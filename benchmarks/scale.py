"""How the verbs that look at a store grow: time and memory at a hundred, a thousand, ten thousand runs and more.

    python -m benchmarks.scale [--most 100000] [--folder FOLDER] [--write]

Each number is a whole command, `retain VERB STUDY --json` in a process of its own, on a store that was made without
training (see benchmarks/made_store.py): 70% of its runs are done, with models, losses and checksums, the others failed, are
queued, running or planned. SLURM is not on the PATH; what it adds is in benchmarks/submission.py.
"""

import argparse
import io
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from itertools import pairwise
from pathlib import Path
from statistics import median

from benchmarks.planning import Child, retain, watch
from benchmarks.report import circumstances, file_system, markdown_table, write_results
from benchmarks.synthetic_store import SHAPES, MadeStore, made_store
from retain.sweeps.base.units import format_bytes

REPEATS = 3
ONCE = 50_000
"""In a store of so many runs each command is measured once."""
TERMINAL = 50
"""Lines of the terminal that --watch refreshes."""
TARGETS = {"status": 2.0} | dict.fromkeys(
    ("results, for the first time", "results, again", "results, with board's folder"), 5.0
)
"""Seconds that a command on 10,000 runs should stay below."""
VIEW = """
import sys
from pathlib import Path
from retain.launchers.planning.opened_study import open_study
from retain.results.tensorboard.views import link_runs
opened = open_study(sys.argv[1], (), Path(sys.argv[2])); link_runs(opened.tree, opened.store)
"""
"""What `retain board` does before it becomes TensorBoard."""
PACKAGES = ("retain", "pydantic", "numpy", "pandas", "matplotlib", "tensorboard")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scale", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--most", type=int, choices=SHAPES, default=10_000, help="the largest store (%(default)s)")
    parser.add_argument("--folder", type=Path, help="where the stores are made; a temporary folder without it")
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/scale.md")
    parser.add_argument("--refresh", type=Path, nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.refresh:
        print(refresh_seconds(*options.refresh))
        return
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        head = circumstances(
            PACKAGES,
            f"stores on {file_system(Path(folder))}, just written, so in the system's memory",
            f"the median of {REPEATS} processes; of one for what writes, and for all in the largest store",
        )
        measured = {runs: measure(runs, Path(folder)) for runs in SHAPES if runs <= options.most}
    text = "\n\n".join(["# The verbs at scale", head, *tables(measured), targets(measured)]) + "\n"
    print(text, end="")
    if options.write:
        print(write_results("scale", text), file=sys.stderr)


def measure(runs: int, folder: Path) -> dict[str, Child]:
    """Every command on a store of so many runs."""
    made = made_store(runs, folder / str(runs))
    print(f"{runs:,} runs made in {made.seconds:.0f} s", file=sys.stderr)
    repeats = 1 if runs > ONCE else REPEATS
    found = {
        "plan": run(made, "plan", "--json", repeats=repeats),
        "status": run(made, "status", "--json", repeats=repeats),
        "status, as a table": run(made, "status", repeats=repeats),
        "status --watch, a refresh": refresh(made),
        "results, for the first time": run(made, "results", "--json"),
        "results, again": run(made, "results", "--json", repeats=repeats),
        "board, until TensorBoard starts": watch([sys.executable, "-c", VIEW, str(made.study), str(made.root)]),
        "results, with board's folder": run(made, "results", "--json", repeats=repeats),
        "verify": run(made, "verify", "--json"),
        "gc --dry-run": run(made, "gc", "--dry-run", "--json", repeats=repeats),
    }
    document = json.loads(found["status"].printed)
    assert len(document["runs"]) == runs
    assert json.loads(found["verify"].printed) == {"study": str(made.study), "runs": runs, "problems": []}
    found["submit --dry-run, registered"] = run(made, "submit", "--dry-run")
    found["submit --dry-run, a new store"] = run(without_runs(made), "submit", "--dry-run")
    return found


def run(made: MadeStore, verb: str, *options: str, repeats: int = 1) -> Child:
    """One verb on the study, without SLURM; the median by wall time of some processes."""
    environment = {name: value for name, value in os.environ.items() if name != "RETAIN_STORE"}
    environment["PATH"] = str(Path(sys.executable).parent)
    command = [*retain(), verb, str(made.study), "--store", str(made.root), *options]
    return middle([watch(command, environment) for _ in range(repeats)])


def middle(children: Sequence[Child]) -> Child:
    return sorted(children, key=lambda child: child.seconds)[len(children) // 2]


def without_runs(made: MadeStore) -> MadeStore:
    """A new store with the data alone, beside the made one."""
    root = made.root.with_name("new")
    for name in ("tokenizers", "corpora", "prepared"):
        shutil.copytree(made.root / name, root / name)
    return MadeStore(made.study, root, made.runs, 0.0)


def refresh(made: MadeStore) -> Child:
    """What `status --watch` does each second, after its start."""
    child = watch([sys.executable, "-m", "benchmarks.scale", "--refresh", str(made.study), str(made.root)])
    seconds, cpu_seconds = map(float, child.printed.split())
    return Child(seconds, cpu_seconds, child.peak_bytes, b"")


def refresh_seconds(study: Path, store: Path) -> str:
    """Wall and processor seconds of a look at a study and of laying out what a terminal shows."""
    from rich.console import Console

    from retain.launchers.cli.views.status import most_important, status_table
    from retain.launchers.planning.opened_study import open_study
    from retain.results.store.status import study_status

    opened = open_study(str(study), (), store)
    times = []
    for _ in range(REPEATS):
        begin = time.perf_counter(), time.process_time()
        rows = study_status(opened.tree, opened.store)
        with redirect_stdout(io.StringIO()):
            Console(width=240).print(status_table(rows, most_important(rows, TERMINAL)))
        times.append((time.perf_counter() - begin[0], time.process_time() - begin[1]))
    wall, processor = (median(part) for part in zip(*times, strict=True))
    return f"{wall} {processor}"


def tables(measured: Mapping[int, Mapping[str, Child]]) -> list[str]:
    """Wall seconds with processor seconds in brackets, and peak memory, each with what it is of the store a tenth as large."""
    commands = list(next(iter(measured.values())))
    heads = ["", *(f"{runs:,} runs" for runs in measured), *(f"x, to {runs:,}" for runs in list(measured)[1:])]
    times, memory = [], []
    for command in commands:
        children = [of[command] for of in measured.values()]
        growth = [f"{after.seconds / before.seconds:.1f}" for before, after in pairwise(children)]
        times.append([command, *(f"{child.seconds:.2f} ({child.cpu_seconds:.2f})" for child in children), *growth])
        growth = [f"{after.peak_bytes / before.peak_bytes:.1f}" for before, after in pairwise(children)]
        memory.append([command, *(format_bytes(child.peak_bytes) for child in children), *growth])
    return [
        "Seconds until the command returns (seconds of the processor):",
        markdown_table(heads, times),
        "Peak memory:",
        markdown_table(heads, memory),
    ]


def targets(measured: Mapping[int, Mapping[str, Child]]) -> str:
    """Whether ten thousand runs are looked at as fast as they should be."""
    lines = []
    for command, most in TARGETS.items():
        for runs, of in measured.items():
            if runs == 10_000:
                verdict = "met" if of[command].seconds < most else "missed"
                lines.append(f"- {command} of {runs:,} runs under {most:g} s: {verdict}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
