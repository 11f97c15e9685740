"""The fields of a corpus and of the tokeniser."""

from typing import Annotated, Any

from pydantic import BeforeValidator, Field, field_validator, model_validator

from retain.sweeps.schema.published_corpora import template_pieces, with_published
from retain.sweeps.schema.section import (
    Number,
    PathText,
    Positive,
    Section,
    Size,
    Whole,
    check_path,
    read_list,
    shown_value,
)


def check_paths(value: Any) -> Any:
    """One path or a list of paths. Raises ValueError."""
    if value == []:
        raise ValueError("the list is empty; name a path, a folder or a pattern")
    if value is not None and not all(isinstance(path, str) for path in read_list(value)):
        raise ValueError(
            f"expected a path or a list of paths (got {shown_value(value)}); quote a path that is a number"
        )
    for path in read_list(value) if value is not None else ():
        check_path(path)
    return value


Paths = Annotated[str | list[str], BeforeValidator(check_paths)]


class Corpus(Section):
    """The source of a corpus's documents: `package`, `files`, `hf` or `published`.

    With `hf` or `published`, `files` names local copies of the files in the same format.
    """

    published: str | None = None
    """A corpus of the paper, by its name in sweeps/schema/published_corpora.py. It sets every field that is not given here."""
    package: str | None = None
    """A corpus that installed Python packages ship: docstrings, instructions, music21 or chemicals."""
    files: Paths | None = None
    """Paths, folders or glob patterns of text, jsonl, json or parquet files, plain or compressed with gzip, zstd or bzip2.
    Relative paths start at the folder of the study file. Hidden files are left out unless a pattern names them."""
    hf: PathText | None = None
    """The id of a Hugging Face data set, a local data set folder, or the format in which `datasets` reads `files`."""
    config: str | None = None
    """The configuration of the Hugging Face data set. The default is the data set's own."""
    revision: str | None = None
    """The commit, tag or branch of the Hugging Face data set. The default is its main branch; a commit pins the data."""
    split: str = "train"
    """The split of the Hugging Face data set. The default is the name that most data sets use."""
    text: str = "text"
    """The field of a record that holds the document, in jsonl, json, parquet and Hugging Face sources; `meta.body` is a field
    of an object. The default is the name that most data sets use."""
    template: str | None = None
    """How to join several fields of a record into a document, such as "{inputs}\\n{targets}". Replaces `text`."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """The text that separates documents in a plain text file. By default a file is one document."""
    in_turn: Positive = 1
    """The number of parts of a Hugging Face source to read in turn, one document from each, so that a `tokens` limit samples
    the whole source. The default reads it from its beginning."""
    tokens: Size | None = None
    """Stop reading once the training split holds this many tokens. By default the whole source is read."""
    heldout: Annotated[Number, Field(gt=0, lt=1)] = 0.02
    """The share of documents in the held-out split, chosen by their hash: never trained on, only evaluated on. The default is
    meant for small corpora; large ones need less."""

    @property
    def source(self) -> str:
        """The package, the files or the Hugging Face data set, for readers."""
        if self.package is not None:
            return f"package {self.package}"
        if self.files is not None:
            return f"files {self.files if isinstance(self.files, str) else ', '.join(self.files)}"
        parts = (self.hf, self.config, self.split, self.revision)
        return "Hugging Face " + ", ".join(part for part in parts if part)

    @model_validator(mode="before")
    @classmethod
    def add_published(cls, value: Any) -> Any:
        return with_published(value) if isinstance(value, dict) else value

    @field_validator("template")
    @classmethod
    def check_template(cls, value: str | None) -> str | None:
        if value is not None:
            template_pieces(value)
        return value

    @model_validator(mode="after")
    def check_source(self) -> "Corpus":
        given = [name for name in ("package", "files", "hf") if getattr(self, name) is not None]
        if given not in (["package"], ["files"], ["hf"], ["files", "hf"]):
            raise ValueError("name exactly one source: package, files, or hf (hf may add files)")
        hub_only = [name for name in ("config", "revision", "split", "in_turn") if name in self.model_fields_set]
        if not self.hf and hub_only:
            raise ValueError(f"{hub_only[0]}: valid only for hf sources; remove {hub_only[0]}")
        if self.template is not None and "text" in self.model_fields_set:
            raise ValueError("template: cannot be combined with text; remove text")
        return self


class Tokenizer(Section):
    """The tokeniser: trained on the study's corpora (`train`), or read from Hugging Face or a local folder (`hf`)."""

    train: Annotated[Whole, Field(ge=300)] | None = None
    """The number of entries of a byte-level BPE to train."""
    sample: Size = 2_000_000
    """The number of characters of each corpus to train the tokeniser on. The default takes seconds."""
    hf: PathText | None = None
    """The id of a model on Hugging Face, or a local folder with tokenizer.json and tokenizer_config.json."""
    revision: str | None = None
    """The commit, tag or branch of the Hugging Face model. The default is its main branch; a commit pins the tokeniser."""

    @model_validator(mode="after")
    def check_source(self) -> "Tokenizer":
        if (self.train is None) == (self.hf is None):
            raise ValueError("give either train: ENTRIES or hf: ID")
        return self
