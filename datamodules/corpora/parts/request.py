"""What a run that prepares a corpus reads it from, as its stage.json keeps it: enough for any process to do it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from retain.datamodules.corpora.parts.plan import CutCorpus
from retain.datamodules.corpora.sources import Source, corpus_source, digest
from retain.sweeps.base.errors import MissingResourceError
from retain.sweeps.schema.corpora import Corpus
from retain.sweeps.schema.read import StudyFile, check_study


def reads_of(file: StudyFile, cut: CutCorpus) -> dict[str, Any]:
    """The field `reads` of stage.json: the study with its overrides, and the corpus, pinned to a commit."""
    return {
        "path": str(file.path.absolute()),
        "fields": file.study.model_dump(exclude_unset=True, mode="json"),
        "corpus": cut.name,
        "hf": cut.corpus.hf,
        "revision": cut.corpus.revision,
    }


def requested(reads: Mapping[str, Any]) -> tuple[StudyFile, str, Corpus]:
    """The study, the name of the corpus, and the corpus, pinned to a commit. Raises StudyError."""
    file, name = check_study(reads["fields"], Path(reads["path"])), str(reads["corpus"])
    return file, name, file.study.corpora[name].model_copy(update={field: reads[field] for field in ("hf", "revision")})


def check_source(file: StudyFile, name: str, source: Source) -> None:
    """Raise MissingResourceError if the source of a corpus is no longer what is to be packed."""
    if digest(corpus_source(file, name, source["sequence_length"], source["tokenizer"])) != digest(source):
        raise MissingResourceError(
            f"{file.path.name}: corpora.{name}: the source changed while it was prepared; prepare the study's data again "
            "once nothing writes to it"
        )
