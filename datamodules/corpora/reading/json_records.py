"""Read records from JSON: one a line, in an array, or one after another."""

import json
import re
from collections import Counter
from collections.abc import Iterator
from typing import Any, TextIO

from retain.datamodules.corpora.reading.opened import checked, checked_blocks
from retain.sweeps.base.errors import StudyError

BETWEEN_VALUES = re.compile(r"[\s\ufeff]*")


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    record = dict(pairs)
    if len(record) < len(pairs):
        repeated = next(name for name, count in Counter(name for name, _ in pairs).items() if count > 1)
        raise ValueError(f"field {repeated!r} appears twice")
    return record


DECODER = json.JSONDecoder(object_pairs_hook=_without_repeats)


def jsonl_records(stream: TextIO, name: str, first: int = 1) -> Iterator[tuple[str, object]]:
    """Yield the record of each line, and where it is. A file that holds one JSON array is read as that.

    first: the number of the first line.
    """
    for number, line in enumerate(stream, first):
        text = checked(line, name, number).strip().lstrip("\ufeff")
        if number == 1 and text.startswith("["):
            yield from json_records(stream, name, text)
            return
        if text:
            where = f"{name}, line {number}"
            try:
                record = DECODER.decode(text)
            except (ValueError, RecursionError) as error:
                raise StudyError(f"{where}: invalid JSON ({error}); fix or remove the line") from None
            yield where, record


def json_records(stream: TextIO, name: str, text: str = "") -> Iterator[tuple[str, object]]:
    """Yield the elements of an array, or the values that follow one another, and where they are.

    text: what was read already. No more than the longest record is in memory.
    """
    blocks = checked_blocks(stream, name)
    number, at, ended, closing = 0, 0, False, ""
    while True:
        at = BETWEEN_VALUES.match(text, at).end()  # type: ignore[union-attr]
        where = f"{name}, record {number + 1}"
        if at == len(text) and not ended:
            text, at = next(blocks, ""), 0
            ended = not text
        elif at == len(text):
            if closing == "]":
                raise StudyError(f"{where}: cannot be read (the array does not end); repair the file")
            return
        elif number == 0 and not closing and text[at] == "[":
            closing, at = "]", at + 1
        elif closing and text[at] == closing:
            closing, at = "end", at + 1
        elif closing == "]" and number and text[at] == ",":
            at += 1
        elif closing == "end":
            raise StudyError(f"{where}: invalid JSON (text after the end of the array); fix the file")
        else:
            try:
                record, at = DECODER.raw_decode(text, at)
            except (ValueError, RecursionError) as error:
                # Cut at the end of the block, or invalid?
                position = getattr(error, "pos", 0)
                cut = str(error).startswith("Unterminated string") or position >= len(text) - 16
                if ended or not cut:
                    reason = getattr(error, "msg", error)
                    raise StudyError(f"{where}: invalid JSON ({reason}); fix or remove the record") from None
                read, wanted = [text[at:]], 2 * (len(text) - at)
                while not ended and sum(map(len, read)) < wanted:
                    read.append(next(blocks, ""))
                    ended = not read[-1]
                text, at = "".join(read), 0
            else:
                number += 1
                yield where, record
