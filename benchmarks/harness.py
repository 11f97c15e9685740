"""What all benchmarks share: options, child processes, peers, tables and the printed page.

A benchmark calls `run_benchmark` with a function that measures and returns a `Page`. This file imports the standard library
only, because it also runs in the interpreters of peers.
"""

import argparse
import contextlib
import dataclasses
import datetime
import importlib
import importlib.metadata
import json
import os
import platform
import resource
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

ROOT = Path(__file__).parents[1]
RESULTS = Path(__file__).parent / "results"
RETAIN = (sys.executable, "-m", "retain.launchers.cli.app")
"""The command line."""
LIMIT_S = 600.0
"""How long a child process may take."""
STARTED = "BENCHMARK_STARTED"
"""The variable in which a child process finds when it was started, in seconds since 1970."""
WATCHER = f"""
import json, os, sys, time
begin = time.time()
child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ | {{"{STARTED}": repr(begin)}})
_, status, usage = os.wait4(child, 0)
used = time.time() - begin, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024
print("\\n" + json.dumps([os.waitstatus_to_exitcode(status), *used]))
"""
"""Linux counts the peak memory of the process that starts a child as the child's, so a small process starts each child."""
Row = TypeVar("Row")


class ChildFailedError(Exception):
    """Why a child process returned nothing, in one line."""


@dataclass(frozen=True)
class Option:
    """A command-line option of one benchmark."""

    name: str
    default: Any
    smoke: Any
    """Its value with --smoke."""
    help: str
    type: Callable[[str], Any] = str
    choices: Sequence[Any] | None = None


@dataclass(frozen=True)
class Page:
    """What a benchmark found, in Markdown."""

    circumstances: Sequence[str]
    """Lines about the measurement, below the date, the device and the versions."""
    sections: Sequence[str]


@dataclass(frozen=True)
class Child:
    """A child process that has ended."""

    seconds: float
    cpu_seconds: float
    """Of all its threads, and of the processes that it waited for."""
    peak_bytes: int
    """Of the largest of these processes."""
    printed: str

    @property
    def result(self) -> Any:
        """What the function returned, if the child came from `run_function`; dataclasses are mappings."""
        return json.loads(self.printed.splitlines()[-1])


@dataclass(frozen=True)
class Peers:
    """Runs other tools in this interpreter if it has them, otherwise in the one that --peers-python names."""

    python: str | None
    notes: list[str] = field(default_factory=list)
    """For each peer its versions, or why it was not measured."""

    def interpreter(self, name: str, packages: Sequence[str]) -> str | None:
        """The interpreter that has these packages; None, with a note, if neither has."""
        for python in filter(None, (sys.executable, self.python)):
            found = versions(packages, python)
            if len(found) == len(packages):
                self.notes.append(f"{name}: {', '.join(found)}")
                return python
        self.note_failure(name, f"install {' and '.join(packages)}, and name that interpreter with --peers-python")
        return None

    def run(self, name: str, packages: Sequence[str], function: Callable[..., Any], *arguments: object) -> Child | None:
        """Call a function in a peer's interpreter; None, with a note, if that is impossible."""
        python = self.interpreter(name, packages)
        try:
            return run_function(function, *arguments, python=python) if python else None
        except ChildFailedError as error:
            self.note_failure(name, str(error))
            return None

    def note_failure(self, name: str, reason: str) -> None:
        """Note that a peer was not measured."""
        self.notes.append(f"{name}: not measured ({reason})")
        log(self.notes[-1])


def run_benchmark(
    measure: Callable[[argparse.Namespace], Page], title: str, packages: Sequence[str], *options: Option
) -> None:
    """Parse the command line, measure, and print the page; with --write, keep it in benchmarks/results.

    `measure` gets the options, with an empty `folder` that is removed afterwards.
    """
    module = module_of(measure)
    description = (sys.modules[measure.__module__].__doc__ or "").split("\n")[0]
    parser = argparse.ArgumentParser(prog=f"python -m {module}", description=description)
    for option in options:
        flag = f"--{option.name.replace('_', '-')}"
        if option.default is False:
            parser.add_argument(flag, action="store_true", help=option.help)
        else:
            parser.add_argument(
                flag, default=option.default, type=option.type, choices=option.choices, help=option.help
            )
    parser.add_argument("--folder", type=Path, help="where temporary files go; by default the system's folder for them")
    either = parser.add_mutually_exclusive_group()
    either.add_argument("--smoke", action="store_true", help="the smallest sizes, to see that the benchmark works")
    either.add_argument("--write", action="store_true", help="also write the page to benchmarks/results")
    if "--smoke" in sys.argv:
        parser.set_defaults(**{option.name: option.smoke for option in options})
    chosen = parser.parse_args()
    head = circumstances(packages)
    with tempfile.TemporaryDirectory(dir=chosen.folder) as folder:
        chosen.folder = Path(folder)
        page = measure(chosen)
    head += [f"- {line}" for line in page.circumstances]
    text = "\n\n".join([f"# {title}", "\n".join(head), *page.sections]) + "\n"
    print(text, end="")
    if chosen.write:
        path = RESULTS / f"{module.rpartition('.')[2]}.md"
        path.write_text(text)
        log(f"written: {path}")


def log(line: str) -> None:
    """Report progress."""
    print(line, file=sys.stderr, flush=True)


def run_function(function: Callable[..., Any], *arguments: object, python: str | None = None) -> Child:
    """Call a function of a module in a new interpreter. Arguments and result travel as JSON, paths as strings."""
    command = [python or sys.executable, "-u", "-m", "benchmarks.harness", module_of(function), function.__name__]
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    return run_child([*command, json.dumps(arguments, default=str)], os.environ | {"PYTHONPATH": path})


def run_child(command: Sequence[object], environment: Mapping[str, str] | None = None) -> Child:
    """Run a command to its end. Raises ChildFailedError; none of its processes outlives the call."""
    watched = [sys.executable, "-I", "-S", "-c", WATCHER, *map(str, command)]
    pipe = subprocess.PIPE
    watcher = subprocess.Popen(watched, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)
    try:
        output, errors = watcher.communicate(timeout=LIMIT_S)
    except subprocess.TimeoutExpired:
        raise ChildFailedError(f"did not end within {LIMIT_S:g} s") from None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(watcher.pid, signal.SIGKILL)
        watcher.wait()
    printed, _, used = output[:-1].rpartition("\n")
    code, seconds, cpu_seconds, peak_bytes = json.loads(used)
    if code:
        raise ChildFailedError((errors.strip().splitlines() or [f"exit code {code}"])[-1][:200])
    return Child(seconds, cpu_seconds, peak_bytes, printed)


def module_of(function: Callable[..., Any]) -> str:
    """The name by which any process can import the module of a function, also if it is the program itself."""
    spec = sys.modules[function.__module__].__spec__
    return spec.name if spec else function.__module__


def versions(packages: Sequence[str], python: str = sys.executable) -> list[str]:
    """`name version` of the packages that an interpreter has."""
    if python != sys.executable:
        found: list[str] = run_function(versions, packages, python=python).result
        return found
    return [f"{name} {importlib.metadata.version(name)}" for name in packages if _is_installed(name)]


def _is_installed(package: str) -> bool:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return bool(importlib.metadata.version(package))
    return False


def markdown_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """Rows below their columns; the first column is text, the others are numbers. Cells missing at the end are empty."""
    lines = [list(columns), *([*row, *[""] * (len(columns) - len(row))] for row in rows)]
    widths = [max(3, *(len(line[index]) for line in lines)) for index in range(len(columns))]
    rule = ["-" * widths[0], *(f"{'-' * (width - 1)}:" for width in widths[1:])]

    def joined(cells: Sequence[str]) -> str:
        first, *others = zip(cells, widths, strict=True)
        return f"| {' | '.join([first[0].ljust(first[1]), *(cell.rjust(width) for cell, width in others)])} |"

    return "\n".join([joined(lines[0]), joined(rule), *map(joined, lines[1:])])


def table_of(rows: Iterable[Row], columns: Mapping[str, Callable[[Row], str]]) -> str:
    """A table with a row for each object; `columns` has the name of each column and what its cells show."""
    return markdown_table(list(columns), [[cell(row) for cell in columns.values()] for row in rows])


def bullets(lines: Iterable[str]) -> str:
    """A Markdown list."""
    return "\n".join(f"- {line}" for line in lines)


def circumstances(packages: Sequence[str]) -> list[str]:
    """Date, device, load and versions, one line each."""
    return [
        f"- date: {datetime.date.today().isoformat()}",
        f"- device: {cpu_model()}, {os.cpu_count()} cores; load average at the start {os.getloadavg()[0]:.1f}",
        f"- versions: {', '.join([f'Python {platform.python_version()}', *versions(packages)])}",
    ]


def cpu_model() -> str:
    """The name that the kernel has for the processor."""
    names = [line.partition(":")[2].strip() for line in _lines("/proc/cpuinfo") if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def bf16_support() -> str:
    """Which instructions the processor has for products in bf16. How fast they are differs between processors."""
    flags = {flag for line in _lines("/proc/cpuinfo") if line.startswith("flags") for flag in line.split()}
    known = {"amx_bf16": "AMX", "avx512_bf16": "AVX-512"}
    names = [name for flag, name in known.items() if flag in flags]
    return f"bf16 by {' and '.join(names)}" if names else "no bf16 instructions"


def _lines(path: str) -> list[str]:
    """The lines of a file; none if the system has no such file."""
    try:
        return Path(path).read_text().splitlines()
    except OSError:
        return []


def cpu_seconds() -> float:
    """Processor seconds of this process, of all its threads and of the processes that it waited for."""
    used = [resource.getrusage(whose) for whose in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in used)


def _tree() -> list[int]:
    """This process and all below it."""
    found = [os.getpid()]
    for process in found:
        for children in Path(f"/proc/{process}/task").glob("*/children"):
            found += map(int, children.read_text().split())
    return found


def tree_cpu_seconds() -> float:
    """Processor seconds of the tree of processes so far; those of a child in hundredths."""
    ticks = 0
    for process in _tree()[1:]:
        ticks += sum(map(int, Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[11:13]))
    return cpu_seconds() + ticks / os.sysconf("SC_CLK_TCK")


def tree_memory() -> int:
    """Bytes of the tree of processes: anonymous memory of each, and shared memory of this process."""
    total = 0
    for process in _tree():
        for line in Path(f"/proc/{process}/status").read_text().splitlines():
            if line.startswith("RssAnon") or (line.startswith("RssShmem") and process == os.getpid()):
                total += int(line.split()[1]) * 1024
    return total


def watch_other_processes() -> Callable[[], float]:
    """Start to watch the processor. The returned function says how many cores other processes kept busy since."""

    def others() -> float:
        fields = [int(ticks) for ticks in _lines("/proc/stat")[0].split()[1:8]]
        user, nice, system, _, _, interrupts, soft_interrupts = fields
        return (user + nice + system + interrupts + soft_interrupts) / os.sysconf("SC_CLK_TCK") - cpu_seconds()

    begin, used = time.perf_counter(), others()
    return lambda: max(0.0, others() - used) / (time.perf_counter() - begin)


if __name__ == "__main__":
    result = getattr(importlib.import_module(sys.argv[1]), sys.argv[2])(*json.loads(sys.argv[3]))
    print("\n" + json.dumps(result, default=dataclasses.asdict))
