"""Watches what a processor takes as ratios to peers: reports, and never fails on, what has become worse than it may.

    python -m benchmarks.regressions [--write]

Under two minutes. The numbers of comparison are in benchmarks/results/watch.json, which `--write` replaces.
"""

import argparse
import json
import os
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.ratios import Ratio, all_ratios
from benchmarks.report import RESULTS, cpu_model
from benchmarks.training import multiplier
from retain.sweeps.base.files import write_json

SECONDS = 100
"""After which the last turns of training end; what is left of two minutes is for a busy machine."""
PLACE = RESULTS / "watch.json"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.regressions", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--write", action="store_true", help="take today's ratios as those to compare with")
    options = parser.parse_args(arguments)
    begin = time.monotonic()
    committed: dict[str, Any] = json.loads(PLACE.read_text()) if PLACE.exists() else {"device": "", "ratios": {}}
    # A processor's name may not tell whether it has AMX.
    today: dict[str, Any] = {"device": f"{cpu_model()}, {multiplier()}", "ratios": {}}
    os.environ["PYTHONWARNINGS"] = "ignore"
    with tempfile.TemporaryDirectory() as folder:
        # Compiled anew, so that no run is faster for the one before it.
        os.environ["TORCHINDUCTOR_CACHE_DIR"] = str(Path(folder) / "inductor")
        for ratio in all_ratios(Path(folder), begin + SECONDS):
            today["ratios"][ratio.name] = float(f"{ratio.value:.3g}")
            print(compared(ratio, committed["ratios"]), flush=True)
    if committed["device"] != today["device"]:
        print(f"the committed ratios are of another kind of processor: {committed['device'] or 'none yet'}")
    print(f"{time.monotonic() - begin:.0f} s; load average at the end {os.getloadavg()[0]:.1f}")
    if options.write:
        write_json(PLACE, today)
        print(f"written: {PLACE}", file=sys.stderr)


def compared(ratio: Ratio, committed: Mapping[str, float]) -> str:
    """A line about a ratio, which begins with WARNING where it is worse than the committed one by more than its tolerance."""
    line = f"{ratio.name}: {ratio.value:.3g} of {ratio.of}"
    if ratio.name not in committed:
        return f"{line} (nothing to compare with)"
    change = ratio.value / committed[ratio.name] - 1
    worse = -change if ratio.more_is_better else change
    mark = "WARNING: " if worse > ratio.tolerance else ""
    return f"{mark}{line}, {change:+.0%} from the committed {committed[ratio.name]:.3g}"


if __name__ == "__main__":
    main()
