"""Who is told how far the preparation of data is."""

from collections.abc import Callable

Report = Callable[[str, int, int], None]
"""Called with the name of what is being prepared, the documents read and the training tokens so far."""

CorpusReport = Callable[[int, int], None]
"""Called with the documents of one corpus, or of one part, and their training tokens so far."""


def ignore_progress(corpus: str, documents: int, tokens: int) -> None:
    """Display nothing: a `Report` for callers without a display."""
