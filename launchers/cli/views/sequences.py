"""How packed sequences are shown in the terminal: what is predicted, and where documents end."""

import itertools
import re
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
from rich.text import Text

from retain.datamodules.corpora.prepared import packed_corpus, stored_tokenizer
from retain.datamodules.corpora.tokenizer import Tokenizer
from retain.datamodules.order.prefetch import MappedSequences
from retain.launchers.console import open_console
from retain.launchers.planning.opened_study import OpenedStudy

SHOWN = 3
"""Sequences that are shown of each sequence length."""
CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
"""Characters that could control the terminal."""
PREDICTED, OTHER, END = "bold green", "dim", "reverse"


def sequences_document(opened: OpenedStudy, name: str) -> dict[str, Any]:
    """`retain data --show CORPUS --json`: the first training sequences of a corpus that the study has, in parts.

    Each part is a text, with whether it is predicted and whether it is an end of text. The first token of a sequence has
    nothing to be predicted from, and is never predicted. Of pairs, each sequence is shown with both responses.
    """
    tokenizer = stored_tokenizer(opened.store.root, opened.facts.tokenizer)
    sequences = []
    for (corpus, length), facts in opened.facts.corpora.items():
        if corpus == name:
            packed = packed_corpus(opened.store.root, facts.fingerprint)
            for number in range(min(SHOWN, packed.count("train"))):
                for rejected in (False, True)[: 1 + packed.has_pairs]:
                    split = MappedSequences(packed.sequences("train", rejected), packed.mask("train", rejected))
                    tokens = split.read(np.array([number]))[0].tolist()
                    while packed.has_pairs and tokens[-1] == ~tokenizer.end_id:
                        tokens.pop()  # padding
                    parts = list(_parts(tokens, tokenizer))
                    response = {"response": "rejected" if rejected else "chosen"} if packed.has_pairs else {}
                    sequences.append({"sequence_length": length, "sequence": number, **response, "parts": parts})
    return {"study": opened.tree.study, "corpus": name, "sequences": sequences}


def _parts(tokens: list[int], tokenizer: Tokenizer) -> Iterator[dict[str, Any]]:
    """The parts of a sequence with the complement of each token that is not predicted."""
    first, *rest = tokens
    marked = [(first if first >= 0 else ~first, False), *((max(token, ~token), token >= 0) for token in rest)]
    for (predicted, end), group in itertools.groupby(marked, lambda one: (one[1], one[0] == tokenizer.end_id)):
        for numbers in [[token] for token, _ in group] if end else [[token for token, _ in group]]:
            text = tokenizer.core.decode(numbers, skip_special_tokens=False)
            yield {"text": text, "predicted": predicted, "end_of_text": end}


def print_sequences(document: Mapping[str, Any]) -> None:
    """Print the sequences: predicted text in colour, or in ⟦brackets⟧ where there is no colour; a line after each document."""
    console = open_console()
    coloured = console.is_terminal and not console.no_color
    for sequence in document["sequences"]:
        which = f", {sequence['response']}" if "response" in sequence else ""
        heading = (
            f"{document['corpus']}, sequence {sequence['sequence']} of {sequence['sequence_length']} tokens{which}"
        )
        console.print(Text(heading, style="bold"))
        line = Text()
        for part in sequence["parts"]:
            text = CONTROL.sub("\N{REPLACEMENT CHARACTER}", part["text"])
            style = PREDICTED if part["predicted"] else OTHER
            text = text if coloured or not part["predicted"] else f"⟦{text}⟧"
            line.append(text, f"{style} {END}" if part["end_of_text"] else style)
            if part["end_of_text"]:
                line.append("\n")
        console.print(line, soft_wrap=True)
        console.print()
    console.print(
        Text.assemble(("predicted", PREDICTED), ", ", ("not predicted", OTHER)) if coloured else "⟦predicted⟧"
    )
