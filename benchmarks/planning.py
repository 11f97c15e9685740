"""How planning grows: seconds and memory for a thousand, ten thousand and a hundred thousand trials.

    python -m benchmarks.planning [--write]

Every number comes from a process of its own, so that no row inherits another's memory. Expanding and costing are timed
on made-up facts of the data; `retain plan --json` is the whole command, on data that is not prepared.
"""

import argparse
import json
import math
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from statistics import median
from typing import Any

import yaml

from benchmarks.report import circumstances, markdown_table, write_results
from retain.sweeps.base.units import format_bytes
from retain.sweeps.schema.read import StudyFile, read_study
from retain.sweeps.tree.cost import total_cost
from retain.sweeps.tree.data_facts import CorpusFacts, Facts
from retain.sweeps.tree.tree import expand

GRIDS = ((10, 10, 10), (10, 10, 100), (10, 100, 100))
"""Values of pretrain.exposure, posttrain.lr and finetune.lr."""
REPEATS = 3
"""Times each row is measured; the median is printed."""
HELPS = 7
"""Times that the help is asked for."""
PACKAGES = ("pydantic", "PyYAML", "typer")
WATCHER = """
import json, os, sys, time
begin = time.perf_counter()
child = os.posix_spawnp(sys.argv[2], sys.argv[2:], os.environ)
_, status, usage = os.wait4(child, 0)
seconds = time.perf_counter() - begin
with open(sys.argv[1], "w") as used:
    json.dump([os.waitstatus_to_exitcode(status), seconds, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024], used)
"""
"""A process counts the memory of the one that started it, so a small one starts what is measured."""


@dataclass(frozen=True)
class Child:
    """One process from start to end."""

    seconds: float
    cpu_seconds: float
    peak_bytes: int
    printed: bytes


@dataclass(frozen=True)
class Row:
    """Of one grid. Seconds and bytes, each the median of the repeats."""

    trials: int
    stages: int
    read: float
    """Until the study file is read and its axes are checked."""
    expand: float
    cost: float
    peak_bytes: int
    """Of the process that read, expanded and costed."""
    plan: float
    """The whole of `retain plan --json`."""
    plan_peak_bytes: int
    document_bytes: int


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.planning", description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--write", action="store_true", help="also write benchmarks/results/planning.md")
    parser.add_argument("--one", type=Path, metavar="STUDY", help="plan one study and print its numbers as JSON")
    options = parser.parse_args(arguments)
    if options.one:
        print(json.dumps(plan_once(options.one)))
        return
    head = circumstances(PACKAGES, f"each number the median of {REPEATS} processes")
    rows = [measure(grid) for grid in GRIDS]
    text = "\n\n".join(["# What planning costs", head, table(rows), help_line()]) + "\n"
    print(text, end="")
    if options.write:
        print(write_results("planning", text), file=sys.stderr)


def plan_once(path: Path) -> dict[str, float]:
    """Read, expand and cost one study in this process: seconds of each, counts, and the peak memory in bytes."""
    begin = time.perf_counter()
    file = read_study(str(path))
    facts = made_up_facts(file)
    expanding = time.perf_counter()
    tree = expand(file, facts)
    costing = time.perf_counter()
    totals = total_cost(tree, (), "H100")
    end = time.perf_counter()
    return {
        "read": expanding - begin,
        "expand": costing - expanding,
        "cost": end - costing,
        "trials": totals.trials,
        "stages": totals.stages,
        "peak_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
    }


def measure(grid: tuple[int, int, int]) -> Row:
    """The row of one grid."""
    with tempfile.TemporaryDirectory() as folder:
        study = Path(folder) / "planning.yaml"
        study.write_text(yaml.safe_dump(study_fields(grid)))
        measured = [sys.executable, "-m", "benchmarks.planning", "--one", str(study)]
        ones = [json.loads(watch(measured).printed) for _ in range(REPEATS)]
        planned = [*retain(), "plan", str(study), "--json", "--store", str(Path(folder) / "runs")]
        plans = [watch(planned) for _ in range(REPEATS)]
    document = json.loads(plans[0].printed)
    assert document["totals"]["trials"] == ones[0]["trials"] == math.prod(grid)
    assert len(document["stages"]) == ones[0]["stages"]
    return Row(
        trials=ones[0]["trials"],
        stages=ones[0]["stages"],
        read=median(one["read"] for one in ones),
        expand=median(one["expand"] for one in ones),
        cost=median(one["cost"] for one in ones),
        peak_bytes=int(median(one["peak_bytes"] for one in ones)),
        plan=median(plan.seconds for plan in plans),
        plan_peak_bytes=int(median(plan.peak_bytes for plan in plans)),
        document_bytes=len(plans[0].printed),
    )


def study_fields(grid: tuple[int, int, int]) -> dict[str, Any]:
    """A study of so many exposures, post-training rates and fine-tuning rates, on corpora that nobody fetches."""
    exposures, posttrains, finetunes = grid
    return {
        "study": "planning",
        "model": "smollm2-135m",
        "tokenizer": {"hf": "made-up/tokenizer", "revision": "0"},
        "sequence_length": 1024,
        "corpora": {name: {"hf": f"made-up/{name}", "revision": "0"} for name in ("general", "music", "chemistry")},
        "pretrain": {"corpus": "general", "tokens": "8.7B", "lr": 3e-3, "warmup": 100, "batch": 256},
        "posttrain": {"corpus": "music", "tokens": "300M", "lr": 1e-3, "warmup": 10, "batch": 64},
        "finetune": {"corpus": "chemistry", "tokens": "30M", "lr": 1e-4, "warmup": 10, "batch": 64},
        "grid": {
            "pretrain.exposure": [number / (exposures - 1) for number in range(exposures)],
            "posttrain.lr": [1e-5 * number for number in range(1, posttrains + 1)],
            "finetune.lr": [1e-6 * number for number in range(1, finetunes + 1)],
        },
    }


def made_up_facts(file: StudyFile) -> Facts:
    """Facts of data that does not exist: large enough for every budget."""
    length = file.study.sequence_length
    corpora = {(name, length): CorpusFacts(f"made-up-{name}", 10**9, 100) for name in file.study.corpora}
    return Facts("made-up-tokenizer", 49_152, corpora)


def retain() -> list[str]:
    """The command line as it is installed beside this Python."""
    installed = Path(sys.executable).with_name("retain")
    return [str(installed)] if installed.exists() else [sys.executable, "-m", "retain.launchers.cli.app"]


def watch(command: Sequence[str], environment: Mapping[str, str] | None = None) -> Child:
    """Run a command to its end: wall and processor time, peak memory of its process, what it printed."""
    with tempfile.TemporaryDirectory() as folder:
        printed, used = Path(folder) / "printed", Path(folder) / "used"
        with printed.open("wb") as output:
            watcher = [sys.executable, "-I", "-S", "-c", WATCHER, str(used), *command]
            subprocess.run(watcher, stdout=output, env=environment, check=True)
        code, seconds, cpu_seconds, peak_bytes = json.loads(used.read_text())
        if code:
            raise subprocess.CalledProcessError(code, command)
        return Child(seconds, cpu_seconds, peak_bytes, printed.read_bytes())


def table(rows: Sequence[Row]) -> str:
    """One row a grid, then what each is of the row before it; linear growth is tenfold, or less where a start-up counts."""
    columns: Mapping[str, tuple[Callable[[Row], float], Callable[[float], str]]] = {
        "trials": (lambda row: row.trials, lambda count: f"{count:,.0f}"),
        "stages": (lambda row: row.stages, lambda count: f"{count:,.0f}"),
        "read, s": (lambda row: row.read, lambda seconds: f"{seconds:.2f}"),
        "expand, s": (lambda row: row.expand, lambda seconds: f"{seconds:.3f}"),
        "cost, s": (lambda row: row.cost, lambda seconds: f"{seconds:.4f}"),
        "expand + cost, s": (lambda row: row.expand + row.cost, lambda seconds: f"{seconds:.3f}"),
        "peak memory": (lambda row: row.peak_bytes, format_bytes),
        "`retain plan --json`, s": (lambda row: row.plan, lambda seconds: f"{seconds:.2f}"),
        "its peak memory": (lambda row: row.plan_peak_bytes, format_bytes),
        "its document": (lambda row: row.document_bytes, format_bytes),
    }
    lines = [[""] + [shown(value(rows[0])) for value, shown in columns.values()]]
    for before, row in pairwise(rows):
        lines.append([""] + [shown(value(row)) for value, shown in columns.values()])
        lines.append(["ratio"] + [f"x {value(row) / value(before):.1f}" for value, _ in columns.values()])
    return markdown_table(["", *columns], lines)


def help_line() -> str:
    """How long `retain --help` takes."""
    watch([*retain(), "--help"])
    seconds = [watch([*retain(), "--help"]).seconds for _ in range(HELPS)]
    return f"`retain --help`: median {median(seconds):.3f} s, max {max(seconds):.3f} s of {HELPS}."


if __name__ == "__main__":
    main()
