"""Pack pairs: of each, one sequence with the chosen response and one with the rejected one, in files of the same order.

Both are the prompt, a response and an end of text, tokenised as prompts and responses or as conversations are, and filled up
with ends of text to the length of a sequence. Only the response and its own end of text are predicted. So whatever reads a
packed corpus reads the chosen responses alone, and a reader of pairs reads the sequences of one number in both files. Longer
pairs are left out.

The hash of the prompt decides on the split of a pair, so that no prompt is in both.
"""

import contextlib
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.dedup import HashSet
from retain.datamodules.corpora.documents import document_hash, hash_is_heldout
from retain.datamodules.corpora.packing import Division, token_type, write_manifest
from retain.datamodules.corpora.parts.batches import batch_documents, encode_ahead
from retain.datamodules.corpora.prepared import REJECTED, SPLITS, PackedCorpus
from retain.datamodules.corpora.reading.report import CorpusReport
from retain.datamodules.corpora.reading.tally import Tally
from retain.datamodules.corpora.responses.marked import Document, Encoded, Pair, texts_of
from retain.datamodules.corpora.split_writer import SplitWriter
from retain.datamodules.corpora.tokenizer import Tokenizer

REPORT_EVERY = 1000
"""Pairs between two reports."""


def pack_pairs(
    documents: Iterable[Document],
    tokenizer: Tokenizer,
    sequence_length: int,
    division: Division,
    tokens: int | None,
    folder: Path,
    report: CorpusReport,
    tally: Tally | None = None,
) -> PackedCorpus:
    """Tokenise and pack pairs into a new `folder`; memory is constant except for 8 bytes a pair.

    documents: pairs. tokens: the budget of the training split, of the sequences with both responses; reading stops when it is
    reached. None for all pairs. tally: as in `packing.pack`. Exact duplicates are dropped, and pairs with equal responses.
    """
    tally = tally or Tally()
    folder.mkdir(parents=True)
    with contextlib.ExitStack() as files:

        def writer(name: str) -> SplitWriter:
            stream, mask = (files.enter_context((folder / f"{name}.{kind}").open("wb")) for kind in ("bin", "mask"))
            return SplitWriter(stream, mask, token_type(tokenizer), sequence_length)

        splits = {split: _Split(writer(split), writer(split + REJECTED), tokenizer.end_id) for split in SPLITS}
        packing = _Packing(splits, division, tokenizer, tally)
        packing.write_heldout()
        packing.write(documents, tokens, report)
        packing.counts["documents"] = sum(one.chosen.documents for one in splits.values())
        tally.counts = packing.counts
    return write_manifest(folder, tokenizer, sequence_length, {split: splits[split].summary() for split in SPLITS})


@dataclass(frozen=True)
class _Split:
    """The files of a split."""

    chosen: SplitWriter
    rejected: SplitWriter
    end: int
    """The end of text."""

    @property
    def tokens(self) -> int:
        return self.chosen.tokens + self.rejected.tokens

    def fits(self, responses: tuple[Encoded, Encoded]) -> bool:
        return max(len(tokens) for tokens, _ in responses) <= self.chosen.length

    def add(self, responses: tuple[Encoded, Encoded]) -> None:
        for writer, (tokens, predicted) in zip((self.chosen, self.rejected), responses, strict=True):
            assert predicted is not None
            filler = writer.length - len(tokens)
            writer.add(([*tokens, *[self.end] * filler], [*predicted, *[False] * filler]))

    def flush(self) -> None:
        self.chosen.flush()
        self.rejected.flush()

    def summary(self) -> dict[str, Any]:
        """What the manifest says of the split. Padding is no end of a document before its end."""
        chosen, rejected = self.chosen.summary(), self.rejected.summary()
        chosen.pop("ends_inside", None)
        return chosen | {f"rejected_{name}": rejected[name] for name in ("sha256", "mask_sha256")}


@dataclass
class _Packing:
    """What is known while pairs are packed."""

    splits: dict[str, _Split]
    division: Division
    tokenizer: Tokenizer
    tally: Tally
    seen: HashSet = field(default_factory=HashSet)
    """The hashes of pairs."""
    asked: set[int] = field(default_factory=set)
    """The hashes of the prompts of a held-out split that the corpus brings along."""
    counts: Counter[str] = field(default_factory=Counter)

    def write_heldout(self) -> None:
        """Write the held-out split that the corpus brings along."""
        for pair, responses in self._encoded(self.division.own):
            self.asked.add(document_hash(pair.prompt))
            self._add("heldout", responses)
        self.splits["heldout"].flush()

    def write(self, documents: Iterable[Document], tokens: int | None, report: CorpusReport) -> None:
        """Divide pairs over the splits, until the training split has a number of tokens."""
        train, read = self.splits["train"], 0
        for pair, responses in self._encoded(documents):
            read += 1
            if (split := self._split_of(pair)) is not None:
                self._add(split, responses)
            if tokens is not None and train.tokens >= tokens:
                break
            if read % REPORT_EVERY == 0:
                self._flush(read, report)
        self._flush(read, report)

    def _flush(self, read: int, report: CorpusReport) -> None:
        for one in self.splits.values():
            one.flush()
        report(read, self.splits["train"].tokens)

    def _add(self, split: str, responses: tuple[Encoded, Encoded]) -> None:
        if self.splits[split].fits(responses):
            self.splits[split].add(responses)
            self.counts["tokens"] += sum(len(tokens) for tokens, _ in responses)
        else:
            self.counts["long"] += 1

    def _split_of(self, pair: Pair) -> str | None:
        """The split of a pair; None if it is in neither, which is counted."""
        division, number = self.division, document_hash(pair.prompt)
        if number in self.asked:
            self.counts["asked"] += 1
            return None
        if hash_is_heldout(number, division.heldout):
            return "heldout"
        texts = [document_hash(text) for text in texts_of(pair)]
        if (
            hash_is_heldout(number, division.withheld)
            or any(hash_is_heldout(text, division.texts) for text in texts)
            or any(text in division.others for text in texts)
        ):
            self.counts["withheld"] += 1
            return None
        return "train"

    def _encoded(self, documents: Iterable[Document]) -> Iterator[tuple[Pair, tuple[Encoded, Encoded]]]:
        """Yield distinct pairs with the tokens of both responses."""
        for (pairs, counts), encoding in encode_ahead(self._batches(documents), self.tokenizer):
            self.counts += counts
            tokens = encoding.result()
            yield from zip(pairs, zip(tokens[0::2], tokens[1::2], strict=True), strict=True)

    def _batches(
        self, documents: Iterable[Document]
    ) -> Iterator[tuple[tuple[list[Pair], Counter[str]], list[Document]]]:
        """Yield distinct pairs in batches with what was counted since the batch before, and their two documents each."""
        for batch in batch_documents(documents):
            pairs = [one for one in batch if isinstance(one, Pair) and one.chosen != one.rejected]
            self.tally.counts["equal"] += len(batch) - len(pairs)
            new = self.seen.add([document_hash("\0".join((one.prompt, *texts_of(one)))) for one in pairs])
            self.tally.counts["duplicates"] += len(pairs) - len(new)
            chosen = [pairs[index] for index in new]
            yield (
                (chosen, self.tally.take()),
                [document for pair in chosen for document in (pair.chosen, pair.rejected)],
            )
        if counts := self.tally.take():  # what was skipped after the last pair
            yield ([], counts), []
