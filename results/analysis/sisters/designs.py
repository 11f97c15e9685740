"""The designs of other papers that a study may have, told by the names of its axes; docs/sisters.md describes them."""

import re
from collections.abc import Collection, Iterable

from retain.results.analysis.axes import RATE

TOKENS = "finetune.tokens"
SHARE = re.compile(r"finetune\.mix\.([^.]+)\.share")
"""The axis of the share of an earlier corpus in fine-tuning."""
PHASES, BUDGET, PRETRAINING = "phases", "budget", "pretraining"
"""Axes of cases whose names say what a case is: `continued a=0.5 r=0.75`, `600k`, and `specialised 600k`."""


def share_axis(axes: Iterable[str]) -> str | None:
    """The axis of a share that is mixed into fine-tuning; None if there is none, or more than one."""
    found = [axis for axis in axes if SHARE.fullmatch(axis)]
    return found[0] if len(found) == 1 else None


def is_forgetting_law(axes: Collection[str]) -> bool:
    """Whether a study varies the tokens of fine-tuning and the share of an earlier corpus in it (arXiv 2502.06042)."""
    return TOKENS in axes and share_axis(axes) is not None


def is_overtrained(axes: Collection[str]) -> bool:
    """Whether a study varies the tokens of pretraining and the rate of fine-tuning (arXiv 2503.19206)."""
    return BUDGET in axes and RATE in axes


def is_sister(axes: Collection[str]) -> bool:
    """Whether a study has the design of another paper, by the names of its axes."""
    return is_forgetting_law(axes) or is_overtrained(axes) or PHASES in axes or PRETRAINING in axes
