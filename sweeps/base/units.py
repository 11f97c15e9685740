"""Numbers of tokens, bytes and seconds in short form: 300M, 4.2 MB, 2h 10m."""

from decimal import Decimal

SCALES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
LARGEST = 10**18
"""The largest valid number of tokens; a larger one is a typing error."""


def parse_size(value: object) -> int:
    """Parse a count: an integer, a whole float, or text such as `300M`, `8.7B` or `1_000`.

    Raises ValueError if the value is not a whole, non-negative number. A size is never rounded.
    """
    text = str(value).strip().replace("_", "")
    suffix = text[-1:] if text[-1:].isalpha() else ""
    try:
        exact = Decimal(text.removesuffix(suffix)) * SCALES[suffix]
    except (ArithmeticError, KeyError):
        exact = Decimal("NaN")
    if not exact.is_finite() or not 0 <= exact <= LARGEST or exact != exact.to_integral_value():
        raise ValueError(f"{value!r} is not a size; write a whole number such as 1000, 200k, 300M or 8.7B")
    return int(exact)


def format_size(count: float) -> str:
    """A count with at most four significant digits: 300M, 8.7B, 1.054M, 12."""
    for suffix, scale in (("T", 10**12), ("B", 10**9), ("M", 10**6), ("k", 10**3)):
        if count >= scale:
            return f"{float(f'{count / scale:.4g}'):g}{suffix}"
    return f"{float(f'{count:.4g}'):g}"


def format_bytes(count: float) -> str:
    """Bytes in decimal units: 4.2 MB."""
    for suffix, scale in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.3g} {suffix}"
    return f"{count:.0f} B"


def format_seconds(seconds: float) -> str:
    """A duration: 42s, 3m 05s, 2h 10m."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with words: `1 run`, `1,200 runs`. many: the words for another number than one; by default `one` and an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
