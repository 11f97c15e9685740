"""What a study's data is prepared from, and the notes in the store of what it was prepared to.

A *source* identifies the content that is read: files by size and modification time, packages by version. A *definition* is
what the study says of it, without the content. The store has a note for each source, and one for each definition: what it was
last prepared to, so that what is trained is found after its source has changed or is gone.
"""

import contextlib
import hashlib
import importlib.metadata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

from retain.datamodules.corpora.checkpoints.files import local_checkpoint, local_files
from retain.datamodules.corpora.find import SourceFile, data_set_folder, find_sources, local_folder, places, shown
from retain.datamodules.corpora.prepared import CURE, SPLITS
from retain.datamodules.corpora.reading.answers import FOLDER, answers_problem
from retain.datamodules.corpora.reading.packages import package_versions
from retain.datamodules.corpora.responses.chat import chat_source
from retain.datamodules.corpora.tokenizer import tokenizer_files
from retain.sweeps.base.documents import read_bytes, read_document, write_document
from retain.sweeps.base.errors import DamageError, MissingResourceError, NewerFormatError, RetainError, os_reason
from retain.sweeps.base.redaction import redacted_values
from retain.sweeps.schema import corpora as fields
from retain.sweeps.schema.models import Model
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.tree.data_facts import Reading
from retain.sweeps.tree.keys import canonical
from retain.sweeps.tree.recipes.point import models_of

FORMAT = 1
"""The version of the packed data. Raise it when the way to read, split or pack changes."""
OWN_SPLIT = "heldout_source"
"""The field of a source that identifies the held-out split that a corpus brings along."""
DEFINITION = "definition"
"""The field that tells a definition from a source."""
Source = dict[str, Any]
ReadSource = Callable[[StudyFile, str], Source]
"""Returns the source of a corpus of a study by name, as `read_source` does."""


def tokenizer_settings(file: StudyFile) -> fields.Tokenizer:
    """Return the study's tokeniser: that of its first checkpoint if the study names none."""
    if file.study.tokenizer is not None:
        return file.study.tokenizer
    first = checkpoints_of(file)[0]
    return fields.Tokenizer(hf=first.hf, revision=first.revision)


def checkpoints_of(file: StudyFile) -> list[Model]:
    """Return the sections of the study's models that start from a checkpoint, each once."""
    return [model for model in models_of(file) if model.hf is not None]


def withheld_share(file: StudyFile) -> float:
    """Return the largest held-out share of the study's corpora.

    No corpus trains on documents within this share, so none trains on what another one holds out.
    """
    return max(file.study.corpora[name].heldout_share for name in file.trained)


def withheld_texts_share(file: StudyFile, name: str) -> float:
    """Return for a corpus of pairs the largest held-out share of the corpora without pairs, which hold out whole documents."""
    if not file.study.corpora[name].is_pairs:
        return 0.0
    others = (file.study.corpora[other] for other in file.trained)
    return max((one.heldout_share for one in others if not one.is_pairs), default=0.0)


def corpora_with_splits(file: StudyFile) -> list[str]:
    """Return the names of the corpora that bring along a held-out split of their own, sorted."""
    return sorted(name for name in file.trained if file.study.corpora[name].heldout_corpus is not None)


def compared_corpora(file: StudyFile, name: str) -> list[str]:
    """Return the sorted names of the corpora whose held-out documents may have no near copy in one with `dedupe: near`."""
    return sorted({name, *file.trained})


def corpus_sources(file: StudyFile) -> dict[str, Source]:
    """Return the source of each corpus by name, whatever it is prepared to. Raises StudyError, MissingResourceError."""
    return {name: read_source(file, name) for name in file.study.corpora}


def check_unchanged(file: StudyFile, before: Mapping[str, Source]) -> None:
    """Raise MissingResourceError if a corpus is no longer what `corpus_sources` returned before."""
    after = corpus_sources(file)
    if changed := [f"corpora.{name}" for name in before if after[name] != before[name]]:
        raise MissingResourceError(
            f"{file.path.name}: {', '.join(changed)}: the source changed while it was read; prepare the study's data again "
            "once nothing writes to it"
        )


def tokenizer_source(file: StudyFile, read: ReadSource | None = None) -> Source:
    """Return the source of the study's tokeniser. read: what to call instead of `read_source`. Raises as `read_source` does."""
    read = read or read_source
    settings, cure = tokenizer_settings(file), "make it readable, or name another tokeniser"
    source: Source = {"format": FORMAT, **_tokenizer_fields(settings)}
    if settings.train is not None:
        source["tokenizers"] = importlib.metadata.version("tokenizers")
        source["corpora"] = [
            {**read(file, name), "heldout": file.study.corpora[name].heldout_share} for name in sorted(file.trained)
        ]
    elif settings.hf is not None:
        with naming_tokenizer(file):
            if (local := local_folder(settings.hf, file.folder, "", settings.revision)) is not None:
                files = tokenizer_files(local)
                source["sha256"] = [hashlib.sha256(read_bytes(path, cure)).hexdigest() for path in files]
    return source


def checkpoint_source(file: StudyFile, model: Model) -> Source:
    """Return the source of a checkpoint. Raises StudyError if a local one cannot be used, MissingResourceError."""
    source: Source = {"format": FORMAT, "checkpoint": model.hf, "revision": model.revision, "weights": model.weights}
    with naming_checkpoint(file):
        if (place := local_checkpoint(model, file.folder)) is not None:
            found = [(path, path.stat()) for path in local_files(model, place)]
            source["files"] = [[shown(path), status.st_size, status.st_mtime_ns] for path, status in found]
    return source


def checkpoint_definition(file: StudyFile, model: Model) -> Source:
    """Return the definition of a checkpoint."""
    named = {"checkpoint": model.hf, "revision": model.revision, "weights": model.weights}
    return {DEFINITION: "checkpoint", "folder": shown(file.folder), **named}


def corpus_source(file: StudyFile, name: str, length: int, tokenizer: str, read: ReadSource | None = None) -> Source:
    """Return the source of a corpus, packed with a tokeniser at a length.

    read: what to call instead of `read_source`. Raises as `read_source` does.
    """
    read = read or read_source
    corpus = file.study.corpora[name]
    source = {
        "format": FORMAT,
        **read(file, name),
        "heldout": corpus.heldout_share,
        "withheld": withheld_share(file),
        "tokens": corpus.tokens,
        "tokenizer": tokenizer,
        "sequence_length": length,
    }
    if share := withheld_texts_share(file, name):
        source["withheld_texts"] = share
    if others := [other for other in corpora_with_splits(file) if other != name]:
        source["withheld_splits"] = [read(file, other)[OWN_SPLIT] for other in others]
    if corpus.dedupe == "near":
        source["near"] = [
            read(file, other)
            | {"heldout": file.study.corpora[other].heldout_share, "tokens": file.study.corpora[other].tokens}
            for other in compared_corpora(file, name)
        ]
    return source


def tokenizer_definition(file: StudyFile) -> Source:
    """Return the definition of the study's tokeniser."""
    settings = tokenizer_settings(file)
    corpora = [_corpus_fields(file, name) for name in sorted(file.trained)] if settings.train is not None else []
    return {DEFINITION: "tokenizer", "folder": shown(file.folder), "corpora": corpora, **_tokenizer_fields(settings)}


def corpus_definition(file: StudyFile, name: str, length: int) -> Source:
    """Return the definition of a corpus, packed at a length."""
    others = [_corpus_fields(file, other) for other in corpora_with_splits(file) if other != name]
    return {
        DEFINITION: "corpus",
        **_corpus_fields(file, name),
        "withheld": withheld_share(file),
        "tokenizer": tokenizer_definition(file),
        "sequence_length": length,
        **({"withheld_texts": share} if (share := withheld_texts_share(file, name)) else {}),
        **({"withheld_splits": others} if others else {}),
        **_near_definition(file, name),
    }


def _near_definition(file: StudyFile, name: str) -> Source:
    """What the definition of a corpus with `dedupe: near` says of the corpora that it is compared with."""
    if file.study.corpora[name].dedupe != "near":
        return {}
    return {"near": [_corpus_fields(file, other) for other in compared_corpora(file, name)]}


@contextlib.contextmanager
def naming_checkpoint(file: StudyFile) -> Iterator[None]:
    """Prefix errors with the study file and the field of the checkpoint."""
    try:
        yield
    except RetainError as error:
        raise type(error)(f"{file.path.name}: model.hf: {error}") from error


@contextlib.contextmanager
def naming_tokenizer(file: StudyFile, copy: Path | None = None) -> Iterator[None]:
    """Prefix errors with the study file and the field of the tokeniser; of a checkpoint's own, name the cure too.

    copy: the folder of the store that is read instead of the checkpoint's.
    """
    try:
        yield
    except RetainError as error:
        what, field = str(error).removeprefix("tokenizer: ").removeprefix("tokenizer.hf: "), "tokenizer"
        if file.study.tokenizer is None:
            what = what.rpartition(";")[0].replace(str(copy), str(tokenizer_settings(file).hf))
            what = f"{what}; name another tokeniser, as in {{hf: ID}}"
        elif file.study.tokenizer.hf is not None:
            field = "tokenizer.hf"
        raise type(error)(f"{file.path.name}: {field}: {what}") from error


@contextlib.contextmanager
def naming_corpus(file: StudyFile, name: str, heldout: bool = False) -> Iterator[None]:
    """Prefix errors with the study file and the corpus. heldout: whether its own held-out split is read."""
    try:
        yield
    except RetainError as error:
        text, field = str(error), f"corpora.{name}{'.heldout' if heldout else ''}"
        # The message may begin with a field of the section.
        joined = "." if heldout and text.startswith(("files: ", "split: ")) else ": "
        raise type(error)(f"{file.path.name}: {field}{joined}{text}") from error


class _SavedNote(TypedDict):
    """The content of a note."""

    fingerprint: str
    source: Source
    """Without the passwords of URLs."""
    digest: NotRequired[str]
    """The digest of the source, where it has passwords."""
    facts: NotRequired[dict[str, int]]
    commit: NotRequired[str]
    reading: NotRequired[Reading]


@dataclass(frozen=True)
class Note:
    """What a source or a definition was prepared to."""

    fingerprint: str
    facts: Mapping[str, int]
    """The vocabulary of a tokeniser; the sequences of a corpus in each split. Empty for a checkpoint, whose facts are in its
    folder, and in notes of earlier versions."""
    reading: Reading | None = None
    """What came of reading a corpus; None for anything else, and in notes of earlier versions."""


def read_note(store: Path, source: Source) -> Note | None:
    """Return the note on a source or a definition; None if the store has none, or it is damaged.

    Raises DamageError if it may not be read, NewerFormatError.
    """
    try:
        return _read(note_path(store, source))
    except FileNotFoundError:
        return None
    except NewerFormatError:
        raise
    except DamageError as error:
        if isinstance(error.__cause__, PermissionError):
            raise
        return None


def noted_commit(store: Path, source: Source) -> str | None:
    """The commit on the hub that a source was read at, by its note; None if it is not of the hub. Raises DamageError."""
    try:
        return read_document(note_path(store, source), _SavedNote, CURE).get("commit")
    except FileNotFoundError:
        return None


def _read(path: Path) -> Note:
    note = read_document(path, _SavedNote, CURE)
    if note.get("digest", digest(note["source"])) != path.stem:
        raise DamageError(f"{path} is the note of another source; {CURE}")
    facts = note.get("facts", {})
    return Note(
        note["fingerprint"], facts if facts.keys() in ({"vocabulary"}, set(SPLITS)) else {}, note.get("reading")
    )


def note_problem(path: Path) -> str | None:
    """What is wrong with a note, or with the first damaged one of a folder; None if nothing is."""
    if path.name == FOLDER:
        return answers_problem(path)
    for note in sorted(path.glob("*.json")) if path.is_dir() and path.suffix != ".json" else [path]:
        try:
            _read(note)
        except FileNotFoundError:
            continue
        except DamageError as error:
            return str(error)
    return None


def write_note(store: Path, source: Source, note: Note, commit: str | None = None) -> None:
    """Note what a source or a definition was prepared to, and the commit on the hub that it was read at."""
    path = note_path(store, source)
    path.parent.mkdir(parents=True, exist_ok=True)
    document = {"fingerprint": note.fingerprint, "facts": dict(note.facts), "source": redacted_values(source)}
    if digest(document["source"]) != path.stem:
        document["digest"] = path.stem
    reading = {"reading": asdict(note.reading)} if note.reading else {}
    write_document(path, document | ({"commit": commit} if commit else {}) | reading)


def answer_path(file: StudyFile, name: str, store: Path) -> Path:
    """The place of the note on what servers said of a corpus; see `reading.answers`. Raises StudyError as `with_variables`."""
    corpus, definition = file.study.corpora[name], _corpus_fields(file, name)
    if corpus.has_conversations:
        definition["chat"] = _tokenizer_fields(tokenizer_settings(file))
    for split in filter(None, (corpus, corpus.heldout_corpus)):
        with naming_corpus(file, name, heldout=split is not corpus):
            # The same definition names other files where a variable is another.
            definition["places"] = [*definition.get("places", []), *places(split, file.folder)]
    return store / "prepared" / FOLDER / f"{digest(definition)}.json"


def digest(source: Source) -> str:
    """Return a short name for a source or a definition: 20 hexadecimal digits."""
    return hashlib.sha256(canonical(source).encode()).hexdigest()[:20]


def note_path(store: Path, source: Source) -> Path:
    """The place of the note on a source or a definition."""
    return store / "prepared" / ("last" if DEFINITION in source else "") / f"{digest(source)}.json"


def source_identity(corpus: fields.Corpus, folder: Path, remote: bool = True) -> dict[str, Any]:
    """Return what identifies a source, without reading it.

    Packages are identified by version, local files by path, size and modification time, files at URLs by what the server says
    of them (size, and etag or time), Hugging Face by id and revision. Only used to find data that is prepared already: the
    identity of prepared data is the fingerprint of its tokens. remote: whether files at URLs belong to it.
    """
    source: dict[str, Any] = corpus.model_dump(
        include={"package", "hf", "config", "revision", "split", "text", "separator"}
    )
    # Left out at their defaults, so that data prepared before these fields existed is still found.
    for name in ("template", *fields.FIELDS_OF_RESPONSES):
        if getattr(corpus, name) is not None:
            source[name] = getattr(corpus, name)
    if corpus.in_turn != 1:
        source["in_turn"] = corpus.in_turn
    if corpus.package is not None:
        source["versions"] = package_versions(corpus.package)
    if (patterns := corpus.files or data_set_folder(corpus, folder)) is not None:
        try:
            found = [_file_identity(file) for file in find_sources(patterns, folder, remote=remote)]
        except OSError as error:  # removed just now
            raise MissingResourceError(
                f"files: {shown(error.filename)} cannot be read ({os_reason(error)}); try again"
            ) from None
        source["files"] = found
    return source


def _file_identity(file: SourceFile) -> list[Any]:
    if isinstance(file, Path):
        status = file.stat()
        return [shown(file), status.st_size, status.st_mtime_ns]
    return [file.url, file.size, file.version]


def read_source(file: StudyFile, name: str, remote: bool = True) -> Source:
    """Return the source of a corpus, with that of its own held-out split and of its chat template, where it has them.

    remote: whether to ask servers of URLs. Raises ServerUnreachableError if one is silent, StudyError, MissingResourceError.
    """
    corpus = file.study.corpora[name]
    with naming_corpus(file, name):
        data_set_folder(corpus, file.folder, corpus.revision)  # the store's copy of a data set of the hub may have both
        source = source_identity(corpus, file.folder, remote)
        if corpus.has_conversations:
            source["chat"] = chat_source(tokenizer_settings(file), file.folder)
    if (held := corpus.heldout_corpus) is not None:
        with naming_corpus(file, name, heldout=True):
            own = source_identity(held, file.folder, remote)
        source[OWN_SPLIT] = own | ({"chat": source["chat"]} if corpus.has_conversations else {})
    return source


def _tokenizer_fields(settings: fields.Tokenizer) -> Source:
    """A tokeniser's fields; those of later versions only where they are set, so that data prepared before is still found."""
    return settings.model_dump(exclude={"chat_template"} if settings.chat_template is None else None)


def _corpus_fields(file: StudyFile, name: str) -> Source:
    """A corpus's fields; those of later versions only where they are set, as in `_tokenizer_fields`."""
    corpus = file.study.corpora[name]
    later = {field for field in fields.FIELDS_OF_RESPONSES if getattr(corpus, field) is None}
    later |= {"dedupe"} if corpus.dedupe == "exact" else set()
    return {"folder": shown(file.folder), **corpus.model_dump(exclude={"published", "by", *later})}
