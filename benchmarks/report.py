"""What every benchmark prints: where and with what it was measured, and its table, as Markdown."""

import datetime
import importlib.metadata
import os
import platform
from collections.abc import Sequence
from pathlib import Path

RESULTS = Path(__file__).parent / "results"


def markdown_table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Rows below their columns; the first column is text, the others are numbers."""
    lines = [list(columns), *(list(row) for row in rows)]
    widths = [max(3, *(len(line[index]) for line in lines)) for index in range(len(columns))]

    def joined(cells: Sequence[str]) -> str:
        aligned = [
            cell.rjust(width) if index else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(cells, widths, strict=True))
        ]
        return f"| {' | '.join(aligned)} |"

    rule = [f"{'-' * (width - 1)}:" if index else "-" * width for index, width in enumerate(widths)]
    return "\n".join([joined(lines[0]), joined(rule), *(joined(line) for line in lines[1:])])


def circumstances(packages: Sequence[str], *more: str) -> str:
    """Date, device, load and versions, one line each; `more` are lines of the benchmark's own."""
    versions = [f"{name} {importlib.metadata.version(name)}" for name in packages]
    return "\n".join(
        [
            f"- date: {datetime.date.today().isoformat()}",
            f"- device: {cpu_model()}, {os.cpu_count()} cores; load average at the start {os.getloadavg()[0]:.1f}",
            f"- versions: {', '.join([f'Python {platform.python_version()}', *versions])}",
            *(f"- {line}" for line in more),
        ]
    )


def cpu_model() -> str:
    """The processor as the kernel names it."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def seconds_of_others() -> float:
    """Processor seconds that all but this process have taken since the machine started; only differences mean something."""
    fields = [int(field) for field in Path("/proc/stat").read_text().splitlines()[0].split()[1:]]
    user, nice, system, _, _, interrupts, soft = fields[:7]
    own = os.times()
    return (user + nice + system + interrupts + soft) / os.sysconf("SC_CLK_TCK") - own.user - own.system


def file_system(folder: Path) -> str:
    """The type of the file system below a folder, as the kernel names it."""
    try:
        mounts = [line.split()[1:3] for line in Path("/proc/mounts").read_text().splitlines()]
    except OSError:
        return "unknown"
    below = [mount for mount in mounts if folder.resolve().is_relative_to(mount[0])]
    return max(below, key=lambda mount: len(mount[0]))[1] if below else "unknown"


def write_results(name: str, text: str) -> Path:
    """Replace a file below benchmarks/results; returns its path."""
    RESULTS.mkdir(exist_ok=True)
    path = RESULTS / f"{name}.md"
    path.write_text(text)
    return path
