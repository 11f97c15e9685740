"""What `retain report` prints, and what it writes about its own origin."""

import importlib.metadata
import math
import os
import platform
import time
from pathlib import Path
from typing import Any

from retain.launchers.jobs.code_snapshot import git
from retain.launchers.planning.register import installed_versions
from retain.launchers.study_report import StudyReport
from retain.results.analysis.axis_effects import axis_effects
from retain.results.analysis.effects import Effect
from retain.results.analysis.loss_planes import SYMBOLS
from retain.results.analysis.recipe_comparison import frontier_contrasts
from retain.results.claims.judging import Verdict
from retain.results.claims.power import in_words
from retain.results.report.provenance import Origin
from retain.results.store.loss_table import finished_trials
from retain.sweeps.base.redaction import redacted_values

FIGURE_FIELDS = ("name", "title", "caption", "png", "svg", "data", "trials", "missing")


def report_document(made: StudyReport) -> dict[str, Any]:
    """`retain report --json`."""
    return {
        "study": made.study,
        "report": str(made.page),
        "trials": len(made.rows),
        "missing": len(made.rows) - len(finished_trials(made.rows)),
        "figures": [{name: getattr(figure, name) for name in FIGURE_FIELDS} for figure in made.figures],
        "verdicts": [
            {
                "claim": one.claim,
                "source": one.source,
                "sentence": in_words(one),
                "outcome": one.outcome,
                "note": one.note,
            }
            | {"p": _finite(one.p), "adjusted_p": _finite(one.adjusted), "look": _look_fields(one)}
            | {"effects": [{"label": label} | _effect_fields(effect) for label, effect in one.evidence]}
            for one in made.verdicts
        ],
        "recipes": [
            {"plane": one.plane.name, "recipe": one.recipe, "other": one.other, "checkpoints": one.checkpoints}
            | {"hypervolume_gain": _effect_fields(one.gain), "gap": _effect_fields(one.gap)}
            for one in frontier_contrasts(made.rows)
        ],
        "axes": [
            {"axis": one.axis, "value": redacted_values(one.value), "against": redacted_values(one.against)}
            | {"loss": SYMBOLS.get(one.loss, one.loss), "settings": one.settings}
            | _effect_fields(one.effect)
            for one in axis_effects(made.rows)
        ],
    }


def _effect_fields(effect: Effect) -> dict[str, Any]:
    """The fields of an effect."""
    numbers = {"mean": effect.mean, "low": effect.low, "high": effect.high}
    fields = {"seeds": effect.seeds} | {name: _finite(value) for name, value in numbers.items()}
    return fields | {"level": effect.level}


def _look_fields(verdict: Verdict) -> dict[str, int] | None:
    """The look that a verdict is of; None for a fixed sample, and before the first look."""
    look = verdict.look
    return {"number": look.number, "of": len(look.counts), "seeds": look.seeds} if look else None


def _finite(value: float) -> float | None:
    """None instead of NaN, which JSON does not have."""
    return value if math.isfinite(value) else None


def origin(arguments: str) -> Origin:
    """The command, versions, commit and machine that make a page now. arguments: the study, its overrides and its store."""
    versions = installed_versions() | {"matplotlib": importlib.metadata.version("matplotlib")}
    machine = f"{platform.system()} on {platform.machine()}, {os.cpu_count()} CPU cores"
    return Origin(arguments, versions, _commit(), machine, time.time())


def _commit() -> str | None:
    """The git commit of this code and whether the code was changed since; None outside a checkout of Retain."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    changed = ", with changes that are not committed"
    described = git("describe", "--always", "--abbrev=40", "--exclude=*", f"--dirty={changed}")
    return described and f"commit {described.strip()}"
