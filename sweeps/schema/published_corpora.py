"""The paper's corpora as published on Hugging Face, pinned in one place, and the templates that join a record's fields.

A study names one as `corpora: {music: {published: musicpile}}` and may replace any of its fields beside it; `files:` reads
a local folder in the same format instead (`corpora.music.files=/data/musicpile`).

The paper prints no id, so each is a choice. They were written down where the hub could not be asked, from what public
repositories quote: `retain data STUDY --check` says whether ids, configurations, revisions and fields resolve. Where no commit
was quoted the revision is the branch, and prepared data remembers the commit that it stood for.
"""

import string
from typing import Any

# What a corpus holds out, no other corpus of its study trains on; each share leaves more than a million tokens.
PUBLISHED: dict[str, dict[str, Any]] = {
    # Fields text, timestamp, url in 1,024 files en/c4-train.*.json.gz, shuffled when they were made.
    "c4": {
        "hf": "allenai/c4",
        "config": "en",
        "revision": "1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        "text": "text",
        "heldout": 0.0005,  # of 8.7B tokens 4.3M
    },
    # Fields id, text, src in 29 files data/train-*.parquet, about 4.2B tokens: ABC tunes, knowledge of music, and dialogues
    # that are joined already.
    "musicpile": {
        "hf": "m-a-p/MusicPile",
        "revision": "5930bd7199ddead76ab540901e2187ea4e5fc6a7",
        "text": "text",
        "in_turn": 32,
        "tokens": 300_000_000,
        "heldout": 0.005,  # of 0.3B tokens 1.5M
    },
    # ChemPile is a collection of data sets. This part of it is prose, the chemistry abstracts of Europe PMC, and by far larger
    # than the budget; its textbooks, jablonkagroup/chempile-education, are smaller.
    "chempile": {
        "hf": "jablonkagroup/chempile-paper",
        "config": "euro_pmc_chemistry_abstracts-default",
        "revision": "main",
        "text": "text",
        "in_turn": 32,
        "tokens": 300_000_000,
        "heldout": 0.005,
    },
    # FLAN 2021 with ten templates a task: fields inputs, targets, task in 66 files train/*_10templates_train.jsonl, one a task,
    # of 500 to 30,000 records, so that reading them in turn mixes the tasks. About 1.4M records in all: should they hold fewer
    # tokens than a study asks for, preparing them says how many there are.
    "flan": {
        "hf": "Muennighoff/flan",
        "revision": "main",
        "template": "{inputs}\n{targets}",
        "in_turn": 66,
        "tokens": 300_000_000,
        "heldout": 0.005,
    },
}


def with_published(fields: dict[str, Any]) -> dict[str, Any]:
    """A corpus's fields over those of the published one that it names. Raises ValueError for an unknown name."""
    name = fields.get("published")
    if name is None:
        return fields
    if name not in PUBLISHED:
        raise ValueError(f"published: {name!r} is not known; the published corpora are {', '.join(PUBLISHED)}")
    below = PUBLISHED[name]
    if "text" in fields or "template" in fields:
        below = {key: value for key, value in below.items() if key not in ("text", "template")}
    return below | fields


def template_pieces(template: str) -> list[tuple[str, str | None]]:
    """A template such as `{inputs}\\n{targets}` as (text, the field that follows it); the last field may be None.

    Raises ValueError where it names no field, or asks for more than a field's text.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{template!r} is not a template ({error}); write a brace itself as {{{{ or }}}}") from None
    pieces: list[tuple[str, str | None]] = []
    for text, field, form, conversion in parsed:
        if field is not None and (form or conversion or not field.isidentifier()):
            raise ValueError(f"{template!r}: {{{field}}} is no plain field name; write fields as {{inputs}}")
        pieces.append((text, field))
    if not any(field for _, field in pieces):
        raise ValueError(f"{template!r} names no field; write for instance '{{inputs}}\\n{{targets}}'")
    return pieces
