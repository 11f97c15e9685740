"""Prepare a study's corpora: packed data in the store, made once per (corpus, tokeniser, sequence length).

    <store>/tokenizers/<fingerprint>/   tokenizer.json, tokenizer_config.json
    <store>/corpora/<fingerprint>/      train.bin, heldout.bin, manifest.json
    <store>/prepared/<digest>.json      the fingerprint that a source was prepared to, and the commit it was read at
    <store>/building/<process>-<id>/    data that a process is preparing

Data is built under building/ and renamed into place, so two processes may prepare the same corpus at once: the first to
finish publishes it, the second discards its identical copy. Folders of killed processes are removed by the next process.
"""

import contextlib
import hashlib
import importlib.metadata
import os
import shutil
from collections.abc import Callable, Iterator
from itertools import chain
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.documents import is_heldout, read_documents, source_identity
from retain.datamodules.corpora.hub import is_on_hub, pinned
from retain.datamodules.corpora.packing import PackedCorpus, open_packed, pack
from retain.datamodules.corpora.tokenizer import (
    Tokenizer,
    fetch_tokenizer,
    load_tokenizer,
    tokenizer_files,
    train_tokenizer,
)
from retain.sweeps.base.errors import MissingResourceError, RetainError
from retain.sweeps.base.files import read_json, sync_folder, write_json, writing
from retain.sweeps.base.processes import is_gone, process_name
from retain.sweeps.schema import study as schema
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.data_facts import UNPREPARED, CorpusFacts, Facts
from retain.sweeps.tree.keys import canonical

FORMAT = 1
"""The version of the packed data. Raise it when the way to read, split or pack changes."""

Report = Callable[[str, int, int], None]
"""Called with the name of what is being prepared, the documents read and the training tokens so far."""


def ignore_progress(corpus: str, documents: int, tokens: int) -> None:
    """Display nothing: a `Report` for callers without a display."""


def prepare(file: StudyFile, store: Path, report: Report = ignore_progress) -> Facts:
    """Read, tokenise and pack what the study needs and the store lacks. Raises StudyError, MissingResourceError."""
    facts = known_facts(file, store)
    if facts.prepared:
        return facts
    with writing(str(store), "choose another store with --store"):
        _remove_leftovers(store)
        tokenizer = _prepare_tokenizer(file, store, report)
        for name in file.study.corpora:
            for length in file.values("sequence_length"):
                _prepare_corpus(file, store, name, length, tokenizer, report)
    return known_facts(file, store)


def known_facts(file: StudyFile, store: Path) -> Facts:
    """Return the facts of data that is prepared, and placeholders for unprepared data, without reading a corpus.

    The facts of a study without corpora are empty.
    """
    if not file.study.corpora:
        return Facts("", 0, {})
    source = _tokenizer_source(file)
    tokenizer = _find_prepared(store, "tokenizers", source)
    corpora = {}
    for name in file.study.corpora:
        for length in file.values("sequence_length"):
            corpus_source = _corpus_source(file, name, length, tokenizer or _digest(source))
            fingerprint = _find_prepared(store, "corpora", corpus_source)
            if tokenizer is None or fingerprint is None:
                corpora[name, length] = CorpusFacts(UNPREPARED + _digest(corpus_source))
            else:
                packed = packed_corpus(store, fingerprint)
                corpora[name, length] = CorpusFacts(fingerprint, packed.count("train"), packed.count("heldout"))
    if tokenizer is None:
        return Facts(UNPREPARED + _digest(source), _tokenizer_settings(file).train or 0, corpora)
    return Facts(tokenizer, load_tokenizer(store / "tokenizers" / tokenizer).vocabulary, corpora)


def packed_corpus(store: Path, fingerprint: str) -> PackedCorpus:
    """Open a prepared corpus. Raises MissingResourceError if the store lacks it or its manifest is damaged."""
    folder = store / "corpora" / fingerprint
    try:
        return open_packed(folder)
    except FileNotFoundError:
        problem = f"has no manifest.json; delete {folder} and" if folder.is_dir() else f"not found in {store};"
        raise MissingResourceError(f"corpus {fingerprint} {problem} prepare the study's data again") from None


def _prepare_tokenizer(file: StudyFile, store: Path, report: Report) -> Tokenizer:
    source = _tokenizer_source(file)
    fingerprint = _find_prepared(store, "tokenizers", source)
    if fingerprint is None:
        settings = _tokenizer_settings(file)
        report("tokenizer", 0, 0)
        if settings.hf is not None:
            tokenizer = fetch_tokenizer(settings.hf, settings.revision, file.folder)
        else:
            assert settings.train is not None
            samples = [_sample_documents(file, name, settings.sample) for name in sorted(file.study.corpora)]
            tokenizer = train_tokenizer(chain.from_iterable(samples), settings.train)
        fingerprint = tokenizer.fingerprint
        building = _new_build_folder(store)
        tokenizer.save(building)
        _publish(store, building, store / "tokenizers" / fingerprint, source, fingerprint)
    return load_tokenizer(store / "tokenizers" / fingerprint)


def _sample_documents(file: StudyFile, name: str, characters: int) -> Iterator[str]:
    """Yield training documents from the beginning of a corpus, up to a number of characters in all."""
    with _naming_corpus(file, name):
        for document in read_documents(pinned(file.study.corpora[name], file.folder), file.folder):
            if not is_heldout(document, _withheld(file)):
                yield document[:characters]
                characters -= len(document)
                if characters <= 0:
                    return


def _source(file: StudyFile, name: str) -> dict[str, Any]:
    with _naming_corpus(file, name):
        return source_identity(file.study.corpora[name], file.folder)


@contextlib.contextmanager
def _naming_corpus(file: StudyFile, name: str) -> Iterator[None]:
    """Prefix errors with the study file and the corpus."""
    try:
        yield
    except RetainError as error:
        raise type(error)(f"{file.path.name}: corpora.{name}: {error}") from error


def _prepare_corpus(file: StudyFile, store: Path, name: str, length: int, tokenizer: Tokenizer, report: Report) -> None:
    source = _corpus_source(file, name, length, tokenizer.fingerprint)
    if _find_prepared(store, "corpora", source) is not None:
        return
    building = _new_build_folder(store)
    with _naming_corpus(file, name):
        # Pinned to one commit, so that the commit it is read at can be recorded.
        corpus = pinned(file.study.corpora[name], file.folder)
        packed = pack(
            read_documents(corpus, file.folder),
            tokenizer,
            length,
            corpus.heldout,
            _withheld(file),
            corpus.tokens,
            building,
            lambda documents, tokens: report(name, documents, tokens),
        )
    commit = corpus.revision if is_on_hub(corpus, file.folder) else None
    _publish(store, building, store / "corpora" / packed.fingerprint, source, packed.fingerprint, commit)


def _tokenizer_settings(file: StudyFile) -> schema.Tokenizer:
    assert file.study.tokenizer is not None, "a study with corpora has a tokeniser"
    return file.study.tokenizer


def _tokenizer_source(file: StudyFile) -> dict[str, Any]:
    settings = _tokenizer_settings(file)
    source: dict[str, Any] = {"format": FORMAT, **settings.model_dump()}
    if settings.train is not None:
        source["tokenizers"] = importlib.metadata.version("tokenizers")
        source["corpora"] = [
            {**_source(file, name), "heldout": corpus.heldout} for name, corpus in sorted(file.study.corpora.items())
        ]
    elif settings.hf is not None and (file.folder / settings.hf).is_dir():
        files = tokenizer_files(file.folder / settings.hf)
        source["sha256"] = [hashlib.sha256(path.read_bytes()).hexdigest() for path in files]
    return source


def _withheld(file: StudyFile) -> float:
    """Return the largest held-out share of the study's corpora.

    No corpus trains on documents within this share, so none trains on what another one holds out.
    """
    return max(corpus.heldout for corpus in file.study.corpora.values())


def _corpus_source(file: StudyFile, name: str, length: int, tokenizer: str) -> dict[str, Any]:
    corpus = file.study.corpora[name]
    return {
        "format": FORMAT,
        **_source(file, name),
        "heldout": corpus.heldout,
        "withheld": _withheld(file),
        "tokens": corpus.tokens,
        "tokenizer": tokenizer,
        "sequence_length": length,
    }


def _digest(source: dict[str, Any]) -> str:
    return hashlib.sha256(canonical(source).encode()).hexdigest()[:20]


def _find_prepared(store: Path, kind: str, source: dict[str, Any]) -> str | None:
    """Return the fingerprint that a source was prepared to, None if the store lacks it; kind: corpora or tokenizers."""
    try:
        fingerprint = str(read_json(store / "prepared" / f"{_digest(source)}.json")["fingerprint"])
    except (FileNotFoundError, NotADirectoryError):
        return None
    return fingerprint if (store / kind / fingerprint).is_dir() else None


def _new_build_folder(store: Path) -> Path:
    """Return the path of a new folder named after this process, so that others can tell whether its owner is alive."""
    return store / "building" / f"{process_name()}-{os.urandom(4).hex()}"


def _publish(
    store: Path, building: Path, target: Path, source: dict[str, Any], fingerprint: str, commit: str | None = None
) -> None:
    """Move finished data from its build folder to `target` and record its source under prepared/."""
    target.parent.mkdir(parents=True, exist_ok=True)
    sync_folder(building)
    try:
        building.rename(target)
    except OSError:
        # Another process has published the same data.
        if not target.is_dir():
            raise
        shutil.rmtree(building)
    note = store / "prepared" / f"{_digest(source)}.json"
    note.parent.mkdir(exist_ok=True)
    write_json(note, {"fingerprint": fingerprint, "source": source} | ({"commit": commit} if commit else {}))


def _remove_leftovers(store: Path) -> None:
    """Remove the build folders of processes that are gone."""
    for building in (store / "building").glob("*-*"):
        if is_gone(building.name.rpartition("-")[0]):
            shutil.rmtree(building, ignore_errors=True)
