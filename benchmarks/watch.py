"""Watches the ratios of a training step to transformers' Trainer: reports, and never fails on, a drop of more than 10%.

    python -m benchmarks.watch [--store DIR] [--write]

Under two minutes. The numbers of comparison are in benchmarks/results/watch.json, which `--write` replaces; they hold for one
kind of processor, and on another the ratios are printed only.
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from benchmarks.tables import RESULTS, cpu_model
from benchmarks.training import BIG, multiplier, prepared, ratios, speeds
from benchmarks.training_loops import PEER
from sweeps.atomic import write_json

WATCHED = (PEER, "Retain, fp32", "Retain, fp32, compiled")
SECONDS = 45
DROP = 0.10
PLACE = RESULTS / "watch.json"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watch", description=(__doc__ or "").split("\n")[0])
    parser.add_argument(
        "--store", type=Path, help="with the laptop study's data in it, so that it is not prepared anew"
    )
    parser.add_argument("--write", action="store_true", help="take today's ratios as those to compare with")
    options = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory() as temporary:
        folder = options.store or Path(temporary) / "store"
        found = ratios(speeds(WATCHED, prepared(folder, BIG, 150), SECONDS, threads=1))
    # A processor's name may not tell whether it has AMX.
    device = f"{cpu_model()}, {multiplier()}"
    today = {"device": device, "ratios": {name: round(ratio, 3) for name, ratio in found.items() if name != PEER}}
    for line in compared(today, json.loads(PLACE.read_text()) if PLACE.exists() else None):
        print(line)
    if options.write:
        write_json(PLACE, today)
        print(f"written: {PLACE}", file=sys.stderr)


def compared(today: dict[str, Any], committed: dict[str, Any] | None) -> list[str]:
    """One line a ratio; a drop begins with WARNING."""
    lines = []
    for name, ratio in today["ratios"].items():
        before = (committed or {}).get("ratios", {}).get(name)
        if before is None or committed is None or committed["device"] != today["device"]:
            lines.append(f"{name}: {ratio:.2f} of Trainer's speed (nothing to compare with on this processor)")
        else:
            mark = "WARNING: " if ratio < before * (1 - DROP) else ""
            lines.append(
                f"{mark}{name}: {ratio:.2f} of Trainer's speed, {ratio / before - 1:+.0%} from the committed {before:.2f}"
            )
    return lines


if __name__ == "__main__":
    main()
