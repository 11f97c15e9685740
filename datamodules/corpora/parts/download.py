"""Copies of data sets of the hub in the store, for nodes without internet access.

    <store>/downloads/<digest>/data/           the files of the splits that a study names, in the folders of the repository
    <store>/downloads/<digest>/download.json   the commit, and each file with its bytes and the hub's own hash

huggingface_hub continues what was interrupted. Each file is compared with the hub's hash before download.json is written.
"""

import hashlib
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypedDict

from retain.datamodules.corpora.hub import is_on_hub, pinned
from retain.datamodules.corpora.sources import digest
from retain.sweeps.base.documents import read_document, write_document
from retain.sweeps.base.errors import MissingResourceError, NoRoomError, RetainError
from retain.sweeps.base.redaction import redacted
from retain.sweeps.base.units import format_bytes
from retain.sweeps.schema.corpora import Corpus

DOWNLOADS, MANIFEST, DATA = "downloads", "download.json", "data"
DESCRIPTIONS = ("README.md", "dataset_infos.json")
"""Files that say which files are in which split."""
Say = Callable[[str, int, int], None]
"""Called with a file, the bytes that are there, and those of all files."""


class Download(TypedDict):
    """The content of download.json."""

    hf: str
    config: str | None
    split: str
    commit: str
    bytes: int
    files: dict[str, str]
    """The hub's hash of each file: SHA-256, or the SHA-1 of git for small files."""


def local_copy(corpus: Corpus, folder: Path, store: Path) -> Corpus | None:
    """Return a corpus that is read from its copy in the store, not from the hub; None without a copy. Raises DamageError."""
    if not is_on_hub(corpus, folder):
        return None
    place = _place(corpus, store)
    try:
        found = read_document(place / MANIFEST, Download, "delete the folder and download it again")
    except FileNotFoundError:
        return None
    return corpus.model_copy(update={"hf": str((place / DATA).absolute()), "revision": found["commit"]})


def downloaded_bytes(corpus: Corpus, store: Path) -> int | None:
    """Return the bytes of the copy of a corpus of the hub; None if there is none. Raises DamageError."""
    try:
        return read_document(_place(corpus, store) / MANIFEST, Download, "delete the folder and download it again")[
            "bytes"
        ]
    except FileNotFoundError:
        return None


def download(corpus: Corpus, folder: Path, store: Path, say: Say) -> Download:
    """Copy the files of the splits of a corpus that is on the hub into the store. Raises MissingResourceError."""
    named, place = pinned(corpus, folder), _place(corpus, store)
    assert named.hf is not None
    assert named.revision is not None
    try:
        known = read_document(place / MANIFEST, Download, "")
        if known["commit"] == named.revision:
            return known
    except (FileNotFoundError, RetainError):
        pass
    place.mkdir(parents=True, exist_ok=True)
    try:
        files = _files(named)
        total = sum(one.size for one in files)
        _check_room(place, total - sum(_size(place / DATA / one.path) for one in files))
        there = 0
        for one in files:
            _fetch(named, one, place / DATA)
            there += one.size
            say(f"{corpus.hf}: {one.path}", there, total)
    except (RetainError, OSError):
        raise
    except Exception as error:  # the HTTP client raises classes of its own
        raise MissingResourceError(
            f"hf: {corpus.hf} cannot be downloaded ({type(error).__name__}: "
            f"{' '.join(redacted(str(error)).split())[:300]}); try again, which continues"
        ) from error
    hashes = {one.path: _hash(one) for one in files}
    found = Download(
        hf=named.hf, config=named.config, split=named.split, commit=named.revision, bytes=total, files=hashes
    )
    write_document(place / MANIFEST, found)
    return found


def _place(corpus: Corpus, store: Path) -> Path:
    named = {"hf": corpus.hf, "revision": corpus.revision, "config": corpus.config, "splits": list(_splits(corpus))}
    return store / DOWNLOADS / digest(named)


def _splits(corpus: Corpus) -> Iterator[str]:
    """The names of the splits that are read, without slices."""
    yield corpus.split.partition("[")[0]
    if (held := corpus.heldout_corpus) is not None:
        yield held.split.partition("[")[0]


def _files(corpus: Corpus) -> list[Any]:
    """The files of the splits of a corpus, as huggingface_hub describes them."""
    import datasets
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

    builder = datasets.load_dataset_builder(corpus.hf, corpus.config, revision=corpus.revision)
    by_split = builder.config.data_files or {}
    wanted = {
        str(address).partition("@")[2].partition("/")[2]
        for split in _splits(corpus)
        for address in by_split.get(split, ())
    }
    tree = HfApi().list_repo_tree(
        str(corpus.hf), recursive=True, revision=corpus.revision, repo_type="dataset", expand=False
    )
    every = [one for one in tree if isinstance(one, RepoFile)]
    return [one for one in every if not wanted or one.path in wanted or one.path in DESCRIPTIONS]


def _fetch(corpus: Corpus, one: Any, folder: Path) -> None:
    """Download a file, and compare it with the hub's hash. Raises MissingResourceError if it differs."""
    from huggingface_hub import hf_hub_download

    path = Path(
        hf_hub_download(
            str(corpus.hf), one.path, repo_type="dataset", revision=corpus.revision, local_dir=folder.absolute()
        )
    )
    expected = _hash(one)
    found = hashlib.sha256() if one.lfs else hashlib.sha1(f"blob {path.stat().st_size}\0".encode())
    with path.open("rb") as stream:
        hashlib.file_digest(stream, lambda: found)
    if found.hexdigest() != expected:
        path.unlink()
        raise MissingResourceError(
            f"{path}: the file differs from the hub's hash ({expected}), so it was removed; try again"
        )


def _hash(one: Any) -> str:
    return str(one.lfs.sha256 if one.lfs else one.blob_id)


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _check_room(place: Path, needed: int) -> None:
    free = shutil.disk_usage(place).free
    if needed > free:
        raise NoRoomError(
            f"{place}: {format_bytes(needed)} are to be downloaded and {format_bytes(free)} are free; free space, or choose "
            "another disk with --store"
        )
