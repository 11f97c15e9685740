"""Docstrings as text for Markdown tables."""


def one_line(text: str) -> str:
    """A text as one line that is safe in a Markdown table. Text in backticks stays as it is."""
    pieces = " ".join(text.split()).replace("|", "\\|").split("`")
    pieces[::2] = [piece.replace("<", "&lt;").replace("*", "\\*") for piece in pieces[::2]]
    return "`".join(pieces)
