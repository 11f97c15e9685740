"""Quick check of a study's data sources: whether each one resolves, without downloading it.

Reads the first document of each corpus with the code that `retain data` reads the whole corpus with.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Literal

from retain.datamodules.corpora.checkpoints.files import local_checkpoint
from retain.datamodules.corpora.checkpoints.weights import INDEX, SINGLE
from retain.datamodules.corpora.documents import read_documents
from retain.datamodules.corpora.find import data_set_folder, local_folder
from retain.datamodules.corpora.hub import COMMIT, HubUnreachableError, Repository, is_on_hub, look_up
from retain.datamodules.corpora.responses.marked import text_of
from retain.datamodules.corpora.sources import checkpoint_source, checkpoints_of
from retain.datamodules.corpora.tokenizer import TOKENIZER_FILES, load_tokenizer, tokenizer_files
from retain.sweeps.base.errors import RetainError
from retain.sweeps.schema.corpora import Corpus, Tokenizer
from retain.sweeps.schema.models import Model
from retain.sweeps.schema.read import StudyFile

LookUp = Callable[[Literal["dataset", "model"], str, str | None], Repository]
"""Looks up a repository on the hub, as `hub.look_up` does."""


@dataclass(frozen=True)
class Check:
    """The result for one source: whether it resolves, and to what."""

    name: str
    """The source's name in an override: `corpora.music`, `tokenizer`."""
    source: str
    """A description: id, configuration and split, or files, or a package."""
    revision: str | None
    """The revision that is read; None for a source that has none."""
    commit: str | None
    """The commit on the hub that the revision points to now."""
    begins: str | None
    """The beginning of the first document, at most 200 characters."""
    problem: str | None
    """What is wrong and what to do; None if the source resolves."""

    @property
    def pin(self) -> str | None:
        """The override that pins the source to its current commit; None if it is pinned already or cannot be."""
        moving = self.commit is not None and not COMMIT.fullmatch(self.revision or "")
        return f"{self.name}.revision={self.commit}" if moving else None


def check_sources(file: StudyFile) -> Iterator[Check]:
    """Check the checkpoints and the tokeniser, then each corpus.

    Once the hub has not answered, the remaining sources on the hub are reported as not checked, without asking again.
    """
    ask = _look_up_until_unreachable()
    for model in checkpoints_of(file):
        yield _check_checkpoint(model, file, ask)
    if file.study.tokenizer is not None:
        yield _check_tokenizer(file.study.tokenizer, file, ask)
    for name, corpus in file.study.corpora.items():
        yield _check_corpus(f"corpora.{name}", corpus, file, ask)


def _look_up_until_unreachable() -> LookUp:
    """`look_up`, but once the hub has not answered it is not asked again."""
    unreachable = False

    def ask(kind: Literal["dataset", "model"], name: str, revision: str | None) -> Repository:
        nonlocal unreachable
        if unreachable:
            raise HubUnreachableError("not checked, because the hub does not answer (see above)")
        try:
            return look_up(kind, name, revision)
        except HubUnreachableError:
            unreachable = True
            raise

    return ask


def _check_checkpoint(model: Model, file: StudyFile, ask: LookUp) -> Check:
    commit, problem = None, None
    assert model.hf is not None
    try:
        if local_checkpoint(model, file.folder) is not None:
            checkpoint_source(file, model)
        else:
            repository = ask("model", model.hf, model.revision)
            commit = repository.commit
            if model.weights is None and not {SINGLE, INDEX} & set(repository.files):
                problem = f"{model.hf} has no safetensors weights; choose a revision that has them"
    except RetainError as error:
        problem = str(error)
    return Check("model", model.hf, model.revision, commit, None, problem)


def _check_tokenizer(tokenizer: Tokenizer, file: StudyFile, ask: LookUp) -> Check:
    if tokenizer.hf is None:
        return Check("tokenizer", f"{tokenizer.train} entries, trained on the corpora", None, None, None, None)
    commit, problem = None, None
    try:
        if (local := local_folder(tokenizer.hf, file.folder, "tokenizer.hf: ", tokenizer.revision)) is not None:
            tokenizer_files(local)
            load_tokenizer(local)
        else:
            repository = ask("model", tokenizer.hf, tokenizer.revision)
            commit = repository.commit
            if absent := [name for name in TOKENIZER_FILES if name not in repository.files]:
                problem = f"{tokenizer.hf} has no {' and no '.join(absent)}; choose a model that ships its tokeniser"
    except RetainError as error:
        problem = str(error)
    return Check("tokenizer", tokenizer.hf, tokenizer.revision, commit, None, problem)


def _check_corpus(name: str, corpus: Corpus, file: StudyFile, ask: LookUp) -> Check:
    commit, begins, problem, revision, field = None, None, None, None, ""
    try:
        if on_hub := is_on_hub(corpus, file.folder):
            revision = corpus.revision or "main"
            assert corpus.hf is not None
            commit = ask("dataset", corpus.hf, revision).commit
        else:
            data_set_folder(corpus, file.folder, corpus.revision)
        pinned_corpus = corpus.model_copy(update={"revision": commit}) if on_hub else corpus
        begins = text_of(next(read_documents(pinned_corpus, file.folder)))[:200]
        if (held := pinned_corpus.heldout_corpus) is not None:
            field = "heldout."
            next(read_documents(held, file.folder))
    except RetainError as error:
        problem = f"{field}{error}"
    return Check(name, corpus.source, revision, commit, begins, problem)
