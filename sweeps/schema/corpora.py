"""The fields of a corpus and of the tokeniser."""

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator, model_validator

from retain.sweeps.base.errors import StudyError
from retain.sweeps.base.redaction import redacted
from retain.sweeps.schema.published_corpora import template_pieces, with_published
from retain.sweeps.schema.section import (
    PathText,
    Positive,
    Section,
    Size,
    Whole,
    check_path,
    read_list,
    read_number,
    shown_value,
)
from retain.sweeps.schema.validation_messages import validate


def check_paths(value: Any) -> Any:
    """One path or URL, or a list of them. Raises ValueError."""
    if value == []:
        raise ValueError("the list is empty; name a path, a folder or a pattern")
    if value is not None and not all(isinstance(path, str) for path in read_list(value)):
        raise ValueError(
            f"expected a path or a list of paths (got {shown_value(value)}); quote a path that is a number"
        )
    for path in read_list(value) if value is not None else ():
        if "://" not in path:
            check_path(path)
    return value


Paths = Annotated[str | list[str], BeforeValidator(check_paths)]
Text = Annotated[str, Field(min_length=1)]
FIELDS_OF_RESPONSES = (
    "prompt",
    "response",
    "chosen",
    "rejected",
    "messages",
    "chosen_messages",
    "rejected_messages",
    "predict",
)
"""The fields of a corpus that say what its responses are. Absent fields are no part of what identifies a corpus."""


class HeldoutSplit(Section):
    """A held-out split that a corpus brings along, instead of a share of its documents. Give `split` or `files`."""

    split: Text | None = None
    """The split of the Hugging Face data set that is held out, such as validation."""
    files: Paths | None = None
    """The files that are held out, in the format of the corpus's own `files`."""

    @model_validator(mode="after")
    def check_source(self) -> "HeldoutSplit":
        if (self.split is None) == (self.files is None):
            raise ValueError("give either split: NAME or files: PATHS")
        return self


def read_heldout(value: Any) -> Any:
    """A held-out share above 0 and below 1, or a `HeldoutSplit`. Raises ValueError."""
    if isinstance(value, HeldoutSplit):
        return value
    if isinstance(value, dict):
        try:
            return validate(HeldoutSplit, value, "")
        except StudyError as error:
            raise ValueError(str(error)) from None
    try:
        share = read_number(value)
    except ValueError:
        raise ValueError(
            f"expected a share or a split (got {shown_value(value)}); write a share such as 0.02, {{split: validation}} or "
            "{files: PATHS}, or remove the field"
        ) from None
    if not 0 < share < 1:
        bound = "greater than 0" if share <= 0 else "less than 1"
        raise ValueError(f"must be {bound} (got {shown_value(value)})")
    return float(share)


Heldout = Annotated[float | HeldoutSplit, BeforeValidator(read_heldout)]


class Corpus(Section):
    """The source of a corpus's documents: `package`, `files`, `hf` or `published`.

    With `hf` or `published`, `files` names local copies of the files in the same format.
    """

    published: str | None = None
    """A corpus of the paper, by its name in sweeps/schema/published_corpora.py. It sets every field that is not given here."""
    package: str | None = None
    """A corpus that installed Python packages ship: docstrings, instructions, music21 or chemicals."""
    files: Paths | None = None
    """Paths, folders, URLs (s3://, gs://, hf://, https://) or glob patterns of text, jsonl, json, csv, parquet or arrow files.
    All but the last two may be compressed with gzip, zstd or bzip2. `~` and `$VARIABLES` are replaced, and relative paths start
    at the folder of the study file. Hidden files are left out unless a pattern names them."""
    hf: PathText | None = None
    """The id of a Hugging Face data set, a local data set folder, or the format in which `datasets` reads `files`."""
    config: str | None = None
    """The configuration of the Hugging Face data set. The default is the data set's own."""
    revision: str | None = None
    """The commit, tag or branch of the Hugging Face data set. The default is its main branch; a commit pins the data."""
    split: str = "train"
    """The split of the Hugging Face data set. The default is the name that most data sets use."""
    text: str = "text"
    """The field of a record that holds the document, in all sources but plain text; `meta.body` is a field of an object. The
    default is the name that most data sets use."""
    template: str | None = None
    """How to join several fields of a record into a document, such as "{inputs}\\n{targets}". Replaces `text`."""
    prompt: str | None = None
    """How to write the prompt of a record, such as "Q: {question}\\nA:". Needs `response`, or `chosen` and `rejected`. Replaces
    `text`."""
    response: str | None = None
    """How to write the response to the prompt, such as " {answer}". It follows the prompt directly, and is tokenised apart from
    it, as when a model answers the prompt."""
    chosen: str | None = None
    """How to write the preferred one of two responses to the prompt, such as " {chosen}". Needs `prompt` and `rejected`, and
    makes the corpus one of pairs, for `objective: {dpo: ...}`. All other stages and losses read the chosen responses alone.
    Pairs of conversations have `chosen_messages` instead."""
    rejected: str | None = None
    """How to write the other response to the prompt, such as " {rejected}". Needs `prompt` and `chosen`."""
    messages: Text | None = None
    """The field of a record that holds a conversation: a list of messages, each with a role and a content. The tokeniser's
    chat template writes it; the assistant's turns are the responses. Replaces `text`. Beside `chosen_messages`, the messages
    before those of both conversations."""
    chosen_messages: Text | None = None
    """The field of a record that holds the preferred one of two conversations, for pairs. Needs `rejected_messages`. The
    messages with which both begin are the prompt; the assistant's turns after them are the response."""
    rejected_messages: Text | None = None
    """The field of a record that holds the other conversation. Needs `chosen_messages`."""
    predict: Literal["all", "responses"] | None = None
    """Which tokens count in every loss, in training and on held-out text: all, or only those of the responses. The default is
    responses with `response`, `chosen` or `messages`, and all for other corpora."""
    separator: Annotated[str, Field(min_length=1)] | None = None
    """The text that separates documents in a plain text file. By default a file is one document."""
    by: Text | None = None
    """The field of a record that says what a document is, such as its source: each held-out loss is also given for every value
    of the field, as STAGE/CORPUS[VALUE]. `meta.source` is a field of an object. It changes no weights."""
    in_turn: Positive = 1
    """The number of parts of a Hugging Face source to read in turn, one document from each, so that a `tokens` limit samples
    the whole source. The default reads it from its beginning."""
    tokens: Size | None = None
    """Stop reading once the training split holds this many tokens. By default the whole source is read."""
    heldout: Heldout = 0.02
    """The share of documents in the held-out split, chosen by their hash: never trained on, only evaluated on. The default is
    meant for small corpora; large ones need less. `{split: validation}` or `{files: ...}` names a split that the corpus brings
    along; no corpus of the study trains on an exact copy of a document in it. Pairs are chosen by their prompt, so that all
    pairs of a prompt are in one split."""

    dedupe: Literal["exact", "near"] = "exact"
    """Which copies of documents are dropped: exact copies only (the default, which takes no time), or also near copies
    (MinHash). With near, a training document is dropped if it is a near copy of a held-out document of any corpus that is
    trained on, or of an earlier training document. The held-out split is the same for both. near compares every document,
    and reads each corpus twice."""

    @property
    def responses_only(self) -> bool:
        """Whether only the responses are predicted."""
        return self.predict != "all" and (self.response is not None or self.has_conversations or self.is_pairs)

    @property
    def is_pairs(self) -> bool:
        """Whether a record is a prompt with a chosen and a rejected response."""
        return self.chosen is not None or self.chosen_messages is not None

    @property
    def has_conversations(self) -> bool:
        """Whether a chat template writes the documents."""
        return self.messages is not None or self.chosen_messages is not None

    @property
    def heldout_share(self) -> float:
        """The share of documents that are held out by their hash; 0 for a corpus with a held-out split of its own."""
        return self.heldout if isinstance(self.heldout, float) else 0.0

    @property
    def heldout_corpus(self) -> "Corpus | None":
        """The held-out split that the corpus brings along, as a corpus of its own; None if a share is held out."""
        if isinstance(self.heldout, float):
            return None
        place = {"split": self.heldout.split} if self.heldout.split else {"files": self.heldout.files}
        return self.model_copy(update={**place, "tokens": None})

    @property
    def source(self) -> str:
        """The package, the files or the Hugging Face data set, for readers: the passwords of URLs are hidden."""
        if self.package is not None:
            return f"package {self.package}"
        if self.files is not None:
            return redacted(f"files {self.files if isinstance(self.files, str) else ', '.join(self.files)}")
        parts = (self.hf, self.config, self.split, self.revision)
        return "Hugging Face " + ", ".join(part for part in parts if part)

    @model_validator(mode="before")
    @classmethod
    def add_published(cls, value: Any) -> Any:
        return with_published(value) if isinstance(value, dict) else value

    @field_validator("template", "prompt", "response", "chosen", "rejected")
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
        self._check_pairs()
        self._check_responses()
        if self.by is not None and self.package is not None:
            raise ValueError("by: the documents of packages have no fields to tell them apart; remove by")
        if isinstance(self.heldout, HeldoutSplit):
            if self.heldout.split and (not self.hf or self.files):
                raise ValueError("heldout.split: valid only for hf sources without files; write heldout: {files: ...}")
            if self.heldout.files and not self.files:
                raise ValueError("heldout.files: valid only for sources with files; write heldout: {split: ...}")
        return self

    def _check_pairs(self) -> None:
        """Raise ValueError if the fields of pairs do not fit together."""
        texts, conversations = ("prompt", "chosen", "rejected"), ("chosen_messages", "rejected_messages")
        has_conversations = any(getattr(self, name) is not None for name in conversations)
        if not has_conversations and self.chosen is None and self.rejected is None:
            return
        needed, others = (conversations, texts) if has_conversations else (texts, ())
        if missing := [name for name in needed if getattr(self, name) is None]:
            parts = f"{', '.join(needed[:-1])} and {needed[-1]}"
            raise ValueError(f"{missing[0]}: this field is required; a pair needs {parts}")
        if odd := [name for name in others if getattr(self, name) is not None]:
            raise ValueError(
                f"{odd[0]}: cannot be combined with chosen_messages; remove {odd[0]}, or name a prompt's messages as messages"
            )
        if self.predict == "all":
            raise ValueError("predict: only the responses of pairs are predicted; remove predict")
        if self.by is not None:
            raise ValueError("by: the losses of pairs are not given by value; remove by")
        if self.dedupe == "near":
            raise ValueError("dedupe: near compares documents, and pairs are compared exactly; remove dedupe")

    def _check_responses(self) -> None:
        """Raise ValueError if the fields of prompts, responses and messages do not fit together."""
        if not self.is_pairs and (self.prompt is None) != (self.response is None):
            given, missing = ("prompt", "response") if self.response is None else ("response", "prompt")
            raise ValueError(f"{missing}: missing beside {given}; give both, or write {given} as template")
        named = [
            name for name in ("template", "response", "chosen", "chosen_messages") if getattr(self, name) is not None
        ]
        named += ["messages"] if self.messages is not None and self.chosen_messages is None else []
        named += ["text"] if "text" in self.model_fields_set else []
        if len(named) > 1:
            raise ValueError(f"{named[0]}: cannot be combined with {named[1]}; remove one of them")
        if self.predict == "responses" and not self.responses_only:
            raise ValueError("predict: the corpus has no responses; give prompt and response, or messages")


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
    chat_template: Text | None = None
    """The template that writes the conversations of `messages`: chatml, or a Jinja template as transformers reads them, with
    `{% generation %}` tags around the assistant's turns. The default is the template that comes with the tokeniser of `hf`; a
    trained tokeniser has none. With chatml, `<|im_start|>` and `<|im_end|>` are entries of a trained tokeniser."""

    @model_validator(mode="after")
    def check_source(self) -> "Tokenizer":
        if (self.train is None) == (self.hf is None):
            raise ValueError("give either train: ENTRIES or hf: ID")
        return self


class Documents(Section):
    """How documents behave in the packed sequences."""

    attention: Literal["across", "within"] = "across"
    """What a token sees: all earlier tokens of its sequence (across, the default), or only those of its own document
    (within), whose positions are counted from its beginning. A document ends with the tokeniser's end of text."""
