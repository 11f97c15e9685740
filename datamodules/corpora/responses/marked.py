"""Documents with marked responses, and their tokens."""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from retain.datamodules.corpora.tokenizer import Tokenizer


@dataclass(frozen=True)
class Marked:
    """A document in which only the responses are predicted."""

    text: str
    spans: tuple[tuple[int, int], ...]
    """The responses: [begin, end) in characters, ascending, without overlaps."""
    rendered: bool
    """Whether a chat template wrote the text. Then it is tokenised as a whole, and the markers of the template are special
    tokens. Otherwise each part between the edges of the spans is tokenised by itself, as ordinary text."""


@dataclass(frozen=True)
class Pair:
    """A prompt with two responses, of which one is preferred."""

    prompt: str
    chosen: Marked
    """The prompt with the preferred response."""
    rejected: Marked
    """The prompt with the other response."""


def answered(prompt: str, response: str) -> Marked:
    """A prompt with a response that follows it directly."""
    return Marked(prompt + response, ((len(prompt), len(prompt) + len(response)),), rendered=False)


Document = str | Marked | Pair
Encoded = tuple[list[int], list[bool] | None]
"""The token ids of a document with its end of text, and whether each is predicted; None if all are."""


def text_of(document: Document) -> str:
    """The text of a document; of a pair, with both responses."""
    if isinstance(document, Pair):
        ((begin, _), *_) = document.rejected.spans
        return f"{document.chosen.text}\n{document.rejected.text[begin:]}"
    return document if isinstance(document, str) else document.text


def texts_of(document: Document) -> list[str]:
    """The texts that a document holds: of a pair, the prompt with each response."""
    return [document.chosen.text, document.rejected.text] if isinstance(document, Pair) else [text_of(document)]


def dividing_text(document: Document) -> str:
    """The text whose hash decides on the split of a document: of a pair, the prompt alone."""
    return document.prompt if isinstance(document, Pair) else text_of(document)


def with_texts(document: Document, change: Callable[[str], str]) -> Document:
    """A document whose texts are changed, each to one of the same length."""
    if isinstance(document, Pair):
        chosen, rejected = (replace(one, text=change(one.text)) for one in (document.chosen, document.rejected))
        return Pair(change(document.prompt), chosen, rejected)
    return change(document) if isinstance(document, str) else replace(document, text=change(document.text))


def encode_documents(tokenizer: Tokenizer, documents: Sequence[Document]) -> list[Encoded]:
    """Return the tokens of each document; uses all cores. Documents of one call are all of one kind, and no pairs.

    The end of text is predicted after a response. A document that ends with it already gets no second one.
    """
    plain = [document for document in documents if isinstance(document, str)]
    if plain:
        encoded = tokenizer.encode(plain)
        for numbers in encoded:
            numbers.append(tokenizer.end_id)
        return [(numbers, None) for numbers in encoded]
    marked = [document for document in documents if isinstance(document, Marked)]
    if marked and marked[0].rendered:
        return _encode_rendered(tokenizer, marked)
    return _encode_parts(tokenizer, marked)


def _encode_rendered(tokenizer: Tokenizer, documents: list[Marked]) -> list[Encoded]:
    found: list[Encoded] = []
    for document, encoding in zip(
        documents, tokenizer.encode_rendered([document.text for document in documents]), strict=True
    ):
        numbers, offsets = list(encoding.ids), encoding.offsets
        predicted = [False] * len(numbers)
        begins, ends = [begin for begin, _ in offsets], [end for _, end in offsets]
        for begin, end in document.spans:
            # Every token with a character of the span, as transformers' assistant masks have it.
            first, after = bisect_right(ends, begin), bisect_left(begins, end)
            predicted[first:after] = [True] * (after - first)
        if not numbers or numbers[-1] != tokenizer.end_id:
            numbers.append(tokenizer.end_id)
            predicted.append(bool(predicted) and predicted[-1])
        found.append((numbers, predicted))
    return found


def _encode_parts(tokenizer: Tokenizer, documents: list[Marked]) -> list[Encoded]:
    parts: list[tuple[int, str, bool]] = []
    for index, document in enumerate(documents):
        last = 0
        for begin, end in document.spans:
            parts += [(index, document.text[last:begin], False), (index, document.text[begin:end], True)]
            last = end
        parts.append((index, document.text[last:], False))
    found: list[tuple[list[int], list[bool]]] = [([], []) for _ in documents]
    for (index, _, is_response), numbers in zip(parts, tokenizer.encode([text for _, text, _ in parts]), strict=True):
        found[index][0].extend(numbers)
        found[index][1].extend([is_response] * len(numbers))
    return [([*numbers, tokenizer.end_id], [*predicted, True]) for numbers, predicted in found]
