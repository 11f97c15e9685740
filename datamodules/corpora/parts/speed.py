"""How fast one core prepares text: as the parts of a corpus of this store were prepared, or a modelled speed."""

import contextlib
import os
from pathlib import Path
from typing import TypedDict

from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import DamageError

MODELLED = 500_000.0
"""Tokens per second and core until some are measured; benchmarks/results/preparation.md has them for 49,152 entries."""
CACHE = Path("cache") / "preparation.json"
"""The measured speed. It may be deleted at any time."""


class _Speed(TypedDict):
    """The content of the cache."""

    tokens_per_second: float
    """Of one core."""


def measured_speed(store: Path) -> float | None:
    """Tokens per second and core of the parts of the corpus that was last put together in a store; None if there is none."""
    try:
        return read_document(store / CACHE, _Speed, "")["tokens_per_second"]
    except (FileNotFoundError, DamageError):
        return None


def keep_speed(store: Path, tokens: int, seconds: float) -> None:
    """Keep how many tokens one core has prepared in so many seconds."""
    if tokens <= 0 or seconds <= 0:
        return
    with contextlib.suppress(OSError):
        os.makedirs(store / CACHE.parent, exist_ok=True)
        write_document(store / CACHE, {"tokens_per_second": tokens / seconds})
