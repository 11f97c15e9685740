"""Whether everything that a study reads is there, asked of its sources before anything long starts.

For each corpus the first record is read by the code that `retain data` reads all of it with.
"""

from collections.abc import Iterator
from dataclasses import dataclass

from retain.datamodules.corpora.documents import read_documents
from retain.datamodules.corpora.hub import COMMIT, HubSilentError, is_on_hub, look_up
from retain.datamodules.corpora.tokenizer import TOKENIZER_FILES, tokenizer_files
from retain.sweeps.base.errors import RetainError
from retain.sweeps.schema.read import StudyFile
from retain.sweeps.schema.study import Corpus, Tokenizer


@dataclass(frozen=True)
class Check:
    """One thing that a study reads: whether it resolves, and what it resolves to."""

    name: str
    """As an override names it: corpora.music, tokenizer."""
    source: str
    """In words: id, configuration and split, or files, or a package."""
    revision: str | None
    """As the study says; None where there is none to say."""
    commit: str | None
    """What the revision stands for on the hub now."""
    begins: str | None
    """How the first document begins."""
    problem: str | None
    """What is wrong and the cure; None where all is well."""

    @property
    def pin(self) -> str | None:
        """The override that pins what is on a branch; None where it is pinned already, or cannot be."""
        moving = self.commit is not None and not COMMIT.fullmatch(self.revision or "")
        return f"{self.name}.revision={self.commit}" if moving else None


def check_sources(file: StudyFile) -> Iterator[Check]:
    """The tokeniser, then each corpus. Once the hub has been silent, the others on it are not asked any more."""
    silent: HubSilentError | None = None
    if file.study.tokenizer is not None:
        made = _check_tokenizer(file.study.tokenizer, file)
        silent = made[1]
        yield made[0]
    for name, corpus in file.study.corpora.items():
        made = _check_corpus(f"corpora.{name}", corpus, file, silent)
        silent = silent or made[1]
        yield made[0]


def _check_tokenizer(tokenizer: Tokenizer, file: StudyFile) -> tuple[Check, HubSilentError | None]:
    if tokenizer.hf is None:
        return Check("tokenizer", f"{tokenizer.train} entries, trained on the corpora", None, None, None, None), None
    source, commit, problem, silent = tokenizer.hf, None, None, None
    try:
        if (file.folder / tokenizer.hf).is_dir():
            tokenizer_files(file.folder / tokenizer.hf)
        else:
            found = look_up("model", tokenizer.hf, tokenizer.revision)
            commit = found.commit
            if absent := [name for name in TOKENIZER_FILES if name not in found.files]:
                problem = f"it lacks {' and '.join(absent)}; name a model that ships its tokeniser"
    except RetainError as error:
        problem, silent = str(error), error if isinstance(error, HubSilentError) else None
    return Check("tokenizer", source, tokenizer.revision, commit, None, problem), silent


def _check_corpus(
    name: str, corpus: Corpus, file: StudyFile, silent: HubSilentError | None
) -> tuple[Check, HubSilentError | None]:
    commit, begins, problem = None, None, None
    on_hub = is_on_hub(corpus, file.folder)
    revision = (corpus.revision or "main") if on_hub else None
    try:
        if on_hub:
            if silent is not None:
                raise HubSilentError("not asked, as the hub does not answer; see above")
            assert corpus.hf is not None
            commit = look_up("dataset", corpus.hf, revision).commit
        read = corpus.model_copy(update={"revision": commit}) if on_hub else corpus
        begins = next(iter(read_documents(read, file.folder)), None)
        if begins is None:
            problem = "it holds no text; name another source"
    except RetainError as error:
        problem, silent = str(error), error if isinstance(error, HubSilentError) else None
    return Check(name, _described(corpus, on_hub), revision, commit, begins and begins[:200], problem), silent


def _described(corpus: Corpus, on_hub: bool) -> str:
    if corpus.package is not None:
        return f"package {corpus.package}"
    if corpus.files is not None:
        return f"files {corpus.files if isinstance(corpus.files, str) else ', '.join(corpus.files)}"
    words = [corpus.hf, corpus.config, f"split {corpus.split}" if on_hub else None]
    return " ".join(word for word in words if word)
