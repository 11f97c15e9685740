"""What `retain data --download-only` prints."""

import sys
import time
from collections.abc import Mapping
from typing import Any

from retain.datamodules.corpora.parts.download import Download
from retain.launchers.console import new_table, open_console, print_line
from retain.sweeps.base.units import format_bytes


def say(what: str, there: int, total: int) -> None:
    """Print a line for a file that is there, with the bytes of all files, on standard error."""
    print(
        f"{time.strftime('%H:%M:%S')} {what}: {format_bytes(there)} of {format_bytes(total)}",
        file=sys.stderr,
        flush=True,
    )


def downloads_document(study: str, downloads: Mapping[str, Download]) -> dict[str, Any]:
    """The copies of data sets in the store, by corpus."""
    return {
        "study": study,
        "downloads": [
            {"name": name, "hf": one["hf"], "commit": one["commit"], "files": len(one["files"]), "bytes": one["bytes"]}
            for name, one in downloads.items()
        ],
    }


def print_downloads(document: Mapping[str, Any]) -> None:
    """Print a row for each copy."""
    console = open_console()
    if not document["downloads"]:
        print_line(console, "no corpus of the study is read from the hub")
        return
    table = new_table("corpus", "data set", "files", "bytes", "commit", left=2)
    for one in document["downloads"]:
        table.add_row(one["name"], one["hf"], f"{one['files']:,}", format_bytes(one["bytes"]), one["commit"])
    console.print(table)
