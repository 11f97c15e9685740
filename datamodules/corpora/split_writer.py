"""Write the packed sequences of one split to its files."""

import hashlib
from array import array
from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import numpy.typing as npt

from retain.datamodules.corpora.parts.batches import ends_inside
from retain.datamodules.corpora.responses.marked import Encoded

Tokens = npt.NDArray[np.unsignedinteger[Any]]


class SplitWriter:
    """Appends whole sequences to the files of a split, and computes their SHA-256."""

    def __init__(self, stream: BinaryIO, mask: BinaryIO | None, dtype: np.dtype[Any], length: int) -> None:
        self.stream, self.mask, self.dtype, self.length = stream, mask, dtype, length
        self.digest, self.mask_digest = hashlib.sha256(), hashlib.sha256()
        # array converts a list of ints in a third of the time that numpy takes.
        self.waiting = array("H" if dtype.itemsize == 2 else "I")
        self.waiting_mask = bytearray()
        self.documents = self.sequences = self.predicted = 0
        self.ends_inside = False

    @property
    def tokens(self) -> int:
        return self.sequences * self.length + len(self.waiting)

    def add(self, encoded: Encoded) -> None:
        token_ids, predicted = encoded
        self.waiting.fromlist(token_ids)
        self.ends_inside |= ends_inside(encoded)
        if self.mask is not None:
            self.waiting_mask.extend(predicted or bytes([True]) * len(token_ids))
        self.documents += 1

    def extend(self, tokens: Sequence[Tokens], predicted: Sequence[npt.NDArray[np.uint8]]) -> None:
        """Append tokens, each array [tokens], and whether each is predicted, as many arrays; none without a mask."""
        for ids in tokens:
            self.waiting.frombytes(ids.astype(self.waiting.typecode, copy=False).tobytes())
        for flags in predicted:
            self.waiting_mask.extend(flags.tobytes())

    def flush(self) -> None:
        whole = len(self.waiting) // self.length
        size = whole * self.length
        block = np.asarray(self.waiting[:size]).astype(self.dtype, copy=False).tobytes()
        self.stream.write(block)
        self.digest.update(block)
        del self.waiting[:size]
        if self.mask is not None:
            bits = np.frombuffer(bytes(self.waiting_mask[:size]), np.uint8).reshape(whole, self.length)
            self.predicted += int(bits[:, 1:].sum(dtype=np.int64))
            block = np.packbits(bits, axis=1).tobytes()
            self.mask.write(block)
            self.mask_digest.update(block)
            del self.waiting_mask[:size]
        self.sequences += whole

    def summary(self) -> dict[str, Any]:
        mask = {} if self.mask is None else {"predicted": self.predicted, "mask_sha256": self.mask_digest.hexdigest()}
        return {
            "documents": self.documents,
            "sequences": self.sequences,
            "tokens": self.sequences * self.length,
            "sha256": self.digest.hexdigest(),
            **mask,
            **({"ends_inside": True} if self.ends_inside else {}),
        }
