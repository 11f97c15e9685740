"""The paper's corpora as published on Hugging Face, with pinned revisions, and the templates that join a record's fields.

A study names one with `corpora: {music: {published: musicpile}}`. Fields beside `published` replace those here; `files` reads a
local folder in the same format (`corpora.music.files=/data/musicpile`).

The paper prints no Hugging Face ids, so each id is our choice. The ids were written without access to the hub, from what public
repositories quote; `retain data STUDY --check` tells whether ids, configurations, revisions and fields resolve. If no commit
was quoted, the revision is a branch, and the prepared data records the commit that was read.
"""

import string
from typing import Any

# No corpus of a study trains on a document that another one holds out. Each held-out share leaves over a million tokens.
PUBLISHED: dict[str, dict[str, Any]] = {
    # Fields text, timestamp and url, in 1,024 files en/c4-train.*.json.gz that are already shuffled.
    "c4": {
        "hf": "allenai/c4",
        "config": "en",
        "revision": "1588ec454efa1a09f29cd18ddd04fe05fc8653a2",
        "text": "text",
        "heldout": 0.0005,  # 4.3M of 8.7B tokens
    },
    # Fields id, text and src, in 29 files data/train-*.parquet: about 4.2B tokens of ABC tunes, texts about music and
    # dialogues, whose turns are already joined.
    "musicpile": {
        "hf": "m-a-p/MusicPile",
        "revision": "5930bd7199ddead76ab540901e2187ea4e5fc6a7",
        "text": "text",
        "in_turn": 32,
        "tokens": 300_000_000,
        "heldout": 0.005,  # 1.5M of 0.3B tokens
    },
    # ChemPile is a collection of data sets. This one holds chemistry abstracts of Europe PMC: it is prose, and far larger than
    # the budget. The textbooks, jablonkagroup/chempile-education, are smaller.
    "chempile": {
        "hf": "jablonkagroup/chempile-paper",
        "config": "euro_pmc_chemistry_abstracts-default",
        "revision": "main",
        "text": "text",
        "in_turn": 32,
        "tokens": 300_000_000,
        "heldout": 0.005,
    },
    # FLAN 2021 with ten templates per task: fields inputs, targets and task, in 66 files train/*_10templates_train.jsonl. Each
    # file holds one task of 500 to 30,000 records, so reading the files in turn mixes the tasks. There are about 1.4M records;
    # if they hold fewer tokens than a study needs, `retain data` tells how many there are.
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
    """The fields of a corpus, completed with those of the published corpus that it names. Raises ValueError if unknown."""
    name = fields.get("published")
    if name is None:
        return fields
    if not isinstance(name, str) or name not in PUBLISHED:
        raise ValueError(f"published: unknown corpus {name!r:.80}; the published corpora are {', '.join(PUBLISHED)}")
    below = PUBLISHED[name]
    if fields.keys() & {"text", "template", "prompt", "response", "messages"}:
        below = {key: value for key, value in below.items() if key not in ("text", "template")}
    return below | fields


def template_pieces(template: str) -> list[tuple[str, str | None]]:
    """The pieces of a template such as `{inputs}\\n{targets}`: pairs of a text and the field after it, None at the end.

    Raises ValueError if the template names no field, or formats a field.
    """
    try:
        parsed = list(string.Formatter().parse(template))
    except ValueError as error:
        raise ValueError(f"{template!r} is not a template ({error}); write a literal brace as {{{{ or }}}}") from None
    pieces: list[tuple[str, str | None]] = []
    for text, field, form, conversion in parsed:
        if field is not None and (form or conversion or not field.isidentifier()):
            raise ValueError(f"{template!r}: {{{field}}} is not a plain field name; write fields as {{inputs}}")
        pieces.append((text, field))
    if not any(field for _, field in pieces):
        raise ValueError(f"{template!r} names no field; write for instance '{{inputs}}\\n{{targets}}'")
    return pieces
