"""Numbers as people write them, and numbers of tokens, bytes and seconds in short form: 300M, 4.2 MB, 2h 10m."""

import math
import re
import reprlib
from decimal import Decimal

from retain.sweeps.base.redaction import redacted

DIGITS = r"[0-9]+(?:_[0-9]+)*"
INTEGER = rf"[-+]?(?:0|(?!0){DIGITS}|0[xX](?:_?[0-9a-fA-F])+|0[bB](?:_?[01])+|0[oO](?:_?[0-7])+)"
FLOAT = rf"[-+]?(?:(?:{DIGITS})?\.{DIGITS}|{DIGITS}\.|{DIGITS}(?=[eE]))(?:[eE][-+]?{DIGITS})?"
"""Patterns of the integers and floating-point numbers of Python's source code, with a sign."""
NUMBER = rf"(?:{DIGITS}(?:\.{DIGITS})?(?:[eE][-+]?{DIGITS})?[kKMBGT]?)"
"""A pattern of unsigned numbers and sizes as people write them."""

SCALES = {"": 1, "k": 10**3, "K": 10**3, "M": 10**6, "B": 10**9, "G": 10**9, "T": 10**12}
LARGEST = 10**18
"""The largest valid number of tokens; a larger one is a typing error."""
LONGEST = 100
"""The most characters of an integer; a longer one is a typing error."""


def parse_number(text: str) -> int | float:
    """The number that Python reads in a text such as 12, 1_000, 0x1F, 5e-5 or .inf. Raises ValueError for any other text."""
    if re.fullmatch(INTEGER, text) and len(text) <= LONGEST:
        return int(text, 0)
    if re.fullmatch(r"[-+]?\.(?:inf|nan)", text):
        return float(text.replace(".", ""))
    if re.fullmatch(FLOAT, text) and math.isfinite(number := float(text)):
        return number
    raise ValueError(
        f"{reprlib.repr(text)} is not a number{number_hint(text) or '; write a number, such as 3 or 5e-5'}"
    )


def number_hint(text: str) -> str:
    """How to write a number that YAML would read in another base, or numbers with commas; empty for other text."""
    if re.fullmatch(r"[-+]?[1-9][0-9]{0,2}(?:,[0-9]{3})+", text):
        return f"; write {text.replace(',', '')}"
    if re.fullmatch(rf"\s*[-+]?{NUMBER}(?:\s*,\s*[-+]?{NUMBER})+\s*", text):
        return f"; write several values as a list: [{', '.join(part.strip() for part in text.split(','))}]"
    if re.fullmatch(r"[-+]?0[0-9_]+", text):
        octal = f", or {int(text, 8)} if it is octal" if re.fullmatch(r"[-+]?0[0-7]+", text) else ""
        return f"; write {int(text)}{octal}"
    if re.fullmatch(r"[-+]?[0-9]+(?::[0-5]?[0-9])+", text):
        total = 0
        for part in text.lstrip("+-").split(":"):
            total = 60 * total + int(part)
        return f"; write {'-' * text.startswith('-')}{total} if it counts in sixties"
    return ""


def parse_size(value: object) -> int:
    """Parse a count: an integer, a whole float, or text such as `300M`, `8.7B` or `1_000`.

    Raises ValueError if the value is not a whole, non-negative number. A size is never rounded.
    """
    hint = number_hint(value) if isinstance(value, str) else ""
    wrong = ValueError(
        f"{reprlib.repr(value)} is not a size{hint or '; write a whole number such as 1000, 200k, 300M or 8.7B'}"
    )
    if isinstance(value, bool) or not isinstance(value, int | float | str):
        raise wrong
    parts = re.fullmatch(rf"\s*({DIGITS}|{FLOAT})([kKMBGT]?)\s*", str(value))
    if parts is None or hint:
        raise wrong
    try:
        exact = Decimal(parts[1]) * SCALES[parts[2]]
    except ArithmeticError:
        raise wrong from None
    if not 0 <= exact <= LARGEST or exact != exact.to_integral_value():
        raise wrong
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


def format_joules(joules: float) -> str:
    """`4.2 kJ` or, from a tenth of a kilowatt-hour on, `1.3 kWh`."""
    if joules >= 360_000:
        return f"{joules / 3.6e6:,.3g} kWh"
    return f"{joules / 1000:.3g} kJ" if joules >= 1000 else f"{joules:.3g} J"


def format_seconds(seconds: float) -> str:
    """A duration: 42s, 3m 05s, 2h 10m."""
    whole = int(seconds + 0.5)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m {whole % 60:02d}s"
    return f"{whole // 3600}h {whole % 3600 // 60:02d}m"


def shortened(text: str) -> str:
    """A text for a sentence: without its middle if it is long, and without the passwords of URLs."""
    text = redacted(text)
    return text if len(text) <= 120 else f"{text[:80]}…{text[-20:]}"


def counted(number: int, one: str, many: str | None = None) -> str:
    """A number with words: `1 run`, `1,200 runs`. many: the words for another number than one; by default `one` and an s."""
    return f"{number:,} {one if number == 1 else many or f'{one}s'}"
