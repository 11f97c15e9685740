"""Read safetensors files without torch: which tensors they hold, whether they are whole, and a digest of each tensor.

Pickled weights are never read.
"""

import hashlib
import json
import mmap
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

from retain.sweeps.base.errors import StudyError

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
PICKLED = ("pytorch_model*.bin", "*.pt", "*.pth", "*.ckpt")
CURE = "restore the file, or choose another checkpoint"


@dataclass(frozen=True)
class Tensor:
    """One tensor of a safetensors file."""

    name: str
    dtype: str
    """As the file writes it: F32, BF16, ..."""
    shape: tuple[int, ...]
    begin: int
    """The position of its first byte in the file."""
    end: int
    """The position after its last byte."""


def weight_files(folder: Path) -> list[str]:
    """Return the names of the files that hold a checkpoint's weights. Raises StudyError if there are none."""
    if (folder / INDEX).is_file():
        try:
            names = sorted(set(json.loads((folder / INDEX).read_bytes())["weight_map"].values()))
        except (ValueError, KeyError, TypeError, AttributeError):
            raise StudyError(f"{folder / INDEX} is damaged; {CURE}") from None
        if not all(isinstance(name, str) and Path(name).name == name for name in names):
            raise StudyError(f"{folder / INDEX} names files outside its folder; {CURE}")
        return [str(name) for name in names]
    if (folder / SINGLE).is_file():
        return [SINGLE]
    pickled = [path.name for pattern in PICKLED for path in sorted(folder.glob(pattern))]
    what = f"only pickled weights ({pickled[0]}), which could run code" if pickled else f"no {SINGLE}"
    raise StudyError(
        f"{folder} has {what}; save the model with transformers' save_pretrained, which writes safetensors, or choose a "
        "revision that has them"
    )


def check_files(folder: Path, names: list[str]) -> None:
    """Check that each file of weights is there. Raises StudyError."""
    if missing := [name for name in names if not (folder / name).is_file()]:
        raise StudyError(f"{folder} lacks {missing[0]}, which its {INDEX} names; {CURE}")


def read_tensors(path: Path) -> list[Tensor]:
    """Return the tensors of a safetensors file, in the order of their names. Raises StudyError if the file is damaged."""
    size = path.stat().st_size
    with path.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise StudyError(f"{path} is cut short; {CURE}")
        try:
            header = json.loads(stream.read(length))
            start = 8 + length
            tensors = [
                Tensor(
                    name,
                    str(entry["dtype"]),
                    tuple(int(number) for number in entry["shape"]),
                    start + int(entry["data_offsets"][0]),
                    start + int(entry["data_offsets"][1]),
                )
                for name, entry in header.items()
                if name != "__metadata__"
            ]
        except (ValueError, KeyError, TypeError, AttributeError, IndexError):
            raise StudyError(f"{path} is not a safetensors file, or its header is damaged; {CURE}") from None
    if max((tensor.end for tensor in tensors), default=start) != size:
        raise StudyError(f"{path} is cut short; {CURE}")
    return sorted(tensors, key=lambda tensor: tensor.name)


def tensor_digests(folder: Path, names: list[str]) -> Iterator[tuple[str, str, list[int], str]]:
    """Yield name, dtype, shape and SHA-256 of every tensor, sorted by name: the same however the files divide the tensors.

    Raises StudyError if a file is damaged, or two files hold a tensor of one name.
    """
    places = [(tensor, folder / name) for name in names for tensor in read_tensors(folder / name)]
    places.sort(key=lambda place: place[0].name)
    for (one, path), (other, _) in pairwise(places):
        if one.name == other.name:
            raise StudyError(f"{path}: another file has the tensor {one.name} too; {CURE}")
    for tensor, path in places:
        digest = hashlib.sha256()
        if tensor.end > tensor.begin:
            with (
                path.open("rb") as stream,
                mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as content,
                memoryview(content) as whole,
                whole[tensor.begin : tensor.end] as part,
            ):
                digest.update(part)
        yield tensor.name, tensor.dtype, list(tensor.shape), digest.hexdigest()
